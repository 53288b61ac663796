"""The processes that evaluate one benchmark together, as `torchrun` or `deepspeed` started them.

They share the work by batches and need little from one another: what process 0 decided, and that all are done. Both
go over gloo, so they need no GPU, and fail with an error where a process is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from uniresxx.errors import InputError

Value = TypeVar("Value")
FAILED, WRONG_INPUT, STOPPED = 1, 2, 75
_LONGEST = timedelta(days=7)  # that a process waits for the slowest one; a dead one is noticed at once


class OtherRankError(RuntimeError):
    """Process 0 failed and says why; this process ends with the same exit code and says nothing."""

    def __init__(self, code: int) -> None:
        super().__init__(f"process 0 ended with exit code {code}")
        self.code = code


class LostRankError(RuntimeError):
    """Another process is gone."""


class Processes(Protocol):
    """The processes that evaluate together, all of which make the same calls in the same order."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def is_main(self) -> bool: ...
    def on_rank0(self, function: Callable[[], Value]) -> Value: ...
    def on_all_ranks(self, function: Callable[[], Value]) -> Value: ...


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among `world_size`; `group` is a gloo group, None in a job of one process."""

    rank: int = 0
    world_size: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all share, and prints."""
        return self.rank == 0

    def on_rank0(self, function: Callable[[], Value]) -> Value:
        """Call `function` on process 0, after all have come here; every process gets the result.

        Raises what `function` raised on process 0, OtherRankError on the others, LostRankError where one is gone.
        """
        if self.group is None:
            return function()
        self._wait()
        return result_of_rank0(function, self.is_main, self._broadcast)

    def on_all_ranks(self, function: Callable[[], Value]) -> Value:
        """Call `function` on every process. One that fails ends; the others notice it when they next wait for it."""
        return function()

    def first_on_rank0(self, function: Callable[[], Value]) -> Value:
        """Call `function` on every process, on the others once process 0 has succeeded, which alone says why not."""
        own: list[Value] = []
        self.on_rank0(lambda: own.append(function()))
        return own[0] if own else function()

    def _wait(self) -> None:
        from torch import distributed

        try:
            distributed.barrier(group=self.group)
        except RuntimeError as error:
            raise LostRankError("another process is gone") from error

    def _broadcast(self, message: list[Any]) -> None:
        from torch import distributed

        try:
            distributed.broadcast_object_list(message, src=0, group=self.group)
        except RuntimeError as error:
            raise LostRankError("another process is gone") from error

    def leave(self) -> None:
        """End the communication, after all have come here."""
        if self.group is not None:
            from torch import distributed

            self._wait()
            distributed.destroy_process_group()


ALONE = Ranks()


def ranks_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, number of processes) that a launcher has set; (0, 1) without one. InputError where they are odd."""
    rank, world_size = environment.get("RANK") or "0", environment.get("WORLD_SIZE") or "1"
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise InputError(f"RANK={rank} and WORLD_SIZE={world_size} are not those of a launcher: unset both")
    return int(rank), int(world_size)


def join() -> Ranks:
    """Join the processes of the launcher. Where each can have a GPU of its own, that becomes its current one."""
    rank, world_size = ranks_of()
    if world_size == 1:
        return ALONE
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or "0") % torch.cuda.device_count())
    distributed.init_process_group("gloo", timeout=_LONGEST)
    return Ranks(rank, world_size, distributed.group.WORLD)


def result_of_rank0(
    function: Callable[[], Value], is_main: bool, broadcast: Callable[[list[Any]], None]
) -> Value:
    """Call `function` on process 0; every process gets the result.

    Args:
        function: what process 0 does.
        is_main: whether this is process 0.
        broadcast: fills a list with that of process 0.

    Raises:
        What `function` raised, on process 0; OtherRankError on the others.
    """
    message: list[Any] = [None, None]
    failure: BaseException | None = None
    if is_main:
        try:
            message[0] = function()
        except BaseException as error:
            failure = error
            message[1] = exit_code_of(error)
    broadcast(message)
    if failure is not None:
        raise failure
    if message[1] is not None:
        raise OtherRankError(message[1])
    found: Value = message[0]
    return found


def exit_code_of(error: BaseException) -> int:
    """The exit code of a program that ends with this error."""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    return WRONG_INPUT if isinstance(error, InputError) else FAILED
