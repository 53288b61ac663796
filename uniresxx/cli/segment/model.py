"""The model that answers: found and identified before it is loaded, loaded when the first photo needs it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uniresxx.checkpoints.resolve import Source, find, model_name
from uniresxx.cli import first_load

if TYPE_CHECKING:
    from uniresxx.predictor import Predictor


@dataclass(slots=True)
class Model:
    """A checkpoint by its files.

    Args:
        name: what it is called in results.
        source: where its files are.
        weights_sha256: of the weights, all files one after another.
        placement: options of `Predictor.from_pretrained`.
        loaded: the model, once it was needed.
    """

    name: str
    source: Source
    weights_sha256: str
    placement: Mapping[str, Any] = field(default_factory=dict)
    loaded: Predictor | None = None

    @property
    def made_by(self) -> dict[str, Any]:
        """What the answers depend on: config, weights, and the options that change them."""
        return {
            "config_sha256": self.source.config_sha256(),
            "weights_sha256": self.weights_sha256,
            "dtype": self.placement.get("dtype"),
            "quantization": self.placement.get("quantization"),
        }

    def load(self) -> Predictor:
        """The model, loaded at the first call: a job whose photos are all done needs none of it.

        Raises InputError where the device is not there or an option does not go with it.
        """
        if self.loaded is None:
            with first_load():
                from uniresxx.predictor import Predictor

                self.loaded = Predictor.from_pretrained(self.source.name, **self.placement)
        return self.loaded


def model_of(checkpoint: str | None, placement: Mapping[str, Any]) -> Model:
    """The model that a name means; InputError where there is none. Nothing of torch is loaded."""
    source = find(checkpoint, lambda line: print(f"warning: {line}", file=sys.stderr))
    name = model_name(checkpoint)
    if checkpoint is None:
        print(f"note: {name} answers; --checkpoint names another", file=sys.stderr)
    return Model(name, source, source.weights_sha256(), placement)
