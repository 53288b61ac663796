"""The training objective: denominators known before the forward pass, and loss sums of one micro-batch.

Shapes: as in uniresxx.types.Batch; P expressions with a mask, Y label positions, V vocabulary, Q queries,
h w the mask head's grid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm.chat import IGNORE
from uniresxx.model.config import LossConfig
from uniresxx.model.heads.base import HeadOutput
from uniresxx.model.heads.instances import InstanceOutput
from uniresxx.model.losses import (
    Counts,
    LossTerms,
    at_centres,
    cells,
    contrast_sum,
    mask_point_sums,
    mask_sums,
    photo_extent,
    photo_sums,
    shown_logits,
    true_iou,
)
from uniresxx.model.matching import matched_queries
from uniresxx.model.regions.learned import BoxHead, BoxOutput
from uniresxx.types import Batch

UNLABELLED = 255  # dense label of pixels that are not supervised


class ModelOutput(NamedTuple):
    """What the loss needs: logits at label positions only, and the outputs of the heads."""

    logits_YV: Tensor
    labels_Y: Tensor
    head: HeadOutput | None  # None: no term of the loss needs the mask head
    dense: tuple[Tensor, ...]  # kind, colour, part logits (B, classes, h, w); empty without a dense head
    boxes: BoxOutput | None = None  # of the learned box head
    instances: InstanceOutput | None = None  # what `head` unites
    words_EV: Tensor | None = None  # logit of each word of the vocabulary, from the state before [SEG]


class MaskTruth(Protocol):
    """What the mask losses read of a batch of any model; shapes and meanings as in uniresxx.types.Batch."""

    image_of_expr_E: Tensor
    present_P: Tensor
    masks_EHW: Tensor
    pixel_valid_BHW: Tensor
    masks_photo: list[Tensor]
    shown: tuple[int, int]


def mask_counts(batch: Batch) -> Counts:
    """Denominators of the terms of any mask head."""
    masks = len(batch.present_P)
    return {"mask": masks, "dice": masks, "quality": masks, "presence": len(batch.present_E)}


def all_counts(batch: Batch, config: LossConfig) -> Counts:
    """Denominators of all terms of the loss."""
    counts = {"text": len(batch.labelled_Y)}
    if config.teaches_masks:
        counts |= mask_counts(batch)
        counts |= {"contrast": len(batch.present_P)} if config.contrast else {}
        counts["dense"] = int(batch.pixel_valid_BHW.sum()) if batch.dense_BHW3 is not None else 0
    if config.words:
        counts["words"] = len(batch.present_E)
    if config.box:
        boxes = batch.truth_boxes_valid_BGM
        counts["box"] = int(boxes.sum()) if boxes is not None else 0
    return counts


def mask_terms(head: HeadOutput, batch: Batch, config: LossConfig) -> dict[str, Tensor]:
    """Sums of a mask head's terms; masks are supervised only where the truth has one."""
    present_E, present_P = batch.present_E, batch.present_P
    bce, dice, iou_P = masks_and_iou(head.masks_Ehw[present_P].float(), batch, config)
    quality_P, presence_E = head.quality_E[present_P].float(), head.presence_E.float()
    return {
        "mask": bce,
        "dice": dice,
        "quality": F.binary_cross_entropy_with_logits(quality_P, iou_P, reduction="sum"),
        "presence": F.binary_cross_entropy_with_logits(presence_E, present_E.float(), reduction="sum"),
    }


def instance_counts(batch: Batch, queries: int) -> Counts:
    """Denominators of the terms of a mask head with instance queries."""
    assert batch.instance_masks_NHW is not None
    masks = len(batch.instance_masks_NHW)
    return {"mask": masks, "dice": masks, "quality": masks, "presence": queries * len(batch.present_E)}


def instance_terms(output: InstanceOutput, batch: Batch, config: LossConfig) -> dict[str, Tensor]:
    """As `mask_terms`, for each instance and the query that it is matched with; the others are no object."""
    truth_NHW, expr_N = batch.instance_masks_NHW, batch.expr_of_instance_N
    assert truth_NHW is not None and expr_N is not None
    image_N, (h, w) = batch.image_of_expr_E[expr_N], output.masks_EQhw.shape[-2:]
    query_N = matched_queries(
        output, *cells(truth_NHW, batch.pixel_valid_BHW[image_N], (h, w)), expr_N, config
    )
    present_N = torch.ones_like(expr_N, dtype=torch.bool)
    alone = replace(batch, masks_EHW=truth_NHW, image_of_expr_E=image_N, present_E=present_N)
    terms = mask_terms(HeadOutput(*(value[expr_N, query_N] for value in output)), alone, config)
    present_EQ = torch.zeros_like(output.presence_EQ, dtype=torch.float32)
    present_EQ[expr_N, query_N] = 1.0
    presence = F.binary_cross_entropy_with_logits(output.presence_EQ.float(), present_EQ, reduction="sum")
    return terms | {"presence": presence}


def loss_terms(output: ModelOutput, batch: Batch, config: LossConfig, box_head: BoxHead | None) -> LossTerms:
    """Sums of all terms over this micro-batch."""
    text = F.cross_entropy(output.logits_YV.float(), output.labels_Y, reduction="sum")
    sums = {"text": text}
    if output.instances is not None:
        sums |= instance_terms(output.instances, batch, config)
    elif output.head is not None:
        sums |= mask_terms(output.head, batch, config)
    if output.head is not None and config.contrast:
        sums["contrast"] = contrast_of(output.head.masks_Ehw, batch)
    if output.words_EV is not None:
        sums["words"] = words_sum(output.words_EV, batch)
    if output.dense and batch.dense_BHW3 is not None:
        sums["dense"] = _dense_sum(output.dense, batch.dense_BHW3, batch.pixel_valid_BHW)
    if output.boxes is not None and box_head is not None and config.box:
        truth, valid = batch.truth_boxes_BGM4, batch.truth_boxes_valid_BGM
        complete, extent_B2 = batch.boxes_complete_BG, photo_extent(batch.pixel_valid_BHW)
        assert truth is not None and valid is not None and complete is not None
        sums["box"] = box_head.loss_sum(output.boxes, truth, valid, complete, extent_B2)
    return weighted(sums, config)


def contrast_of(logits_Ehw: Tensor, batch: Batch) -> Tensor:
    """`contrast_sum` of a batch, on the head's grid."""
    truth_Phw = at_centres(batch.masks_EHW[batch.present_P], logits_Ehw.shape[-2:])
    image_P, most = batch.image_of_expr_E[batch.present_P], batch.most_expressions
    return contrast_sum(logits_Ehw[batch.present_P].float(), truth_Phw, image_P, most)


def words_sum(words_EV: Tensor, batch: Batch) -> Tensor:
    """BCE of which tokens stand before each [SEG] in its branch, summed over the vocabulary and expressions."""
    branch_ET, ids_ET = (rows_BT[batch.image_of_expr_E] for rows_BT in (batch.branch_BT, batch.token_ids_BT))
    place_E1, (E, V) = batch.seg_position_E[:, None], words_EV.shape
    column_T = torch.arange(branch_ET.shape[1], device=branch_ET.device)
    asked_ET = (branch_ET == branch_ET.gather(1, place_E1)) & (column_T < place_E1)
    there_EV = words_EV.new_zeros((E, V + 1), dtype=torch.float32)  # the last column takes all other tokens
    there_EV = there_EV.scatter(1, torch.where(asked_ET, ids_ET, V), 1.0)[:, :V]
    return F.binary_cross_entropy_with_logits(words_EV.float(), there_EV, reduction="sum")


def weighted(sums: dict[str, Tensor], config: LossConfig) -> LossTerms:
    """The sums with the weights of the config, whose fields have the names of the terms."""
    return LossTerms(sums, {name: getattr(config, name) for name in sums})


def masks_and_iou(logits_Phw: Tensor, batch: MaskTruth, config: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """BCE and dice sums at the configured resolution, and the true IoU of each mask.

    The IoU is taken at the pixels of "full", else at the cells of the head's grid. Points are drawn from torch's
    random numbers: a step that is cut differently draws others.
    """
    smooth, frame = config.dice_smooth, batch.pixel_valid_BHW.shape[-1]
    grid = logits_Phw.shape[-2], logits_Phw.shape[-1]
    truth_PHW = batch.masks_EHW[batch.present_P]
    valid_PHW = batch.pixel_valid_BHW[batch.image_of_expr_E[batch.present_P]]
    if config.resolution == "full":
        rows, columns = batch.shown
        truth_PHW, valid_PHW = truth_PHW[:, :rows, :columns], valid_PHW[:, :rows, :columns]
        logits_PHW = shown_logits(logits_Phw, frame, batch.shown)
        bce, dice = mask_sums(logits_PHW, truth_PHW, valid_PHW, smooth)
        return bce, dice, true_iou(logits_PHW, truth_PHW, valid_PHW)
    if config.resolution == "photo":
        bce, dice = photo_sums(logits_Phw, batch.masks_photo, frame, smooth)
    elif config.resolution == "points":
        bce, dice = mask_point_sums(logits_Phw, truth_PHW, valid_PHW, config, smooth)
    else:
        covered_Phw, valid_Phw = cells(truth_PHW, valid_PHW, grid)
        bce, dice = mask_sums(logits_Phw, covered_Phw * valid_Phw, valid_Phw, smooth)
        return bce, dice, true_iou(logits_Phw, (covered_Phw >= 0.5) & valid_Phw, valid_Phw)
    return bce, dice, true_iou(logits_Phw, at_centres(truth_PHW, grid), at_centres(valid_PHW, grid))


def _dense_sum(dense: tuple[Tensor, ...], labels_BHW3: Tensor, valid_BHW: Tensor) -> Tensor:
    """Cross entropy at every stride-th pixel, scaled to the number of pixels."""
    stride = labels_BHW3.shape[1] // dense[0].shape[-1]
    grid = dense[0].shape[-2:]
    labels_Bhw3 = at_centres(labels_BHW3, grid).long()
    labelled_Bhw3 = at_centres(valid_BHW, grid)[..., None] & (labels_Bhw3 != UNLABELLED)
    labels_Bhw3 = torch.where(labelled_Bhw3, labels_Bhw3, IGNORE)
    losses = [
        F.cross_entropy(logits.float(), labels_Bhw3[..., i], ignore_index=IGNORE, reduction="sum")
        for i, logits in enumerate(dense)
    ]
    return torch.stack(losses).sum() * stride * stride
