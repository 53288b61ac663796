"""Words that mean one thing: captions that fit several are rejected, and short words are found for what has them.

A person says "the cup" where there is one cup, and "the left cup" where there are two; a captioner rarely does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from data_engine.records import Item, Picture
from uniresxx.conversation.english import DETERMINERS, stem, words_of
from uniresxx.data.readers.part_names import plural
from uniresxx.imaging import masks
from uniresxx.types import Granularity

APART = 0.1  # "left" and "right": the least distance of two centres, as a share of the picture's width (our choice)
LARGER = 1.5  # "big" and "small": the least ratio of two areas (our choice)
AMBIGUOUS, DUPLICATE = "combine: words fit several", "segment: duplicate"


def content_words(text: str) -> frozenset[str]:
    """The words of a text that tell things apart, in the singular."""
    words = [word for word in words_of(text) if any(map(str.isalnum, word))]
    return frozenset(stem(word) for word in words if word not in DETERMINERS)


def with_article(text: str) -> str:
    """The text with "the" before it, unless it begins with a determiner."""
    return text if text.split()[0].lower() in DETERMINERS else f"the {text}"


def without_article(text: str) -> str:
    """The text without a determiner that it begins with."""
    first, _, rest = text.partition(" ")
    return rest if rest and first.lower() in DETERMINERS else text


def with_unique_words(items: Sequence[Item]) -> list[Item]:
    """The items, those rejected whose words also fit another one of their kind."""
    worded = [item for item in items if item.text and item.granularity is not Granularity.MULTI]
    words = {item.item_id: content_words(item.text) for item in worded}
    ambiguous = {
        item.item_id
        for item in worded
        if any(
            other.item_id != item.item_id
            and (other.granularity, other.category, other.part)
            == (item.granularity, item.category, item.part)
            and words[item.item_id] <= words[other.item_id]
            for other in worded
        )
    }
    result = []
    for item in items:
        inherits = item.parent in ambiguous and words.get(item.item_id, frozenset()) <= (
            words.get(item.parent or "", frozenset()) | content_words(f"{item.part} of")
        )
        if item.is_kept and (item.item_id in ambiguous or inherits):
            item = item.but(rejected=AMBIGUOUS)
        result.append(item)
    return result


def short_words(picture: Picture) -> Iterator[Item]:
    """Objects and their parts once more, in short words: "the cup", "the left cup", "rim of the small cup".

    Only where all objects of the category were found and none is doubtful: one of them, or two that lie apart or
    differ in size. What a caption could not tell apart gets words here.
    """
    said = {(item.granularity, content_words(item.text)) for item in picture.items if item.is_kept}
    for owner, name in _short_names(picture):
        for item in (owner, *_parts(picture, owner)):
            if item.rejected not in (None, AMBIGUOUS):
                continue
            text = f"the {name}" if item.part is None else f"{_noun(item.text, item.part)} of the {name}"
            if (item.granularity, content_words(text)) not in said:
                yield item.but(item_id="", text=text, rejected=None)


def _short_names(picture: Picture) -> Iterator[tuple[Item, str]]:
    """Objects with a short name of each: the category, which it has alone, or its side or size among two."""
    objects = [
        item
        for item in picture.items
        if item.granularity is Granularity.OBJECT and item.rejected != DUPLICATE
    ]
    for category, found in by_category(objects).items():
        if not all(item.rejected in (None, AMBIGUOUS) for item in found):
            continue
        if len(found) == 1:
            yield found[0], category
        elif len(found) == 2:
            left, right = sorted(found, key=_middle)
            if _middle(right) - _middle(left) >= APART * picture.width:
                yield from ((left, f"left {category}"), (right, f"right {category}"))
            small, large = sorted(found, key=_area)
            if _area(large) >= LARGER * _area(small):
                yield from ((small, f"small {category}"), (large, f"big {category}"))


def _parts(picture: Picture, owner: Item) -> list[Item]:
    """The parts of an object, each the only one of its name."""
    parts = [item for item in picture.items if item.parent == owner.item_id and item.part is not None]
    names = [item.part for item in parts]
    return [item for item in parts if names.count(item.part) == 1]


def by_category(items: Iterable[Item]) -> dict[str, list[Item]]:
    """The items of each category, in their order."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.category, []).append(item)
    return found


def is_doubtful(item: Item) -> bool:
    """Whether it is an object that was rejected, other than as a duplicate of another one."""
    return item.granularity is Granularity.OBJECT and not item.is_kept and item.rejected != DUPLICATE


def _middle(item: Item) -> float:
    assert item.box is not None
    return (item.box[0] + item.box[2]) / 2


def _area(item: Item) -> int:
    return 0 if item.rle is None else masks.area(item.rle)


def _noun(text: str, part: str) -> str:
    """The part in the number in which the caption has it."""
    return plural(part) if re.search(rf"\b{re.escape(plural(part))}\b", text) else part
