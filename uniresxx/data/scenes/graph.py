"""What a drawn picture knows of itself: things, their visible parts, and where their pixels are.

One map `ids_yx` holds, per pixel, the number of the paint that is seen there (0 ground). Each body and each
single part (one wheel) has its own number, so a truth mask is a look-up and cannot disagree with the pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Unit:
    """One part of one thing as far as it is seen: paint number, pixels, centre."""

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
    parts: dict[str, tuple[Unit, ...]]  # name -> visible instances
    drawn_parts: frozenset[str]  # names that exist, seen or not
    x: float
    y: float
    area: int
    full_area: int
    box: tuple[int, int, int, int]  # xyxy, exclusive end

    def part_area(self, part: str) -> int:
        """Visible pixels of a part, all instances together."""
        return sum(unit.area for unit in self.parts.get(part, ()))


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and its graph. `covers[(i, j)]` counts pixels of thing j that thing i hides."""

    side: int
    margin: float
    min_part: int
    pixels_yx3: np.ndarray  # uint8
    ids_yx: np.ndarray  # uint8, paint number
    dense_yx3: np.ndarray  # uint8: kind, colour, part (0 none, 255 not taught)
    things: tuple[Thing, ...]
    covers: dict[tuple[int, int], int]

    def mask(self, paints: Iterable[int]) -> np.ndarray:
        """Bool (y, x): pixels of these paints."""
        chosen = np.zeros(256, dtype=bool)
        chosen[list(paints)] = True
        mask_yx: np.ndarray = chosen[self.ids_yx]
        return mask_yx
