"""The model for VLMEvalKit. Its toolkit knows no entry points: `python -m eval.suites.vlmevalkit` adds the model.

Only that program imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmeval.vlm.base import BaseModel

from uniresxx.errors import InputError
from uniresxx.imaging.inputs import photo_pixels
from uniresxx.suites.model import HarnessModel


class VLMEvalKitModel(BaseModel):
    """Answers a picture and an expression with masks as JSON, one question at a time."""

    INTERLEAVE = False
    allowed_types = ["text", "image"]  # noqa: RUF012  (the toolkit's own attribute)

    def __init__(self, checkpoint: str = "", device: str = "auto") -> None:
        """Load a checkpoint; both arguments as in `load_segmenter`, empty: the model of the package."""
        super().__init__()
        self.model = HarnessModel.load(checkpoint, device=device)

    def generate_inner(self, message: Sequence[dict[str, Any]], dataset: str | None = None) -> str:
        """The answer to one message: items of type image (a path) and text."""
        pictures = [item["value"] for item in message if item["type"] == "image"]
        texts = [item["value"] for item in message if item["type"] == "text"]
        if len(pictures) != 1 or len(texts) != 1:
            raise InputError(
                f"{dataset} asks with {len(pictures)} pictures and {len(texts)} texts: this model takes one of each"
            )
        return next(self.model.answers([(photo_pixels(pictures[0]), texts[0])]))
