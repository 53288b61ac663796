"""Photos -> model inputs: two letterboxed views and region proposals. The same code trains, evaluates and chats.

Shapes: B images, y x pixels of the photo, h w low frame, H W high frame, O object boxes, P part boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mllm.modeling import Boxes
from uniresxx.data.proposals import Proposals, grid_boxes, propose, random_boxes
from uniresxx.errors import InputError
from uniresxx.geometry import Letterbox
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.types import ImageRecord

PIXEL_MEAN, PIXEL_STD = 127.5, 63.75


@dataclass(frozen=True, slots=True)
class View:
    """One photo in both frames (uint8) with its boxes in the high frame."""

    letterbox: Letterbox
    low_hw3: np.ndarray
    high_HW3: np.ndarray
    boxes: Proposals


def view_photo(photo_yx3: np.ndarray, config: UniRESPlusPlusConfig, truth: ImageRecord | None = None) -> View:
    """Prepare one photo; `truth` is read only by the labelled ablation `boxes = "truth"`."""
    m = config.mllm
    height, width = photo_yx3.shape[:2]
    letterbox = Letterbox.fit(height, width, m.high_size)
    high = letterbox.photo(photo_yx3)
    low = high if m.low_size == m.high_size else Letterbox.fit(height, width, m.low_size).photo(photo_yx3)
    if config.boxes in ("segmenter", "shuffled"):
        boxes = propose(high, m.max_objects, m.max_parts)
    elif config.boxes == "grid":
        boxes = Proposals(grid_boxes(m.high_size, m.max_objects), grid_boxes(m.high_size, m.max_parts))
    elif config.boxes == "random":
        seed = int(high.sum())
        boxes = Proposals(
            random_boxes(m.high_size, m.max_objects, seed), random_boxes(m.high_size, m.max_parts, seed + 1)
        )
    else:
        if truth is None or not truth.boxes:
            raise InputError(
                "boxes='truth' is an ablation on data with truth boxes; use boxes='segmenter' here"
            )
        boxes = Proposals(
            letterbox.boxes(truth.boxes["object"])[: m.max_objects],
            letterbox.boxes(truth.boxes["part"])[: m.max_parts],
        )
    return View(letterbox, low, high, boxes)


def pixels(views: Sequence[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) views -> normalised float (B, 3, H, W)."""
    return (torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() - PIXEL_MEAN) / PIXEL_STD


def pad_boxes(views: Sequence[View], config: UniRESPlusPlusConfig) -> Boxes:
    """Boxes of B images padded to the configured counts; `shuffled` gives each image its neighbour's boxes."""
    if config.boxes == "shuffled":
        rows = [views[(i + 1) % len(views)].boxes for i in range(len(views))]
    else:
        rows = [view.boxes for view in views]
    objects, object_valid = _pad([r.objects for r in rows], config.mllm.max_objects)
    parts, part_valid = _pad([r.parts for r in rows], config.mllm.max_parts)
    return Boxes(objects, object_valid, parts, part_valid)


def _pad(boxes: Sequence[np.ndarray], count: int) -> tuple[Tensor, Tensor]:
    padded = np.zeros((len(boxes), count, 4), dtype=np.float32)
    valid = np.zeros((len(boxes), count), dtype=bool)
    for row, box_N4 in enumerate(boxes):
        n = min(len(box_N4), count)
        padded[row, :n], valid[row, :n] = box_N4[:n], True
    return torch.from_numpy(padded), torch.from_numpy(valid)
