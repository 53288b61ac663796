"""A run: first looks, near-duplicates, the steps of the recipe, the store.

All work lies in OUT.engine beside the store: shards that are named by all that they depend on, `quarantine.jsonl`,
`timings.jsonl`, `recipe.json` and the report. The same command continues where the last one was stopped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_engine.pictures import Source, content_key, in_shards, look_key, near_duplicates
from data_engine.recipe import Recipe
from data_engine.records import Picture
from data_engine.schedule import Budget, Executor, run_tasks
from data_engine.shards import read_shard
from data_engine.steps.base import digest
from data_engine.tasks import LOOK, Done, Task, failed_at, is_in_quarantine
from uniresxx.files import write_atomic, write_json

REPORT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """What is run, and where.

    Args:
        recipe: the steps.
        images: the folder of pictures.
        out: the store; work lies beside it.
        workers: of each step; None: as the recipe says.
        retry: do again the shards in which a picture failed.
    """

    recipe: Recipe
    images: Path
    out: Path
    workers: int | None = None
    retry: bool = False

    @property
    def folder(self) -> Path:
        """Where the work lies."""
        return self.out.parent / f"{self.out.name}.engine"

    def shard(self, step: str, key: str) -> Path:
        """The file of a shard."""
        return self.folder / "shards" / step / f"{key}.jsonl"


def run_steps(job: Job, found: Sequence[Source], executor: Executor) -> list[Path]:
    """Do what is not done; the files of the finished shards in order.

    Raises:
        FailedRunError: more pictures failed than the recipe allows, or a step's workers die.
        InputError, ImportError, OSError: as `tasks.do`.
    """
    write_json(job.folder / "recipe.json", job.recipe.as_json())
    budget = Budget(job.recipe.budget, len(found))
    progress = Progress(job.folder / "timings.jsonl", len(found))
    groups = in_shards(found, job.recipe.pictures_per_shard)
    looks = [Task(job.images, job.shard(LOOK, look_key(group)), None, sources=group) for group in groups]
    chains = [[task] for task in looks]
    try:
        with closing(executor):
            _do(job, chains, executor, budget, progress)
            chains = _chains(job, [task.output for task in looks])
            _do(job, chains, executor, budget, progress)
    finally:
        progress.write()
        write_quarantine(job.folder / "quarantine.jsonl", chains)
    return [chain[-1].output for chain in chains]


def _do(
    job: Job, chains: Sequence[Sequence[Task]], executor: Executor, budget: Budget, progress: Progress
) -> None:
    """Do the tasks of each chain that are not done."""
    for chain in chains if job.retry else ():
        for task in chain:
            if any(map(is_in_quarantine, pictures_of(task.output))):
                task.output.unlink()
    left = [_not_done(chain, budget) for chain in chains]

    def on_done(task: Task, done: Done) -> None:
        progress.add(task, done)
        budget.add(done.failed)

    run_tasks([tasks for tasks in left if tasks], executor, on_done, job.workers)


def _chains(job: Job, looks: Sequence[Path]) -> list[list[Task]]:
    """The tasks of each shard after its first look."""
    shards = [(path, shard.pictures) for path in looks if (shard := read_shard(path)) is not None]
    repeated = near_duplicates([picture for _, pictures in shards for picture in pictures])
    identities = [step.identity() for step in job.recipe.steps]
    chains = []
    for before, pictures in shards:
        own = {picture.name: repeated[picture.name] for picture in pictures if picture.name in repeated}
        key = digest([content_key(pictures), own])
        chain: list[Task] = []
        for step, identity in zip(job.recipe.steps, identities, strict=True):
            key = digest([key, identity])
            task = Task(job.images, job.shard(step.NAME, key), step, input=before)
            chain.append(replace(task, repeated=own) if not chain else task)
            before = task.output
        chains.append(chain)
    return chains


def _not_done(chain: Sequence[Task], budget: Budget) -> Sequence[Task]:
    """The tasks after the last whole shard, whose failures count; those of first looks were counted with these."""
    for place in range(len(chain) - 1, -1, -1):
        shard = read_shard(chain[place].output)
        if shard is not None:
            steps = [task.name for task in chain]
            budget.add(sum(failed_at(picture) in steps for picture in shard.pictures))
            return chain[place + 1 :]
    return chain


def pictures_of(path: Path) -> tuple[Picture, ...]:
    """The pictures of a shard; none where there is no whole one."""
    shard = read_shard(path)
    return () if shard is None else shard.pictures


def write_quarantine(path: Path, chains: Sequence[Sequence[Task]]) -> None:
    """One line per picture that failed, with step and reason, by the last whole shard of each chain."""
    lines = []
    for chain in chains:
        last = next((found for task in reversed(chain) if (found := pictures_of(task.output))), ())
        lines += [
            json.dumps({"picture": item.name, "reason": item.failed}) + "\n"
            for item in last
            if is_in_quarantine(item)
        ]
    write_atomic(path, "".join(lines).encode())


@dataclass
class Progress:
    """Says how far each step is, and keeps what it cost."""

    path: Path
    total: int
    costs: dict[str, StepCost] = field(default_factory=dict)

    def add(self, task: Task, done: Done) -> None:
        """Note a task; a line for people at most every few seconds."""
        cost = self.costs.setdefault(task.name, StepCost())
        cost.add(done)
        now = time.monotonic()
        if now - cost.said > REPORT_SECONDS or cost.pictures == self.total:
            cost.said = now
            print(f"{task.name}: {cost.line(now)}, {self.total} in all", file=sys.stderr, flush=True)

    def write(self) -> None:
        """Add a line with the costs of this run to `timings.jsonl`."""
        if self.costs:
            line = {name: cost.as_json() for name, cost in self.costs.items()}
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


@dataclass
class StepCost:
    """What a step has cost so far, over all its workers."""

    begun: float = field(default_factory=time.monotonic)
    said: float = 0.0
    pictures: int = 0
    work_seconds: float = 0.0
    seconds: float = 0.0

    def add(self, done: Done) -> None:
        """Add a task."""
        if not self.pictures:
            self.begun -= done.seconds
        self.pictures += done.pictures
        self.work_seconds += done.work_seconds
        self.seconds += done.seconds

    def line(self, now: float) -> str:
        """For people."""
        rate = self.pictures / max(now - self.begun, 1e-9)
        return f"{self.pictures} pictures, {rate:.2f} images/s"

    def as_json(self) -> dict[str, Any]:
        """For `timings.jsonl`: `work_seconds` are those of the step's function alone."""
        return {
            "pictures": self.pictures,
            "work_seconds": round(self.work_seconds, 3),
            "seconds": round(self.seconds, 3),
        }
