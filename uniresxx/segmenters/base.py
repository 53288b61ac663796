"""What predictor, evaluation, chat and server know of any model: encode photos, then answer texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from uniresxx.types import DecisionRule, Decoding, Prediction, Question


@runtime_checkable
class Segmenter(Protocol):
    """Any model that turns photos and texts into masks."""

    @property
    def decision_rule(self) -> DecisionRule:
        """The rule used when `Decoding.rule` is None."""
        ...

    def encode_images(self, photos: Sequence[np.ndarray]) -> Any:
        """Encode photos (uint8 (y, x, 3) RGB, any sizes) once; the result is opaque to the caller."""
        ...

    def answer(
        self, sight: Any, texts: Sequence[Sequence[str | Question]], decoding: Decoding
    ) -> list[Prediction]:
        """Answer the texts of each photo (`texts[b]` belongs to photo b); flat, in order."""
        ...
