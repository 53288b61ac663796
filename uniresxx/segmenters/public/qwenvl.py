"""`qwenvl:MODEL+SEGMENTER`: Qwen2.5-VL or Qwen3-VL writes boxes as JSON, SAM or SAM 2 makes their masks.

Shapes: y x pixels of the photo, N boxes of a reply (xyxy), T tokens of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from uniresxx.errors import InputError
from uniresxx.model.placement import Placement
from uniresxx.segmenters.public.base import EncodedPhoto, Found, PublicSegmenter, Thing, answering_with
from uniresxx.segmenters.public.box_masks import Sam2Boxes, SamBoxes, boxes_on, load_box_masks
from uniresxx.segmenters.public.files import (
    check_placement,
    chosen_by_type,
    image_inputs,
    load_image_processor,
    load_model,
    load_tokenizer,
)
from uniresxx.types import Decoding

LONGEST = 512  # tokens of a reply; a box takes about 40
MOST = 20  # boxes of a reply that are read
SHARES = 1000  # Qwen3-VL's coordinates of the whole photo
_BOX = re.compile(r'"bbox_2d"\s*:\s*\[\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\]')
_HERE = "\N{OBJECT REPLACEMENT CHARACTER}"  # where the prompt goes in the chat template


class QwenVL(PublicSegmenter):
    """Boxes of a vision-language model. The reply decides: without a box, nothing is there."""

    rule = "token"
    wording = (
        "Locate {expression} in the image and report all its bounding boxes in JSON format with the key bbox_2d. "
        "If it is not in the image, answer with an empty list."
    )

    def __init__(self, model: Any, tokenizer: Any, images: Any, segmenter: SamBoxes | Sam2Boxes) -> None:
        super().__init__()
        self.model, self.tokenizer, self.images, self.segmenter = model, tokenizer, images, segmenter
        self.in_shares = model.config.model_type == "qwen3_vl"

    def encode(self, photo: np.ndarray) -> Any:
        """The tower's output with its grid, and the features for the masks."""
        inputs = image_inputs(self.images, photo)
        pixels, grid = (inputs[key].to(self.device) for key in ("pixel_values", "image_grid_thw"))
        visual = self.model.model.visual
        output = visual(pixels.to(visual.dtype), grid_thw=grid)
        return output, grid, tuple(pixels.shape), self.segmenter.encode(photo)

    def ids(self, grid: Tensor, prompt: str) -> list[int]:
        """The chat with the photo and the prompt; special tokens that the prompt spells are plain text."""
        content = [{"type": "image"}, {"type": "text", "text": _HERE}]
        chat = [{"role": "user", "content": content}]
        whole = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        before, after = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in whole.split(_HERE)
        )
        place = self.model.config.image_token_id
        if before.count(place) != 1:
            raise InputError(
                "qwenvl: the chat template has no place for a photo: copy the model's whole folder"
            )
        tokens = int(grid[0].prod()) // self.model.config.vision_config.spatial_merge_size**2
        at = before.index(place)
        asked = self.tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*before[:at], *[place] * tokens, *before[at + 1 :], *asked, *after]

    def inputs(self, features: Any, prompt: str) -> dict[str, Tensor]:
        """What the model takes beside the tower's output."""
        _, grid, shape, _ = features
        ids_1T = torch.tensor([self.ids(grid, prompt)], device=self.device)
        return {
            "input_ids": ids_1T,
            "attention_mask": torch.ones_like(ids_1T),
            "mm_token_type_ids": (ids_1T == self.model.config.image_token_id).int(),
            "pixel_values": torch.empty((), device=self.device).expand(
                shape
            ),  # the tower's output stands for it
            "image_grid_thw": grid,
        }

    def reply(self, features: Any, prompt: str, longest: int) -> tuple[str, bool]:
        """The generated text, and whether it was cut off."""
        inputs = self.inputs(features, prompt)
        with answering_with(self.model.model.visual, lambda: copy(features[0])):
            ids_1T = self.model.generate(
                **inputs, max_new_tokens=longest, do_sample=False, temperature=None, top_p=None, top_k=None
            )
        new = ids_1T[0, inputs["input_ids"].shape[1] :]
        return self.tokenizer.decode(new, skip_special_tokens=True), len(new) >= longest

    def find(self, photo: EncodedPhoto, prompts: Sequence[str], decoding: Decoding) -> list[Found]:
        """The masks of the boxes of each reply."""
        found = []
        _, grid, _, shown = photo.features
        for prompt in prompts:
            text, cut = self.reply(photo.features, prompt, max(LONGEST, decoding.max_new_tokens))
            boxes_N4 = boxes_on(photo, self.scaled(boxes_in(text), grid, photo))
            boxes_N4 = boxes_N4[(boxes_N4[:, 2:] - boxes_N4[:, :2]).amin(dim=1) > 0]
            masks = self.segmenter.masks(shown, boxes_N4, photo) if len(boxes_N4) else []
            found.append(Found([Thing(mask, 1.0, q, accepted=True) for mask, q in masks], truncated=cut))
        return found

    def scaled(self, boxes: list[list[float]], grid: Tensor, photo: EncodedPhoto) -> Tensor:
        """Boxes of a reply in pixels of the photo: Qwen3-VL counts in thousandths, Qwen2.5-VL in its own pixels."""
        patch = self.model.config.vision_config.patch_size
        rows, columns = (SHARES, SHARES) if self.in_shares else (int(side) * patch for side in grid[0, 1:])
        boxes_N4 = torch.tensor(boxes, device=self.device).reshape(-1, 4)
        across, down = photo.width / columns, photo.height / rows
        return boxes_N4 * boxes_N4.new_tensor([across, down, across, down])


def boxes_in(reply: str) -> list[list[float]]:
    """The boxes of a reply, as they stand there; what is not four numbers is left out."""
    found = []
    for numbers in _BOX.findall(reply)[:MOST]:
        try:
            found.append([float(number) for number in numbers])
        except ValueError:  # "1.2.3"
            continue
    return found


MODELS = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}


def load(folders: Sequence[Path], placement: Placement) -> QwenVL:
    """The model of the first folder and the SAM of the second."""
    first, second = folders
    check_placement(placement, "qwenvl")
    model = load_model(chosen_by_type(first, MODELS, "qwenvl"), first, placement)
    segmenter = load_box_masks(second, placement, "qwenvl")
    return QwenVL(model, load_tokenizer(first), load_image_processor(first), segmenter)
