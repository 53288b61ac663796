"""What a benchmark knows of its expressions besides their truth; `uniresxx.data.beside` finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from uniresxx.types import RLE, ImageRecord


@dataclass(frozen=True, slots=True)
class PartOf:
    """What a part belongs to: the whole object (where it is parts of several, all of them), and its other parts."""

    whole: RLE
    siblings: tuple[RLE, ...]


def _no_parts(record: ImageRecord) -> Mapping[str, PartOf]:
    return {}


@dataclass(frozen=True, slots=True)
class Beside:
    """What is known beside the truth.

    Args:
        parts: of an image, what each part belongs to, by expression id; parts of which nothing is known are left out.
        truths: a second true mask of the same referent, by expression id.
        truths_of: the benchmark (NAME/SPLIT) that the second masks come from.
    """

    parts: Callable[[ImageRecord], Mapping[str, PartOf]] = _no_parts
    truths: Mapping[str, RLE] = field(default_factory=dict)
    truths_of: str | None = None


NOTHING = Beside()
