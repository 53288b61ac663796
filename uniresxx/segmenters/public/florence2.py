"""`florence2:` Florence-2 (Xiao et al. 2023): a reply of location tokens, which are the corners of polygons.

Shapes: y x pixels of the photo, N image tokens, D the model's width, T tokens of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration

from uniresxx.imaging import masks
from uniresxx.model.placement import Placement
from uniresxx.segmenters.public.base import EncodedPhoto, Found, PublicSegmenter, Thing
from uniresxx.segmenters.public.files import (
    check_placement,
    chosen_by_type,
    image_inputs,
    load_image_processor,
    load_model,
    load_tokenizer,
)
from uniresxx.types import Decoding

LONGEST = 1024  # tokens of a reply; a polygon takes two for each corner
BINS = 1000  # location tokens for each axis
_PLACES = re.compile(r"(?:<loc_\d+>)+")
_PLACE = re.compile(r"<loc_(\d+)>")


class Florence2(PublicSegmenter):
    """Florence-2's task of referring segmentation. It always answers; nothing is there where no polygon is.

    It predicts no IoU: the mean probability of the reply's tokens (geometric) stands for it.
    """

    rule = "token"
    wording = "Locate {expression} in the image with mask"
    finds_instances = False

    def __init__(self, model: Florence2ForConditionalGeneration, tokenizer: Any, images: Any) -> None:
        super().__init__()
        self.model, self.tokenizer, self.images = model, tokenizer, images

    def encode(self, photo: np.ndarray) -> Tensor:
        """Image tokens (1, N, D)."""
        pixels = image_inputs(self.images, photo)["pixel_values"].to(self.device)
        output = self.model.model.vision_tower(pixels)
        tokens: Tensor = self.model.model.multi_modal_projector(output.last_hidden_state)
        return tokens

    def ids(self, tokens: int, prompt: str) -> list[int]:
        """The image's place, then the prompt between <s> and </s>; tokens that the prompt spells are plain text."""
        asked = self.tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        place = [self.model.config.image_token_id] * tokens
        return [*place, self.tokenizer.bos_token_id, *asked, self.tokenizer.eos_token_id]

    def encoded_prompt(self, image_1ND: Tensor, prompt: str) -> Any:
        """The encoder's output for one prompt."""
        ids_1T = torch.tensor([self.ids(image_1ND.shape[1], prompt)], device=self.device)
        asked_1TD = self.model.get_input_embeddings()(ids_1T)
        embeds = torch.cat((image_1ND.to(asked_1TD.dtype), asked_1TD[:, image_1ND.shape[1] :]), dim=1)
        return self.model.model.language_model.encoder(
            inputs_embeds=embeds, attention_mask=torch.ones_like(ids_1T)
        )

    def reply(self, image_1ND: Tensor, prompt: str, longest: int) -> tuple[str, float, bool]:
        """The reply with its location tokens, the mean probability of its tokens, and whether it was cut off."""
        encoded = self.encoded_prompt(image_1ND, prompt)
        output = self.model.generate(
            encoder_outputs=encoded,
            attention_mask=torch.ones(encoded[0].shape[:2], dtype=torch.long, device=self.device),
            max_new_tokens=longest,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_scores=True,
        )
        ids = output.sequences[0, 1:].tolist()  # without the token that starts the decoder
        logs = self.model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        sure = float(logs[0].float().mean().exp())
        return self.tokenizer.decode(ids), sure, ids[-1] != self.model.config.text_config.eos_token_id

    def find(self, photo: EncodedPhoto, prompts: Sequence[str], decoding: Decoding) -> list[Found]:
        """One mask for each prompt: all polygons of its reply."""
        found = []
        for prompt in prompts:
            text, sure, cut = self.reply(photo.features, prompt, max(LONGEST, decoding.max_new_tokens))
            rle = masks.from_polygons(polygons_in(text, photo), photo.height, photo.width)
            thing = Thing(masks.decode(rle), sure, sure, accepted=masks.area(rle) > 0)
            found.append(Found([thing], truncated=cut))
        return found


def polygons_in(reply: str, photo: EncodedPhoto) -> list[list[float]]:
    """The polygons of a reply: x0, y0, x1, y1, … in pixels, each at the middle of its bin."""
    polygons = []
    for run in _PLACES.findall(reply):
        places = [int(place) for place in _PLACE.findall(run)]
        places = places[: len(places) // 2 * 2]
        sides = (photo.width, photo.height) * (len(places) // 2)
        polygons.append([(place + 0.5) * side / BINS for place, side in zip(places, sides, strict=True)])
    return [polygon for polygon in polygons if len(polygon) >= 6]


def load(folders: Sequence[Path], placement: Placement) -> Florence2:
    """Florence-2 of a folder in the layout of transformers."""
    (folder,) = folders
    check_placement(placement, "florence2")
    kind = chosen_by_type(folder, {"florence2": Florence2ForConditionalGeneration}, "florence2")
    return Florence2(
        load_model(kind, folder, placement), load_tokenizer(folder), load_image_processor(folder)
    )
