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
    Truth may be the covered share of a cell, 0..1, and is 0 where nothing is valid. Any trailing shape: pixels, cells
    or points. All sums are dot products, so that no product of two maps is kept for the backward pass.
    """
    logits, truth, valid = (x.flatten(1).to(logits_EHW.dtype) for x in (logits_EHW, truth_EHW, valid_EHW))
    bce_E = (dots(F.softplus(logits), valid) - dots(logits, truth)) / valid.sum(1).clamp(min=1)
    p = logits.sigmoid()
    dice_E = 1 - (2 * dots(p, truth) + smooth) / (dots(p, valid) + truth.sum(1) + smooth)
    return bce_E.sum(), dice_E.sum()


def dots(a_EN: Tensor, b_EN: Tensor) -> Tensor:
    """Dot product of each row of `a` with that of `b` -> (E,), in their dtype: autocast would round them to bf16."""
    with torch.autocast(a_EN.device.type, enabled=False):
        return torch.bmm(a_EN[:, None], b_EN[:, :, None])[:, 0, 0]


def contrast_sum(logits_Phw: Tensor, truth_Phw: Tensor, image_P: Tensor, most: int) -> Tensor:
    """How much each mask is confused with another one of its picture, summed over masks (our choice).

    Where the true masks of two expressions do not overlap, the pixels of the first shall have a higher logit for the
    first: softplus(other - own), mean over its pixels. Each mask counts with the expression it is most confused with.
    Two expressions that differ in one word ("the left car", "the right car") differ in nothing else, so the gradient
    is that of the word alone; BCE and dice are nearly indifferent while both cars are masked for either of them.

    Masks of a picture stand one after another, at most `most` of them. No step has a size that depends on the data.
    """
    logits_PN, truth_PN = logits_Phw.flatten(1), truth_Phw.flatten(1).to(logits_Phw.dtype)
    area_P = truth_PN.sum(dim=1)
    worst_P = logits_PN.new_zeros(len(logits_PN))
    for step in range(1, most):
        for shift in (step, -step):
            other_PN, other_truth_PN = logits_PN.roll(shift, dims=0), truth_PN.roll(shift, dims=0)
            apart_P = (image_P == image_P.roll(shift)) & (dots(truth_PN, other_truth_PN) == 0)
            confusion_P = dots(F.softplus(other_PN - logits_PN), truth_PN) / area_P.clamp(min=1)
            worst_P = torch.maximum(worst_P, confusion_P * apart_P)
    return worst_P.sum()


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


def photo_logits(logits_Ehw: Tensor, side: int, inner: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Logits at the photo's size (y, x): to the square frame, cut to what shows the photo, to the photo.

    The values of SAM's `postprocess_masks`, which LISA's loss goes through (dvlab-research/LISA:model/LISA.py); rows
    and columns of padding alone are left out before they are enlarged.
    """
    return resized(shown_logits(logits_Ehw, side, inner), size)


def photo_sums(
    logits_Ehw: Tensor, masks_photo: Sequence[Tensor], frame: int, smooth: float
) -> tuple[Tensor, Tensor]:
    """(BCE, dice) summed over masks, each at the size of its photo; `masks_photo` as in Batch, E in its order.

    A loop over images, because their sizes differ. The backward pass keeps each map at two sizes. `frame` is the
    side of the padded square.
    """
    sums = [logits_Ehw.new_zeros(2)]
    own_logits = logits_Ehw.split([len(truth_Eyx) for truth_Eyx in masks_photo])
    for own_Ehw, truth_Eyx in zip(own_logits, masks_photo, strict=True):
        y, x = truth_Eyx.shape[1:]
        box = Letterbox.fit(y, x, frame)
        logits_Eyx = photo_logits(own_Ehw, frame, (box.inner_height, box.inner_width), (y, x))
        everywhere = torch.ones_like(truth_Eyx)
        sums.append(torch.stack(mask_sums(logits_Eyx, truth_Eyx, everywhere, smooth)))
    bce, dice = torch.stack(sums).sum(dim=0)
    return bce, dice


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


def at_centres(map_EHW: Tensor, size: Sequence[int]) -> Tensor:
    """The pixel (E, H, W, …) at the centre of each cell of a coarser grid; cheaper than `cells`."""
    rows, columns = (
        ((torch.arange(n, device=map_EHW.device) + 0.5) * (side / n)).long()
        for n, side in zip(size, map_EHW.shape[1:3], strict=True)
    )
    return map_EHW[:, rows[:, None], columns]


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
