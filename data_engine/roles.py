"""What each step needs of a model: any class with these methods can take the role.

Pictures are uint8 (y, x, 3) RGB, masks bool (y, x) of the same size, boxes xyxy in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_engine.records import Box


@dataclass(frozen=True, slots=True)
class FoundBox:
    """An object that a detector found."""

    category: str
    box: Box
    score: float  # 0..1


@dataclass(frozen=True, slots=True)
class FoundMask:
    """The mask of a box. `quality` is the model's own estimate, `stability` the IoU of a stricter and a laxer cut."""

    mask_yx: np.ndarray
    quality: float
    stability: float


@dataclass(frozen=True, slots=True)
class FoundPart:
    """A part inside an object, all its instances together."""

    name: str
    mask_yx: np.ndarray
    score: float


@dataclass(frozen=True, slots=True)
class Region:
    """What is to be described or searched for parts: the whole picture where `category` is empty."""

    box: Box
    category: str = ""
    part: str | None = None
    mask_yx: np.ndarray | None = None


class Detector(Protocol):
    """Finds objects of given categories, and says how well texts fit anything in a picture."""

    def detect(self, photo_yx3: np.ndarray, categories: Sequence[str]) -> list[FoundBox]:
        """The objects, in any order."""
        ...

    def best_scores(self, photo_yx3: np.ndarray, texts: Sequence[str]) -> list[float]:
        """For each text the score of the best box, 0 where there is none."""
        ...


class BoxSegmenter(Protocol):
    """Gives the mask of what a box encloses."""

    def segment(self, photo_yx3: np.ndarray, boxes: Sequence[Box]) -> list[FoundMask]:
        """One mask per box, in order."""
        ...


class Captioner(Protocol):
    """Describes regions of a picture in a few words."""

    def captions(self, photo_yx3: np.ndarray, regions: Sequence[Region]) -> list[str]:
        """One text per region, in order; empty where it has no words."""
        ...


class PartSegmenter(Protocol):
    """Finds parts of an object by their names."""

    def parts(self, photo_yx3: np.ndarray, region: Region, definitions: Mapping[str, str]) -> list[FoundPart]:
        """The parts that are there; `definitions` has the names to look for and what they mean."""
        ...


class Similarity(Protocol):
    """Says how well a text describes a picture."""

    def similarity(self, pictures: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        """The cosine of the embeddings of picture i and text i."""
        ...
