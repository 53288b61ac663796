"""Sizes and wording of a converted LISA, GSVA or M2SA. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from uniresxx.errors import InputError

MODEL_TYPE = "lisa"
Peer = Literal["lisa", "gsva", "m2sa"]
Conversation = Literal["llava_v1", "llava_llama_2"]
StoredDtype = Literal["float32", "bfloat16", "float16"]


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
    dtype: StoredDtype = "float32"  # of the published weights

    def __post_init__(self) -> None:
        """Reject values that no release has."""
        for name, kind in (("peer", Peer), ("conversation", Conversation), ("dtype", StoredDtype)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(kind))}")
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
        try:
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"config.json does not fit this version: {error}") from error
