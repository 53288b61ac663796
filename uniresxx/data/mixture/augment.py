"""Mirror a record: its photo, masks, boxes, dense labels and words.

A record is mirrored only where all its words stay true of the mirrored picture (`mirror_text.py`). No colour is
changed, because expressions name colours.
Shapes: N boxes of a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from uniresxx.data.mixture.mirror_text import mirror_text
from uniresxx.data.store.photos import photo_of
from uniresxx.imaging.masks import decode, encode
from uniresxx.types import RLE, Dialogue, ImageRecord, Phrase, Turn


def mirrored(record: ImageRecord) -> ImageRecord | None:
    """The mirrored record; None where a text of it cannot be mirrored.

    Raises:
        InputError: the photo cannot be read.
    """
    expressions, dialogues = [], []
    for item in record.expressions:
        text = mirror_text(item.text)
        if text is None:
            return None
        instances = None if item.instances is None else tuple(map(_mirrored_mask, item.instances))
        rle = None if item.rle is None else _mirrored_mask(item.rle)
        expressions.append(replace(item, text=text, rle=rle, instances=instances))
    for dialogue in record.dialogues:
        mirrored_dialogue = _mirror_dialogue(dialogue)
        if mirrored_dialogue is None:
            return None
        dialogues.append(mirrored_dialogue)
    return replace(
        record,
        expressions=tuple(expressions),
        dialogues=tuple(dialogues),
        pixels=np.ascontiguousarray(photo_of(record)[:, ::-1]),
        path=None,
        inside=None,
        boxes=_mirror_boxes(record.boxes, record.width),
        referent_boxes=None
        if record.referent_boxes is None
        else _mirror_boxes(record.referent_boxes, record.width),
        dense=None if record.dense is None else np.ascontiguousarray(record.dense[:, ::-1]),
    )


def _mirror_dialogue(dialogue: Dialogue) -> Dialogue | None:
    turns = []
    for turn in dialogue.turns:
        question, answer = mirror_text(turn.question), mirror_text(turn.answer or "")
        texts = [mirror_text(phrase.text) for phrase in turn.phrases]
        if question is None or answer is None or None in texts:
            return None
        phrases = tuple(
            Phrase(text or "", None if phrase.rle is None else _mirrored_mask(phrase.rle), phrase.granularity)
            for text, phrase in zip(texts, turn.phrases, strict=True)
        )
        turns.append(Turn(question, phrases, None if turn.answer is None else answer))
    return replace(dialogue, turns=tuple(turns))


def _mirrored_mask(rle: RLE) -> RLE:
    return encode(decode(rle)[:, ::-1])


def _mirror_boxes(boxes: Mapping[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    """Mirrored boxes (N, 4) of each kind."""
    found = {}
    for kind, boxes_N4 in boxes.items():
        x0_N, y0_N, x1_N, y1_N = boxes_N4.T
        found[kind] = np.stack([width - x1_N, y0_N, width - x0_N, y1_N], axis=1)
    return found
