"""The `Segmenter` protocol: what predictor, evaluation, chat and server know of any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from uniresxx.types import DecisionRule, Decoding, Prediction, Question


@runtime_checkable
class Segmenter(Protocol):
    """Any model that turns photos and texts into masks.

        segmenter = load_segmenter("runs/demo")
        encoded = segmenter.encode_images([photo])
        predictions = segmenter.answer(encoded, [["the left wheel", "the blue cat"]], Decoding())

    Photos are encoded once; any number of calls of `answer` may follow.
    """

    @property
    def decision_rule(self) -> DecisionRule:
        """The rule used when `Decoding.rule` is None."""
        ...

    @property
    def question_template(self) -> str:
        """How this model's evaluation asks for an expression: `Decoding.template` unless the caller names another."""
        ...

    def encode_images(self, photos: Sequence[np.ndarray]) -> Any:
        """Encode photos; the result is opaque to the caller.

        Args:
            photos: uint8 (y, x, 3) RGB each, of any sizes.
        """
        ...

    def answer(
        self, encoded: Any, texts: Sequence[Sequence[str | Question]], decoding: Decoding
    ) -> list[Prediction]:
        """One prediction per text, photo by photo, in order.

        Args:
            encoded: result of `encode_images`.
            texts: `texts[b]` belongs to photo b.
            decoding: how answers are generated.
        """
        ...
