"""What the rest of the project knows of any model: how it answers, and how it takes its training samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from uniresxx.prediction import Prediction
from uniresxx.types import DecisionRule, Decoding, ImageRecord, OnText, Question, TrainingBatch


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

    @property
    def finds_instances(self) -> bool:
        """Whether `Prediction.instances` tells the things apart that a mask unites."""
        ...

    def encode_images(self, photos: Sequence[np.ndarray]) -> Any:
        """Encode photos; the result is opaque to the caller.

        Args:
            photos: uint8 (y, x, 3) RGB each, of any sizes.
        """
        ...

    def join_images(self, encoded: Sequence[Any]) -> Any:
        """Photos encoded apart, at least one, as if they had been encoded together.

        Args:
            encoded: results of `encode_images`, in the order of the result.
        """
        ...

    def split_images(self, encoded: Any) -> list[Any]:
        """The result of `encode_images` for each of its photos alone; they share no memory."""
        ...

    def answer(
        self,
        encoded: Any,
        texts: Sequence[Sequence[str | Question]],
        decoding: Decoding,
        on_text: OnText | None = None,
    ) -> list[Prediction]:
        """One prediction per text, photo by photo, in order.

        Args:
            encoded: result of `encode_images`.
            texts: `texts[b]` belongs to photo b.
            decoding: how answers are generated.
            on_text: called while the answers are generated, after each token, with the number of a text and the
                words of its answer so far; models that do not generate words never call it.
        """
        ...


@runtime_checkable
class FindsAtClick(Protocol):
    """A Segmenter that may know what lies at a click, for corrections by hand."""

    def region_at(self, encoded: Any, x: float, y: float) -> np.ndarray | None:
        """Bool (y, x) of the one encoded photo; None where this model's head cannot tell.

        Args:
            encoded: result of `encode_images` for one photo.
            x: place in the photo in pixels, from its left edge.
            y: likewise, from its upper edge.
        """
        ...


@runtime_checkable
class TellsAttention(Protocol):
    """A Segmenter that can tell which tokens its decisions listened to."""

    def attention_shares(
        self, encoded: Any, question: str | Question, decoding: Decoding
    ) -> list[dict[str, float]]:
        """Of each [SEG] and [REJ] of the answer about the one encoded photo: share of attention by stream.

        Args:
            encoded: result of `encode_images` for one photo.
            question: what is asked.
            decoding: how it is answered.
        """
        ...


class Collator(Protocol):
    """How a model takes its training samples. It holds no weights: data workers get a copy of it."""

    @property
    def reads_boxes(self) -> bool:
        """Whether the model learns from the boxes of all expressions of an image, those left out included."""
        ...

    @property
    def question_templates(self) -> Sequence[str]:
        """The wordings in which training asks for an expression."""
        ...

    def sample(self, record: ImageRecord, photo: np.ndarray, choices: Sequence[int]) -> Any:
        """One prepared image with its expressions, then its conversations.

        Args:
            record: the image, with what is asked of it.
            photo: its pixels, uint8 (y, x, 3).
            choices: a random number for each expression, which chooses its wording.

        Raises:
            ValueError: the record does not fit its photo.
        """
        ...

    def collate(self, samples: Sequence[Any]) -> TrainingBatch:
        """The samples of a micro-batch, as the model's `forward` and `loss` take them."""
        ...
