"""The processes of one job: who they are, sums over them, decisions all of them share.

A launcher (`deepspeed`, `torchrun`) sets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*; without them the job is one
process. Everything small (counts, flags, messages) goes over gloo, so it needs no GPU and fails with an error
instead of hanging when a process is gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from uniresxx.errors import InputError

Value = TypeVar("Value")
FAILED, WRONG_INPUT, STOPPED = 1, 2, 75
_FAREWELL_SECONDS = 10
# what gloo, NCCL, torch's store and the system say then
_LOST = (
    "timed out", "timeout", "connection closed", "connection was likely closed", "connection reset",
    "connection refused", "connection abort", "closed the connection", "socket closed", "unexpectedly closed",
    "broken pipe", "not connected", "unreachable", "no route to host", "host is down",
)  # fmt: skip


class FollowedError(RuntimeError):
    """Rank 0 failed and says why; this rank ends with the same exit code and no words of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(f"rank 0 ended with exit code {code}")
        self.code = code


@dataclass(frozen=True)
class Ranks:
    """One process among `world_size`; `local_rank` counts within its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    group: Any = None  # gloo group; None in a job of one process
    farewell: Any = None  # another, that waits only for a moment

    @property
    def is_main(self) -> bool:
        """Does this process write and speak?"""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks in float64; the same on every rank, bit by bit."""
        if self.group is None:
            return [float(value) for value in values]
        total = torch.tensor([float(value) for value in values], dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        found: list[float] = total.tolist()
        return found

    def gather(self, value: Value) -> list[Value]:
        """The value of every rank, by rank."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.group)
        return found

    @contextmanager
    def main_output_only(self) -> Iterator[None]:
        """What the other ranks than 0 print inside is dropped."""
        if self.is_main:
            yield
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield

    def on_rank0(self, work: Callable[[], Value]) -> Value:
        """Rank 0 does `work`, everyone gets the result; where it fails, every rank ends together.

        Raises what `work` raised on rank 0 and FollowedError on the others.
        """
        if self.group is None:
            return work()
        message: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.is_main:
            try:
                message[0] = work()
            except BaseException as error:
                failure = error
                message[1] = _code(error)
        dist.broadcast_object_list(message, src=0, group=self.group)
        if failure is not None:
            raise failure
        if message[1] is not None:
            raise FollowedError(message[1])
        found: Value = message[0]
        return found

    def on_all_ranks(self, work: Callable[[], Value]) -> Value:
        """Every rank does `work`; where one fails, every rank ends, and rank 0 speaks for the first that did.

        Raises on rank 0 what its own `work` raised, or InputError / OSError / RuntimeError with another's words.
        """
        if self.group is None:
            return work()
        failure: BaseException | None = None
        found: Any = None
        try:
            found = work()
        except BaseException as error:
            failure = error
        told = self.gather(None if failure is None else _words(failure))
        if failure is not None and self.is_main:
            raise failure
        first = next(((rank, *words) for rank, words in enumerate(told) if words is not None), None)
        if first is None:
            done: Value = found
            return done
        rank, code, number, text = first
        if not self.is_main:
            raise FollowedError(code) from failure
        if number is not None:
            raise OSError(number, f"process {rank}: {text}")
        raise (InputError if code == WRONG_INPUT else RuntimeError)(f"process {rank}: {text}")

    def leave(self, together: bool) -> None:
        """End the communication; `together`: when every rank is here (or a moment later), so that a launcher
        that ends the job with its first process cannot cut off the words of another."""
        if self.group is None:
            return
        if together:
            with suppress(RuntimeError):  # a rank that is gone cannot be waited for
                dist.barrier(group=self.farewell)
        dist.destroy_process_group()

    def abandon(self, code: int) -> None:
        """Where there are several processes, end this one now with `code`. Everything is said and written; ending
        the communication in order could wait for ever for a process that is gone."""
        if self.group is None:
            return
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _code(error: BaseException) -> int:
    """The exit code of a program that ends with this error."""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    return WRONG_INPUT if isinstance(error, InputError) else FAILED


def _words(error: BaseException) -> tuple[int, int | None, str]:
    """What other ranks need to know: the exit code, the system's number where it has one (a full disk), the words."""
    number = error.errno if isinstance(error, OSError) else None
    return _code(error), number, str(error).removeprefix(f"[Errno {number}] ")


def join(device: torch.device, timeout_minutes: float, always: bool = False) -> Ranks:
    """Join the job of the launcher; `always` makes a group of one where there is no launcher (ZeRO needs one)."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    if world_size == 1 and not always:
        return Ranks()
    timeout = timedelta(minutes=timeout_minutes)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        if world_size == 1:
            for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
                os.environ.setdefault(name, value)
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
    group = dist.new_group(backend="gloo", timeout=timeout)
    farewell = dist.new_group(backend="gloo", timeout=timedelta(seconds=_FAREWELL_SECONDS))
    return Ranks(rank, world_size, local_rank, group, farewell)


def is_lost(error: RuntimeError) -> bool:
    """Does this error say that another process is gone or silent?"""
    text = str(error).lower()
    # two of their sentences do not name who speaks: the first is told to the operations beside the one that waited
    unnamed = ("application timeout caused pair closure", "operation timed out!")
    told = isinstance(error, dist.DistError) or any(name in text for name in ("gloo", "nccl", *unnamed))
    return told and any(sign in text for sign in _LOST)
