"""`detect:DETECTOR+SEGMENTER`: Grounding DINO (Liu et al. 2023) or OWLv2 (Minderer et al. 2023) finds boxes, SAM or
SAM 2 makes their masks.

Shapes: y x pixels of the photo, A boxes of the detector (xyxy), N those that are kept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GroundingDinoForObjectDetection, Owlv2ForObjectDetection

from uniresxx.model.placement import Placement
from uniresxx.model.regions.learned import greedy_nms, pairwise_iou
from uniresxx.segmenters.public.base import (
    EncodedPhoto,
    Found,
    PublicSegmenter,
    Thing,
    absence,
    answering_with,
)
from uniresxx.segmenters.public.box_masks import Sam2Boxes, SamBoxes, boxes_on, load_box_masks
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

MOST = 20  # things of one prompt
SAME = 0.5  # IoU from which two boxes are one thing


class Detector(nn.Module):
    """What finds the boxes of a prompt; `threshold` is the score from which a box is there."""

    wording: ClassVar[str]
    threshold: ClassVar[float]

    def __init__(self, model: Any, tokenizer: Any, images: Any) -> None:
        super().__init__()
        self.model, self.tokenizer, self.images = model, tokenizer, images

    @abstractmethod
    def encode(self, photo: np.ndarray) -> Any:
        """The features of one photo."""

    @abstractmethod
    def boxes(self, features: Any, prompt: str, photo: EncodedPhoto) -> tuple[Tensor, Tensor]:
        """Boxes (A, 4) in pixels of the photo, and their scores (A), 0..1."""


class GroundingDino(Detector):
    """Grounding DINO. The backbone runs once per photo; photo and text are fused for each prompt."""

    wording = "{expression}."  # it ends a phrase with a full stop
    threshold = 0.3  # between the 0.25 of its processor and the 0.4 of its examples

    def encode(self, photo: np.ndarray) -> Any:
        """The backbone's maps with their masks and positions, and the size of the pixels."""
        pixels = image_inputs(self.images, photo)["pixel_values"].to(self.model.device)
        mask = torch.ones_like(pixels[:, 0], dtype=torch.long)
        maps, positions = self.model.model.backbone(pixels, mask)
        return tuple(maps), tuple(positions), tuple(pixels.shape)

    def output(self, features: Any, prompt: str) -> Any:
        """What the model gives for one prompt."""
        maps, positions, shape = features
        longest = self.model.config.max_text_len
        asked = plain(self.tokenizer, [prompt.lower()], truncation=True, max_length=longest)
        pixels = torch.empty((), device=self.model.device).expand(shape)  # only its shape is read
        with answering_with(self.model.model.backbone, lambda: ([*maps], [*positions])):
            return self.model(
                pixel_values=pixels,
                input_ids=asked["input_ids"].to(self.model.device),
                attention_mask=asked["attention_mask"].to(self.model.device),
            )

    def boxes(self, features: Any, prompt: str, photo: EncodedPhoto) -> tuple[Tensor, Tensor]:
        """The score of a box is that of its best token."""
        output = self.output(features, prompt)
        boxes_A4 = _corners(output.pred_boxes[0].float())
        size = boxes_A4.new_tensor([photo.width, photo.height] * 2)
        return boxes_A4 * size, output.logits[0].float().sigmoid().amax(dim=-1)


class Owlv2(Detector):
    """OWLv2. Its photo is the corner of a padded square, so boxes are shares of the longer side."""

    wording = "a photo of {expression}"
    threshold = 0.2

    def encode(self, photo: np.ndarray) -> Tensor:
        """The map of patch features, which are the candidates."""
        pixels = image_inputs(self.images, photo)["pixel_values"].to(self.model.device)
        features: Tensor = self.model.image_embedder(pixel_values=pixels)[0]
        return features

    def output(self, features: Tensor, prompt: str) -> tuple[Tensor, Tensor]:
        """Logits (1, A, 1) and boxes (1, A, 4) of one prompt: centre and size, 0..1."""
        longest = self.model.config.text_config.max_position_embeddings
        asked = plain(self.tokenizer, [prompt], padding="max_length", truncation=True, max_length=longest)
        ids, mask = (asked[key].to(self.model.device) for key in ("input_ids", "attention_mask"))
        owl = self.model.owlv2
        meaning = owl.text_projection(owl.text_model(input_ids=ids, attention_mask=mask).pooler_output)
        meaning = meaning / meaning.norm(dim=-1, keepdim=True)
        flat = features.flatten(1, 2)
        logits, _ = self.model.class_predictor(flat, meaning[None], ids[None, :, 0] > 0)
        return logits, self.model.box_predictor(flat, features)

    def boxes(self, features: Tensor, prompt: str, photo: EncodedPhoto) -> tuple[Tensor, Tensor]:
        """All patches, each with its box."""
        logits, boxes = self.output(features, prompt)
        return _corners(boxes[0].float()) * max(photo.height, photo.width), logits[0, :, 0].float().sigmoid()


class Detect(PublicSegmenter):
    """Every box of at least the detector's threshold is a thing; where none is, the prompt is not there."""

    rule = "token_and_presence"

    def __init__(self, detector: Detector, segmenter: SamBoxes | Sam2Boxes) -> None:
        super().__init__()
        self.detector, self.segmenter = detector, segmenter

    @property
    def question_template(self) -> str:
        """The detector's."""
        return self.detector.wording

    def encode(self, photo: np.ndarray) -> Any:
        """The features of both models."""
        return self.detector.encode(photo), self.segmenter.encode(photo)

    def find(self, photo: EncodedPhoto, prompts: Sequence[str], decoding: Decoding) -> list[Found]:
        """The masks of the boxes of each prompt; where all boxes are below the threshold, of the best one."""
        return [self._found(photo, prompt) for prompt in prompts]

    def _found(self, photo: EncodedPhoto, prompt: str) -> Found:
        seen, shown = photo.features
        boxes_A4, score_A = self.detector.boxes(seen, prompt, photo)
        boxes_N4, score_N = best_boxes(boxes_on(photo, boxes_A4), score_A, self.detector.threshold)
        masks = self.segmenter.masks(shown, boxes_N4, photo)
        threshold = self.detector.threshold
        things = [
            Thing(mask, score, quality, accepted=score >= threshold)
            for (mask, quality), score in zip(masks, score_N.tolist(), strict=True)
        ]
        return Found(things, absence(things[0].score, threshold))


def best_boxes(boxes_A4: Tensor, score_A: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Boxes from `threshold` on without those of the same thing (greedy NMS), best first; at least the best one."""
    score_A, order_A = score_A.sort(descending=True, stable=True)
    enough = max(1, int((score_A >= threshold).sum()))
    boxes_A4, score_A = boxes_A4[order_A[:enough]], score_A[:enough]
    clash_1AA = pairwise_iou(boxes_A4[None], boxes_A4[None]) > SAME
    place_1N, valid_1N = greedy_nms(clash_1AA, torch.ones_like(score_A, dtype=torch.bool)[None], MOST)
    kept_N = place_1N[0][valid_1N[0]]
    return boxes_A4[kept_N], score_A[kept_N]


def _corners(boxes_A4: Tensor) -> Tensor:
    """Centre and size to xyxy."""
    centre, size = boxes_A4.split(2, dim=-1)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


DETECTORS = {
    "grounding-dino": (GroundingDinoForObjectDetection, GroundingDino),
    "owlv2": (Owlv2ForObjectDetection, Owlv2),
}


def load(folders: Sequence[Path], placement: Placement) -> Detect:
    """The detector of the first folder and the SAM of the second."""
    first, second = folders
    check_placement(placement, "detect")
    kind, detector = chosen_by_type(first, DETECTORS, "detect")
    model = load_model(kind, first, placement)
    found = detector(model, load_tokenizer(first), load_image_processor(first))
    return Detect(found, load_box_masks(second, placement, "detect"))
