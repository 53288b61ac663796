"""Forced answers: [SEG] is given, not generated, so a model never rejects (the evaluation of LISA and GSVA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mllm.tokens import SEG
from uniresxx.prediction import Prediction


def forced(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions with their mask accepted: that of the answer, else the one of a forced [SEG]."""
    return [
        replace(
            prediction,
            rejected=False,
            rle=prediction.mask_if_forced if prediction.rejected else prediction.rle,
            mask_if_forced=None,
            text=f"{SEG}.",
            segments=(),
            truncated=False,
        )
        for prediction in predictions
    ]
