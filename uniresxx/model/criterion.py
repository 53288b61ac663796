"""The training objective: denominators known before the forward pass, and loss sums of one micro-batch.

Shapes: as in uniresxx.types.Batch; P expressions with a mask, Y label positions, V vocabulary, Q queries,
h w the mask head's grid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

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
    cells,
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


def mask_counts(batch: Batch) -> Counts:
    """Denominators of the terms of any mask head."""
    masks = len(batch.present_P)
    return {"mask": masks, "dice": masks, "quality": masks, "presence": len(batch.present_E)}


def all_counts(batch: Batch, config: LossConfig) -> Counts:
    """Denominators of all terms of the loss."""
    counts = {"text": len(batch.labelled_Y)}
    if config.teaches_masks:
        counts |= mask_counts(batch)
        counts["dense"] = int(batch.pixel_valid_BHW.sum()) if batch.dense_BHW3 is not None else 0
    if config.box:
        boxes = batch.truth_boxes_valid_BGM
        counts["box"] = int(boxes.sum()) if boxes is not None else 0
    return counts


def mask_terms(head: HeadOutput, batch: Batch, config: LossConfig) -> dict[str, Tensor]:
    """Sums of a mask head's terms; masks are supervised only where the truth has one."""
    present_E, present_P = batch.present_E, batch.present_P
    bce, dice, iou_P = _masks_and_iou(head.masks_Ehw[present_P].float(), batch, config)
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
    if output.dense and batch.dense_BHW3 is not None:
        sums["dense"] = _dense_sum(output.dense, batch.dense_BHW3, batch.pixel_valid_BHW)
    if output.boxes is not None and box_head is not None and config.box:
        truth, valid = batch.truth_boxes_BGM4, batch.truth_boxes_valid_BGM
        complete, extent_B2 = batch.boxes_complete_BG, photo_extent(batch.pixel_valid_BHW)
        assert truth is not None and valid is not None and complete is not None
        sums["box"] = box_head.loss_sum(output.boxes, truth, valid, complete, extent_B2)
    return weighted(sums, config)


def weighted(sums: dict[str, Tensor], config: LossConfig) -> LossTerms:
    """The sums with the weights of the config, whose fields have the names of the terms."""
    return LossTerms(sums, {name: getattr(config, name) for name in sums})


def _masks_and_iou(logits_Phw: Tensor, batch: Batch, config: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """BCE and dice sums at the configured resolution, and the true IoU of each mask.

    With "low" and "points" the IoU is that on the head's grid, else where the loss is. Points are drawn from
    torch's random numbers: a step that is cut differently draws others.
    """
    smooth, frame = config.dice_smooth, batch.pixel_valid_BHW.shape[-1]
    if config.resolution == "photo":
        return photo_sums(logits_Phw, batch.masks_photo, frame, smooth)
    truth_PHW = batch.masks_EHW[batch.present_P]
    valid_PHW = batch.pixel_valid_BHW[batch.image_of_expr_E[batch.present_P]]
    if config.resolution == "full":
        rows, columns = batch.shown
        truth_PHW, valid_PHW = truth_PHW[:, :rows, :columns], valid_PHW[:, :rows, :columns]
        logits_PHW = shown_logits(logits_Phw, frame, batch.shown)
        bce, dice = mask_sums(logits_PHW, truth_PHW, valid_PHW, smooth)
        return bce, dice, true_iou(logits_PHW, truth_PHW, valid_PHW)
    h, w = logits_Phw.shape[-2:]
    covered_Phw, valid_Phw = cells(truth_PHW, valid_PHW, (h, w))
    if config.resolution == "points":
        bce, dice = mask_point_sums(logits_Phw, truth_PHW, valid_PHW, config, smooth)
    else:
        bce, dice = mask_sums(logits_Phw, covered_Phw * valid_Phw, valid_Phw, smooth)
    return bce, dice, true_iou(logits_Phw, (covered_Phw >= 0.5) & valid_Phw, valid_Phw)


def _dense_sum(dense: tuple[Tensor, ...], labels_BHW3: Tensor, valid_BHW: Tensor) -> Tensor:
    """Cross entropy at every stride-th pixel, scaled to the number of pixels."""
    stride = labels_BHW3.shape[1] // dense[0].shape[-1]
    sampled = slice(stride // 2, None, stride)
    labels_Bhw3 = labels_BHW3[:, sampled, sampled].long()
    labelled_Bhw3 = valid_BHW[:, sampled, sampled, None] & (labels_Bhw3 != UNLABELLED)
    labels_Bhw3 = torch.where(labelled_Bhw3, labels_Bhw3, IGNORE)
    losses = [
        F.cross_entropy(logits.float(), labels_Bhw3[..., i], ignore_index=IGNORE, reduction="sum")
        for i, logits in enumerate(dense)
    ]
    return torch.stack(losses).sum() * stride * stride
