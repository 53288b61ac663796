"""Workers on this machine: this process itself, or processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Thread

from data_engine.schedule import Worker
from data_engine.steps.base import Step
from data_engine.tasks import Done, Task, do, forget_models


class LocalExecutor:
    """One step after another, so that one model is in memory at a time.

    Args:
        in_process: do everything in this process: no start-up time, but a crash of a model ends the run.
    """

    streams = False

    def __init__(self, in_process: bool = False) -> None:
        self.in_process = in_process

    def worker(self, step: Step | None) -> Worker:
        """A worker for a step."""
        return _ThisProcess() if self.in_process else _Process()

    def has_died(self, error: BaseException) -> bool:
        """A killed process breaks its pool."""
        return isinstance(error, BrokenProcessPool)

    def cause(self, error: BaseException) -> BaseException:
        """The error itself."""
        return error

    def close(self) -> None:
        """Workers are ended by the scheduler."""


class _ThisProcess:
    """Does a task before `start` returns."""

    def start(self, task: Task) -> Future[Done]:
        """A future that is done."""
        future: Future[Done] = Future()
        try:
            future.set_result(do(task))
        except Exception as error:  # the scheduler raises it
            future.set_exception(error)
        return future

    def stop(self) -> None:
        """Let go of the model."""
        forget_models()


class _Process:
    """A process of its own, so that its death is that of one task."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)

    def start(self, task: Task) -> Future[Done]:
        """Send the task."""
        return self.pool.submit(do, task)

    def stop(self) -> None:
        """Kill the process; shards are whole or not there."""
        processes = list((self.pool._processes or {}).values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()


def _begin() -> None:
    """Leave signals to the program, and end when it ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
