"""A Segmenter for tests: finds pure colours by their names, needs no weights and no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from uniresxx.imaging import masks
from uniresxx.prediction import Prediction, Segment, listed_answer, phrases_in
from uniresxx.text import asked_questions
from uniresxx.types import EVALUATION_TEMPLATE, DecisionRule, Decoding, OnText, Question

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourSegmenter:
    """A text with "red" means every pure red pixel; one without a colour of the photo is not there.

    Several colours in one text are answered phrase by phrase. "it" means the colour of the previous turn,
    "what" gets plain words. `encoded` and `asked` record the calls.
    """

    decision_rule: DecisionRule = "token"
    question_template = EVALUATION_TEMPLATE
    finds_instances = False

    def __init__(self) -> None:
        self.encoded = 0
        self.asked: list[tuple[str, tuple[tuple[str, str], ...], str]] = []

    def encode_images(self, photos: Sequence[np.ndarray]) -> Any:
        """The photos themselves."""
        assert all(photo.dtype == np.uint8 and photo.shape[2:] == (3,) for photo in photos)
        self.encoded += 1
        return list(photos)

    def join_images(self, encoded: Sequence[Any]) -> Any:
        """The photos of all."""
        return [photo for photos in encoded for photo in photos]

    def split_images(self, encoded: Any) -> list[Any]:
        """Each photo alone."""
        return [[photo] for photo in encoded]

    def answer(
        self,
        encoded: Any,
        texts: Sequence[Sequence[str | Question]],
        decoding: Decoding,
        on_text: OnText | None = None,
    ) -> list[Prediction]:
        """One prediction per text, flat."""
        found = []
        for photo, question in asked_questions(texts):
            self.asked.append((question.text, question.history, decoding.template))
            found.append(self._answer_one(encoded[photo], question))
            if on_text is not None:
                on_text(len(found) - 1, found[-1].text or "")
        return found

    def _answer_one(self, photo: np.ndarray, question: Question) -> Prediction:
        words = re.findall(r"\w+", question.text.lower())
        if "what" in words:
            return Prediction(rejected=True, rle=None, text="A test card.")
        if "it" in words and question.history:
            words = re.findall(r"\w+", question.history[-1][0].lower())
        segments = tuple(self._segment(photo, word) for word in words if word in COLOURS)
        there = [part for part in segments if part.rle is not None]
        if not there:
            return Prediction(rejected=True, rle=None, text="[REJ].", p_absent=0.97)
        union = masks.union([part.rle for part in there if part.rle is not None], photo.shape[:2])
        marks = ["[SEG]" if part.rle else "[REJ]" for part in segments]
        text = listed_answer([part.phrase for part in segments], marks)
        spans = [span for _, span in phrases_in(text)]
        spelt = tuple(replace(part, span=span) for part, span in zip(segments, spans, strict=True))
        return Prediction(
            rejected=False,
            rle=union,
            text=text if len(segments) > 1 else "[SEG].",
            score=there[0].score,
            p_absent=0.1,
            segments=spelt if len(segments) > 1 else (),
        )

    def _segment(self, photo: np.ndarray, word: str) -> Segment:
        """A colour counts where it is nearest, so that JPEG noise does no harm."""
        distance = np.abs(photo.astype(np.int16) - np.array(COLOURS[word], dtype=np.int16)).max(axis=2)
        mask = distance < 60
        return Segment(word, masks.encode(mask) if mask.any() else None, 0.875 if mask.any() else None)
