"""The tower fields of a config.json or recipe.json of an earlier version, under the names of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm.tower_families import clip_vit, convnext

# former field of mllm -> field of today, with the key of a tower's own config; None: gone
TOWER_FIELDS: dict[str, str | None] = {
    "low_patch": "low patch_size=",
    "low_width": "low hidden_size=",
    "low_layers": "low num_hidden_layers=",
    "low_heads": "low num_attention_heads=",
    "low_mlp": "low intermediate_size=",
    "low_activation": "low hidden_act=",
    "high_patch": "high patch_size=",
    "high_widths": "high hidden_sizes=",
    "high_depths": "high depths=",
    "high_layer_scale": "high layer_scale_init_value=",
    "pixel_stats": "low_stats and --model.mllm.high_stats",
    "roi_size": None,
}
# former option of the pretrained parts -> option of today
WEIGHTS_FIELDS = {"clip": "low", "convnext": "high"}


def weights_of_today(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `WeightsConfig`, whose towers had the names of their families."""
    today = {WEIGHTS_FIELDS.get(key, key): value for key, value in values.items()}
    required = [WEIGHTS_FIELDS.get(name, name) for name in values.get("required", ())]
    return today | ({"required": required} if "required" in values else {})


def towers_of_today(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an `MLLMConfig` whose towers may be flat sizes: then a CLIP ViT and a ConvNeXt."""
    kept = {key: value for key, value in values.items() if key not in TOWER_FIELDS}
    if "low" in values:
        return kept

    def former(tower: str, *names: str) -> dict[str, Any]:
        return {name: values[f"{tower}_{name}"] for name in names if f"{tower}_{name}" in values}

    low = clip_vit(**former("low", "patch", "width", "layers", "heads", "mlp"))
    low["hidden_act"] = values.get("low_activation", low["hidden_act"])
    high = convnext(**former("high", "patch", "widths", "depths", "layer_scale"))
    stats = values.get("pixel_stats", "half")
    return kept | {"low": low, "high": high, "low_stats": stats, "high_stats": stats}
