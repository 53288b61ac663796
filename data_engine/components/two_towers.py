"""Similarity of pictures and texts by CLIP, SigLIP or SigLIP 2.

Shapes: B pictures and texts, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from data_engine.components.loading import folder, load
from data_engine.model import Model


class TwoTowers:
    """Cosines of the embeddings; texts are padded to the full length, as SigLIP was trained."""

    def __init__(self, model: Model) -> None:
        path = folder(model)
        self.processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        self.model = load(AutoModel, model, path)
        self.length = self.model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def similarity(self, pictures: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        """One cosine per pair."""
        inputs = self.processor(
            images=list(pictures), text=list(texts), padding="max_length", truncation=True,
            max_length=self.length, return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        shown = {"pixel_values": inputs["pixel_values"].to(self.model.dtype)}
        for name in ("pixel_attention_mask", "spatial_shapes"):
            shown |= {name: inputs[name]} if name in inputs else {}
        said = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        images_BD = _embedding(self.model.get_image_features(**shown))
        texts_BD = _embedding(self.model.get_text_features(**said))
        found: list[float] = F.cosine_similarity(images_BD.float(), texts_BD.float()).tolist()
        return found


def _embedding(output: Any) -> Tensor:
    """The embedding, (B, D): transformers 5 returns it inside an output of the tower."""
    return output if isinstance(output, Tensor) else output.pooler_output
