"""CLIPSeg as a part segmenter: inside an object's box, each pixel goes to the part whose words fit it best.

Shapes: P parts, s side of CLIPSeg's square, y x pixels of the box.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoProcessor, CLIPSegForImageSegmentation

from data_engine.components.loading import folder, load
from data_engine.model import Model
from data_engine.roles import FoundPart, Region

CONTEXT = 0.05  # shown around the box, as a share of its sides
CUT = 0.3  # probability from which on a pixel belongs to a part: CLIPSeg's own demo uses about this


class ClipSegParts:
    """Parts by name; definitions are not asked with, because CLIPSeg was trained on short names."""

    def __init__(self, model: Model) -> None:
        path = folder(model)
        self.processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        self.model = load(CLIPSegForImageSegmentation, model, path)

    @torch.inference_mode()
    def parts(self, photo_yx3: np.ndarray, region: Region, definitions: Mapping[str, str]) -> list[FoundPart]:
        """Masks of the parts that have a pixel; the score is the mean probability inside."""
        height, width = photo_yx3.shape[:2]
        x0, y0, x1, y1 = region.box
        across, down = CONTEXT * (x1 - x0), CONTEXT * (y1 - y0)
        left, top = max(0, int(x0 - across)), max(0, int(y0 - down))
        right, bottom = min(width, int(np.ceil(x1 + across))), min(height, int(np.ceil(y1 + down)))
        shown_yx3 = np.ascontiguousarray(photo_yx3[top:bottom, left:right])
        texts = [f"{name} of a {region.category}" for name in definitions]
        inputs = self.processor(
            images=[shown_yx3] * len(texts), text=texts, padding=True, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        logits_Pss = self.model(**inputs).logits.float().reshape(len(texts), 1, *self._side())
        size = shown_yx3.shape[:2]
        chance_Pyx = F.interpolate(logits_Pss, size=size, mode="bilinear").sigmoid()[:, 0].cpu().numpy()
        best_yx = chance_Pyx.argmax(axis=0)
        found = []
        for number, name in enumerate(definitions):
            inside_yx = (best_yx == number) & (chance_Pyx[number] >= CUT)
            if inside_yx.any():
                mask_yx = np.zeros((height, width), dtype=bool)
                mask_yx[top:bottom, left:right] = inside_yx
                found.append(FoundPart(name, mask_yx, float(chance_Pyx[number][inside_yx].mean())))
        return found

    def _side(self) -> tuple[int, int]:
        side = self.model.config.vision_config.image_size
        return (side, side)
