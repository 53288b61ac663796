"""The limit of a model's context: the oldest turns of a question go where there is no room for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from uniresxx.prediction import Prediction
from uniresxx.types import Question


def fitted(
    texts: Sequence[Sequence[str | Question]], room: int | None, length: Callable[[Question], int]
) -> tuple[list[list[str | Question]], list[int]]:
    """The texts without the oldest turns that do not fit, and how many turns each has lost, flat.

    Args:
        texts: of each photo.
        room: tokens for a question with its turns; None: no limit.
        length: tokens of a question with its turns.
    """
    kept: list[list[str | Question]] = []
    dropped: list[int] = []
    for row in texts:
        kept.append([])
        for text in row:
            short = text
            while isinstance(short, Question) and short.history and room is not None and length(short) > room:
                short = replace(short, history=short.history[1:])
            lost = (
                0
                if isinstance(text, str) or isinstance(short, str)
                else len(text.history) - len(short.history)
            )
            kept[-1].append(short)
            dropped.append(lost)
    return kept, dropped


def with_dropped(found: Sequence[Prediction], dropped: Sequence[int]) -> list[Prediction]:
    """The predictions, which say how many turns their questions have lost."""
    pairs = zip(found, dropped, strict=True)
    return [replace(prediction, dropped_turns=lost) if lost else prediction for prediction, lost in pairs]
