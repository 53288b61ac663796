"""A Segmenter for tests: finds pure colours by their names, needs no weights and no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from uniresxx.imaging import masks
from uniresxx.types import EVALUATION_TEMPLATE, DecisionRule, Decoding, Prediction, Question, Segment

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourSegmenter:
    """A text with "red" means every pure red pixel; one without a colour of the photo is not there.

    Several colours in one text are answered phrase by phrase. "it" means the colour of the previous turn,
    "what" gets plain words. `encoded` and `asked` record the calls.
    """

    decision_rule: DecisionRule = "token"
    question_template = EVALUATION_TEMPLATE

    def __init__(self) -> None:
        self.encoded = 0
        self.asked: list[tuple[str, tuple[tuple[str, str], ...], str]] = []

    def encode_images(self, photos: Sequence[np.ndarray]) -> Any:
        """The photos themselves."""
        assert all(photo.dtype == np.uint8 and photo.shape[2:] == (3,) for photo in photos)
        self.encoded += 1
        return list(photos)

    def answer(
        self, encoded: Any, texts: Sequence[Sequence[str | Question]], decoding: Decoding
    ) -> list[Prediction]:
        """One prediction per text, flat."""
        found = []
        for photo, asked in zip(encoded, texts, strict=True):
            for item in asked:
                question = item if isinstance(item, Question) else Question(item)
                self.asked.append((question.text, question.history, decoding.template))
                found.append(self._answer_one(photo, question))
        return found

    def _answer_one(self, photo: np.ndarray, question: Question) -> Prediction:
        words = re.findall(r"\w+", question.text.lower())
        if "what" in words:
            return Prediction(rejected=True, mask=None, text="A test card.")
        if "it" in words and question.history:
            words = re.findall(r"\w+", question.history[-1][0].lower())
        segments = tuple(self._segment(photo, word) for word in words if word in COLOURS)
        there = [part for part in segments if part.mask is not None]
        if not there:
            return Prediction(rejected=True, mask=None, text="[REJ].", p_absent=0.97)
        union = masks.union([part.mask for part in there if part.mask is not None], photo.shape[:2])
        text = ", ".join(
            f"{part.phrase}: [SEG]" if part.mask else f"{part.phrase}: [REJ]" for part in segments
        )
        return Prediction(
            rejected=False,
            mask=union,
            text=text + "." if len(segments) > 1 else "[SEG].",
            score=there[0].score,
            p_absent=0.1,
            segments=segments if len(segments) > 1 else (),
        )

    def _segment(self, photo: np.ndarray, word: str) -> Segment:
        """A colour counts where it is nearest, so that JPEG noise does no harm."""
        distance = np.abs(photo.astype(np.int16) - np.array(COLOURS[word], dtype=np.int16)).max(axis=2)
        mask = distance < 60
        return Segment(word, masks.encode(mask) if mask.any() else None, 0.875 if mask.any() else None)
