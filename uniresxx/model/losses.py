"""Loss sums of METHOD section 4; divided by the counts of the whole global batch by the caller.

Shapes: E expressions, H W pixels of the high frame, L label positions, V vocabulary, B images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Scalar sums over one micro-batch and their weights."""

    sums: dict[str, Tensor]
    weights: dict[str, float]

    def total(self, counts: Counts) -> Tensor:
        """Sum over terms of weight * sum / count, counts being those of the global batch."""
        return torch.stack([self.weights[k] * self.sums[k] / max(counts[k], 1) for k in self.sums]).sum()


def text_sum(logits_LV: Tensor, labels_L: Tensor) -> Tensor:
    """Cross entropy summed over label positions."""
    return F.cross_entropy(logits_LV.float(), labels_L, reduction="sum")


def mask_sums(logits_EHW: Tensor, truth_EHW: Tensor, valid_EHW: Tensor) -> tuple[Tensor, Tensor]:
    """(BCE, dice) summed over masks; BCE is the mean over valid pixels of each mask.

    Dice 1 - (2 sum pg + 1) / (sum p + sum g + 1) over valid pixels (smoothing of 1 pixel: our choice).
    """
    truth, valid = truth_EHW.to(logits_EHW.dtype), valid_EHW.to(logits_EHW.dtype)
    bce = F.binary_cross_entropy_with_logits(logits_EHW, truth, reduction="none") * valid
    bce_E = bce.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
    p = logits_EHW.sigmoid() * valid
    inter_E = (p * truth).flatten(1).sum(1)
    dice_E = 1 - (2 * inter_E + 1) / (p.flatten(1).sum(1) + truth.flatten(1).sum(1) + 1)
    return bce_E.sum(), dice_E.sum()


@torch.no_grad()
def true_iou(logits_EHW: Tensor, truth_EHW: Tensor, valid_EHW: Tensor) -> Tensor:
    """IoU of the thresholded logits (> 0) with the truth per expression -> (E,), 0..1."""
    mask = (logits_EHW > 0) & valid_EHW
    inter = (mask & truth_EHW).flatten(1).sum(1).float()
    union = (mask | truth_EHW).flatten(1).sum(1).float()
    return inter / union.clamp(min=1)
