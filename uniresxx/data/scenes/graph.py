"""The scene graph of a drawn picture: its things, their visible parts, and where their pixels are.

`paint_yx` holds the number of the paint that is visible at each pixel (0 is the ground). Each body and each single
part (one wheel) has its own number, so a true mask is a look-up and cannot disagree with the pixels.
Shapes: y x pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PartInstance:
    """One part of one thing: its paint number, and the area and centre of its visible pixels."""

    paint: int
    area: int
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of the picture; position, area and box are those of its visible pixels."""

    index: int  # also its depth: larger is nearer to the viewer
    kind: str
    colour: str
    paints: tuple[int, ...]
    parts: dict[str, tuple[PartInstance, ...]]  # name -> visible instances
    drawn_parts: frozenset[str]  # names of all its parts, also of hidden ones
    x: float
    y: float
    area: int
    full_area: int
    box: tuple[int, int, int, int]  # xyxy, exclusive end

    def part_area(self, part: str) -> int:
        """Visible pixels of a part, all instances together."""
        return sum(instance.area for instance in self.parts.get(part, ()))


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and its graph. `covers[(i, j)]` counts pixels of thing j that thing i hides."""

    side: int
    margin: float
    min_part: int
    pixels_yx3: np.ndarray  # uint8
    paint_yx: np.ndarray  # uint8, paint number
    dense_yx3: np.ndarray  # uint8: kind, colour, part (0 none; part 255: not supervised)
    things: tuple[Thing, ...]
    covers: dict[tuple[int, int], int]

    def mask(self, paints: Iterable[int]) -> np.ndarray:
        """Bool (y, x): pixels of these paints."""
        chosen = np.zeros(256, dtype=bool)
        chosen[list(paints)] = True
        mask_yx: np.ndarray = chosen[self.paint_yx]
        return mask_yx


def bounding_box(mask_yx: np.ndarray) -> tuple[int, int, int, int]:
    """The box of a mask that is not empty: xyxy, exclusive end."""
    xs, ys = np.flatnonzero(mask_yx.any(axis=0)), np.flatnonzero(mask_yx.any(axis=1))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
