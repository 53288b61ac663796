"""The SAM family of transformers, prompted with boxes: SAM, SAM-HQ, SAM 2, SAM 2.1.

Shapes: N boxes, K candidate masks of a box, s low-resolution side of the logits, S side of the model's square input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoConfig, Sam2Model, SamHQModel, SamModel

from data_engine.components.loading import folder, load
from data_engine.model import Model
from data_engine.records import Box
from data_engine.roles import FoundMask
from uniresxx.errors import InputError
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.processing import PixelNorm, pixels

CLASSES = {"sam": SamModel, "sam_hq": SamHQModel, "sam2": Sam2Model, "sam2_video": Sam2Model}
BOXES = 32  # decoded at once
OFFSET = 1.0  # logits that the stricter and the laxer cut lie from the usual one (SAM's stability score)


class SamSegmenter:
    """Masks of boxes; of the candidates that the decoder gives, the one it thinks best."""

    def __init__(self, model: Model) -> None:
        path = folder(model)
        kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        if kind not in CLASSES:
            raise InputError(
                f"model sam: {model.source} has model_type {kind!r}; known: {', '.join(CLASSES)}"
            )
        self.model = load(CLASSES[kind], model, path)
        vision = self.model.config.vision_config
        side = vision.image_size if kind in ("sam", "sam_hq") else vision.backbone_config.image_size
        self.side = side if isinstance(side, int) else int(side[0])
        self.normalised = PixelNorm("imagenet").to(self.model.device)

    @torch.inference_mode()
    def segment(self, photo_yx3: np.ndarray, boxes: Sequence[Box]) -> list[FoundMask]:
        """The picture is encoded once, its boxes are decoded in groups."""
        if not boxes:
            return []
        letterbox = Letterbox.fit(photo_yx3.shape[0], photo_yx3.shape[1], self.side)
        device, dtype = self.model.device, self.model.dtype
        square = self.normalised(pixels([letterbox.photo(photo_yx3)]).to(device)).to(dtype)
        embeddings = self.model.get_image_embeddings(square)
        boxes_N4 = letterbox.boxes(np.asarray(boxes, dtype=np.float32))
        found: list[FoundMask] = []
        for start in range(0, len(boxes), BOXES):
            some_1N4 = torch.from_numpy(boxes_N4[None, start : start + BOXES]).to(device, dtype)
            output = self.model(image_embeddings=embeddings, input_boxes=some_1N4, multimask_output=False)
            logits_Nss = output.pred_masks[0, :, 0].float().cpu().numpy()
            quality_N = output.iou_scores[0, :, 0].float().cpu().numpy()
            found += [
                _found(letterbox, logits_ss, float(quality))
                for logits_ss, quality in zip(logits_Nss, quality_N, strict=True)
            ]
        return found


def _found(letterbox: Letterbox, logits_ss: np.ndarray, quality: float) -> FoundMask:
    """The mask at the picture's size. Its stability is computed on the logits, as SAM's own mask generator does."""
    strict, lax = (logits_ss > OFFSET).sum(), (logits_ss > -OFFSET).sum()
    return FoundMask(letterbox.unmask_logits(logits_ss), quality, float(strict / max(lax, 1)))
