"""Several objects and what is not there: unions of objects, and words in which one slot is changed.

Nothing here asks a model. Which of several possible wordings is taken depends on the picture's name alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from typing import Any, ClassVar

from data_engine.records import Item, Picture, box_around
from data_engine.steps.base import Step, Work, digest
from data_engine.vocabulary import Vocabulary, load_vocabulary
from uniresxx.conversation.english import DETERMINERS, stem, words_of
from uniresxx.data.readers.part_names import plural
from uniresxx.imaging import masks
from uniresxx.types import Granularity

COLOURS = "red green blue yellow purple orange white black brown pink grey"
OPPOSITES = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
OFF_CENTRE = (
    0.4  # a thing "on the left" has its centre in the left two fifths; else its opposite may be true, too
)


@dataclass(frozen=True, kw_only=True)
class Combine(Step):
    """Unique words, groups of objects, and negatives.

    Args:
        vocabulary: other categories and parts for negatives.
        groups: at most so many groups of a picture.
        negatives: at most so many of a picture, and at most a quarter of its other expressions.
        colours: one of these takes the place of another in negatives. Name only those that the pictures have, or
            the word alone tells a model that nothing is meant.
    """

    NAME: ClassVar[str] = "combine"
    VERSION: ClassVar[int] = 2
    vocabulary: str = "coco"
    groups: int = 3
    negatives: int = 3
    colours: str = COLOURS

    def build(self) -> Work:
        """Load the vocabulary."""
        vocabulary = load_vocabulary(self.vocabulary)
        return lambda picture, photo: combined(self, vocabulary, picture)

    def identity(self) -> dict[str, Any]:
        """The vocabulary by its content."""
        return {**super().identity(), "vocabulary": digest(load_vocabulary(self.vocabulary).categories)}


def combined(options: Combine, vocabulary: Vocabulary, picture: Picture) -> Picture:
    """The picture with groups and negatives, ambiguous words rejected."""
    groups = sorted(_groups(picture), key=partial(_rank, picture))[: options.groups]
    named = [_numbered(item, f"m{number}") for number, item in enumerate(groups)]
    unique = picture.with_items([*_with_unique_words(picture.items), *named])
    positives = unique.kept(Granularity.OBJECT, Granularity.PART, Granularity.MULTI)
    count = min(options.negatives, (len(positives) + 3) // 4)
    changed = _spread_by_slot(
        sorted(_negatives(unique, vocabulary, options.colours.split()), key=partial(_rank, picture))
    )
    return unique.with_items(
        [*unique.items, *(_numbered(item, f"n{number}") for number, item in enumerate(changed[:count]))]
    )


def _numbered(item: Item, name: str) -> Item:
    return item.but(item_id=name)


def _rank(picture: Picture, item: Item) -> bytes:
    return hashlib.sha256(f"{picture.name} {item.slot} {item.text}".encode()).digest()


# -- words that mean one thing -------------------------------------------------------------------


def content_words(text: str) -> frozenset[str]:
    """The words of a text that tell things apart, in the singular."""
    words = [word for word in words_of(text) if any(map(str.isalnum, word))]
    return frozenset(stem(word) for word in words if word not in DETERMINERS)


def _with_unique_words(items: Sequence[Item]) -> list[Item]:
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
            item = item.but(rejected="combine: words fit several")
        result.append(item)
    return result


# -- several objects -----------------------------------------------------------------------------


def _groups(picture: Picture) -> Iterator[Item]:
    """All objects of a category, all that share a caption, and two that differ.

    "All" is said only where no object of the category was rejected for its mask.
    """
    objects = picture.kept(Granularity.OBJECT)
    doubtful = {item.category for item in picture.items if _is_doubtful(item)}
    unsaid = [item for item in objects if item.category not in doubtful]
    by_category: dict[str, list[Item]] = {}
    for item in unsaid:
        by_category.setdefault(item.category, []).append(item)
    for category, members in by_category.items():
        if len(members) > 1:
            yield _group(members, _all_of(category, len(members), picture))
        by_text: dict[str, list[Item]] = {}
        for item in members:
            by_text.setdefault(item.text, []).append(item)
        for text, same in by_text.items():
            if 1 < len(same) < len(members) and text.split()[-len(category.split()) :] == category.split():
                others = {content_words(item.text) for item in members if item not in same}
                if not any(content_words(text) <= words for words in others):
                    yield _group(same, _all_of(text, len(same), picture))
    yield from _pairs(picture, unsaid)


def _is_doubtful(item: Item) -> bool:
    return (
        item.granularity is Granularity.OBJECT and not item.is_kept and item.rejected != "segment: duplicate"
    )


def _all_of(noun: str, count: int, picture: Picture) -> str:
    """The words for all of a kind: for two of them sometimes "both"."""
    chance = hashlib.sha256(f"{picture.name} {noun}".encode()).digest()[0]
    return f"{'both' if count == 2 and chance < 128 else 'all'} {plural(noun)}"


def _pairs(picture: Picture, objects: Sequence[Item]) -> Iterator[Item]:
    """One union of two objects of different categories, whose words are unique."""
    unique = {item.item_id for item in _with_unique_words(picture.items) if item.is_kept}
    pairs = [
        _group([one, other], f"{with_article(one.text)} and {with_article(other.text)}")
        for one, other in combinations(objects, 2)
        if one.category != other.category and {one.item_id, other.item_id} <= unique
    ]
    yield from sorted(pairs, key=partial(_rank, picture))[:1]


def with_article(text: str) -> str:
    """The text with "the" before it, unless it begins with a determiner."""
    return text if text.split()[0].lower() in DETERMINERS else f"the {text}"


def _group(members: Sequence[Item], text: str) -> Item:
    rles = [item.rle for item in members if item.rle is not None]
    rle = masks.union(rles, rles[0]["size"])
    categories = " and ".join(dict.fromkeys(item.category for item in members))
    names = tuple(item.item_id for item in members)
    return Item("", Granularity.MULTI, categories, box_around(rle), rle, members=names, text=text)


# -- what is not there ---------------------------------------------------------------------------


def _spread_by_slot(items: Iterable[Item]) -> list[Item]:
    """The items in turns of their slots, so that no slot takes all places."""
    by_slot: dict[str | None, list[Item]] = {}
    for item in items:
        by_slot.setdefault(item.slot, []).append(item)
    turns = [(turn, slot or "", item) for slot, found in by_slot.items() for turn, item in enumerate(found)]
    return [item for _, _, item in sorted(turns, key=lambda entry: entry[:2])]


def _negatives(picture: Picture, vocabulary: Vocabulary, colours: Sequence[str]) -> Iterator[Item]:
    """Words of a kept item with one slot changed, which mean nothing as far as the records tell."""
    seen = {content_words(item.text) for item in picture.items if item.text}
    everything = _everything(picture)
    for positive in picture.kept(Granularity.OBJECT, Granularity.PART):
        for slot, text, category, part in _changed(picture, positive, vocabulary, colours, everything):
            if content_words(text) not in seen:
                yield Item(
                    "", Granularity.NONE, category, part=part, text=text, slot=slot,
                    negative_of=positive.item_id,
                )  # fmt: skip


def _everything(picture: Picture) -> set[str]:
    """Every word of every text, and every category and part that was found, rejected ones too."""
    words: set[str] = set()
    for item in picture.items:
        words |= content_words(f"{item.text} {item.category} {item.part or ''}")
    return words | content_words(picture.caption)


def _changed(
    picture: Picture, positive: Item, vocabulary: Vocabulary, colours: Sequence[str], everything: set[str]
) -> Iterator[tuple[str, str, str, str | None]]:
    """(slot, text, category, part) of each way to change one slot."""
    text, category, part = positive.text, positive.category, positive.part
    if part is not None:
        for other in vocabulary.parts_of(category):
            absent = everything.isdisjoint(_stems(other))
            if absent and (changed := _swapped(text, part, other)) is not None:
                yield "part", changed, category, other
    for other in vocabulary.categories:
        has_part = part is None or part in vocabulary.parts_of(other)
        absent = other != category and everything.isdisjoint(_stems(other))
        if absent and has_part and (changed := _swapped(text, category, other)) is not None:
            yield "category", changed, other, part
    for colour in colours:
        if re.search(rf"\b{colour}\b", text):
            worn = {w for i in picture.items if i.category == category for w in content_words(i.text)}
            unsaid = any(i.category == category and not i.text for i in picture.items)
            for other in colours:
                if (
                    other not in worn
                    and not unsaid
                    and (changed := _swapped(text, colour, other)) is not None
                ):
                    yield "attribute", changed, category, part
    yield from _other_side(picture, positive)


def _other_side(picture: Picture, positive: Item) -> Iterator[tuple[str, str, str, str | None]]:
    """The opposite relation, where the thing is the only one of its category and clearly off the centre."""
    objects = [
        i for i in picture.items if i.granularity is Granularity.OBJECT and i.category == positive.category
    ]
    if positive.part is not None or len(objects) != 1 or positive.box is None:
        return
    x0, y0, x1, y1 = positive.box
    across, down = (x0 + x1) / 2 / picture.width, (y0 + y1) / 2 / picture.height
    is_there = {"left": across, "right": 1 - across, "top": down, "bottom": 1 - down}
    for word, place in is_there.items():
        changed = _swapped(positive.text, word, OPPOSITES[word])
        if place < OFF_CENTRE and changed is not None:
            yield "relation", changed, positive.category, None


@lru_cache(maxsize=4096)
def _stems(name: str) -> frozenset[str]:
    """The words of a category or part, in the singular."""
    return frozenset(map(stem, words_of(name)))


def _swapped(text: str, old: str, new: str) -> str | None:
    """The text with one noun in place of another, in its number; None where the old one is not in it once."""
    for before, after in ((old, new), (plural(old), plural(new))):
        pattern = rf"\b{re.escape(before)}\b"
        if len(re.findall(pattern, text)) == 1:
            return re.sub(pattern, after, text)
    return None
