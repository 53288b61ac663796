"""Made photographs with 7 expressions each, and their token rows as other methods cut them.

Shapes: B images, K expressions of each, E = B K, R rows, T text tokens, L all tokens of a row, y x photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mllm.chat import IGNORE, ChatTurn, Mark, render
from mllm.tokens import Vocabulary
from uniresxx.imaging.masks import encode
from uniresxx.types import Batch, Expression, Granularity, ImageRecord

EXPRESSIONS = 7  # of each image
TEXTS = (
    "the left wheel of the red car", "man in the blue shirt", "the two dogs on the sofa", "handle of the white mug",
    "woman holding an umbrella", "all legs of the brown horse", "the umbrella that is not open",
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """Token rows of a baseline, with the position of the state that predicts each [SEG], in order of expressions."""

    ids_RT: Tensor
    labels_RT: Tensor
    image_R: Tensor
    row_of_expr_E: Tensor
    seg_E: Tensor


def ellipses(number: int, size: tuple[int, int]) -> list[np.ndarray]:
    """The truth masks of an image, bool (y, x)."""
    draw, (height, width) = np.random.default_rng(number), size
    y, x = np.mgrid[:height, :width] / np.array(size).reshape(2, 1, 1)
    found = []
    for _ in range(EXPRESSIONS):
        (cy, cx), (ry, rx) = draw.uniform(0.25, 0.75, 2), draw.uniform(0.05, 0.25, 2)
        found.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1)
    return found


def make_record(number: int, size: tuple[int, int]) -> ImageRecord:
    """A photograph of noise with its expressions."""
    photo = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    expressions = tuple(
        Expression(f"made/train/{number}_{index}", text, Granularity.OBJECT, encode(mask))
        for index, (text, mask) in enumerate(zip(TEXTS, ellipses(number, size), strict=True))
    )
    return ImageRecord(str(number), *size, expressions, pixels=photo)


def rows_of(batch: Batch, pad: int) -> Text:
    """One row per expression, cut from the packed rows: the very same tokens."""
    ids, labels, images, seg = [], [], [], []
    for expression, image in enumerate(batch.image_of_expr_E.tolist()):
        branch_T = batch.branch_BT[image]
        place = int(batch.seg_position_E[expression])
        own = (branch_T == branch_T[place]).nonzero()[:, 0]
        ids.append(batch.token_ids_BT[image, own])
        labels.append(batch.labels_BT[image, own])
        images.append(image)
        seg.append(place - int(own[0]))
    padded = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    return Text(
        padded(ids, padding_value=pad), padded(labels, padding_value=IGNORE), torch.tensor(images),
        torch.arange(len(images)), torch.tensor(seg),
    )  # fmt: skip


def packed_rows(images: int, vocabulary: Vocabulary) -> Text:
    """One row per image: one question with all expressions, one answer with all [SEG]."""
    answer: list[str | Mark] = []
    for index, text in enumerate(TEXTS):
        answer += [f"{text}:", Mark.SEG, "," if index + 1 < len(TEXTS) else "."]
    row = render([ChatTurn(f"Segment {', '.join(TEXTS)}.", tuple(answer))], vocabulary)
    return Text(
        torch.tensor([row.ids_T] * images), torch.tensor([row.labels_T] * images), torch.arange(images),
        torch.arange(images).repeat_interleave(EXPRESSIONS), torch.tensor(row.decisions * images),
    )  # fmt: skip
