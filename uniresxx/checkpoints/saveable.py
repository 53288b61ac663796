"""What a model needs to be saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from uniresxx.checkpoints.tensors import AnyTensor


class _Config(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


class _Tokenizer(Protocol):
    def to_json(self) -> str: ...


class Saveable(Protocol):
    """What a model needs to be saved: config (with `model_type`), weights, tokenizer (or None)."""

    @property
    def config(self) -> _Config: ...
    @property
    def tokenizer(self) -> _Tokenizer | None: ...
    def state_dict(self) -> Mapping[str, AnyTensor]: ...


@dataclass(frozen=True)
class Snapshot:
    """A model whose weights are read one by one, from wherever they lie."""

    config: _Config
    tokenizer: _Tokenizer | None
    weights: Mapping[str, AnyTensor]

    def state_dict(self) -> Mapping[str, AnyTensor]:
        """The weights."""
        return self.weights
