"""Sizes of the FiLM-UNet baseline. Imports no torch: recipes and the command line start with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from uniresxx.errors import InputError
from uniresxx.model.config import LossConfig, UniRESPlusPlusConfig

MODEL_TYPE = "film_unet"
GROUPS = 8  # of every group norm


@dataclass(frozen=True)
class FilmUNetConfig:
    """Defaults come within 10 % of the tiny model's parameters (tests/test_film_unet.py asserts it).

    Of `inputs` count what decides pixels, rows and vocabulary; towers, boxes and ablations are not read.
    Of `loss` count mask, dice with its smoothing, quality and presence; the model predicts no words and no dense
    labels, and its mask loss is taken at full resolution.
    """

    inputs: UniRESPlusPlusConfig = field(default_factory=UniRESPlusPlusConfig)  # of the compared model
    widths: tuple[int, ...] = (32, 64, 128, 256)  # of the encoder at strides 2, 4, 8, …; decoder: half
    text_width: int = 256
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        """Reject sizes that cannot fit together."""
        side, stride = self.inputs.mllm.high_size, 2 ** len(self.widths)
        if len(self.widths) < 2 or any(width < 1 or width % (2 * GROUPS) for width in self.widths):
            raise InputError(f"widths {self.widths}: give at least two multiples of {2 * GROUPS}")
        if self.text_width < 1:
            raise InputError(f"text_width={self.text_width} must be at least 1")
        if side % stride:
            raise InputError(f"high_size={side} is not a multiple of {stride}: change it or widths")
        if self.loss.dense:
            raise InputError(f"loss.dense={self.loss.dense}: this baseline has no dense head, set 0")
        if self.loss.resolution != "full":
            raise InputError(
                f"loss.resolution={self.loss.resolution!r}: this baseline learns at 'full' alone"
            )

    @property
    def view(self) -> UniRESPlusPlusConfig:
        """`inputs` with the cheapest boxes: same code prepares the photos, boxes are never read."""
        return replace(self.inputs, boxes="grid")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form with its `model_type`."""
        return {"model_type": MODEL_TYPE} | asdict(self) | {"inputs": self.inputs.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FilmUNetConfig:
        """Inverse of `to_dict`; unknown or missing keys and another model type raise InputError."""
        values = dict(values)
        kind = values.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise InputError(f"model_type is {kind!r}, expected {MODEL_TYPE!r}: a checkpoint of another kind")
        try:
            return cls(
                inputs=UniRESPlusPlusConfig.from_dict(values.pop("inputs")),
                widths=tuple(values.pop("widths")),
                loss=LossConfig(**values.pop("loss")),
                **values,
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise InputError(f"config.json does not fit this version: {error}") from error
