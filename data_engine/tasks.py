"""One shard of one step: what a worker is sent, and how it does it. Needs nothing but files, on any machine.

A picture at which a step fails is put in quarantine with the reason, and the others go on. Where a worker died, the
shard is done again with a note of the picture that is being worked on; if it dies there again, that picture is it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from data_engine.pictures import LOOK_VERSION, Source, look_at, unseen
from data_engine.records import Picture
from data_engine.shards import read_shard, write_shard
from data_engine.steps.base import Step, Work
from uniresxx.errors import InputError
from uniresxx.files import write_atomic
from uniresxx.imaging.decode import read_photo

LOOK = "look"  # the step before the recipe's own
REPEATED = f"{LOOK}: near-duplicate of"


@dataclass(frozen=True, slots=True)
class Task:
    """A shard to do.

    Args:
        folder: of the pictures.
        output: the shard's file.
        step: None: the first look.
        input: the shard's file of the step before, or of first looks.
        sources: for a first look.
        repeated: pictures that repeat another one, with its name.
        dead: pictures at which a worker died, with the reason.
        careful: note in a file beside `output` which picture is being worked on.
        attempt: 1 or more.
    """

    folder: Path
    output: Path
    step: Step | None
    input: Path | None = None
    sources: tuple[Source, ...] = ()
    repeated: Mapping[str, str] = field(default_factory=dict)
    dead: Mapping[str, str] = field(default_factory=dict)
    careful: bool = False
    attempt: int = 1

    @property
    def name(self) -> str:
        """The step's name."""
        return LOOK if self.step is None else self.step.NAME

    @property
    def note(self) -> Path:
        """The file that says which picture is being worked on."""
        return self.output.with_suffix(".at")


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a task. `failed` are those of this step alone; `work_seconds` those of its own function."""

    pictures: int
    failed: int
    work_seconds: float
    seconds: float


@lru_cache(maxsize=1)
def _built(step: Step) -> Work:
    work = step.build()
    if "torch" in sys.modules:  # so many on every executor: sums depend on it in the last bits
        sys.modules["torch"].set_num_threads(max(1, round(step.cpus)))
    return work


@lru_cache(maxsize=1)
def _identity(step: Step) -> Mapping[str, Any]:
    return step.identity()


def forget_models() -> None:
    """Let go of the model that this process holds."""
    _built.cache_clear()
    gc.collect()


def do(task: Task) -> Done:
    """Do a task and write its shard.

    Raises:
        InputError: the model cannot be had.
        ImportError: a package is missing.
        OSError: the disk.
    """
    start = time.perf_counter()
    identity: Mapping[str, Any] = {"step": LOOK, "version": LOOK_VERSION}
    if task.step is None:
        pictures, spent = _first_looks(task)
    else:
        pictures, spent = _stepped(task, _built(task.step))
        identity = _identity(task.step)
    write_shard(task.output, identity, pictures)
    task.note.unlink(missing_ok=True)
    failed = sum(failed_at(picture) == task.name for picture in pictures)
    return Done(len(pictures), failed, spent, time.perf_counter() - start)


def _first_looks(task: Task) -> tuple[list[Picture], float]:
    """The pictures of a first look, and its seconds."""
    start = time.perf_counter()
    pictures = [
        _attempted(task, unseen(source), partial(look_at, source, task.folder)) for source in task.sources
    ]
    return pictures, time.perf_counter() - start


def _stepped(task: Task, work: Work) -> tuple[list[Picture], float]:
    """The pictures after a step, and the seconds of its own function. Those that failed before go by."""
    assert task.input is not None
    shard = read_shard(task.input)
    if shard is None:
        raise OSError(f"{task.input}: is gone or damaged; give the same command again")
    timed, pictures = _Timed(work), []
    for picture in shard.pictures:
        if picture.name in task.repeated and picture.failed is None:
            picture = replace(picture, failed=f"{REPEATED} {task.repeated[picture.name]}")
        if picture.failed is None:
            picture = _attempted(task, picture, partial(timed.on_file, task.folder, picture))
        pictures.append(picture)
    return pictures, timed.seconds


def is_in_quarantine(picture: Picture) -> bool:
    """Whether something went wrong with a picture; a near-duplicate is left out on purpose."""
    return picture.failed is not None and not picture.failed.startswith(REPEATED)


def failed_at(picture: Picture) -> str | None:
    """The step at which something went wrong with a picture."""
    return str(picture.failed).partition(":")[0] if is_in_quarantine(picture) else None


@dataclass(slots=True)
class _Timed:
    """A step's function, whose seconds are added up."""

    work: Work
    seconds: float = 0.0

    def on_file(self, folder: Path, picture: Picture) -> Picture:
        """The result for a picture that is read from its file; InputError where that has changed."""
        photo = read_photo(folder / picture.name)
        if photo.shape[:2] != (picture.height, picture.width):
            raise InputError(f"{picture.name}: has changed since the first look; give the same command again")
        start = time.perf_counter()
        try:
            return self.work(picture, photo)
        finally:
            self.seconds += time.perf_counter() - start


def _attempted(task: Task, picture: Picture, make: Callable[[], Picture]) -> Picture:
    """The result of `make`, or the picture with the reason why there is none.

    Out of memory is tried once more, after what can be freed was freed.
    """
    if picture.name in task.dead:
        return replace(picture, failed=f"{task.name}: {task.dead[picture.name]}")
    if task.careful:
        task.note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(task.note, picture.name.encode())
    try:
        return make()
    except ImportError:
        raise
    except Exception as error:  # whatever a model does with one picture, the others go on
        if not _is_out_of_memory(error):
            return _failed(task, picture, error)
    _free_memory()
    try:
        return make()
    except Exception as error:
        return _failed(task, picture, error)


def _failed(task: Task, picture: Picture, error: Exception) -> Picture:
    reason = (" ".join(str(error).split()) or "no message")[:200]
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return replace(picture, failed=f"{task.name}: {kind}{reason}".replace(f"{task.folder}/", ""))


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
