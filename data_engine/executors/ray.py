"""Workers on a Ray cluster: one pool of actors per step, all steps at once.

Every machine must see the folders of pictures and of the output, and this clone, under the same paths.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from data_engine.schedule import FailedRunError, Worker
from data_engine.steps.base import Step
from data_engine.tasks import Done, Task, do

ROOT = Path(__file__).resolve().parents[2]
STORE_BYTES = 128 * 2**20  # tasks are small: shards go through files


class RayExecutor:
    """Actors on a cluster that runs, or on one that is started on this machine and ends with this program.

    Args:
        address: of the cluster, as "auto"; None: start one here.
        steps: those that run, to give a cluster started here room for all of them.
        workers: of each step; None: as its options say.
    """

    streams = True

    def __init__(self, address: str | None, steps: Sequence[Step], workers: int | None = None) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"env_vars": {"PYTHONPATH": path}}
        needed = sum(step.cpus * (workers or step.workers) for step in steps) + 1  # and one for first looks
        here = {
            "num_cpus": max(os.cpu_count() or 1, int(needed + 1)),
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
        }
        place = {"address": address} if address is not None else here
        try:
            ray.init(runtime_env=environment, log_to_driver=False, **place)
        except Exception as error:  # Ray raises this class itself
            reason = " ".join(str(error).split())[:200]
            raise FailedRunError(f"Ray cannot be {'reached' if address else 'started'}: {reason}") from None

    def worker(self, step: Step | None) -> Worker:
        """An actor with the resources that its step asks for."""
        return _Actor(step)

    def has_died(self, error: BaseException) -> bool:
        """The actor or its machine is gone."""
        return isinstance(error, RayActorError)

    def cause(self, error: BaseException) -> BaseException:
        """The error without Ray's report around it."""
        return error.cause if isinstance(error, RayTaskError) else error

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        ray.shutdown()


class _Does:
    """What an actor runs."""

    def do(self, task: Task) -> Done:
        """Do a task in the actor's process."""
        return do(task)


class _Actor:
    def __init__(self, step: Step | None) -> None:
        cpus, gpus = (1.0, 0.0) if step is None else (step.cpus, step.gpus)
        remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Does)
        self.actor = remote.remote()

    def start(self, task: Task) -> Future[Done]:
        """Send the task."""
        future: Future[Done] = self.actor.do.remote(task).future()
        return future

    def stop(self) -> None:
        """Kill the actor; shards are whole or not there."""
        ray.kill(self.actor)
