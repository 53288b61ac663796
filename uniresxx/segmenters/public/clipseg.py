"""`clipseg:` CLIPSeg (Lüddecke and Ecker 2022): a decoder over CLIP's features, one mask for each text.

Shapes: y x pixels of the photo, E prompts, N tokens of CLIP, D its width, h w the decoder's mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import CLIPSegForImageSegmentation

from uniresxx.model.placement import Placement
from uniresxx.segmenters.public.base import (
    EncodedPhoto,
    Found,
    PublicSegmenter,
    Thing,
    absence,
    at_photo_size,
)
from uniresxx.segmenters.public.files import (
    check_placement,
    chosen_by_type,
    image_inputs,
    load_image_processor,
    load_model,
    load_tokenizer,
    plain,
)
from uniresxx.types import Decoding

PRESENT = 0.5  # a text is there where the most probable pixel reaches this; also the threshold of the mask


class ClipSeg(PublicSegmenter):
    """CLIPSeg. It predicts no IoU: the mean probability of the mask's pixels stands for it."""

    rule = "token_and_presence"
    wording = "{expression}"
    finds_instances = False

    def __init__(self, model: CLIPSegForImageSegmentation, tokenizer: Any, images: Any) -> None:
        super().__init__()
        self.model, self.tokenizer, self.images = model, tokenizer, images

    def encode(self, photo: np.ndarray) -> tuple[Tensor, ...]:
        """CLIP's states (1, N, D) after the layers that the decoder reads."""
        pixels = image_inputs(self.images, photo)["pixel_values"].to(self.device)
        states = self.model.clip.vision_model(
            pixels, output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states
        return tuple(states[layer + 1] for layer in self.model.extract_layers)

    def logits(self, features: tuple[Tensor, ...], prompts: Sequence[str]) -> Tensor:
        """Mask logits (E, h, w)."""
        asked = plain(self.tokenizer, [*prompts], padding=True, truncation=True).to(self.device)
        meaning_ED = self.model.get_conditional_embeddings(
            batch_size=len(prompts), input_ids=asked["input_ids"], attention_mask=asked["attention_mask"]
        )
        states = tuple(state.expand(len(prompts), -1, -1) for state in features)
        logits: Tensor = self.model.decoder(states, meaning_ED).logits
        return logits

    def find(self, photo: EncodedPhoto, prompts: Sequence[str], decoding: Decoding) -> list[Found]:
        """One mask for each prompt."""
        found = []
        for logits_hw in self.logits(photo.features, prompts):
            share_yx = at_photo_size(logits_hw, photo).sigmoid()
            mask_yx = share_yx > PRESENT
            best = float(share_yx.max())
            quality = float(share_yx[mask_yx].mean()) if mask_yx.any() else best
            thing = Thing(mask_yx.cpu().numpy(), best, quality, accepted=best >= PRESENT)
            found.append(Found([thing], absence(best, PRESENT)))
        return found


def load(folders: Sequence[Path], placement: Placement) -> ClipSeg:
    """CLIPSeg of a folder."""
    (folder,) = folders
    check_placement(placement, "clipseg")
    kind = chosen_by_type(folder, {"clipseg": CLIPSegForImageSegmentation}, "clipseg")
    return ClipSeg(load_model(kind, folder, placement), load_tokenizer(folder), load_image_processor(folder))
