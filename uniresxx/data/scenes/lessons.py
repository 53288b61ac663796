"""A first lesson for training: colours alone, before kinds, parts and relations are asked for.

Small language models learn to hear the kind and never come to hear the colour where both come at once (docs/log.md).
"""

from __future__ import annotations

from uniresxx.data.scenes.presets import preset_of
from uniresxx.masks import area, encode
from uniresxx.types import Expression, Granularity, ImageRecord

FORMS = ("everything {}", "all {} things", "the {} things", "every {} object")


def colour_lesson(record: ImageRecord, preset: str) -> tuple[Expression, ...]:
    """One expression per colour of the preset: all pixels of things of that colour, or nothing."""
    assert record.dense is not None, "scenes carry dense labels"
    colour_yx = record.dense[..., 1]
    lesson = []
    for index, colour in enumerate(preset_of(preset).colours, start=1):
        mask = colour_yx == index
        rle = encode(mask) if mask.any() else None
        text = FORMS[(index + record.height + len(record.expressions)) % len(FORMS)].format(colour)
        kind = Granularity.NONE if rle is None else Granularity.MULTI
        lesson.append(
            Expression(f"{record.image_id}_colour_{index}", text, kind, rle, 0 if rle is None else area(rle))
        )
    return tuple(lesson)
