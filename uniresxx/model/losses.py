"""Loss sums of METHOD section 4; divided by the counts of the whole global batch by the caller.

Shapes: B images, E expressions, H W pixels of the high frame, h w the head's grid, K sampled points, y x pixels
of a photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from uniresxx.imaging.geometry import Letterbox

if TYPE_CHECKING:
    from uniresxx.model.config import LossConfig

Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Scalar sums over one micro-batch and their weights."""

    sums: dict[str, Tensor]
    weights: dict[str, float]

    def total(self, counts: Counts) -> Tensor:
        """Sum over terms of weight * sum / count, counts being those of the global batch."""
        return torch.stack([self.weights[k] * self.sums[k] / max(counts[k], 1) for k in self.sums]).sum()


def photo_extent(valid_BHW: Tensor) -> Tensor:
    """(x, y) size in pixels of the part of each square that shows the photo -> (B, 2) float."""
    return torch.stack((valid_BHW.any(dim=1).sum(dim=1), valid_BHW.any(dim=2).sum(dim=1)), dim=1).float()


def mask_sums(
    logits_EHW: Tensor, truth_EHW: Tensor, valid_EHW: Tensor, smooth: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(BCE, dice) summed over masks; BCE is the mean over valid pixels of each mask.

    Dice 1 - (2 sum pg + s) / (sum p + sum g + s) over valid pixels (smoothing s of 1 pixel: our choice).
    Truth may be the covered share of a cell, 0..1. Any trailing shape: pixels, cells or points.
    """
    truth, valid = truth_EHW.to(logits_EHW.dtype), valid_EHW.to(logits_EHW.dtype)
    bce = F.binary_cross_entropy_with_logits(logits_EHW, truth, reduction="none") * valid
    bce_E = bce.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
    p = logits_EHW.sigmoid() * valid
    inter_E = (p * truth).flatten(1).sum(1)
    dice_E = 1 - (2 * inter_E + smooth) / (p.flatten(1).sum(1) + truth.flatten(1).sum(1) + smooth)
    return bce_E.sum(), dice_E.sum()


def resized(logits_Ehw: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, edges on edges."""
    if logits_Ehw.shape[-2:] == tuple(size):
        return logits_Ehw
    return F.interpolate(logits_Ehw[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def shown_logits(logits_Ehw: Tensor, side: int, shown: tuple[int, int]) -> Tensor:
    """The rows and columns `shown` of `resized(logits, (side, side))`; cells of padding alone are left out before."""
    h, w = logits_Ehw.shape[-2:]
    if side % h or side % w:
        return resized(logits_Ehw, (side, side))[:, : shown[0], : shown[1]]
    # one cell more than what is shown: its edge pixels lie between two cells
    rows, columns = (min(n, -(-seen * n // side) + 1) for seen, n in zip(shown, (h, w), strict=True))
    size = rows * side // h, columns * side // w
    return resized(logits_Ehw[:, :rows, :columns], size)[:, : shown[0], : shown[1]]


def photo_logits(
    logits_Ehw: Tensor, frame: Sequence[int], inner: Sequence[int], size: Sequence[int]
) -> Tensor:
    """Logits at the photo's size (y, x): to the whole frame, cut to what shows the photo, to the photo.

    The order of SAM's `postprocess_masks`, which LISA's loss goes through (dvlab-research/LISA:model/LISA.py).
    """
    return resized(resized(logits_Ehw, frame)[:, : inner[0], : inner[1]], size)


def photo_sums(
    logits_Ehw: Tensor, masks_photo: Sequence[Tensor], frame: int, smooth: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(BCE, dice, IoU of each) of every mask at the size of its photo; `masks_photo` as in Batch, E in its order.

    A loop over images, because their sizes differ. The backward pass keeps each map at two sizes. `frame` is the
    side of the padded square.
    """
    sums, ious = [logits_Ehw.new_zeros(2)], [logits_Ehw.new_zeros(0)]
    own_logits = logits_Ehw.split([len(truth_Eyx) for truth_Eyx in masks_photo])
    for own_Ehw, truth_Eyx in zip(own_logits, masks_photo, strict=True):
        y, x = truth_Eyx.shape[1:]
        box = Letterbox.fit(y, x, frame)
        logits_Eyx = photo_logits(own_Ehw, (frame, frame), (box.inner_height, box.inner_width), (y, x))
        everywhere = torch.ones_like(truth_Eyx)
        sums.append(torch.stack(mask_sums(logits_Eyx, truth_Eyx, everywhere, smooth)))
        ious.append(true_iou(logits_Eyx, truth_Eyx, everywhere))
    bce, dice = torch.stack(sums).sum(dim=0)
    return bce, dice, torch.cat(ious)


def cells(truth_EHW: Tensor, valid_EHW: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Truth as the covered share of each cell of a coarser grid, and the cells at least half on the photo.

    With it a loss on the head's own grid needs no upsampled logits: at 768 px and stride 4 a sixteenth of the
    numbers per mask (the backward pass of BCE and dice keeps about six float maps: 14 MB against 0.9 MB).
    """
    if truth_EHW.shape[-2:] == size:
        return truth_EHW.float(), valid_EHW
    share = F.adaptive_avg_pool2d(valid_EHW.float(), size)
    covered = F.adaptive_avg_pool2d((truth_EHW & valid_EHW).float(), size)
    return covered / share.clamp(min=1e-6), share >= 0.5


def at_points(map_EHW: Tensor, points_EK2: Tensor) -> Tensor:
    """Bilinear values at points (x, y in 0..1 over the whole square) -> (E, K)."""
    grid = 2 * points_EK2[:, :, None] - 1
    found = F.grid_sample(map_EHW[:, None], grid, padding_mode="border", align_corners=False)
    return found[:, 0, :, 0]


@torch.no_grad()
def choose_points(
    logits_Ehw: Tensor, extent_E2: Tensor, count: int, oversample: int, uncertain: float
) -> Tensor:
    """PointRend's training points (Kirillov et al. 2020, section 3.1; detectron2:projects/PointRend) -> (E, K, 2).

    `oversample * count` uniform candidates; the `uncertain` share of the result are those whose logit is nearest 0,
    the rest new uniform points. `extent` is the photo's (x, y) share of the square: no point lies on padding.
    """
    E, device = len(logits_Ehw), logits_Ehw.device
    many = torch.rand(E, oversample * count, 2, device=device) * extent_E2[:, None]
    near = int(uncertain * count)
    order = at_points(logits_Ehw, many).abs().topk(near, dim=1, largest=False).indices
    chosen = many.gather(1, order[..., None].expand(-1, -1, 2))
    rest = torch.rand(E, count - near, 2, device=device) * extent_E2[:, None]
    return torch.cat((chosen, rest), dim=1)


def mask_point_sums(
    logits_Ehw: Tensor, truth_EHW: Tensor, valid_EHW: Tensor, config: LossConfig, smooth: float
) -> tuple[Tensor, Tensor]:
    """(BCE, dice) on sampled points: with `uncertain` 0 an unbiased estimate of the full-resolution BCE.

    The backward pass keeps K numbers per map instead of H * W: 12544 against 589824 at 768 px. Dice is a ratio of
    sums over the same points (as Mask2Former, Cheng et al. 2022); `smooth` is in points.
    """
    extent_E2 = photo_extent(valid_EHW) / torch.tensor(valid_EHW.shape[:0:-1], device=valid_EHW.device)
    points = choose_points(logits_Ehw, extent_E2, config.points, config.oversample, config.uncertain)
    logits_EK = at_points(logits_Ehw, points)
    truth_EK = at_points(truth_EHW.float(), points)
    return mask_sums(logits_EK, truth_EK, torch.ones_like(truth_EK), smooth)


@torch.no_grad()
def true_iou(logits_EHW: Tensor, truth_EHW: Tensor, valid_EHW: Tensor) -> Tensor:
    """IoU of the thresholded logits (> 0) with the truth per expression -> (E,), 0..1."""
    mask = (logits_EHW > 0) & valid_EHW
    inter = (mask & truth_EHW).flatten(1).sum(1).float()
    union = (mask | truth_EHW).flatten(1).sum(1).float()
    return inter / union.clamp(min=1)
