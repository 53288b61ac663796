"""What is written: photos with masks, where they come from, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

import numpy as np

from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.types import RLE

Holes = Literal["keep", "fill"]
Overlap = Literal["keep", "score", "order"]
Author = Literal["model", "human"]


@dataclass(frozen=True, slots=True)
class AnnotatedMask:
    """One sentence about a photo and its answer.

    Args:
        rle: the mask at the photo's size; None: the model answered that the thing is not there.
        category: name of its class; the sentence itself where there are no classes.
        sentence: as it was asked; written as an attribute.
        score: predicted IoU, 0..1, or None.
        p_absent: probability that the thing is not there, or None.
        author: "human" where a person drew or changed the mask.
    """

    rle: RLE | None
    category: str
    sentence: str
    score: float | None = None
    p_absent: float | None = None
    author: Author = "model"

    @classmethod
    def of(cls, sentence: str, prediction: Prediction, category: str | None = None) -> AnnotatedMask:
        """The answer of a model to a sentence; its category is the sentence where none is given."""
        return cls(
            None if prediction.rejected else prediction.rle,
            sentence if category is None else category,
            sentence,
            prediction.score,
            prediction.p_absent,
        )


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """A photo with its masks, in the order in which they were asked for. `path` is where the photo lies."""

    path: str
    height: int
    width: int
    masks: tuple[AnnotatedMask, ...]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which model made the masks: its name or folder, the SHA-256 of its weights, the version of uniresxx."""

    model: str
    weights_sha256: str
    version: str

    @property
    def short(self) -> str:
        """The model and the first characters of its hash, for formats with one text field."""
        return f"{self.model}@{self.weights_sha256[:12]}" if self.weights_sha256 else self.model


@dataclass(frozen=True, slots=True)
class Options:
    """How masks are written.

    Args:
        tolerance: 0: masks are exact (run lengths where the format has them, else outlines along the pixels'
            edges). Above 0: polygons that leave out corners of the outline at most so many pixels away.
        min_area: regions of fewer pixels are left out; pixels that touch at a corner only are two regions.
        holes: "keep", or "fill" them.
        overlap: which mask keeps a pixel that masks of several categories share: "keep" all of them, the one with
            the higher "score", or the first in "order". A format with one category per pixel reads "keep" as
            "score".
    """

    tolerance: float = 0.0
    min_area: int = 0
    holes: Holes = "keep"
    overlap: Overlap = "keep"

    def __post_init__(self) -> None:
        """Refuse what is no option."""
        if not np.isfinite(self.tolerance) or self.tolerance < 0:
            raise InputError(
                f"the tolerance of polygons is a number of pixels from 0 up, not {self.tolerance}"
            )
        if self.min_area < 0:
            raise InputError(f"the smallest area is a number of pixels from 0 up, not {self.min_area}")
        for name, value, known in (("holes", self.holes, Holes), ("overlap", self.overlap, Overlap)):
            if value not in get_args(known):
                raise InputError(f"{name} is one of {', '.join(get_args(known))}, not {value!r}")


@dataclass(frozen=True, slots=True)
class Shape:
    """A mask that is written; `rle` is never empty.

    Args:
        rle: what the options left of the answer's mask.
        answer: what was asked and answered.
        category: name of its class.
        category_id: number of its class.
        place: of the answer among those of its photo, from 0 on.
    """

    rle: RLE
    answer: AnnotatedMask
    category: str
    category_id: int
    place: int

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return masks.area(self.rle)


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo whose masks are ready to be written.

    Args:
        name: its path below the folder that all photos share, with slashes.
        source: its path as it was given.
        shapes: the masks that the options left, in the order in which they were asked for.
    """

    name: str
    source: str
    height: int
    width: int
    shapes: tuple[Shape, ...]

    @property
    def stem(self) -> str:
        """`name` without its suffix."""
        return str(PurePosixPath(self.name).with_suffix(""))


@dataclass(frozen=True, slots=True)
class Export:
    """What a format's module is given beside the photos. `names` are those of the classes by number, ascending."""

    names: Mapping[int, str]
    provenance: Provenance
    options: Options

    def describe(self) -> dict[str, Any]:
        """A record for JSON."""
        return {"tool": "uniresxx", **asdict(self.provenance), "options": asdict(self.options)}

    def attributes(self, answer: AnnotatedMask) -> dict[str, Any]:
        """What is written beside a mask: what was asked, how sure the model was, which model it was, or a person."""
        made_by = self.provenance.short
        return {
            "sentence": answer.sentence,
            "score": rounded(answer.score),
            "p_absent": rounded(answer.p_absent),
            "model": made_by if answer.author == "model" else f"human, after {made_by}",
        }


def rounded(value: float | None) -> float | None:
    """A number as JSON holds it, with six places; None where there is none."""
    return None if value is None or not np.isfinite(value) else round(float(value), 6)
