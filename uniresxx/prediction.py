"""What a model answers to one text: masks, scores and the generated words.

Masks are kept as COCO RLE at the photo's size and decoded when they are asked for: `mask` is bool (y, x).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic
from uniresxx.imaging import masks
from uniresxx.imaging.inputs import Photo, photo_pixels
from uniresxx.imaging.overlay import Layer, draw_overlay
from uniresxx.types import RLE

_DECISION = re.compile(r"\[(?:SEG|REJ)\]")
_AROUND = " \t\n,.;:"  # what stands between a phrase and its neighbours
_OVERLAY = (".jpg", ".jpeg", ".overlay.png")  # file names that `Prediction.save` gives an overlay

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 are the first ones outside
Span = tuple[int, int]  # first character, and the first one behind


@dataclass(frozen=True, slots=True, repr=False)
class Segment:
    """One phrase of a generated answer, with its mask; None where the model rejected the phrase."""

    phrase: str
    rle: RLE | None
    score: float | None
    span: Span | None = None  # of the phrase in `Prediction.text`; None where the answer does not spell it

    @property
    def mask(self) -> np.ndarray | None:
        """Bool (y, x), or None where the phrase was rejected."""
        return None if self.rle is None else masks.decode(self.rle)

    @property
    def box(self) -> Box | None:
        """Around the mask; None where there is none."""
        return None if self.rle is None else masks.box_of(self.rle)

    def __repr__(self) -> str:
        return f"Segment({self.phrase!r}, {_shown(self.rle, self.score)})"


@dataclass(frozen=True, slots=True, repr=False)
class Instance:
    """One of the things that a mask unites."""

    rle: RLE
    score: float | None  # probability to be an instance times predicted IoU, 0..1

    @property
    def mask(self) -> np.ndarray:
        """Bool (y, x)."""
        return masks.decode(self.rle)

    @property
    def box(self) -> Box | None:
        """Around the mask; None where it has no pixel."""
        return masks.box_of(self.rle)

    def __repr__(self) -> str:
        return f"Instance({_shown(self.rle, self.score)})"


@dataclass(frozen=True, slots=True, repr=False)
class Prediction:
    """The answer to one expression, in the image frame at the photo's size.

    Example:
        >>> prediction = predictor.segment("the red house")[0]  # doctest: +SKIP
        >>> if not prediction.rejected:  # doctest: +SKIP
        ...     prediction.save("house.png")
    """

    rejected: bool
    rle: RLE | None
    text: str | None  # as generated, may be empty; None: not known (files of other models)
    score: float | None = None  # predicted IoU, 0..1
    p_absent: float | None = None
    mask_if_forced: RLE | None = None  # of a rejected expression: what a forced [SEG] gives
    segments: tuple[Segment, ...] = ()  # one per phrase, where several were asked together
    # whose union is `rle`; empty where the model does not tell them apart
    instances: tuple[Instance, ...] = ()
    truncated: bool = False  # the answer had not ended after `Decoding.max_new_tokens`
    dropped_turns: int = 0  # oldest turns of the question that the model's context had no room for
    # what was asked about which photo, for `plot` and `save`; the Predictor fills them in
    asked: str = field(default="", compare=False)
    photo: Photo | None = field(default=None, compare=False)

    @property
    def mask(self) -> np.ndarray | None:
        """Bool (y, x), or None where the model answered that the thing is not there."""
        return None if self.rejected or self.rle is None else masks.decode(self.rle)

    @property
    def box(self) -> Box | None:
        """Around the mask in pixels, right and bottom edges exclusive; None where there is none."""
        return None if self.rejected or self.rle is None else masks.box_of(self.rle)

    def layers(self) -> Iterator[Layer]:
        """What `draw_overlay` draws: a layer for each phrase of a longer answer, else one; masks decoded in turn."""
        if len(self.segments) > 1:
            for part in self.segments:
                yield Layer(part.phrase or self.asked, part.mask, None if part.rle is None else part.score)
        else:
            yield Layer(self.asked, self.mask, None if self.rejected else self.score)

    def plot(self) -> Image.Image:
        """The photo with the mask and a legend. InputError where the prediction knows no photo."""
        return plot([self])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a picture; what it shows follows from the name.

        `NAME.jpg`, `NAME.jpeg` and `NAME.overlay.png` get the overlay of `plot`. Any other `NAME.png` gets the mask
        alone, at the photo's size: 0 outside, 255 inside. A file of that name is replaced.

        Returns:
            The path.

        Raises:
            InputError: the name ends otherwise, the mask is wanted and the thing is not there, or the overlay is
                wanted and the prediction knows no photo.
            OSError: the disk is full or refuses.
        """
        place = Path(path)
        name = place.name.lower()
        if name.endswith(_OVERLAY):
            picture = self.plot()
        elif not name.endswith(".png"):
            raise InputError(f"{place}: name it .png (the mask), or .jpg or .overlay.png (the overlay)")
        elif (mask := self.mask) is None:
            raise InputError(f"{place}: {self.asked or 'the expression'!r} is not there, so it has no mask")
        else:
            picture = Image.fromarray(mask.astype(np.uint8) * 255)
        kind = "PNG" if name.endswith(".png") else "JPEG"
        write_atomic(place, png_bytes(picture) if kind == "PNG" else _jpeg_bytes(picture))
        return place

    def __repr__(self) -> str:
        asked = f"{self.asked!r}, " if self.asked else ""
        absent = "" if self.p_absent is None else f", p_absent {self.p_absent:.2f}"
        parts = f", {len(self.segments)} phrases" if len(self.segments) > 1 else ""
        found = f", {len(self.instances)} instances" if self.instances else ""
        shown = _shown(None if self.rejected else self.rle, self.score)
        return f"Prediction({asked}{shown}{absent}{parts}{found}, text {self.text!r})"


def plot(predictions: Sequence[Prediction]) -> Image.Image:
    """The photo with the masks of several predictions about it, and a legend. InputError where none knows a photo."""
    photo = next((one.photo for one in predictions if one.photo is not None), None)
    if photo is None:
        raise InputError("no photo to draw on: these predictions do not come from a Predictor")
    return draw_overlay(photo_pixels(photo), chain.from_iterable(one.layers() for one in predictions))


def listed_answer(phrases: Sequence[str], marks: Sequence[str]) -> str:
    """The answer to several phrases, `a: [SEG], b: [REJ].`; phrases beyond the marks are left out."""
    return ", ".join(f"{phrase}: {mark}" for phrase, mark in zip(phrases, marks, strict=False)) + "."


def phrases_in(text: str) -> list[tuple[str, Span | None]]:
    """The phrase before each [SEG] or [REJ] of an answer such as `a: [SEG], b: [REJ].`, and its place in the text.

    An empty phrase without a place stands for a decision that no phrase comes before.
    """
    found: list[tuple[str, Span | None]] = []
    start = 0
    for decision in _DECISION.finditer(text):
        piece = text[start : decision.start()]
        phrase = piece.strip(_AROUND)
        at = start + len(piece) - len(piece.lstrip(_AROUND))
        found.append((phrase, (at, at + len(phrase)) if phrase else None))
        start = decision.end()
    return found


def _shown(rle: RLE | None, score: float | None) -> str:
    """Size, box and score of a mask, in words."""
    if rle is None:
        return "not there"
    box = masks.box_of(rle)
    return f"{masks.area(rle)} pixels in {box}" + ("" if score is None else f", score {score:.2f}")


def _jpeg_bytes(picture: Image.Image) -> bytes:
    stream = BytesIO()
    picture.save(stream, format="JPEG", quality=92)
    return stream.getvalue()
