"""Short words, several objects and what is not there: unions of objects, and words in which one slot is changed.

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
from data_engine.steps.wordings import (
    by_category,
    content_words,
    is_doubtful,
    short_words,
    with_article,
    with_unique_words,
    without_article,
)
from data_engine.vocabulary import Vocabulary, load_vocabulary
from uniresxx.conversation.english import stem, words_of
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
    """Unique words, short words, groups of objects, and negatives.

    Args:
        vocabulary: other categories and parts for negatives.
        wordings: at most so many objects and parts of a picture get short words besides their captions.
        groups: at most so many groups of a picture.
        negatives: at most so many of a picture, and at most a quarter of its other expressions.
        colours: one of these takes the place of another in negatives. Name only those that the pictures have, or
            the word alone tells a model that nothing is meant.
    """

    NAME: ClassVar[str] = "combine"
    VERSION: ClassVar[int] = 4
    vocabulary: str = "coco"
    wordings: int = 4
    groups: int = 3
    negatives: int = 4
    colours: str = COLOURS

    def build(self) -> Work:
        """Load the vocabulary."""
        vocabulary = load_vocabulary(self.vocabulary)
        return lambda picture, photo: combined(self, vocabulary, picture)

    def identity(self) -> dict[str, Any]:
        """The vocabulary by its content."""
        return {**super().identity(), "vocabulary": digest(load_vocabulary(self.vocabulary).categories)}


def combined(options: Combine, vocabulary: Vocabulary, picture: Picture) -> Picture:
    """The picture with short words, groups and negatives, ambiguous words rejected."""
    groups = _in_turns(_groups(picture), picture, "m", options.groups)
    picture = picture.with_items(with_unique_words(picture.items))
    short = _in_turns(short_words(picture), picture, "w", options.wordings)
    picture = picture.with_items([*picture.items, *short, *groups])
    positives = picture.kept(Granularity.OBJECT, Granularity.PART, Granularity.MULTI)
    count = min(options.negatives, (len(positives) + 3) // 4)
    negatives = _negatives(picture, vocabulary, options.colours.split())
    return picture.with_items([*picture.items, *_in_turns(negatives, picture, "n", count)])


def _in_turns(items: Iterable[Item], picture: Picture, letter: str, count: int) -> list[Item]:
    """`count` of the items, numbered: the first of each granularity and slot, then the second of each, and so on.

    So no kind takes all places. Order and choice depend on the picture's name alone.
    """
    by_kind: dict[tuple[str | None, Granularity], list[Item]] = {}
    levels = {item.item_id: item.granularity for item in picture.items}
    for item in sorted(items, key=partial(_rank, picture)):
        level = levels[item.negative_of] if item.negative_of else item.granularity
        by_kind.setdefault((item.slot, level), []).append(item)
    turns = [(turn, item) for found in by_kind.values() for turn, item in enumerate(found)]
    chosen = [item for _, item in sorted(turns, key=lambda entry: entry[0])][:count]
    return [item.but(item_id=f"{letter}{number}") for number, item in enumerate(chosen)]


def _rank(picture: Picture, item: Item) -> bytes:
    return hashlib.sha256(f"{picture.name} {item.slot} {item.text}".encode()).digest()


# -- several objects -----------------------------------------------------------------------------


def _groups(picture: Picture) -> Iterator[Item]:
    """All objects of a category, all that share a caption, and two that differ.

    "All" needs every mask of the category: where one was rejected, there is no such group.
    """
    objects = picture.kept(Granularity.OBJECT)
    doubtful = {item.category for item in picture.items if is_doubtful(item)}
    certain = [item for item in objects if item.category not in doubtful]
    for category, members in by_category(certain).items():
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
    yield from _pairs(picture, certain)


def _all_of(noun: str, count: int, picture: Picture) -> str:
    """The words for all of a kind: for two of them sometimes "both"."""
    chance = hashlib.sha256(f"{picture.name} {noun}".encode()).digest()[0]
    return f"{'both' if count == 2 and chance < 128 else 'all'} {plural(without_article(noun))}"


def _pairs(picture: Picture, objects: Sequence[Item]) -> Iterator[Item]:
    """One union of two objects of different categories, whose words are unique."""
    unique = {item.item_id for item in with_unique_words(picture.items) if item.is_kept}
    pairs = [
        _group([one, other], f"{with_article(one.text)} and {with_article(other.text)}")
        for one, other in combinations(objects, 2)
        if one.category != other.category and {one.item_id, other.item_id} <= unique
    ]
    yield from sorted(pairs, key=partial(_rank, picture))[:1]


def _group(members: Sequence[Item], text: str) -> Item:
    rles = [item.rle for item in members if item.rle is not None]
    rle = masks.union(rles, rles[0]["size"])
    categories = " and ".join(dict.fromkeys(item.category for item in members))
    names = tuple(item.item_id for item in members)
    return Item("", Granularity.MULTI, categories, box_around(rle), rle, members=names, text=text)


# -- what is not there ---------------------------------------------------------------------------


def _negatives(picture: Picture, vocabulary: Vocabulary, colours: Sequence[str]) -> Iterator[Item]:
    """Words of a kept item with one slot changed, which mean nothing as far as the records tell.

    Groups count where they are of one category.
    """
    categories = {item.category for item in picture.kept(Granularity.OBJECT)}
    seen = {content_words(item.text) for item in picture.items if item.text}
    everything = _everything(picture)
    for positive in picture.kept(Granularity.OBJECT, Granularity.PART, Granularity.MULTI):
        if positive.category not in categories:
            continue
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
    several = positive.granularity is Granularity.MULTI
    if part is not None:
        for other in vocabulary.parts_of(category):
            absent = everything.isdisjoint(_stems(other))
            if absent and (changed := _swapped(text, part, other)) is not None:
                yield "part", changed, category, other
    for other in vocabulary.categories:
        has_part = part is None or part in vocabulary.parts_of(other)
        absent = other != category and everything.isdisjoint(_stems(other))
        if absent and has_part and (changed := _swapped(text, category, other, several)) is not None:
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
    if positive.part is not None or len({i.box for i in objects}) != 1 or positive.box is None:
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


def _swapped(text: str, old: str, new: str, several: bool = False) -> str | None:
    """The text with one noun in place of another, in its number; None where the old one is not in it once.

    `several`: a noun that is the same in both numbers, as fish, is meant as a plural.
    """
    numbers = ((old, new), (plural(old), plural(new)))
    for before, after in reversed(numbers) if several else numbers:
        pattern = rf"\b{re.escape(before)}\b"
        if len(re.findall(pattern, text)) == 1:
            return re.sub(pattern, after, text)
    return None
