"""What LISA, GSVA and M2SA learn from a micro-batch: their batch, their output, their losses.

Shapes: B images, E decisions ([SEG] or [REJ]) of the batch, P those that are [SEG], T tokens of a row, Y label
positions, V vocabulary, H W CLIP's frame, S SAM's frame, h w low-resolution masks, y x a photo.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mllm.chat import IGNORE
from uniresxx.model.losses import Counts, LossTerms, photo_sums
from uniresxx.segmenters.lisa.config import LisaLossConfig
from uniresxx.types import TrainingBatch


@dataclass(slots=True, kw_only=True)
class LisaBatch(TrainingBatch):
    """Prepared photos with their token rows: the conversations of a photo, as branches, behind <im_end>."""

    clip_B3HW: Tensor  # normalised
    sam_B3SS: Tensor  # normalised, zeros around the photo
    token_ids_BT: Tensor
    labels_BT: Tensor  # next-token targets at the predicting position, -100: no loss
    branch_BT: Tensor  # -1 on padding
    position_BT: Tensor  # restarts at 0 in each branch
    image_of_expr_E: Tensor
    seg_position_E: Tensor  # position in the row of the state that predicts the decision
    segmented_P: Tensor  # which decisions are [SEG]
    masks_photo: list[Tensor]  # by image: bool (decisions, y, x); nothing where there is no target
    labelled_Y: Tensor = field(init=False)  # places in the flattened (B T) that have a label

    def __post_init__(self) -> None:
        """Find the places of labels here, on the host: on a GPU they would be waited for."""
        self.labelled_Y = (self.labels_BT != IGNORE).flatten().nonzero()[:, 0]


class LisaOutput(NamedTuple):
    """Logits and targets at label positions, and SAM's mask logits of every decision, zeros for [REJ]."""

    logits_YV: Tensor
    labels_Y: Tensor
    low_Ehw: Tensor


def counts_of(batch: LisaBatch) -> Counts:
    """Denominators of the terms; a [REJ] counts as a mask (model/modeling_lisa_gsva.py of GSVA)."""
    decisions = len(batch.seg_position_E)
    return {"text": len(batch.labelled_Y), "mask": decisions, "dice": decisions}


def loss_terms(output: LisaOutput, batch: LisaBatch, side: int, config: LisaLossConfig) -> LossTerms:
    """Sums over this micro-batch; `side` is that of SAM's frame.

    A [REJ] adds the loss of logits that are zero everywhere: a constant, as in GSVA.
    """
    text = F.cross_entropy(output.logits_YV.float(), output.labels_Y, reduction="sum")
    bce, dice = photo_sums(output.low_Ehw.float(), batch.masks_photo, side, config.dice_smooth)
    weights = {"text": config.text, "mask": config.mask, "dice": config.dice}
    return LossTerms({"text": text, "mask": bce, "dice": dice}, weights)


def with_zeros(low_Phw: Tensor, batch: LisaBatch) -> Tensor:
    """Mask logits (E, h, w) of all decisions from those of the [SEG] among them."""
    low_Ehw = low_Phw.new_zeros(len(batch.seg_position_E), *low_Phw.shape[1:])
    return low_Ehw.index_copy(0, batch.segmented_P, low_Phw)
