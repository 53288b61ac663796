"""What predictor, evaluation, chat and server know of any model: `look` at photos, `answer` texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from uniresxx.types import Prediction

DecisionRule = Literal["token", "token_and_presence"]
EVALUATION_TEMPLATE = "Segment {expression}."


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are produced; saved beside every number made with it."""

    rule: DecisionRule | None = None  # None: the default of the model's config
    template: str = EVALUATION_TEMPLATE  # the chat uses "{expression}": the text as typed
    max_new_tokens: int = 48
    cache_bytes: int = 4 * 2**30  # of keys and values while generating; changes memory and time, no answer

    def describe(self, rule: DecisionRule) -> dict[str, Any]:
        """JSON-ready record with the resolved rule and a hash of the template."""
        record = asdict(self) | {"rule": rule, "search": "greedy"}
        del record["cache_bytes"]  # no answer depends on it
        return record | {"template_sha256": sha256(self.template.encode()).hexdigest()[:12]}


@dataclass(frozen=True, slots=True)
class Question:
    """A text with the turns before it: (question, generated answer) pairs, oldest first."""

    text: str
    history: tuple[tuple[str, str], ...] = ()


@runtime_checkable
class Segmenter(Protocol):
    """Any model that turns photos and texts into masks."""

    @property
    def decision_rule(self) -> DecisionRule:
        """The rule used when `Decoding.rule` is None."""
        ...

    def look(self, photos: Sequence[np.ndarray]) -> Any:
        """Encode photos (uint8 (y, x, 3) RGB, any sizes) once; the result is opaque to the caller."""
        ...

    def answer(
        self, sight: Any, texts: Sequence[Sequence[str | Question]], decoding: Decoding
    ) -> list[Prediction]:
        """Answer the texts of each photo (`texts[b]` belongs to photo b); flat, in order."""
        ...
