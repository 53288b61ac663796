"""Sizes, wording and training of a converted LISA, GSVA or M2SA. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from mllm.config import Part, TuningConfig
from uniresxx.errors import InputError

MODEL_TYPE = "lisa"
Peer = Literal["lisa", "gsva", "m2sa"]
Conversation = Literal["llava_v1", "llava_llama_2"]

# Where the parameters of each part live; the longest match counts.
PARTS: Mapping[Part, tuple[str, ...]] = {
    "low": ("clip",),
    "fusion": ("projector",),
    "llm": ("llm",),
    "head": ("sam", "prompt", "early"),
    "mask_encoder": ("sam.vision_encoder", "sam.prompt_encoder", "sam.shared_image_embedding"),
}
ALL_FROZEN = TuningConfig(frozen=tuple(PARTS))
PUBLISHED_TUNING = TuningConfig(  # train_ds.py of LISA: adapters, all token rows, mask decoder, prompt layers
    frozen=("low", "fusion", "mask_encoder"),
    lora_rank=8,
    lora_alpha=16,
    lora_dropout=0.05,
    lora_targets=("q_proj", "v_proj"),
)


@dataclass(frozen=True)
class LisaLossConfig:
    """Weights of the losses (train_ds.py); BCE and dice are taken at the photo's size."""

    text: float = 1.0
    mask: float = 2.0
    dice: float = 0.5
    dice_smooth: float = 1e-3  # in pixels: model/LISA.py divides pixels by 1000 and smooths by 1e-6


@dataclass(frozen=True)
class LisaConfig:
    """What config.json of a converted folder holds; `uniresxx.segmenters.lisa.convert` fills it."""

    peer: Peer  # whose questions, answers and tokens these are
    conversation: Conversation  # the frame of questions and answers, LLaVA's names
    text: dict[str, Any]  # arguments of transformers' LlamaConfig
    vision: dict[str, Any]  # of CLIPVisionConfig
    sam: dict[str, Any]  # of SamConfig
    photo: dict[str, Any]  # of CLIP's preprocessor_config.json: size, crop_size, image_mean, image_std
    projector_layers: int = 1  # 1: linear; 2: with GELU between
    select_layer: int = -2  # of CLIP's hidden states
    early: bool = False  # M2SA: what SAM's first global block puts out joins its image embedding
    tuning: TuningConfig = ALL_FROZEN  # as converted, nothing is trained
    loss: LisaLossConfig = field(default_factory=LisaLossConfig)
    activation_checkpointing: bool = False  # of the language model's layers, in training
    start: str = ""  # the checkpoint that training starts from

    def __post_init__(self) -> None:
        """Reject values that no release has."""
        for name, kind in (("peer", Peer), ("conversation", Conversation)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(kind))}")
        absent = sorted({*self.tuning.frozen, *self.tuning.keep_fp32} - PARTS.keys())
        if absent:
            raise InputError(
                f"tuning names the part(s) {', '.join(absent)}, and {self.peer} has {', '.join(PARTS)}"
            )
        if self.early != (self.peer == "m2sa"):
            raise InputError(
                f"early={self.early} with peer={self.peer!r}: m2sa alone has SAM's early features"
            )
        side, crop, shortest = self.vision["image_size"], self.photo["crop_size"], self.photo["size"]
        if crop != {"height": side, "width": side} or shortest.get("shortest_edge", 0) < side:
            raise InputError(
                f"photos are resized to {shortest} and cut to {crop}, but CLIP takes {side} x {side} pixels: "
                "its config.json and preprocessor_config.json are of different models"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form with its `model_type`."""
        return {"model_type": MODEL_TYPE} | asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LisaConfig:
        """Inverse of `to_dict`; unknown or missing keys and another model type raise InputError."""
        values = dict(values)
        kind = values.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise InputError(f"model_type is {kind!r}, expected {MODEL_TYPE!r}: a checkpoint of another kind")
        former = values.pop("dtype", "float32")  # of converted folders that could not be trained
        saved = values.pop("tuning", asdict(frozen_in(former)))
        try:
            tuning: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()
            }
            loss = LisaLossConfig(**values.pop("loss", {}))
            return cls(tuning=TuningConfig(**tuning), loss=loss, **values)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise InputError(f"config.json does not fit this version: {error}") from error


def frozen_in(dtype: str) -> TuningConfig:
    """Everything frozen, in the dtype of published weights; fp16, which a CPU does not have, becomes fp32."""
    return replace(ALL_FROZEN, frozen_dtype="bf16" if dtype == "bfloat16" else "fp32")
