"""What differs between the families of image encoders: the one place that names them.

A tower is the dict of its own transformers config (mllm.pretrained_config). Everything else, such as the grid, widths
and strides, is computed from that config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mllm.pretrained_config import build_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PixelStats = Literal["half", "clip", "siglip", "imagenet"]
# Mean and deviation of each channel, 0..255, of the published preprocessor_config.json files: clip is
# openai/clip-vit-large-patch14-336 and open_clip's ConvNeXt, siglip google/siglip2-so400m-patch14-384, imagenet
# facebook/dinov2-large, convnext, swin, hiera and sam. half: of towers that are trained from nothing.
PIXEL_STATS: dict[PixelStats, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "half": ((127.5,) * 3, (63.75,) * 3),
    "clip": ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)),
    "siglip": ((127.5,) * 3, (127.5,) * 3),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


@dataclass(frozen=True)
class LowFamily:
    """A ViT whose patch tokens come last, after CLS and registers where it has them, row by row."""

    stats: PixelStats  # of its published weights
    decided: Callable[[int], dict[str, Any]]  # side of the input -> values of its config that we decide
    takes_patches: bool = False  # pixels cut into patches, with the size of the grid
    antialias: bool = False  # how transformers interpolates its positions


@dataclass(frozen=True)
class HighFamily:
    """A backbone with one map per stage, finest first."""

    stats: PixelStats
    widths: Callable[[Any], tuple[int, ...]]  # of the stage maps
    strides: Callable[[Any], tuple[int, ...]]
    decided: Callable[[int], dict[str, Any]]


def _doubled(first: Callable[[Any], int]) -> Callable[[Any], tuple[int, ...]]:
    """The first stage's value, doubled at each later stage."""
    return lambda config: tuple(first(config) * 2**stage for stage in range(len(config.depths)))


def _hiera_strides(config: Any) -> tuple[int, ...]:
    pooled = [min(stage, config.num_query_pool) for stage in range(len(config.depths))]
    return tuple(config.patch_stride[0] * config.query_stride[0] ** times for times in pooled)


def _hiera_widths(config: Any) -> tuple[int, ...]:
    grown = [config.embed_dim_multiplier**stage for stage in range(len(config.depths))]
    return tuple(int(config.embed_dim * factor) for factor in grown)


def _image_size(side: int) -> dict[str, Any]:
    return {"image_size": side}


def _convnext(first_stride: Callable[[Any], int]) -> HighFamily:
    return HighFamily(
        "imagenet", lambda config: tuple(config.hidden_sizes), _doubled(first_stride), lambda side: {}
    )


LOW_FAMILIES: dict[str, LowFamily] = {
    "clip_vision_model": LowFamily("clip", _image_size),
    "siglip_vision_model": LowFamily("siglip", lambda side: {"image_size": side, "vision_use_head": False}),
    "siglip2_vision_model": LowFamily("siglip", lambda side: {"vision_use_head": False}, takes_patches=True),
    "dinov2": LowFamily("imagenet", _image_size),
    "dinov2_with_registers": LowFamily("imagenet", _image_size, antialias=True),
    "dinov3_vit": LowFamily("imagenet", _image_size),
}
HIGH_FAMILIES: dict[str, HighFamily] = {
    "convnext": _convnext(lambda config: config.patch_size),
    "convnextv2": _convnext(lambda config: config.patch_size),
    "dinov3_convnext": _convnext(lambda config: 4),
    "swin": HighFamily(
        "imagenet",
        _doubled(lambda config: config.embed_dim),
        _doubled(lambda config: config.patch_size),
        _image_size,
    ),
    "hiera": HighFamily("imagenet", _hiera_widths, _hiera_strides, lambda side: {"image_size": [side, side]}),
}
Family = TypeVar("Family", LowFamily, HighFamily)


def family_of(values: Mapping[str, Any], families: Mapping[str, Family], field: str) -> Family:
    """The family of a tower's dict; ValueError names those that work."""
    family = families.get(values.get("model_type", ""))
    if family is None:
        raise ValueError(
            f"{field}: model_type {values.get('model_type')!r} is not a tower that works here: "
            f"choose one of {', '.join(families)}"
        )
    return family


def low_tower_config(values: Mapping[str, Any], side: int) -> PreTrainedConfig:
    """The config of a low tower for inputs of `side` pixels; ValueError where they do not go together."""
    family = family_of(values, LOW_FAMILIES, "mllm.low")
    config = build_config(values, "mllm.low", **family.decided(side))
    _check_multiple("low_size", side, config.patch_size)
    return config


def high_tower_config(values: Mapping[str, Any], side: int) -> PreTrainedConfig:
    """The config of a high tower for inputs of `side` pixels; ValueError where they do not go together."""
    family = family_of(values, HIGH_FAMILIES, "mllm.high")
    config = build_config(values, "mllm.high", **family.decided(side))
    stages = [f"stage{stage + 1}" for stage in range(len(config.depths))]
    config.set_output_features_output_indices(out_features=stages, out_indices=None)
    _check_multiple("high_size", side, family.strides(config)[-1])
    return config


def _check_multiple(field: str, side: int, unit: int) -> None:
    below = side // unit * unit
    if side != below or not side:
        near = " or ".join(str(choice) for choice in (below, below + unit) if choice)
        raise ValueError(f"{field}={side} is not a multiple of {unit}: choose {near}")


def clip_vit(
    width: int = 128, layers: int = 3, heads: int = 4, mlp: int | None = None, patch: int = 8
) -> dict[str, Any]:
    """The dict of a CLIP ViT; `mlp` None is 3 * width."""
    return {
        "model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": mlp or 3 * width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch, "hidden_act": "quick_gelu",
    }  # fmt: skip


def convnext(
    widths: tuple[int, ...] = (32, 64, 96, 128),
    depths: tuple[int, ...] = (1, 1, 2, 1),
    patch: int = 2,
    layer_scale: float = 0.0,
) -> dict[str, Any]:
    """The dict of a ConvNeXt; `layer_scale` 0 is none (at tiny depth it only slows learning)."""
    return {
        "model_type": "convnext", "hidden_sizes": list(widths), "depths": list(depths), "num_stages": len(widths),
        "patch_size": patch, "layer_scale_init_value": layer_scale,
    }  # fmt: skip
