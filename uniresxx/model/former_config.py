"""The fields that a config.json or recipe.json of an earlier version has, under the names of today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mllm.chat_templates import ChatTemplate
from mllm.config import tiny_llama

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


def mllm_of_today(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an `MLLMConfig`, which an earlier version may have written."""
    return _llm_of_today(values)


def _llm_of_today(values: Mapping[str, Any]) -> dict[str, Any]:
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
