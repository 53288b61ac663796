"""The pictures that come with the project, with sentences that ask for what they show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from chat_demo.web.models import Photo, photo_of

SCENES = Path(__file__).resolve().parents[2] / "assets" / "scenes"
MOST_SENTENCES = 6


@dataclass(frozen=True)
class Example:
    """A picture and sentences about it: of each granularity first one, then more."""

    name: str
    sentences: tuple[str, ...]

    @cached_property
    def photo(self) -> Photo:
        """Its pixels."""
        return photo_of((SCENES / self.name).read_bytes(), self.name)


def examples() -> list[Example]:
    """The shipped examples; none where the clone has lost them."""
    try:
        listed = json.loads((SCENES / "sentences.json").read_bytes())["pictures"]
    except OSError:
        return []
    return [Example(item["picture"], _sentences(item["expressions"])) for item in listed]


def _sentences(expressions: list[dict[str, str]]) -> tuple[str, ...]:
    firsts = {item["granularity"]: item["text"] for item in reversed(expressions)}
    ordered = [firsts[name] for name in ("object", "part", "multi", "none") if name in firsts]
    return tuple(dict.fromkeys([*ordered, *(item["text"] for item in expressions)]))[:MOST_SENTENCES]
