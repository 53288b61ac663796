"""`sam3:` SAM 3 (Carion et al. 2025): all things that a short noun phrase names, each with its mask.

Shapes: y x pixels of the photo, Q queries, h w a query's mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Sam3Model

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
    load_model,
    load_tokenizer,
    plain,
)
from uniresxx.segmenters.public.squares import Square
from uniresxx.types import Decoding

PRESENT = 0.5  # of a query's score times the presence of the phrase; a thing is there from here on
TOKENS = 32  # of a phrase, with padding, as the model was trained
MOST = 100  # things of one phrase


class Sam3(PublicSegmenter):
    """SAM 3 with text prompts. A query's score is its own times the presence of the phrase in the photo.

    It predicts no IoU: a thing's score stands for it.
    """

    rule = "token_and_presence"
    wording = "{expression}"

    def __init__(self, model: Sam3Model, tokenizer: Any, square: Square) -> None:
        super().__init__()
        self.model, self.tokenizer, self.square = model, tokenizer, square

    def encode(self, photo: np.ndarray) -> Any:
        """The output of the vision encoder."""
        return self.model.get_vision_features(self.square.pixels(photo, self.device))

    def output(self, features: Any, prompt: str) -> Any:
        """What the model gives for one phrase."""
        asked = plain(self.tokenizer, [prompt], padding="max_length", truncation=True, max_length=TOKENS)
        return self.model(
            vision_embeds=features,
            input_ids=asked["input_ids"].to(self.device),
            attention_mask=asked["attention_mask"].to(self.device),
        )

    def find(self, photo: EncodedPhoto, prompts: Sequence[str], decoding: Decoding) -> list[Found]:
        """The things of each phrase; where none reaches the threshold, the best query alone."""
        return [self._found(photo, self.output(photo.features, prompt)) for prompt in prompts]

    def _found(self, photo: EncodedPhoto, output: Any) -> Found:
        score_Q = output.pred_logits[0].float().sigmoid() * output.presence_logits[0].float().sigmoid()
        score_Q, order_Q = score_Q.sort(descending=True, stable=True)
        scores = score_Q[: max(1, min(MOST, int((score_Q >= PRESENT).sum())))].tolist()
        things = []
        for score, query in zip(scores, order_Q.tolist(), strict=False):
            mask_yx = at_photo_size(output.pred_masks[0, query].float().sigmoid(), photo) > 0.5
            things.append(Thing(mask_yx.cpu().numpy(), score, score, accepted=score >= PRESENT))
        return Found(things, absence(scores[0], PRESENT))


def load(folders: Sequence[Path], placement: Placement) -> Sam3:
    """SAM 3 of a folder; published ones hold the tracker for video too, which is not loaded."""
    (folder,) = folders
    check_placement(placement, "sam3")
    kind = chosen_by_type(folder, {"sam3": Sam3Model, "sam3_video": Sam3Model}, "sam3")
    return Sam3(load_model(kind, folder, placement), load_tokenizer(folder), Square.of(folder))
