"""The records that go from step to step: a picture with its items, as JSON.

Boxes are xyxy in pixels of the picture as a person sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from uniresxx.imaging import masks
from uniresxx.types import RLE, Granularity

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is named, or may be: an object, a part, several objects, or words for what is not there."""

    item_id: str  # within its picture
    granularity: Granularity
    category: str
    box: Box | None = None
    rle: RLE | None = None
    part: str | None = None
    parent: str | None = None  # the object of a part
    members: tuple[str, ...] = ()  # the objects of a group
    text: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    slot: str | None = None  # what was changed in words for what is not there
    negative_of: str | None = None
    rejected: str | None = None  # "<step>: <reason>"

    @property
    def is_kept(self) -> bool:
        """Whether no filter has rejected it."""
        return self.rejected is None

    def but(self, **changes: Any) -> Item:
        """A copy with other values; `scores` are added to those that are there."""
        if "scores" in changes:
            changes["scores"] = {**self.scores, **changes["scores"]}
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with everything that was found in it; `name` is its path below the folder of pictures."""

    name: str
    licence: str
    origin: str  # where it comes from
    sha256: str = ""
    height: int = 0
    width: int = 0
    look: str = ""  # 64 bits in hexadecimal that near-duplicates share but for a few
    caption: str = ""
    items: tuple[Item, ...] = ()
    failed: str | None = None  # "<step>: <reason>": it is in quarantine

    def kept(self, *granularities: Granularity) -> list[Item]:
        """The items that no filter has rejected, of these granularities."""
        return [item for item in self.items if item.is_kept and item.granularity in granularities]

    def with_items(self, items: Iterable[Item]) -> Picture:
        """A copy with these items."""
        return replace(self, items=tuple(items))

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; `from_json` is the inverse."""
        items = [
            {**_values(item), "rle": None if item.rle is None else dict(item.rle)} for item in self.items
        ]
        return {**_values(self), "items": items}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Picture:
        """The picture that was written; its masks are checked when they are used."""
        items = tuple(_item(item) for item in values["items"])
        return cls(**{**values, "items": items})


def _values(record: Item | Picture) -> dict[str, Any]:
    return {item.name: getattr(record, item.name) for item in fields(record)}


def _item(values: Mapping[str, Any]) -> Item:
    box = values["box"]
    return Item(
        **{
            **values,
            "granularity": Granularity(values["granularity"]),
            "box": None if box is None else tuple(box),
            "members": tuple(values["members"]),
        }
    )


def box_around(rle: RLE) -> Box:
    """The tight box of a mask that is not empty."""
    found = masks.box_of(rle)
    assert found is not None
    x0, y0, x1, y1 = found
    return float(x0), float(y0), float(x1), float(y1)


def rounded(value: float) -> float:
    """A score as it is stored: six digits, so that records do not depend on the last bits of a sum."""
    return round(float(value), 6)
