"""Tasks to workers: each step has a pool, a worker does one task at a time, and what a death means.

The scheduler knows neither processes nor Ray: an executor starts workers, and says which error means that one died.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from data_engine.steps.base import Step
from data_engine.tasks import Done, Task

MOST_SILENT_DEATHS = 3  # of workers of a step before any picture: its model cannot be loaded here
OnDone = Callable[[Task, Done], None]


class FailedRunError(RuntimeError):
    """The run cannot go on; what is done stays, and the same command continues."""


class Worker(Protocol):
    """A process that does the tasks of one step, one at a time."""

    def start(self, task: Task) -> Future[Done]:
        """Begin a task; the future has its error, too."""
        ...

    def stop(self) -> None:
        """End the process, whatever it does."""
        ...


class Executor(Protocol):
    """Starts workers."""

    @property
    def streams(self) -> bool:
        """Whether the workers of all steps run at once; else one step after another."""
        ...

    def worker(self, step: Step | None) -> Worker:
        """A new worker for a step; None: for first looks."""
        ...

    def has_died(self, error: BaseException) -> bool:
        """Whether an error of a task means that its worker is gone."""
        ...

    def cause(self, error: BaseException) -> BaseException:
        """What a task itself raised, without what an executor adds."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


@dataclass
class Budget:
    """How many pictures may fail before the run stops: a share of all of them, rounded up."""

    share: float
    pictures: int
    failed: int = 0

    @property
    def allowed(self) -> int:
        """Pictures that may fail."""
        return math.ceil(self.share * self.pictures)

    def add(self, failed: int) -> None:
        """Note failures; FailedRunError where they are too many."""
        self.failed += failed
        if self.failed > self.allowed:
            raise FailedRunError(
                f"{self.failed} pictures failed, and the recipe's budget of {self.share:g} allows {self.allowed} of "
                f"{self.pictures}"
            )


@dataclass
class _Pool:
    """The workers of a step."""

    step: Step | None
    size: int
    waiting: deque[list[Task]] = field(default_factory=deque)
    idle: list[Worker] = field(default_factory=list)
    started: int = 0

    def free(self, executor: Executor) -> Worker | None:
        """A worker without work, a new one where there may be more; None where all are busy."""
        if self.idle:
            return self.idle.pop()
        if self.started == self.size:
            return None
        self.started += 1
        return executor.worker(self.step)

    def stop(self) -> None:
        """End the idle workers."""
        for worker in self.idle:
            worker.stop()
        self.idle.clear()


def run_tasks(
    chains: Sequence[Sequence[Task]], executor: Executor, on_done: OnDone, workers: int | None = None
) -> None:
    """Do all tasks; those of a chain one after another.

    Args:
        chains: the tasks of each shard that are not done.
        executor: starts the workers; they are ended here, whatever happens.
        on_done: called after each task, with what came of it. What it raises ends the run.
        workers: of each step; None: as its options say.

    Raises:
        FailedRunError: a step's workers die before any picture.
        InputError, ImportError, OSError: as `tasks.do`.
    """
    if executor.streams:
        _advance(chains, executor, on_done, workers)
        return
    names = list(dict.fromkeys(task.name for chain in chains for task in chain))
    for name in sorted(names, key=lambda name: _place(chains, name)):
        _advance(
            [[task] for chain in chains for task in chain if task.name == name], executor, on_done, workers
        )


def _place(chains: Sequence[Sequence[Task]], name: str) -> int:
    """How far from its chain's end a step is, negative: chains may begin late, but all end with the last step."""
    return min(
        place - len(chain) for chain in chains for place, task in enumerate(chain) if task.name == name
    )


def _advance(
    chains: Sequence[Sequence[Task]], executor: Executor, on_done: OnDone, workers: int | None
) -> None:
    left = Counter(task.name for chain in chains for task in chain)
    pools: dict[str, _Pool] = {}
    for chain in chains:
        for task in chain:
            size = workers or (1 if task.step is None else task.step.workers)
            pools.setdefault(task.name, _Pool(task.step, max(1, size)))
        if chain:
            pools[chain[0].name].waiting.append(list(chain))
    running: dict[Future[Done], tuple[Worker, list[Task]]] = {}
    try:
        while left.total():
            for pool in pools.values():
                while pool.waiting and (worker := pool.free(executor)) is not None:
                    chain = pool.waiting.popleft()
                    running[worker.start(chain[0])] = worker, chain
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, chain = running.pop(future)
                pool = pools[chain[0].name]
                error = future.exception()
                if error is not None and executor.has_died(error):
                    worker.stop()
                    pool.started -= 1
                    pool.waiting.appendleft([_after_death(chain[0]), *chain[1:]])
                    continue
                pool.idle.append(worker)
                if error is not None:
                    raise executor.cause(error)
                on_done(chain[0], future.result())
                left[chain[0].name] -= 1
                if not left[chain[0].name]:
                    pool.stop()
                if chain[1:]:
                    pools[chain[1].name].waiting.append(chain[1:])
    finally:
        for worker, _ in running.values():
            worker.stop()
        for pool in pools.values():
            pool.stop()


def _after_death(task: Task) -> Task:
    """The task again: first with notes, then without the picture at which its worker died with notes."""
    again = replace(task, careful=True, attempt=task.attempt + 1)
    if not task.careful:
        return again
    name = ""
    with suppress(OSError):
        name = task.note.read_text(encoding="utf-8")
        task.note.unlink()
    if name:
        return replace(again, dead={**task.dead, name: "its worker died there twice"})
    if task.attempt > MOST_SILENT_DEATHS + len(task.dead):
        raise FailedRunError(f"{task.name}: its workers die before any picture; see their messages above")
    return again
