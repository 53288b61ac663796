"""A first lesson for training: colours and sides alone, before kinds, parts and relations are asked for.

Small language models learn to hear the kind and never come to hear the colour where both come at once (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from uniresxx.data.scenes.presets import preset_of
from uniresxx.imaging.masks import area, encode
from uniresxx.types import Expression, Granularity, ImageRecord

COLOUR_FORMS = ("everything {}", "all {} things", "the {} things", "every {} object")
SMALLEST = 12  # pixels; a sliver is neither a target nor nothing
SIDE_FORMS = ("everything on the {}", "all {} things", "the {} things", "what is on the {}")


def warmup_expressions(record: ImageRecord, preset: str) -> tuple[Expression, ...]:
    """One expression per colour of the preset and per half of the picture: those pixels of things, or nothing.

    By pixel, not by thing: a part with a colour of its own counts as that colour.
    """
    lesson = []
    for name, text, mask in _questions(record, preset):
        if 0 < mask.sum() < SMALLEST:
            continue
        rle = encode(mask) if mask.any() else None
        kind = Granularity.NONE if rle is None else Granularity.MULTI
        lesson.append(
            Expression(f"{record.image_id}_lesson_{name}", text, kind, rle, 0 if rle is None else area(rle))
        )
    return tuple(lesson)


def _questions(record: ImageRecord, preset: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, text, mask) of each expression; the form changes from picture to picture."""
    assert record.dense is not None, "scenes carry dense labels"
    turn = sum(map(ord, record.image_id))
    for index, colour in enumerate(preset_of(preset).colours, start=1):
        form = COLOUR_FORMS[(index + turn) % len(COLOUR_FORMS)]
        yield colour, form.format(colour), record.dense[..., 1] == index
    things, middle = record.dense[..., 0] > 0, record.width // 2
    columns = np.arange(record.width)
    for side, half in (("left", columns < middle), ("right", columns >= middle)):
        yield side, SIDE_FORMS[turn % len(SIDE_FORMS)].format(side), things & half
