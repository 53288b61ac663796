"""Records -> Batch: choose expressions, render rows, letterbox pixels and masks. Pure functions of their arguments.

Shapes as in uniresxx.types.Batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mllm.chat import IGNORE, Row, render
from mllm.tokens import Vocabulary
from uniresxx.errors import InputError
from uniresxx.imaging.boxes import boxes_of_masks
from uniresxx.imaging.geometry import Letterbox
from uniresxx.imaging.masks import decode
from uniresxx.model.config import BOX_LEVELS, BoxLevel, UniRESPlusPlusConfig
from uniresxx.model.processing import View, tensors_of, view_photo
from uniresxx.model.templates import TRAINING_TEMPLATES, dialogue_turn, expression_turn, together_turn
from uniresxx.types import RLE, Batch, Dialogue, Expression, Granularity, ImageRecord


@dataclass(slots=True)
class Sample:
    """One prepared image: its views, its packed row and the truth of each decision in the row, in order."""

    view: View
    row: Row
    masks: list[np.ndarray | None]  # bool (H, W), high frame; None where there is no target
    granularities: list[Granularity]
    expression_ids: list[str]
    dense_HW3: np.ndarray | None
    truth_boxes: tuple[np.ndarray, np.ndarray] | None = None  # object and part level, high frame
    boxes_complete: tuple[bool, bool] = (False, False)  # they are all that the photo shows of the level
    # of each mask that is not None, the instances alone, bool (H, W); empty unless config.instances
    instances: list[list[np.ndarray]] = field(default_factory=list)
    masks_photo: list[np.ndarray] = field(default_factory=list)  # bool (y, x) of targets, for loss "photo"


def make_sample(
    record: ImageRecord,
    photo: np.ndarray,
    expressions: Sequence[Expression],
    dialogues: Sequence[Dialogue],
    choices: Sequence[int],
    config: UniRESPlusPlusConfig,
    vocabulary: Vocabulary,
) -> Sample:
    """Render expressions and dialogues of one image into one row.

    Args:
        record: the image and its truth.
        photo: the record's pixels, uint8 (y, x, 3).
        expressions: of the record, in the order of the row.
        dialogues: of the record, after the expressions.
        choices: index of the question template of each expression.
        config: sizes and box source.
        vocabulary: tokenizer.

    Raises:
        InputError: a mask has another size than its photo.
    """
    row = Row()
    masks: list[RLE | None] = []
    instances: list[tuple[RLE, ...] | None] = []
    kinds: list[Granularity] = []
    ids: list[str] = []
    if config.ask_together and expressions:
        turns = [together_turn(expressions, choices[0])]
    else:
        turns = [expression_turn(*asked) for asked in zip(expressions, choices, strict=True)]
    for turn in turns:
        render([turn], vocabulary, row, config.mllm.chat)
    for expression in expressions:
        masks.append(expression.rle)
        instances.append(expression.instances)
        kinds.append(expression.granularity)
        ids.append(expression.expression_id)
    for dialogue in dialogues:
        render([dialogue_turn(turn) for turn in dialogue.turns], vocabulary, row, config.mllm.chat)
        for phrase in (phrase for turn in dialogue.turns for phrase in turn.phrases):
            masks.append(phrase.rle)
            instances.append(None)
            kinds.append(phrase.granularity)
            ids.append(dialogue.dialogue_id)
    assert len(row.decisions) == len(masks), (len(row.decisions), len(masks))
    view = view_photo(photo, config, record)
    truth = [None if rle is None else decoded(rle, record) for rle in masks]
    framed = [None if mask_yx is None else _framed(mask_yx, view.letterbox) for mask_yx in truth]
    alone = [
        framed_instances(mask_HW, rles, config.instances, record, view.letterbox)
        for mask_HW, rles in zip(framed, instances, strict=True)
        if mask_HW is not None and config.instances
    ]
    levels = config.box_head.active_levels
    boxes = truth_boxes(record, view.letterbox, levels) if config.boxes == "learned" else None
    complete = "object" in record.boxes, "part" in record.boxes
    dense = _dense(record, view.letterbox)
    own = [m for m in truth if m is not None] if config.loss.resolution == "photo" else []
    return Sample(view, row, framed, kinds, ids, dense, truth_boxes=boxes, boxes_complete=complete,
                  instances=alone, masks_photo=own)  # fmt: skip


def framed_instances(
    mask_HW: np.ndarray, rles: Sequence[RLE] | None, most: int, record: ImageRecord, letterbox: Letterbox
) -> list[np.ndarray]:
    """The instances of one mask in the high frame; the mask itself where only the union is known.

    Where there are more than `most`, the smallest are united into one, so that the union stays the mask.
    """
    if rles is None:
        return [mask_HW]
    found = [_framed(decoded(rle, record), letterbox) for rle in rles]
    found.sort(key=lambda instance_HW: -int(instance_HW.sum()))
    return found if len(found) <= most else [*found[: most - 1], np.any(found[most - 1 :], axis=0)]


def truth_boxes(
    record: ImageRecord, letterbox: Letterbox, levels: Collection[BoxLevel] = BOX_LEVELS
) -> tuple[np.ndarray, np.ndarray]:
    """Object and part boxes that the box head learns, in the high frame; none of other levels."""
    known, none_N4 = boxes_of_masks(record), np.zeros((0, 4), dtype=np.float32)
    objects, parts = (
        letterbox.boxes(known.get(level, none_N4) if level in levels else none_N4).astype(np.float32)
        for level in BOX_LEVELS
    )
    return objects, parts


def _pad_truth(samples: Sequence[Sample]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    levels = [s.truth_boxes for s in samples]
    known = [pair for pair in levels if pair is not None]
    if not known:
        return None, None
    M = max(len(boxes) for pair in known for boxes in pair)
    boxes_BGM4 = np.zeros((len(known), 2, M, 4), dtype=np.float32)
    valid_BGM = np.zeros((len(known), 2, M), dtype=bool)
    for b, pair in enumerate(known):
        for g, boxes in enumerate(pair):
            boxes_BGM4[b, g, : len(boxes)], valid_BGM[b, g, : len(boxes)] = boxes, True
    return torch.from_numpy(boxes_BGM4), torch.from_numpy(valid_BGM)


def _dense(record: ImageRecord, letterbox: Letterbox) -> np.ndarray | None:
    if record.dense is None:
        return None
    if record.dense.shape[0] == record.dense.shape[1] == letterbox.side:
        return record.dense
    # Labels cannot be averaged: nearest pixel of the letterboxed frame.
    rows = np.minimum(
        (np.arange(letterbox.side) + 0.5) * record.height / letterbox.inner_height, record.height - 1
    )
    columns = np.minimum(
        (np.arange(letterbox.side) + 0.5) * record.width / letterbox.inner_width, record.width - 1
    )
    return record.dense[rows.astype(int)][:, columns.astype(int)] * letterbox.valid()[..., None]


@dataclass(frozen=True, slots=True)
class PackedCollator:
    """Training samples as `make_sample` and `collate` prepare them (UniRES++ and FiLM-UNet)."""

    config: UniRESPlusPlusConfig
    vocabulary: Vocabulary

    @property
    def reads_boxes(self) -> bool:
        """The learned box head learns from them."""
        return self.config.boxes == "learned"

    @property
    def question_templates(self) -> Sequence[str]:
        """The project's."""
        return TRAINING_TEMPLATES

    def sample(self, record: ImageRecord, photo: np.ndarray, choices: Sequence[int]) -> Sample:
        """One image, see `make_sample`."""
        return make_sample(
            record, photo, record.expressions, record.dialogues, choices, self.config, self.vocabulary
        )

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """A micro-batch, see `collate`."""
        return collate(samples, self.config, self.vocabulary)


def padded_rows(rows: Sequence[Row], pad: int) -> dict[str, Any]:
    """Token rows as the fields of a batch, each (B, T), padded to the longest."""
    T = max(len(row.ids_T) for row in rows)

    def padded(values: Iterable[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([value + [fill] * (T - len(value)) for value in values], dtype=torch.long)

    return {
        "token_ids_BT": padded((row.ids_T for row in rows), pad),
        "labels_BT": padded((row.labels_T for row in rows), IGNORE),
        "branch_BT": padded((row.branch_T for row in rows), -1),
        "position_BT": padded((row.position_T for row in rows), 0),
    }


def collate(samples: Sequence[Sample], config: UniRESPlusPlusConfig, vocabulary: Vocabulary) -> Batch:
    """Stack prepared images; rows are padded to the longest, decisions are flattened image by image."""
    side = config.mllm.high_size
    truth = _pad_truth(samples)
    nothing = np.zeros((side, side), dtype=bool)
    masks = [nothing if mask is None else mask for s in samples for mask in s.masks]
    inputs: dict[str, Any] = tensors_of([s.view for s in samples], config)
    del inputs["extent_B2"]  # follows from pixel_valid_BHW
    if config.instances:
        inputs |= _instances(samples, side)
    dense = [s.dense_HW3 for s in samples]
    known = [d for d in dense if d is not None]
    return Batch(
        **inputs,
        truth_boxes_BGM4=truth[0],
        truth_boxes_valid_BGM=truth[1],
        boxes_complete_BG=None if truth[0] is None else torch.tensor([s.boxes_complete for s in samples]),
        **padded_rows([s.row for s in samples], vocabulary.pad),
        image_of_expr_E=torch.tensor([b for b, s in enumerate(samples) for _ in s.masks], dtype=torch.long),
        seg_position_E=torch.tensor([p for s in samples for p in s.row.decisions], dtype=torch.long),
        present_E=torch.tensor([mask is not None for s in samples for mask in s.masks], dtype=torch.bool),
        masks_EHW=torch.from_numpy(np.stack(masks))
        if masks
        else torch.zeros(0, side, side, dtype=torch.bool),
        pixel_valid_BHW=torch.from_numpy(np.stack([s.view.letterbox.valid() for s in samples])),
        dense_BHW3=torch.from_numpy(np.stack(known)) if len(known) == len(samples) else None,
        masks_photo=[_stacked(s) for s in samples] if config.loss.resolution == "photo" else [],
        expression_ids=[i for s in samples for i in s.expression_ids],
        granularities=[g for s in samples for g in s.granularities],
    )


def _instances(samples: Sequence[Sample], side: int) -> dict[str, torch.Tensor]:
    """The fields of a batch that hold the instances of all masks, in the order of the expressions."""
    present = [mask is not None for s in samples for mask in s.masks]
    of_mask = [found for s in samples for found in s.instances]
    expressions = [e for e, yes in enumerate(present) if yes]
    masks = [np.zeros((0, side, side), dtype=bool), *(m[None] for found in of_mask for m in found)]
    owners = [e for e, found in zip(expressions, of_mask, strict=True) for _ in found]
    return {
        "instance_masks_NHW": torch.from_numpy(np.concatenate(masks)),
        "expr_of_instance_N": torch.tensor(owners, dtype=torch.long),
    }


def _stacked(sample: Sample) -> torch.Tensor:
    box = sample.view.letterbox
    masks = [np.zeros((0, box.height, box.width), dtype=bool), *(m[None] for m in sample.masks_photo)]
    return torch.from_numpy(np.concatenate(masks))


def decoded(rle: RLE, record: ImageRecord) -> np.ndarray:
    """Bool mask (y, x) of the photo."""
    if list(rle["size"]) != [record.height, record.width]:
        raise InputError(
            f"image {record.image_id}: a mask is {rle['size']} (height, width), its photo "
            f"{[record.height, record.width]}"
        )
    return decode(rle)


def _framed(mask_yx: np.ndarray, letterbox: Letterbox) -> np.ndarray:
    """Bool mask (S, S) of a mask of the photo."""
    return mask_yx if mask_yx.shape == (letterbox.side, letterbox.side) else letterbox.mask(mask_yx)
