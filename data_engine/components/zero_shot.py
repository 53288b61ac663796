"""Open-vocabulary detectors of transformers: OWLv2, OWL-ViT, Grounding DINO.

Shapes: N boxes of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from data_engine.components.loading import folder, load
from data_engine.model import Model
from data_engine.roles import FoundBox

LEAST = 0.05  # scores below are not looked at: the steps have limits of their own
GROUNDED_TEXTS = 16  # asked at once of Grounding DINO, whose text tower takes 256 tokens


class ZeroShotDetector:
    """Boxes for any words. OWLv2 and OWL-ViT score each text on its own, so they are asked all at once."""

    def __init__(self, model: Model) -> None:
        path = folder(model)
        self.processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        self.model = load(AutoModelForZeroShotObjectDetection, model, path)
        config = self.model.config
        self.is_grounded = "dino" in config.model_type
        self.text_tokens = (
            config.max_text_len if self.is_grounded else config.text_config.max_position_embeddings
        )

    def detect(self, photo_yx3: np.ndarray, categories: Sequence[str]) -> list[FoundBox]:
        """The boxes of all categories, one category each."""
        size = GROUNDED_TEXTS if self.is_grounded else len(categories)
        found: list[FoundBox] = []
        for start in range(0, len(categories), size):
            found += self._found(photo_yx3, categories[start : start + size])
        return found

    def best_scores(self, photo_yx3: np.ndarray, texts: Sequence[str]) -> list[float]:
        """Of Grounding DINO, each text asked alone: together, they would share its boxes."""
        if self.is_grounded:
            found = [self._found(photo_yx3, [text]) for text in texts]
            return [max((item.score for item in boxes), default=0.0) for boxes in found]
        _, outputs = self._asked(photo_yx3, texts)
        best: list[float] = outputs.logits[0].float().sigmoid().amax(dim=0).tolist()
        return best

    def _found(self, photo_yx3: np.ndarray, texts: Sequence[str]) -> list[FoundBox]:
        """The boxes of some texts; Grounding DINO may answer with a piece of two, which is left out."""
        inputs, outputs = self._asked(photo_yx3, texts)
        post, sizes = self.processor.post_process_grounded_object_detection, [photo_yx3.shape[:2]]
        if self.is_grounded:
            ids = inputs["input_ids"]
            [found] = post(outputs, ids, threshold=LEAST, text_threshold=LEAST, target_sizes=sizes)
        else:
            [found] = post(outputs, threshold=LEAST, target_sizes=sizes, text_labels=[list(texts)])
        boxes_N4, scores_N = found["boxes"].float().cpu().tolist(), found["scores"].float().cpu().tolist()
        return [
            FoundBox(name, (x0, y0, x1, y1), score)
            for name, (x0, y0, x1, y1), score in zip(found["text_labels"], boxes_N4, scores_N, strict=True)
            if name in texts
        ]

    @torch.inference_mode()
    def _asked(self, photo_yx3: np.ndarray, texts: Sequence[str]) -> tuple[Any, Any]:
        """What went into the model and what came out. Of a long text the beginning is asked (OWLv2: 16 tokens)."""
        inputs = self.processor(
            images=photo_yx3, text=[list(texts)], truncation=True, max_length=self.text_tokens,
            return_tensors="pt",
        )  # fmt: skip
        inputs = inputs.to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return inputs, self.model(**inputs)
