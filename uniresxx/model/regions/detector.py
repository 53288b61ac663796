"""`owlv2`: boxes of a pretrained open-vocabulary detector, used without any vocabulary.

Boxes are ranked by OWLv2's class-agnostic objectness. The detector has no part level: its "parts" are small boxes
inside a chosen object box, whatever they show (our choice). Shapes: B images, A detector patches, N object boxes.
Boxes are xyxy, high frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm.exploitation import containment
from mllm.loading import folder_of
from mllm.modeling import Boxes
from uniresxx.model.regions.learned import best_boxes

CANDIDATES = 256
INSIDE = 0.9  # share of a part that lies inside its object
SMALLER = 0.5  # a part has at most this share of its object's area


class Owlv2Proposer:
    """OWLv2 (Minderer et al. 2023) from a folder or hub id; CLIP-normalised pixels are what it expects."""

    def __init__(self, source: str, max_objects: int, max_parts: int) -> None:
        from transformers import Owlv2ForObjectDetection

        folder = folder_of(source)
        self.model = Owlv2ForObjectDetection.from_pretrained(folder, use_safetensors=True).eval()
        self.max_objects, self.max_parts = max_objects, max_parts

    @torch.no_grad()
    def __call__(self, pixels_B3HW: Tensor, extent_B2: Tensor) -> Boxes:
        """Boxes of B images, best first; `extent_B2` is each photo's (x, y) size in the frame of the pixels."""
        model = self.model.to(pixels_B3HW.device)
        side, own = pixels_B3HW.shape[-1], model.config.vision_config.image_size
        resized = F.interpolate(pixels_B3HW.float(), size=(own, own), mode="bilinear", antialias=True)
        features, _ = model.image_embedder(pixel_values=resized)
        flat = features.flatten(1, 2)
        centre, size = model.box_predictor(flat, features).float().split(2, dim=-1)
        boxes_BA4 = torch.cat((centre - size / 2, centre + size / 2), dim=-1) * side
        score_BA = model.objectness_predictor(flat).float().sigmoid()
        objects = best_boxes(boxes_BA4, score_BA, extent_B2, self.max_objects, CANDIDATES)
        inside_BAN = containment(boxes_BA4, objects[0]) >= INSIDE
        area_BA, area_BN = ((b[..., 2:] - b[..., :2]).prod(dim=-1) for b in (boxes_BA4, objects[0]))
        part_BA = (
            inside_BAN & (area_BA[:, :, None] <= SMALLER * area_BN[:, None]) & objects[1][:, None]
        ).any(dim=2)
        parts = best_boxes(
            boxes_BA4, torch.where(part_BA, score_BA, -1.0), extent_B2, self.max_parts, CANDIDATES
        )
        return Boxes(*objects, *parts)
