"""Sizes and switches of UniRES. Imports no torch: recipes and the command line start with it.

The paper's figure decides the blocks and their order. Sizes, input side, losses and the mask head are our choice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from mllm.pretrained_config import build_config
from mllm.tower_families import PixelStats, clip_vit
from uniresxx.errors import InputError
from uniresxx.model.config import LossConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MODEL_TYPE = "unires"


def clip_text(width: int, layers: int, heads: int, mlp: int, rows: int = 49408) -> dict[str, Any]:
    """The dict of CLIP's text encoder with `rows` tokens, of which the last two are those of start and end.

    Published ones have 49408. Which id is which is read from the tokenizer alone.
    """
    return {
        "model_type": "clip_text_model", "vocab_size": rows, "hidden_size": width, "intermediate_size": mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": "quick_gelu",
        "bos_token_id": rows - 2, "eos_token_id": rows - 1,
    }  # fmt: skip


@dataclass(frozen=True)
class UniresConfig:
    """Defaults are the tiny size. `vision` and `text` are the encoders' own transformers configs.

    Of `loss` count mask and dice with their resolution, points and smoothing, and presence; the model predicts no
    words, boxes, quality or dense labels.
    """

    vision: dict[str, Any] = field(default_factory=lambda: clip_vit(layers=4, patch=4))
    text: dict[str, Any] = field(default_factory=lambda: clip_text(128, 2, 4, 256, rows=768))
    size: int = 64  # side of the square input; an image size in `vision` is not read
    pixel_stats: PixelStats = "half"  # normalisation of the pixels
    low_groups: int = 8  # tokens that join before the first block and leave half-way; 0: none
    high_groups: int = 8  # that join half-way and leave after the last block
    width: int = 96  # of the region filters and both decoders
    heads: int = 4
    mlp_ratio: int = 2
    stage1_layers: int = 1  # patches read the text
    stage2_layers: int = 1  # they read the filtered groups
    mixing: bool = True  # patches attend to one another in the decoders too
    cells: int = 4  # mask logits along each side of a patch
    presence: bool = (
        False  # an extension: a score of whether anything is meant; off, nothing is ever rejected
    )
    loss: LossConfig = field(default_factory=LossConfig)
    pretrained: bool = False  # training has to start from `clip` or `start`
    clip: str | None = None  # a folder or hub id with both encoders of a CLIP, and its tokenizer.json
    start: str | None = None  # a run or checkpoint folder of this model

    def __post_init__(self) -> None:
        """Reject sizes that cannot fit together and words that name nothing."""
        if self.pixel_stats not in get_args(PixelStats):
            raise InputError(f"pixel_stats={self.pixel_stats!r}; known: {', '.join(get_args(PixelStats))}")
        if self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise InputError(f"width={self.width} must divide by heads={self.heads}")
        least = {"low_groups": 0, "high_groups": 0, "mlp_ratio": 1, "stage1_layers": 1, "stage2_layers": 1,
                 "cells": 1}  # fmt: skip
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise InputError(f"{name}={getattr(self, name)} must be at least {lowest}")
        if self.loss.dense:
            raise InputError(f"loss.dense={self.loss.dense}: this model has no dense head, set 0")

    @cached_property
    def vision_config(self) -> PreTrainedConfig:
        """The image encoder's config; ValueError where it is no CLIP's or does not fit `size`."""
        config = build_config(self.vision, "vision", image_size=self.size)
        if config.model_type != "clip_vision_model":
            raise ValueError(f"vision: model_type {config.model_type!r} is not 'clip_vision_model'")
        patch, layers = config.to_dict()["patch_size"], config.to_dict()["num_hidden_layers"]
        if self.size < patch or self.size % patch:
            raise ValueError(f"size={self.size} is not a multiple of the patch, {patch}")
        if layers < 2:
            raise ValueError(
                f"vision: num_hidden_layers={layers} has no first and second half, use 2 or more"
            )
        return config

    @cached_property
    def text_config(self) -> PreTrainedConfig:
        """The text encoder's config; ValueError where it is no CLIP's."""
        config = build_config(self.text, "text")
        if config.model_type != "clip_text_model":
            raise ValueError(f"text: model_type {config.model_type!r} is not 'clip_text_model'")
        return config

    @property
    def grid(self) -> int:
        """Patches along each side of the input."""
        return int(self.size // self.vision_config.to_dict()["patch_size"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form with its `model_type`."""
        return {"model_type": MODEL_TYPE} | asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UniresConfig:
        """Inverse of `to_dict`; unknown keys and another model type raise InputError."""
        values = dict(values)
        kind = values.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise InputError(f"model_type is {kind!r}, expected {MODEL_TYPE!r}: a checkpoint of another kind")
        try:
            return cls(loss=LossConfig(**values.pop("loss")), **values)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise InputError(f"config.json does not fit this version: {error}") from error
