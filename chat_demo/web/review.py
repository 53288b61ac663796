"""A visitor's work on one answer of the queue: frozen state, pure transitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chat_demo.web.corrections import Decision
from chat_demo.web.review_items import Item, answered_item
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.types import RLE, Granularity

MOST_UNDO = 50
NAMES = {Granularity.PART: "a part", Granularity.OBJECT: "an object", Granularity.MULTI: "several things"}


@dataclass(frozen=True, slots=True)
class Review:
    """Where a visitor is in a queue, and what was done to the mask there."""

    items: tuple[Item, ...] = ()
    place: int = 0
    text: str = ""  # the sentence, as re-worded
    meant: Granularity = Granularity.OBJECT
    rle: RLE | None = None
    earlier: tuple[RLE | None, ...] = ()  # masks before each change, oldest first
    decided: frozenset[str] = frozenset()  # keys, of this visit

    @property
    def item(self) -> Item | None:
        """The one that is shown."""
        return self.items[self.place] if self.items else None


def at(review: Review, place: int) -> Review:
    """Another place of the queue, untouched; beyond the ends nothing changes."""
    if not 0 <= place < len(review.items):
        return review
    item = review.items[place]
    return replace(review, place=place, text=item.text, meant=item.granularity, rle=item.rle, earlier=())


def opened(items: Sequence[Item]) -> Review:
    """A queue from its beginning."""
    return at(Review(tuple(items)), 0)


def changed(review: Review, rle: RLE | None) -> Review:
    """Another mask; the one before can be had again. A mask without a pixel is none, an equal one no change."""
    if rle is not None and not masks.area(rle):
        rle = None
    if rle == review.rle:
        return review
    return replace(review, rle=rle, earlier=(*review.earlier, review.rle)[-MOST_UNDO:])


def undone(review: Review) -> Review:
    """The mask before the last change."""
    if not review.earlier:
        return review
    return replace(review, rle=review.earlier[-1], earlier=review.earlier[:-1])


def asked_again(review: Review, text: str, prediction: Prediction, model: str) -> Review:
    """The item with the answer to other words; it can be undone as any change."""
    item = review.item
    assert item is not None
    new = answered_item(item, prediction, model)
    items = (*review.items[: review.place], new, *review.items[review.place + 1 :])
    return replace(changed(review, new.rle), items=items, text=text)


def decision_of(review: Review, accepted: bool) -> Decision:
    """What accepting the mask, or saying that nothing is there, means."""
    item = review.item
    assert item is not None
    rle = review.rle if accepted else None
    same = rle == item.rle
    return Decision(
        key=item.key,
        text=review.text,
        granularity=Granularity.NONE if rle is None else review.meant,
        rle=rle,
        author="model" if same else "human",
        asked=item.text,
        model=item.model,
        score=item.score,
    )


def decided(review: Review) -> Review:
    """The next place, once this one is decided."""
    item = review.item
    assert item is not None
    noted = replace(review, decided=review.decided | {item.key})
    return at(noted, min(review.place + 1, len(review.items) - 1))
