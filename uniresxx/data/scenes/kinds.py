"""The kinds of things that are drawn: polygons in a unit box (x right, y down), each body or a named part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """One polygon; `part` None is body. `shade` < 0 darkens, > 0 lightens the colour of the object."""

    part: str | None
    points: Points
    shade: float = 0.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind: width / height, polygons from back to front, parts that an object may lack."""

    name: str
    aspect: float
    pieces: tuple[Piece, ...]
    optional: tuple[str, ...] = ()
    own_colour: tuple[str, ...] = ()  # small parts that may wear another colour than the object

    @property
    def parts(self) -> tuple[str, ...]:
        """Part names in drawing order, each once."""
        return tuple(dict.fromkeys(piece.part for piece in self.pieces if piece.part))


def _rect(x0: float, y0: float, x1: float, y1: float) -> Points:
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _oval(cx: float, cy: float, rx: float, ry: float, corners: int = 14) -> Points:
    turns = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    return tuple((cx + rx * float(np.cos(t)), cy + ry * float(np.sin(t))) for t in turns)


def _arc(cx: float, cy: float, rx: float, ry: float, inner: float) -> Points:
    """The right half of a ring; `inner` is the hole's share of the radii."""
    turns = np.linspace(-np.pi / 2, np.pi / 2, 8)
    outer = [(cx + rx * float(np.cos(t)), cy + ry * float(np.sin(t))) for t in turns]
    hole = [(cx + inner * rx * float(np.cos(t)), cy + inner * ry * float(np.sin(t))) for t in turns[::-1]]
    return tuple(outer + hole)


_DARK, _DEEP, _LIGHT = -0.5, -0.72, 0.62
_CAR = Kind(
    "car", 1.55,
    (
        Piece(None, ((0.16, 0.42), (0.3, 0.0), (0.72, 0.0), (0.88, 0.42))),
        Piece(None, _rect(0.0, 0.38, 1.0, 0.82)),
        Piece("window", ((0.28, 0.39), (0.37, 0.1), (0.67, 0.1), (0.77, 0.39)), _LIGHT),
        Piece("door", _rect(0.4, 0.46, 0.62, 0.78), _DARK),
        Piece("wheel", _oval(0.22, 0.8, 0.135, 0.2), _DEEP),
        Piece("wheel", _oval(0.78, 0.8, 0.135, 0.2), _DEEP),
    ),
    ("window", "door", "wheel"), ("window", "door", "wheel"),
)  # fmt: skip
_BUS = Kind(
    "bus", 1.6,
    (
        Piece(None, _rect(0.0, 0.08, 1.0, 0.86)),
        Piece("roof", _rect(0.0, 0.0, 1.0, 0.17), _DARK),
        Piece("window", _rect(0.06, 0.27, 0.27, 0.52), _LIGHT),
        Piece("window", _rect(0.35, 0.27, 0.56, 0.52), _LIGHT),
        Piece("door", _rect(0.68, 0.28, 0.9, 0.84), _DARK),
        Piece("wheel", _oval(0.2, 0.85, 0.115, 0.15), _DEEP),
        Piece("wheel", _oval(0.55, 0.85, 0.115, 0.15), _DEEP),
    ),
    ("window", "door", "wheel", "roof"), ("window", "door", "roof"),
)  # fmt: skip
_HOUSE = Kind(
    "house", 0.95,
    (
        Piece("chimney", _rect(0.7, 0.0, 0.88, 0.36), _DEEP),
        Piece(None, _rect(0.08, 0.42, 0.92, 1.0)),
        Piece("roof", ((0.0, 0.46), (0.5, 0.02), (1.0, 0.46)), _DARK),
        Piece("window", _rect(0.15, 0.54, 0.38, 0.76), _LIGHT),
        Piece("door", _rect(0.56, 0.58, 0.82, 1.0), _DEEP),
    ),
    ("chimney", "window", "door"), ("roof", "window", "door", "chimney"),
)  # fmt: skip
_BATTLEMENTS = (
    (0.0, 0.0), (0.22, 0.0), (0.22, 0.1), (0.39, 0.1), (0.39, 0.0), (0.61, 0.0), (0.61, 0.1), (0.78, 0.1),
    (0.78, 0.0), (1.0, 0.0), (1.0, 0.26), (0.0, 0.26),
)  # fmt: skip
_TOWER = Kind(
    "tower", 0.46,
    (
        Piece(None, _rect(0.14, 0.2, 0.86, 1.0)),
        Piece("roof", _BATTLEMENTS, _DARK),
        Piece("window", _rect(0.3, 0.36, 0.7, 0.56), _LIGHT),
        Piece("door", _rect(0.28, 0.7, 0.72, 1.0), _DEEP),
    ),
    ("roof", "window", "door"), ("roof", "window", "door"),
)  # fmt: skip
_FISH = Kind(
    "fish", 1.6,
    (
        Piece("tail", ((0.68, 0.5), (1.0, 0.05), (0.93, 0.5), (1.0, 0.95)), _DARK),
        Piece(None, _oval(0.4, 0.5, 0.4, 0.44)),
        Piece("fin", ((0.36, 0.52), (0.68, 0.52), (0.5, 0.86)), _DEEP),
        Piece("eye", _oval(0.18, 0.4, 0.085, 0.135, 10), _LIGHT),
    ),
    ("tail", "fin", "eye"), ("tail", "fin", "eye"),
)  # fmt: skip
_DOG = Kind(
    "dog", 1.25,
    (
        Piece("tail", ((0.2, 0.4), (0.28, 0.52), (0.08, 0.32), (0.0, 0.02), (0.12, 0.04)), _DEEP),
        Piece("leg", _rect(0.2, 0.62, 0.34, 1.0), _DARK),
        Piece("leg", _rect(0.6, 0.62, 0.74, 1.0), _DARK),
        Piece(None, _rect(0.14, 0.36, 0.8, 0.72)),
        Piece(
            "head",
            ((0.62, 0.4), (0.64, 0.02), (0.76, 0.12), (0.9, 0.14), (1.0, 0.34), (0.86, 0.5)),
            _LIGHT,
        ),
    ),
    ("tail", "leg"), ("tail", "leg", "head"),
)  # fmt: skip
_BIRD = Kind(
    "bird", 1.3,
    (
        Piece("tail", ((0.26, 0.5), (0.0, 0.26), (0.0, 0.7)), _DEEP),
        Piece(None, _oval(0.47, 0.62, 0.32, 0.38)),
        Piece(None, ((0.9, 0.2), (1.0, 0.3), (0.9, 0.4))),
        Piece("head", _oval(0.77, 0.28, 0.19, 0.26), _LIGHT),
        Piece("wing", ((0.22, 0.5), (0.62, 0.48), (0.42, 0.92)), _DARK),
    ),
    ("tail", "wing"), ("tail", "wing", "head"),
)  # fmt: skip
_TREE = Kind(
    "tree", 0.8,
    (
        Piece("trunk", _rect(0.36, 0.58, 0.64, 1.0), _DEEP),
        Piece("crown", _oval(0.5, 0.34, 0.5, 0.34)),
    ),
)  # fmt: skip
_CHAIR = Kind(
    "chair", 0.72,
    (
        Piece("back", _rect(0.0, 0.0, 0.24, 0.54), _DARK),
        Piece("leg", _rect(0.0, 0.66, 0.2, 1.0), _DEEP),
        Piece("leg", _rect(0.8, 0.66, 1.0, 1.0), _DEEP),
        Piece(None, _rect(0.0, 0.48, 1.0, 0.7)),
    ),
    ("leg",), ("back",),
)  # fmt: skip
_TABLE = Kind(
    "table", 1.5,
    (
        Piece("leg", _rect(0.05, 0.3, 0.17, 1.0), _DEEP),
        Piece("leg", _rect(0.83, 0.3, 0.95, 1.0), _DEEP),
        Piece("drawer", _rect(0.3, 0.32, 0.7, 0.68), _DARK),
        Piece(None, _rect(0.0, 0.1, 1.0, 0.36)),
    ),
    ("drawer", "leg"), ("drawer",),
)  # fmt: skip
_CUP = Kind(
    "cup", 1.05,
    (
        Piece("handle", _arc(0.62, 0.5, 0.38, 0.34, 0.5), _DARK),
        Piece(None, ((0.0, 0.0), (0.7, 0.0), (0.62, 1.0), (0.08, 1.0))),
        Piece("rim", _rect(0.0, 0.0, 0.7, 0.2), _LIGHT),
    ),
    ("handle", "rim"), ("handle", "rim"),
)  # fmt: skip
_HAMMER = Kind(
    "hammer", 0.8,
    (
        Piece("handle", _rect(0.38, 0.2, 0.62, 1.0)),
        Piece("head", ((0.0, 0.06), (0.2, 0.0), (1.0, 0.0), (1.0, 0.32), (0.2, 0.32), (0.0, 0.2)), _DEEP),
    ),
)  # fmt: skip

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            _CAR, _BUS, _HOUSE, _TOWER, _FISH, _DOG, _BIRD, _TREE, _CHAIR, _TABLE, _CUP, _HAMMER,
        )
    }
)  # fmt: skip

# Index of a part in the dense label map, 1-based; 0 is "no part".
PART_NAMES = (
    "wheel", "door", "window", "roof", "leg", "head", "handle", "tail", "eye", "fin", "wing", "crown",
    "trunk", "back", "drawer", "rim", "chimney",
)  # fmt: skip

# Base colours, RGB 0-255; jitter is added per object.
COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (208, 44, 40), "green": (58, 160, 68), "blue": (50, 92, 212), "yellow": (236, 208, 52),
        "purple": (142, 62, 176), "orange": (244, 138, 34), "white": (240, 240, 238), "black": (42, 42, 46),
    }
)  # fmt: skip
