"""The typed configuration that a checkpoint carries."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from mllm.config import MLLMConfig
from uniresxx.errors import InputError
from uniresxx.segmenter import DecisionRule

MODEL_TYPE = "uniresxx"
BoxSource = Literal["segmenter", "grid", "truth", "shuffled", "random"]
NORM_GROUPS = 8


@dataclass(frozen=True)
class PyramidHeadConfig:
    """Mask head of METHOD section 4, tiny size."""

    width: int = 64
    heads: int = 4
    blocks: int = 2
    memory_stage: int = -2  # the stage map that joins the decoder's memory
    region_memory: bool = True  # MGFE tokens reach the mask without passing through one vector

    def __post_init__(self) -> None:
        """Reject sizes that cannot fit together."""
        if self.width % self.heads or self.width % NORM_GROUPS:
            raise ValueError(
                f"head.width={self.width} must divide by head.heads={self.heads} and by {NORM_GROUPS}"
            )


@dataclass(frozen=True)
class LossConfig:
    """Weights of METHOD section 4; `dense` is the auxiliary of the scenes (kind, colour, part per pixel)."""

    text: float = 1.0
    mask: float = 2.0
    dice: float = 0.5
    quality: float = 0.1
    presence: float = 0.5
    dense: float = 0.0


@dataclass(frozen=True)
class UniRESPlusPlusConfig:
    """Everything needed to build the model; `boxes` is where region proposals come from, everywhere."""

    mllm: MLLMConfig = field(default_factory=MLLMConfig)
    head: PyramidHeadConfig = field(default_factory=PyramidHeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    boxes: BoxSource = "segmenter"
    decision_rule: DecisionRule = "token_and_presence"
    dense_classes: tuple[int, int, int] = (
        0,
        0,
        0,
    )  # kinds, colours, parts incl. 0 = none; zeros: no dense head

    def __post_init__(self) -> None:
        """Reject words that name nothing; a checkpoint's config may hold any text."""
        for name, value, known in (
            ("boxes", self.boxes, get_args(BoxSource)),
            ("decision_rule", self.decision_rule, get_args(DecisionRule)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}; known: {', '.join(known)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form with its `model_type`."""
        return {"model_type": MODEL_TYPE} | asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UniRESPlusPlusConfig:
        """Inverse of `to_dict`; unknown or missing keys and another model type raise InputError."""
        values = dict(values)
        kind = values.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise InputError(
                f"model_type is {kind!r}, expected {MODEL_TYPE!r}: this is a checkpoint of another kind"
            )
        try:
            return cls(
                mllm=MLLMConfig(**_tuples(values.pop("mllm"))),
                head=PyramidHeadConfig(**values.pop("head")),
                loss=LossConfig(**values.pop("loss")),
                **_tuples(values),
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise InputError(f"config.json does not fit this version: {error}") from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
