"""Words: captions of the picture, its objects and their parts, and how well they fit what is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from data_engine.components.table import captioner_of, similarity_of
from data_engine.model import Model
from data_engine.records import Box, Item, Picture, rounded
from data_engine.roles import Captioner, Region, Similarity
from data_engine.steps.base import Step, Work, shortfall
from uniresxx.imaging import masks
from uniresxx.text import clean_text, is_blank
from uniresxx.types import Granularity

QUOTES = "\"'“”‘’`"


@dataclass(frozen=True, kw_only=True)
class Caption(Step):
    """A caption of the whole picture, of each object and of each part.

    Args:
        max_words: a longer one is rejected.
        whole: whether the picture as a whole is described, too.
    """

    NAME: ClassVar[str] = "caption"
    VERSION: ClassVar[int] = 2
    model: Model
    max_words: int = 24
    whole: bool = True

    def build(self) -> Work:
        """Load the captioner."""
        return partial(_captioned, self, captioner_of(self.model))


def _captioned(options: Caption, captioner: Captioner, picture: Picture, photo: np.ndarray) -> Picture:
    items = picture.kept(Granularity.OBJECT, Granularity.PART)
    regions = [region_of(item) for item in items]
    whole = Region((0.0, 0.0, float(picture.width), float(picture.height)))
    texts = [
        plain_caption(text) for text in captioner.captions(photo, [*regions, *([whole] * options.whole)])
    ]
    text_of = {item.item_id: text for item, text in zip(items, texts, strict=False)}

    def worded(item: Item) -> Item:
        if item.item_id not in text_of:
            return item
        text = text_of[item.item_id]
        if is_blank(text):
            return item.but(rejected="caption: no words")
        too_long = len(text.split()) > options.max_words
        why = f"caption: more than {options.max_words} words" if too_long else None
        return item.but(text=text, rejected=why)

    return replace(
        picture, items=tuple(map(worded, picture.items)), caption=texts[-1] if options.whole else ""
    )


def region_of(item: Item) -> Region:
    """The region of an object or a part."""
    assert item.box is not None and item.rle is not None
    return Region(item.box, item.category, item.part, masks.decode(item.rle))


def plain_caption(text: str) -> str:
    """The first line of what a model answered, clean, without quotes around it and without its full stop."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return clean_text(lines[0]).strip(QUOTES + " ").rstrip(" .") if lines else ""


@dataclass(frozen=True, kw_only=True)
class Match(Step):
    """The similarity of a text and what its box shows, by a two-tower model.

    Args:
        min_object, min_part: cosines below are rejected.
        context: what is shown around the box, as a share of its sides.
    """

    NAME: ClassVar[str] = "match"
    VERSION: ClassVar[int] = 1
    model: Model
    min_object: float = 0.2
    min_part: float = 0.18
    context: float = 0.1

    def build(self) -> Work:
        """Load the two-tower model."""
        return partial(_matched, self, similarity_of(self.model))


def _matched(options: Match, model: Similarity, picture: Picture, photo: np.ndarray) -> Picture:
    items = picture.kept(Granularity.OBJECT, Granularity.PART)
    crops = [crop(photo, item.box, options.context) for item in items if item.box is not None]
    found = model.similarity(crops, [item.text for item in items]) if items else []
    scores = {item.item_id: score for item, score in zip(items, found, strict=True)}

    def judged(item: Item) -> Item:
        if item.item_id not in scores:
            return item
        least = options.min_object if item.granularity is Granularity.OBJECT else options.min_part
        score = scores[item.item_id]
        why = shortfall("match", "similarity", score, least)
        return item.but(scores={"similarity": rounded(score)}, rejected=why)

    return picture.with_items(map(judged, picture.items))


def crop(photo: np.ndarray, box: Box, context: float) -> np.ndarray:
    """The pixels of a box with `context` of its sides around it, cut at the picture's border."""
    x0, y0, x1, y1 = box
    across, down = context * (x1 - x0), context * (y1 - y0)
    rows = slice(max(0, int(y0 - down)), int(np.ceil(y1 + down)))
    return np.ascontiguousarray(photo[rows, max(0, int(x0 - across)) : int(np.ceil(x1 + across))])
