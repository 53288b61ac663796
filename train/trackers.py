"""Optional readers of the log: TensorBoard, trackio, wandb. Imported only where the recipe asks for them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from train.recipe import LogConfig
from uniresxx.errors import InputError

PROJECT, TENSORBOARD = "uniresxx", "tensorboard"


class Tracker(Protocol):
    """Receives numbers by name."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step."""
        ...

    def close(self) -> None:
        """End the run."""
        ...


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log line by path (`train/loss`, `eval/NAME/SPLIT/mIoU`); gaps and words are left out."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{name}": number for name, number in numbers_of(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            found[key] = float(value)
    return found


def tracked_numbers(record: Mapping[str, Any], group: str) -> dict[str, float]:
    """The finite numbers of a log line, each with its group in front; without the counts of the data."""
    numbers = numbers_of({key: value for key, value in record.items() if key != "drawn"})
    return {
        f"{group}/{name.removeprefix(f'{group}/')}": number
        for name, number in numbers.items()
        if math.isfinite(number)
    }


def check_trackers(log: LogConfig) -> None:
    """Raise InputError for a tracker of the recipe that is not installed."""
    wanted = {"--log.tensorboard True": "tensorboard"} if log.tensorboard else {}
    if log.tracker != "none":
        wanted[f"--log.tracker {log.tracker}"] = log.tracker
    for option, package in wanted.items():
        if package not in sys.modules and find_spec(package) is None:
            raise InputError(
                f"{option}: {package} is not installed: pip install {package}, or leave the option out"
            )


def open_trackers(log: LogConfig, out: Path, step: int, about: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of the recipe, for a run that continues after `step`."""
    found: list[Tracker] = [TensorBoard(out / TENSORBOARD, step)] if log.tensorboard else []
    return found if log.tracker == "none" else [*found, Service(log.tracker, out, about)]


class TensorBoard:
    """Event files in OUT/tensorboard, without what a killed run wrote after its last checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Scalars."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()


class Service:
    """trackio or wandb: both have `init`, `log` and `finish`. A run continues under the same name."""

    def __init__(self, package: str, out: Path, about: Mapping[str, Any]) -> None:
        self.module: Any = import_module(package)
        more = {}
        if package == "wandb":  # it finds a run by its id; trackio by its name
            more = {"id": sha256(str(out.resolve()).encode()).hexdigest()[:16], "dir": str(out)}
        self.module.init(project=PROJECT, name=out.name, config=dict(about), resume="allow", **more)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """One row."""
        self.module.log(dict(numbers), step=step)

    def close(self) -> None:
        """End the run."""
        self.module.finish()
