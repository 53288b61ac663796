"""The fields that a config.json or recipe.json of an earlier version has, under their present names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mllm.chat_templates import ChatTemplate
from mllm.config import tiny_llama
from mllm.tower_families import clip_vit, convnext

# former field of mllm -> key of `mllm.llm`, and the value that stays away because it is the default of Llama
LLM_FIELDS: dict[str, tuple[str, Any]] = {
    "vocabulary": ("vocab_size", None),
    "llm_width": ("hidden_size", None),
    "llm_mlp": ("intermediate_size", None),
    "llm_layers": ("num_hidden_layers", None),
    "llm_heads": ("num_attention_heads", None),
    "llm_context": ("max_position_embeddings", None),
    "llm_eps": ("rms_norm_eps", 1e-6),
    "llm_rope_theta": ("rope_theta", 10_000.0),
}
# former field of mllm -> present field, with the key of a tower's own config; None: gone
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
# former option of the pretrained parts -> present option
WEIGHTS_FIELDS = {"clip": "low", "convnext": "high"}


def current_mllm(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an `MLLMConfig`, which an earlier version may have written."""
    return _current_llm(_current_towers(values))


def _current_llm(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat sizes of a Llama become its config; the chat format, then always that of marks, becomes a field."""
    if "llm" in values:
        return dict(values)
    kept = {key: value for key, value in values.items() if key not in (*LLM_FIELDS, "bos")}
    llm = tiny_llama()
    for former, (key, default) in LLM_FIELDS.items():
        if former in values and values[former] != default:
            llm[key] = values[former]
    first = {None: "", 1: "<s>"}.get(values.get("bos"))  # token 1 of LLaVA's tokenizer
    if first is None:
        raise ValueError(
            f"mllm.bos={values['bos']} of an earlier version: only 1, the token <s>, can be read"
        )
    chat = ChatTemplate(before_image=f"{first}<image>")
    return kept | {"llm": llm, "chat": asdict(chat), "count_padding": True}


def current_weights(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `WeightsConfig`, whose towers had the names of their families."""
    current = {WEIGHTS_FIELDS.get(key, key): value for key, value in values.items()}
    required = [WEIGHTS_FIELDS.get(name, name) for name in values.get("required", ())]
    return current | ({"required": required} if "required" in values else {})


def _current_towers(values: Mapping[str, Any]) -> dict[str, Any]:
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
