"""A step: from a picture's record to the next one, by one model at most. Its options are all that it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from data_engine.model import Model
from data_engine.records import Picture

Work = Callable[[Picture, np.ndarray], Picture]  # of a step with its model loaded; pure
PLACEMENT = ("workers", "cpus", "gpus")  # options that change where a step runs, and no result


@dataclass(frozen=True, kw_only=True)
class Step:
    """The options of a step. `workers`, `cpus` and `gpus` (of each worker) say where it runs and change no result."""

    NAME: ClassVar[str]
    VERSION: ClassVar[int]  # raised with every change of what the step computes
    workers: int = 1
    cpus: float = 1
    gpus: float = 0

    def build(self) -> Work:
        """Load the model; InputError where it cannot be had."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """All that the results depend on, JSON-ready."""
        values = {
            item.name: value.identity() if isinstance(value := getattr(self, item.name), Model) else value
            for item in fields(self)
            if item.name not in PLACEMENT
        }
        return {"step": self.NAME, "version": self.VERSION, **values}


def digest(value: Any) -> str:
    """A name for JSON data: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def shortfall(step: str, what: str, value: float, least: float) -> str | None:
    """The reason to reject an item whose `value` is below `least`; None where it is not."""
    return None if value >= least else f"{step}: {what} below {least:g}"


def first_reason(*reasons: str | None) -> str | None:
    """The first of some reasons; None where there is none."""
    return next((reason for reason in reasons if reason is not None), None)


def plain_options(step: Step) -> Mapping[str, Any]:
    """The options of a step as a recipe file has them."""
    return {item.name: getattr(step, item.name) for item in fields(step)}
