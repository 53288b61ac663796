"""What the public models share: photos encoded one by one, prompts from questions, predictions from what was found.

Shapes: y x pixels of the photo, E prompts, h w a model's own masks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.tokens import REJ, SEG
from uniresxx.conversation.context import with_dropped
from uniresxx.conversation.phrases import asked_phrases
from uniresxx.errors import InputError
from uniresxx.imaging.masks import encode
from uniresxx.model.answering import prediction_of
from uniresxx.model.forced import forced
from uniresxx.model.placement import autocast_of
from uniresxx.prediction import Instance, Prediction
from uniresxx.text import asked_questions
from uniresxx.types import AS_TYPED, DecisionRule, Decoding, OnText, Question, Texts


@dataclass(frozen=True, slots=True)
class EncodedPhoto:
    """What a model keeps of one photo."""

    height: int  # pixels
    width: int
    features: Any  # a tree of tensors, tuples, lists and data classes


@dataclass(frozen=True, slots=True)
class Thing:
    """One candidate of a model."""

    mask: np.ndarray  # bool (y, x), at the photo's size
    score: float  # probability to be what the prompt means, 0..1
    quality: float  # predicted IoU, 0..1
    accepted: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What a model found for one prompt."""

    things: list[Thing] = field(default_factory=list)  # best first
    p_absent: float | None = (
        None  # above 0.5 where the model says that nothing is there; None: it has no number
    )
    truncated: bool = False  # the generated reply had not ended


class PublicSegmenter(nn.Module):
    """A model of transformers that answers as a Segmenter. A family gives `encode` and `find`.

    Each photo is encoded alone, and prompts do not see one another, so no answer depends on the batch.
    """

    rule: ClassVar[DecisionRule]
    wording: ClassVar[str]  # what the model gets, with {expression}
    finds_instances: ClassVar[bool] = True

    @abstractmethod
    def encode(self, photo: np.ndarray) -> Any:
        """The features of one photo, uint8 (y, x, 3)."""

    @abstractmethod
    def find(self, photo: EncodedPhoto, prompts: Sequence[str], decoding: Decoding) -> list[Found]:
        """What one photo shows of each prompt."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    @property
    def decision_rule(self) -> DecisionRule:
        """By "token" the generated reply decides, by "token_and_presence" `p_absent`, whose threshold is at 0.5."""
        return self.rule

    @property
    def question_template(self) -> str:
        """The wording that the model was made for."""
        return self.wording

    @torch.no_grad()
    def encode_images(self, photos: Sequence[np.ndarray]) -> list[EncodedPhoto]:
        """Encode photos once."""
        with autocast_of(self):
            return [EncodedPhoto(photo.shape[0], photo.shape[1], self.encode(photo)) for photo in photos]

    def join_images(self, encoded: Sequence[list[EncodedPhoto]]) -> list[EncodedPhoto]:
        """Photos encoded apart, as if they had been encoded together."""
        return [photo for photos in encoded for photo in photos]

    def split_images(self, encoded: list[EncodedPhoto]) -> list[list[EncodedPhoto]]:
        """Each encoded photo alone."""
        return [[photo] for photo in encoded]

    @torch.no_grad()
    def answer(
        self, encoded: list[EncodedPhoto], texts: Texts, decoding: Decoding, on_text: OnText | None = None
    ) -> list[Prediction]:
        """Answer all texts of all photos; flat, photo by photo. Earlier turns of a conversation are not read.

        Raises:
            InputError: a decision rule that the model does not have.
        """
        if decoding.rule not in (None, self.rule):
            raise InputError(
                f"rule {decoding.rule!r}: this public model decides by {self.rule!r}; leave it out"
            )
        prompts: list[list[str]] = [[] for _ in encoded]
        asked = asked_questions(texts)
        for image, question in asked:
            prompts[image].append(self.prompt(question, decoding.template))
        predictions = []
        with autocast_of(self):
            for photo, own in zip(encoded, prompts, strict=True):
                found = self.find(photo, own, decoding) if own else []
                predictions += [_prediction(one, photo, self.finds_instances) for one in found]
        predictions = with_dropped(predictions, [len(question.history) for _, question in asked])
        return forced(predictions) if decoding.mode == "forced" else predictions

    def prompt(self, question: Question, template: str) -> str:
        """What the model is asked. Of a text as typed, "segment", "please" and the final mark are left out."""
        text, own = question.text, self.question_template
        if template != AS_TYPED:
            return template.format(expression=text)
        before, after = own.split("{expression}")
        if before and text.startswith(before) and text.endswith(after):
            return text  # one phrase of several, which `answer_phrases` asks in the model's own wording
        phrases = asked_phrases(text)
        return own.format(expression=phrases[0] if len(phrases) == 1 else text)


def _prediction(found: Found, photo: EncodedPhoto, instances: bool) -> Prediction:
    """The accepted things united; where there is none, the best candidate is what a forced answer would give."""
    kept = [thing for thing in found.things if thing.accepted and thing.mask.any()]
    shown = kept or found.things[:1]
    mask = np.zeros((photo.height, photo.width), dtype=bool)
    for thing in shown:
        mask |= thing.mask
    alone = [Instance(encode(thing.mask), thing.score * thing.quality) for thing in kept] if instances else []
    answer = prediction_of(
        f"{SEG if kept else REJ}.",
        [mask],
        [bool(kept)],
        [max((thing.quality for thing in shown), default=0.0)],
        [0.0 if found.p_absent is None else found.p_absent],
        found.truncated,
        [alone],
    )
    return replace(answer, p_absent=found.p_absent)


def absence(score: float, threshold: float) -> float:
    """A probability of absence that is above 0.5 exactly where `score` is below `threshold`, both 0..1.

    The odds of the score are divided by those of the threshold (our choice), so that one number, 0.5, means the same
    in every family, and a threshold tuned on `p_absent` says the same as one tuned on the score.
    """
    absent, present = (1 - score) * threshold, score * (1 - threshold)
    return absent / (absent + present) if absent + present else 1.0


def at_photo_size(logits_hw: Tensor, photo: EncodedPhoto) -> Tensor:
    """Logits over the whole photo (h, w) -> (y, x), bilinear, fp32."""
    size = (photo.height, photo.width)
    return F.interpolate(logits_hw.float()[None, None], size, mode="bilinear", align_corners=False)[0, 0]


@contextmanager
def answering_with(tower: nn.Module, output: Callable[[], Any]) -> Iterator[None]:
    """Within, `tower` gives `output()` and computes nothing: what it gave for the photo before.

    `output` makes a new container each time, because the models around a tower write into it.
    """
    tower.__dict__["forward"] = lambda *_, **__: output()
    try:
        yield
    finally:
        del tower.__dict__["forward"]
