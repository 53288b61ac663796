"""The `learned` proposer: a class-agnostic detector with an object and a part level on the high tower's stages.

One location per cell of each stage predicts, for each of the two levels, objectness, centre-ness and the
distances to the four sides: FCOS (Tian et al. 2019) without classes. Trained on all boxes that a data set has, else
on the boxes of all masks, whatever their expressions are.

Shapes: B images, G levels of boxes (object, part), A locations of all stages, M truth boxes, N chosen boxes,
K candidates, R = B G, C width, h w a stage map. Boxes are xyxy in the high frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.modeling import Boxes
from uniresxx.model.config import BOX_LEVELS, NORM_GROUPS, BoxHeadConfig

NMS_IOU = 0.7
# strides from a box's centre within which locations are responsible for it (FCOS, centre sampling)
RADIUS = 1.5
POSITIVES = (2 * RADIUS) ** 2  # about so many locations are, per box
REACH = 16  # a stage is responsible for boxes whose longer side is at most so many strides
PRIOR = -4.6  # logit of 0.01: nearly all locations are empty (Lin et al. 2017)


class BoxOutput(NamedTuple):
    """Predictions of each location; a box's score is the root of objectness times centre-ness."""

    objectness_BGA: Tensor
    centre_BGA: Tensor
    boxes_BGA4: Tensor
    points_A2: Tensor
    stride_A: Tensor


class BoxHead(nn.Module):
    """Laterals, top-down sums, one tower of convolutions shared by all stages."""

    active_G: Tensor

    def __init__(self, config: BoxHeadConfig, widths: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        C = config.width
        self.config, self.stages = config, config.stages
        self.strides = [strides[index] for index in config.stages]
        self.lateral = nn.ModuleList(nn.Conv2d(widths[index], C, 1) for index in config.stages)
        layers: list[nn.Module] = []
        for _ in range(config.convs):
            layers += [nn.Conv2d(C, C, 3, padding=1), nn.GroupNorm(NORM_GROUPS, C), nn.GELU()]
        self.tower = nn.Sequential(*layers)
        self.out = nn.Conv2d(C, 6 * len(BOX_LEVELS), 3, padding=1)
        self.scale = nn.Parameter(torch.ones(len(config.stages)))
        active_G = torch.tensor([level in config.active_levels for level in BOX_LEVELS])
        self.register_buffer("active_G", active_G, persistent=False)
        nn.init.normal_(self.out.weight, std=0.01)
        with torch.no_grad():
            first = torch.tensor([PRIOR, 0.0, 1.0, 1.0, 1.0, 1.0])
            self.out.bias = nn.Parameter(first.repeat(len(BOX_LEVELS)))

    def forward(self, stages: list[Tensor]) -> BoxOutput:
        """All stage maps of the high tower -> predictions at every location."""
        maps = [conv(stages[index]) for conv, index in zip(self.lateral, self.stages, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
        raw, points, strides = [], [], []
        for i, (map_BChw, stride) in enumerate(zip(maps, self.strides, strict=True)):
            x = self.out(self.tower(map_BChw)).float().unflatten(1, (len(BOX_LEVELS), 6))
            size = F.softplus(x[:, :, 2:] * self.scale[i]) * stride
            raw.append(torch.cat((x[:, :, :2], size), dim=2).flatten(3))
            points.append(_centres(map_BChw, stride))
            strides.append(points[-1].new_full((len(points[-1]),), float(stride)))
        x_BG6A, points_A2 = torch.cat(raw, dim=-1), torch.cat(points)
        left, top, right, bottom = x_BG6A[:, :, 2:].unbind(2)
        px, py = points_A2.unbind(-1)
        boxes = torch.stack((px - left, py - top, px + right, py + bottom), dim=-1)
        return BoxOutput(x_BG6A[:, :, 0], x_BG6A[:, :, 1], boxes, points_A2, torch.cat(strides))

    @torch.no_grad()
    def propose(self, output: BoxOutput, extent_B2: Tensor, max_objects: int, max_parts: int) -> Boxes:
        """The best boxes of both levels after NMS, cut to the photo, whose (x, y) size is `extent`.

        Boxes that score below `min_score`, and all boxes of a level that is off, are not valid.
        """
        c = self.config
        score_BGA = (output.objectness_BGA.float().sigmoid() * output.centre_BGA.float().sigmoid()).sqrt()
        score_BGA = torch.where((score_BGA >= c.min_score) & self.active_G[:, None], score_BGA, -1.0)
        boxes_RA4, score_RA = output.boxes_BGA4.float().flatten(0, 1), score_BGA.flatten(0, 1)
        extent_R2 = extent_B2.repeat_interleave(len(BOX_LEVELS), dim=0)
        boxes_RN4, valid_RN = best_boxes(
            boxes_RA4, score_RA, extent_R2, max(max_objects, max_parts), c.candidates
        )
        objects_BN4, parts_BN4 = boxes_RN4.unflatten(0, (-1, len(BOX_LEVELS))).unbind(1)
        object_valid_BN, part_valid_BN = valid_RN.unflatten(0, (-1, len(BOX_LEVELS))).unbind(1)
        return Boxes(
            objects_BN4[:, :max_objects],
            object_valid_BN[:, :max_objects],
            parts_BN4[:, :max_parts],
            part_valid_BN[:, :max_parts],
        )

    def loss_sum(
        self,
        output: BoxOutput,
        truth_BGM4: Tensor,
        valid_BGM: Tensor,
        complete_BG: Tensor,
        extent_B2: Tensor,
    ) -> Tensor:
        """Loss on objectness, 1 - GIoU and centre-ness on responsible locations; divide by the truth boxes.

        Objectness has the focal loss on all locations of the photo where the truth boxes are `complete`. Where they
        are only those of the referents, what lies outside them may be an object too: then objectness learns the IoU
        of its box, on responsible locations alone (OLN, Kim et al. 2022).

        FCOS divides by the number of responsible locations; `POSITIVES` per box stands in for it, so that the
        denominator is known before the forward pass (our choice). A level without any truth box adds nothing:
        most data sets mark either objects or parts, and an unmarked box may still be there (our choice).
        """
        chosen_BGA = assign(output.points_A2, output.stride_A, truth_BGM4, valid_BGM)
        positive = chosen_BGA >= 0
        on_photo_BA = (output.points_A2 < extent_B2[:, None]).all(dim=-1)
        logits = output.objectness_BGA.float()
        counted_BGA = on_photo_BA[:, None] & (valid_BGM.any(dim=2) & complete_BG)[..., None]
        focal = _focal(logits, positive.float()) * counted_BGA
        index = chosen_BGA.clamp(min=0)[..., None].expand(-1, -1, -1, 4)
        target = truth_BGM4.gather(2, index) if truth_BGM4.shape[2] else output.boxes_BGA4.detach()
        iou, giou = iou_and_giou(output.boxes_BGA4.float(), target)
        quality = F.binary_cross_entropy_with_logits(logits, iou.detach(), reduction="none")
        quality = quality * ~complete_BG[..., None]
        centre = F.binary_cross_entropy_with_logits(
            output.centre_BGA.float(), centreness(output.points_A2, target), reduction="none"
        )
        return (focal.sum() + ((1 - giou + centre + quality) * positive).sum()) / POSITIVES


def _centres(map_BChw: Tensor, stride: int) -> Tensor:
    """Centres of all cells in pixels of the high frame, row by row -> (h w, 2) as (x, y)."""
    h, w = map_BChw.shape[-2:]
    y, x = (torch.arange(n, device=map_BChw.device, dtype=torch.float32) + 0.5 for n in (h, w))
    grid = torch.meshgrid(y * stride, x * stride, indexing="ij")
    return torch.stack((grid[1], grid[0]), dim=-1).flatten(0, 1)


def best_boxes(
    boxes_BA4: Tensor, score_BA: Tensor, extent_B2: Tensor, count: int, candidates: int
) -> tuple[Tensor, Tensor]:
    """Greedy NMS at 0.7 of each image's best candidates -> boxes (B, count, 4), valid (B, count), best first."""
    edge_B14 = extent_B2.repeat(1, 2)[:, None]
    boxes_BA4 = torch.minimum(boxes_BA4.clamp(min=0), edge_B14)
    real = ((boxes_BA4[..., 2:] - boxes_BA4[..., :2]) >= 1).all(dim=-1)
    score_BA = torch.where(real, score_BA, -1.0)
    score_BK, order = score_BA.topk(min(candidates, score_BA.shape[1]), dim=1)
    boxes_BK4 = boxes_BA4.gather(1, order[..., None].expand(-1, -1, 4))
    place_BN, valid_BN = greedy_nms(pairwise_iou(boxes_BK4, boxes_BK4) > NMS_IOU, score_BK >= 0, count)
    found_BN4 = boxes_BK4.gather(1, place_BN[..., None].expand(-1, -1, 4)) * valid_BN[..., None]
    missing = count - found_BN4.shape[1]
    return F.pad(found_BN4, (0, 0, 0, missing)), F.pad(valid_BN, (0, missing))


def greedy_nms(clash_BKK: Tensor, valid_BK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first min(count, K) candidates that greedy NMS keeps -> places (B, N), valid (B, N).

    One round per kept box, not per candidate: each takes the first candidate that is left, of all B at once, and
    removes it and those that clash with it. No size and no branch depends on the data, so no device is waited for.

    Args:
        clash_BKK: pairs that may not both be kept, symmetric.
        valid_BK: candidates that may be kept, best first.
        count: of the boxes that are wanted.
    """
    B, K = valid_BK.shape
    itself_KK = torch.eye(K, dtype=torch.bool, device=valid_BK.device)
    removes_BKK = clash_BKK | itself_KK
    order_K = torch.arange(K, 0, -1, device=valid_BK.device)  # 0 is no candidate; equal ranks never meet
    left_B1K = (valid_BK * order_K)[:, None]
    ranks, places = [left_B1K.new_zeros(B, 1, 0)], [left_B1K.new_zeros(B, 1, 0)]
    for _ in range(min(count, K)):
        rank_B11, place_B11 = left_B1K.max(dim=2, keepdim=True)
        left_B1K = left_B1K.masked_fill(removes_BKK.gather(1, place_B11.expand(-1, -1, K)), 0)
        ranks.append(rank_B11)
        places.append(place_B11)
    return torch.cat(places, dim=2)[:, 0], torch.cat(ranks, dim=2)[:, 0] > 0


def pairwise_iou(a_BM4: Tensor, b_BN4: Tensor) -> Tensor:
    """IoU of every pair -> (B, M, N)."""
    low = torch.maximum(a_BM4[:, :, None, :2], b_BN4[:, None, :, :2])
    high = torch.minimum(a_BM4[:, :, None, 2:], b_BN4[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(x[..., 2:] - x[..., :2]).clamp(min=0).prod(dim=-1) for x in (a_BM4, b_BN4)]
    return shared / (areas[0][:, :, None] + areas[1][:, None] - shared).clamp(min=1e-6)


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019, -1..1) of boxes one by one, any leading shape."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(x[..., 2:] - x[..., :2]).clamp(min=0).prod(dim=-1) for x in (a, b)]
    union = (areas[0] + areas[1] - shared).clamp(min=1e-6)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = hull.clamp(min=0).prod(dim=-1).clamp(min=1e-6)
    iou = shared / union
    return iou, iou - (hull - union) / hull


def centreness(points_A2: Tensor, boxes_BGA4: Tensor) -> Tensor:
    """FCOS's target sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)), 0..1; 0 outside the box."""
    before = (points_A2 - boxes_BGA4[..., :2]).clamp(min=0)
    after = (boxes_BGA4[..., 2:] - points_A2).clamp(min=0)
    ratio = torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-6)
    return ratio.prod(dim=-1).sqrt()


@torch.no_grad()
def assign(points_A2: Tensor, stride_A: Tensor, truth_BGM4: Tensor, valid_BGM: Tensor) -> Tensor:
    """The smallest truth box that each location is responsible for, -1 for none -> (B, G, A).

    Responsible: within `RADIUS` strides of the centre and inside the box, or the nearest cell (small boxes may hold
    no cell's centre), on the stage whose reach fits the box's longer side.
    """
    B, G, M, _ = truth_BGM4.shape
    if not M:
        return torch.full((B, G, len(points_A2)), -1, device=points_A2.device)
    low, high = truth_BGM4[..., None, :2], truth_BGM4[..., None, 2:]
    away = ((low + high) / 2 - points_A2).abs().amax(dim=-1)
    inside = ((points_A2 >= low) & (points_A2 <= high)).all(dim=-1)
    near = ((away <= RADIUS * stride_A) & inside) | (away <= 0.5 * stride_A)
    longest = (truth_BGM4[..., 2:] - truth_BGM4[..., :2]).amax(dim=-1)[..., None]
    first, last = stride_A.min(), stride_A.max()
    fits = (longest <= REACH * stride_A) | (stride_A == last)
    fits &= (longest > REACH * stride_A / 2) | (stride_A == first)
    area = (high - low).clamp(min=0).prod(dim=-1)[..., 0]
    cost_BGMA = torch.where(near & fits & valid_BGM[..., None], area[..., None], torch.inf)
    best = cost_BGMA.min(dim=2)
    return torch.where(best.values.isfinite(), best.indices, -1)


def _focal(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al. 2017), per element."""
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = torch.where(target > 0.5, logits.sigmoid(), 1 - logits.sigmoid())
    return torch.where(target > 0.5, alpha, 1 - alpha) * (1 - p) ** gamma * bce
