"""The processes of one job: their ranks, sums over them, decisions that they share.

A launcher (`deepspeed`, `torchrun`) sets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*; without them the job is one
process. Everything small (counts, flags, messages) goes over gloo, so it needs no GPU and fails with an error
instead of hanging when a process is gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from uniresxx.errors import InputError
from uniresxx.evaluation.ranks import WRONG_INPUT, OtherRankError, exit_code_of, result_of_rank0

Value = TypeVar("Value")
_CLOSING_SECONDS = 10  # that ranks wait for one another at the end
# words of gloo, NCCL, torch's store and the system for a process that is gone
_LOST = (
    "timed out", "timeout", "connection closed", "connection was likely closed", "connection reset",
    "connection refused", "connection abort", "closed the connection", "socket closed", "unexpectedly closed",
    "broken pipe", "not connected", "unreachable", "no route to host", "host is down",
)  # fmt: skip


@dataclass(frozen=True)
class Ranks:
    """One process among `world_size`; `local_rank` counts within its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    group: Any = None  # gloo group; None in a job of one process
    closing_group: Any = None  # gloo group with a short timeout
    background_group: Any = None  # gloo group of a thread beside the training thread

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def in_background(self) -> Ranks:
        """The same processes for another thread, whose calls do not mix with those of this one."""
        return replace(self, group=self.background_group)

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
        """Drop what ranks other than 0 print inside."""
        if self.is_main:
            yield
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield

    def on_rank0(self, function: Callable[[], Value]) -> Value:
        """Call `function` on rank 0; every rank gets the result.

        Raises what `function` raised on rank 0, and OtherRankError on the other ranks.
        """
        if self.group is None:
            return function()
        return result_of_rank0(
            function, self.is_main, partial(dist.broadcast_object_list, src=0, group=self.group)
        )

    def on_all_ranks(self, function: Callable[[], Value]) -> Value:
        """Call `function` on every rank; where it fails on one, it fails on all.

        Raises on rank 0 what its own call raised, else InputError, OSError or RuntimeError with the message of the
        first rank that failed; OtherRankError on the other ranks.
        """
        if self.group is None:
            return function()
        failure: BaseException | None = None
        found: Any = None
        try:
            found = function()
        except BaseException as error:
            failure = error
        failures = self.gather(None if failure is None else _describe(failure))
        if failure is not None and self.is_main:
            raise failure
        first = next(((rank, *other) for rank, other in enumerate(failures) if other is not None), None)
        if first is None:
            result: Value = found
            return result
        rank, code, number, text = first
        if not self.is_main:
            raise OtherRankError(code) from failure
        if number is not None:
            raise OSError(number, f"process {rank}: {text}")
        raise (InputError if code == WRONG_INPUT else RuntimeError)(f"process {rank}: {text}")

    def close(self, wait: bool) -> None:
        """End the communication.

        `wait` for the other ranks first, for a moment: a launcher ends the job with its first process, and would
        cut off the messages of another.
        """
        if self.group is None:
            return
        if wait:
            with suppress(RuntimeError):  # another rank is gone
                dist.barrier(group=self.closing_group)
        dist.destroy_process_group()

    def exit_now(self, code: int) -> None:
        """Where there are several processes, end this one with `code`, after all messages and files are written.

        `close` could wait for ever for a process that is gone.
        """
        if self.group is None:
            return
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _describe(error: BaseException) -> tuple[int, int | None, str]:
    """An error for other ranks: exit code, the system's error number (of a full disk, …) or None, message."""
    number = error.errno if isinstance(error, OSError) else None
    return exit_code_of(error), number, str(error).removeprefix(f"[Errno {number}] ")


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
    closing_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=_CLOSING_SECONDS))
    background_group = dist.new_group(backend="gloo", timeout=timeout)
    return Ranks(rank, world_size, local_rank, group, closing_group, background_group)


def is_lost(error: RuntimeError) -> bool:
    """Whether this error means that another process is gone or silent."""
    text = str(error).lower()
    unnamed = ("application timeout caused pair closure", "operation timed out!")  # gloo's, without its name
    distributed = isinstance(error, dist.DistError) or any(n in text for n in ("gloo", "nccl", *unnamed))
    return distributed and any(sign in text for sign in _LOST)
