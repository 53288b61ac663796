"""Photos -> model inputs: two letterboxed views and region proposals. The same code trains, evaluates and chats.

Shapes: B images, y x pixels of the photo, h w low frame, H W high frame, S mask frame, N boxes, O object boxes,
P part boxes, E expressions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.modeling import Boxes
from mllm.tower_families import PIXEL_STATS, PixelStats
from uniresxx.errors import InputError
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.regions.classical import Proposals, grid_boxes, propose, random_boxes, shuffled_boxes
from uniresxx.types import ImageRecord

# pixels of logits at the photos' size: 4 MB, which stays in a CPU's cache, or 256 MB of a GPU; no mask depends on it
UPSAMPLED_ON_CPU, UPSAMPLED_ON_GPU = 2**20, 2**26
FROM_FEATURES = ("learned", "owlv2")  # box sources that the model computes itself, on its own input


@dataclass(frozen=True, slots=True)
class View:
    """One photo in both frames (uint8) with its boxes in the high frame."""

    letterbox: Letterbox
    low_hw3: np.ndarray
    high_HW3: np.ndarray
    boxes: Proposals
    mask_SS3: np.ndarray | None = None  # the mask head's own frame, where it has one
    box_seconds: float = 0.0  # time to find the boxes


def view_photo(photo_yx3: np.ndarray, config: UniRESPlusPlusConfig, truth: ImageRecord | None = None) -> View:
    """Prepare one photo; `truth` is read only with `boxes = "truth"`: the align stage, and a labelled ablation."""
    m = config.mllm
    height, width = photo_yx3.shape[:2]
    letterbox = Letterbox.fit(height, width, m.high_size)
    high = letterbox.photo(photo_yx3)
    low = high if m.low_size == m.high_size else Letterbox.fit(height, width, m.low_size).photo(photo_yx3)
    mask = None
    if config.mask_size is not None:
        same = config.mask_size == m.high_size
        mask = high if same else Letterbox.fit(height, width, config.mask_size).photo(photo_yx3)
    start = perf_counter()
    boxes = _boxes_of(high, letterbox, config, truth)
    return View(letterbox, low, high, boxes, mask, perf_counter() - start)


def _boxes_of(
    high_HW3: np.ndarray, letterbox: Letterbox, config: UniRESPlusPlusConfig, truth: ImageRecord | None
) -> Proposals:
    """Boxes in the high frame from the configured source; the controls have as many as the proposer finds."""
    m, side = config.mllm, config.mllm.high_size
    if config.boxes in FROM_FEATURES:
        none_N4 = np.zeros((0, 4), dtype=np.float32)
        return Proposals(none_N4, none_N4)
    if config.boxes == "grid":
        return Proposals(grid_boxes(side, m.max_objects), grid_boxes(side, m.max_parts))
    if config.boxes == "truth":
        objects, parts = _truth_boxes(truth)
        return Proposals(letterbox.boxes(objects)[: m.max_objects], letterbox.boxes(parts)[: m.max_parts])
    found = propose(high_HW3, m.max_objects, m.max_parts)
    found = Proposals(_on_the_photo(found.objects, letterbox), _on_the_photo(found.parts, letterbox))
    seed = int(high_HW3.sum())  # of this picture alone, whatever else is in the batch
    if config.boxes == "shuffled":
        return Proposals(
            shuffled_boxes(found.objects, side, seed), shuffled_boxes(found.parts, side, seed + 1)
        )
    if config.boxes == "random":
        return Proposals(
            random_boxes(side, len(found.objects), seed), random_boxes(side, len(found.parts), seed + 1)
        )
    return found


def _truth_boxes(truth: ImageRecord | None) -> tuple[np.ndarray, np.ndarray]:
    """Object and part boxes (N, 4) of a record. InputError where its expressions were to be found in unknown boxes.

    Captioned regions may be objects or parts, so both streams get them (our choice); a picture that is only described
    needs none.
    """
    none_N4 = np.zeros((0, 4), dtype=np.float32)
    if truth is not None and not truth.expressions:
        regions_N4 = truth.boxes.get("region", none_N4)
        return truth.boxes.get("object", regions_N4), truth.boxes.get("part", regions_N4)
    if truth is None or not {"object", "part"} <= truth.boxes.keys():
        raise InputError(
            "boxes='truth' is an ablation on data with truth boxes, and that of the align stage, whose masks mean "
            "nothing; use boxes='classical' here, or a checkpoint of a later stage"
        )
    return truth.boxes["object"], truth.boxes["part"]


def with_boxes(views: Sequence[View], boxes: Boxes) -> list[View]:
    """The views of B photos with boxes that the model found on its own input."""
    objects_BO4, parts_BP4 = (x.float().cpu().numpy() for x in (boxes.objects_BO4, boxes.parts_BP4))
    object_valid_BO, part_valid_BP = (x.cpu().numpy() for x in (boxes.object_valid_BO, boxes.part_valid_BP))
    return [
        replace(view, boxes=Proposals(objects_BO4[b, object_valid_BO[b]], parts_BP4[b, part_valid_BP[b]]))
        for b, view in enumerate(views)
    ]


def _on_the_photo(boxes_N4: np.ndarray, letterbox: Letterbox) -> np.ndarray:
    """Boxes cut to the photo; those that lie mostly on the padding are left out."""
    edge = np.array([letterbox.inner_width, letterbox.inner_height] * 2, dtype=np.float32)
    cut = np.minimum(boxes_N4, edge)
    whole, left = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes_N4, cut))
    return cut[left > 0.5 * whole]


class PixelNorm(nn.Module):
    """uint8 (B, 3, H, W) -> normalised fp32, on the device where the module is; nothing of it is saved."""

    mean_311: Tensor
    std_311: Tensor

    def __init__(self, stats: PixelStats) -> None:
        super().__init__()
        for name, values in zip(("mean_311", "std_311"), PIXEL_STATS[stats], strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalised pixels; an assertion fails for pixels that are not uint8, which may be normalised already."""
        assert pixels_B3HW.dtype == torch.uint8, pixels_B3HW.dtype
        return (pixels_B3HW.float() - self.mean_311) / self.std_311


def pixels(views: Sequence[np.ndarray]) -> Tensor:
    """Views (H, W, 3) -> (B, 3, H, W); uint8, a quarter of the bytes of what `PixelNorm` makes of it."""
    return torch.from_numpy(np.stack([np.ascontiguousarray(view.transpose(2, 0, 1)) for view in views]))


def tensors_of(views: Sequence[View], config: UniRESPlusPlusConfig) -> dict[str, Tensor]:
    """The model's input tensors of B photos: names as in uniresxx.types.Batch, and `extent_B2`, each photo's (x, y)
    size within the high frame. `pixels_mask_B3SS` only for a mask head with a frame of its own."""
    m = config.mllm
    extent = [[view.letterbox.inner_width, view.letterbox.inner_height] for view in views]
    object_boxes, object_valid = _pad([view.boxes.objects for view in views], m.max_objects)
    part_boxes, part_valid = _pad([view.boxes.parts for view in views], m.max_parts)
    tensors = {
        "pixels_low_B3hw": pixels([view.low_hw3 for view in views]),
        "pixels_high_B3HW": pixels([view.high_HW3 for view in views]),
        "extent_B2": torch.tensor(extent, dtype=torch.float32),
        "object_boxes_BO4": object_boxes,
        "object_valid_BO": object_valid,
        "part_boxes_BP4": part_boxes,
        "part_valid_BP": part_valid,
    }
    mask_frames = [view.mask_SS3 for view in views if view.mask_SS3 is not None]
    return tensors | ({"pixels_mask_B3SS": pixels(mask_frames)} if mask_frames else {})


def _pad(boxes: Sequence[np.ndarray], count: int) -> tuple[Tensor, Tensor]:
    """Boxes of B images padded to `count`, and which of them are real."""
    padded = np.zeros((len(boxes), count, 4), dtype=np.float32)
    valid = np.zeros((len(boxes), count), dtype=bool)
    for row, box_N4 in enumerate(boxes):
        n = min(len(box_N4), count)
        padded[row, :n], valid[row, :n] = box_N4[:n], True
    return torch.from_numpy(padded), torch.from_numpy(valid)


def photo_masks(logits_Ehw: Tensor, image_of_expr: Sequence[int], views: Sequence[View]) -> list[np.ndarray]:
    """Thresholded masks, bool (y, x) at each photo's size; expressions come image by image.

    Resized and thresholded on the device, a few at a time; only bits of the result leave it.
    """
    masks: list[np.ndarray] = []
    pixels_at_once = UPSAMPLED_ON_CPU if logits_Ehw.device.type == "cpu" else UPSAMPLED_ON_GPU
    for view, own_Ehw in zip(views, logits_Ehw.split(_counts(image_of_expr, len(views))), strict=True):
        at_once = max(1, pixels_at_once // (view.letterbox.height * view.letterbox.width))
        for few_Ehw in own_Ehw.split(at_once) if len(own_Ehw) else ():
            masks.extend(upsampled(few_Ehw, view.letterbox).cpu().numpy())
    return masks


def _counts(image_of_expr: Sequence[int], images: int) -> list[int]:
    """How many expressions each image has."""
    assert list(image_of_expr) == sorted(image_of_expr), "expressions must come image by image"
    counts = Counter(image_of_expr)
    return [counts[b] for b in range(images)]


def upsampled(logits_Ehw: Tensor, box: Letterbox) -> Tensor:
    """Logits over the whole padded square -> bool (E, y, x) at the photo's size: `Letterbox.unmask_logits_many`.

    The part of the grid that shows the photo may end within a cell, so the scale is given, not the size, and what
    lies behind the photo's edge is cut. A photo with fewer pixels than cells is small enough for numpy (torch's
    antialiased resize to a single column repeats its first row).
    """
    cells = logits_Ehw.shape[-1]
    shown = [inner * cells / box.side for inner in (box.inner_height, box.inner_width)]
    rows, columns = (min(cells, max(1, ceil(length - 1e-9))) for length in shown)
    # a hair more, or rounding could make the result a pixel too small
    scale = [(1 + 1e-9) * box.height / shown[0], (1 + 1e-9) * box.width / shown[1]]
    if min(scale) < 1:
        return torch.from_numpy(box.unmask_logits_many(logits_Ehw.float().cpu().numpy()))
    photo_E1yx = F.interpolate(
        logits_Ehw[:, None, :rows, :columns].float(),
        scale_factor=scale,
        mode="bilinear",
        recompute_scale_factor=False,
    )
    masks_Eyx = photo_E1yx[:, 0, : box.height, : box.width] > 0
    assert masks_Eyx.shape[1:] == (box.height, box.width), (masks_Eyx.shape, box)
    return masks_Eyx
