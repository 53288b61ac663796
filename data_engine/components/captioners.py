"""Captioners: multimodal models asked for the caption of a box, with corners on a grid of 0 to 999.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_engine.components.loading import folder, load
from data_engine.model import Model
from data_engine.roles import Region
from uniresxx.data.readers.region_captions import QUESTIONS, on_grid
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import AS_TYPED, Decoding

MAX_NEW_TOKENS = 32
REGIONS = 8  # answered at once
BRIEF = " Answer with a short noun phrase that fits nothing else in the picture."


def question_of(region: Region, size: tuple[int, int]) -> str:
    """The question that UniRES' captioner is asked (uniresxx.data.readers.region_captions)."""
    return QUESTIONS[0].format(region=on_grid(region.box, size))


class ChatCaptioner:
    """Any image-text-to-text model of transformers; a box's category or part is named in the question."""

    def __init__(self, model: Model) -> None:
        path = folder(model)
        self.processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        self.model = load(AutoModelForImageTextToText, model, path)
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token
        self.processor.tokenizer.padding_side = "left"

    def captions(self, photo_yx3: np.ndarray, regions: Sequence[Region]) -> list[str]:
        """Greedy answers, in groups."""
        texts = [self._prompt(region, photo_yx3.shape[:2]) for region in regions]
        found: list[str] = []
        for start in range(0, len(texts), REGIONS):
            found += self._generated(photo_yx3, texts[start : start + REGIONS])
        return found

    def _prompt(self, region: Region, size: tuple[int, ...]) -> str:
        shown = f" It is the {region.part} of a {region.category}." if region.part else ""
        shown = shown or (f" It is a {region.category}." if region.category else "")
        question = question_of(region, (size[0], size[1])) + shown + BRIEF
        if self.processor.chat_template is None:
            return f"{self.processor.image_token}\n{question}\n"
        content = [{"type": "image"}, {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))

    @torch.inference_mode()
    def _generated(self, photo_yx3: np.ndarray, texts: Sequence[str]) -> list[str]:
        inputs = self.processor(
            images=[[photo_yx3] for _ in texts], text=list(texts), padding=True, return_tensors="pt"
        ).to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        tokens_T = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        asked = inputs["input_ids"].shape[1]
        answers: list[str] = self.processor.batch_decode(tokens_T[:, asked:], skip_special_tokens=True)
        return answers


class OwnCaptioner:
    """A model of this project that learned captions of regions (`region_captions`, `visual_genome`)."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def captions(self, photo_yx3: np.ndarray, regions: Sequence[Region]) -> list[str]:
        """All questions of a picture at once; a mask instead of words is no caption."""
        size = photo_yx3.shape[0], photo_yx3.shape[1]
        decoding = Decoding(template=AS_TYPED, max_new_tokens=MAX_NEW_TOKENS)
        encoded = self.segmenter.encode_images([photo_yx3])
        questions = [question_of(region, size) for region in regions]
        answers = self.segmenter.answer(encoded, [questions], decoding)
        return [found.text or "" if found.rle is None else "" for found in answers]
