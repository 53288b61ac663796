"""What sets of parts call objects and parts, in the words of a person, and short definitions of parts (our own)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError

_WORDS: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
# a RefCOCOm mask covers all instances of a part on its object, so names lose what tells these apart
_SIDES = ("left", "right", "upper", "lower")


def category_noun(name: str) -> str:
    """A category as a noun: `car_(automobile)` is `car`, `trash_can` is `trash can`."""
    noun = _plain(name)
    return str(_WORDS["categories"].get(noun, noun))


def part_noun(name: str) -> str:
    """A part as a noun, left and right, upper and lower merged: `left_button` is `button`, `Upper Leg Left` `leg`."""
    noun = " ".join(word for word in _plain(name).split() if word not in _SIDES) or _plain(name)
    return str(_WORDS["parts"].get(noun, noun))


def pascal_part_noun(code: str, who: str) -> str:
    """A part of Pascal-Part by its code: `lfuleg` is `leg`, `rear` is `ear`, `wheel_2` is `wheel`."""
    bare = re.sub(r"_\d+$", "", code)
    if bare not in _WORDS["pascal_part"]:
        raise InputError(f"{who}: the part {code[:40]!r} is none of Pascal-Part's")
    return str(_WORDS["pascal_part"][bare])


def plural(noun: str) -> str:
    """The plural of a noun in lower case; of several words, that of the last."""
    known = _WORDS["plurals"]
    if noun in _WORDS["no_plural"]:
        return noun
    first, _, last = noun.rpartition(" ")
    if noun in known or last in known:
        return str(known.get(noun) or f"{first} {known[last]}".strip())
    if last in _WORDS["no_plural"]:
        return noun
    if re.search(r"(?:s|x|z|ch|sh)$", noun):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else f"{noun}s"


def coco_names(category: str) -> tuple[str, ...]:
    """COCO's categories that the same thing may be annotated as."""
    return (category, *_WORDS["coco"].get(category, ()))


def definition(category: str, part: str) -> str | None:
    """What a part is or does, as the end of "part of X that …"; None where we wrote none."""
    names = (category, *_WORDS["coco"].get(category, ()))
    found = (_WORDS["definitions"].get(name, {}).get(part) for name in names)
    return next((text for text in found if text), None)


def _plain(name: str) -> str:
    """Lower case, without what stands in brackets, words apart."""
    return " ".join(re.sub(r"\([^)]*\)", " ", name.lower()).replace("_", " ").split())
