"""Warm-up for training: expressions about colours and sides alone, before kinds, parts and relations are asked for.

Small language models learn the kind, and never learn the colour, if both are asked for from the start
(docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from uniresxx.data.scenes.presets import preset_of
from uniresxx.imaging.masks import area, encode
from uniresxx.types import Expression, Granularity, ImageRecord

COLOUR_TEMPLATES = ("everything {}", "all {} things", "the {} things", "every {} object")
SMALLEST = 12  # pixels; a smaller mask is neither a target nor nothing
SIDE_TEMPLATES = ("everything on the {}", "all {} things", "the {} things", "what is on the {}")


def warmup_expressions(record: ImageRecord, preset: str) -> tuple[Expression, ...]:
    """One expression per colour of the preset and per half of the picture: all pixels of things there, or nothing.

    Masks are made by pixel, not by thing: a part with a colour of its own counts as that colour.
    """
    expressions = []
    for name, text, mask in _questions(record, preset):
        if 0 < mask.sum() < SMALLEST:
            continue
        rle = encode(mask) if mask.any() else None
        granularity = Granularity.NONE if rle is None else Granularity.MULTI
        expressions.append(
            Expression(
                f"{record.image_id}_warmup_{name}", text, granularity, rle, 0 if rle is None else area(rle)
            )
        )
    return tuple(expressions)


def _questions(record: ImageRecord, preset: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, text, mask) of each expression; its template changes from picture to picture."""
    assert record.dense is not None, "scenes carry dense labels"
    offset = sum(map(ord, record.image_id))
    for index, colour in enumerate(preset_of(preset).colours, start=1):
        template = COLOUR_TEMPLATES[(index + offset) % len(COLOUR_TEMPLATES)]
        yield colour, template.format(colour), record.dense[..., 1] == index
    things, middle = record.dense[..., 0] > 0, record.width // 2
    columns = np.arange(record.width)
    for side, half in (("left", columns < middle), ("right", columns >= middle)):
        yield side, SIDE_TEMPLATES[offset % len(SIDE_TEMPLATES)].format(side), things & half
