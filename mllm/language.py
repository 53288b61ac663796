"""The language model: a Llama of transformers, and the names that releases of transformers spell differently."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mllm.config import MLLMConfig
from mllm.tokens import Vocabulary


def build_llama(config: MLLMConfig, vocabulary: Vocabulary, skip_init: bool = False) -> LlamaForCausalLM:
    """The LLM with random weights.

    Args:
        config: its sizes (`llm_*`), attention backend and activation checkpointing.
        vocabulary: gives the ids of padding and end.
        skip_init: leave the weights unwritten, because all of them are loaded next; writing them takes minutes
            at 7B.
    """
    sizes = LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.llm_width,
        intermediate_size=config.llm_mlp,
        num_hidden_layers=config.llm_layers,
        num_attention_heads=config.llm_heads,
        num_key_value_heads=config.llm_heads,
        max_position_embeddings=config.llm_context,
        rms_norm_eps=config.llm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.llm_rope_theta},
        initializer_range=config.init_std,
        attn_implementation=config.attention,
        pad_token_id=vocabulary.pad,
        eos_token_id=vocabulary.end,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    if skip_init:
        with torch.device("meta"):
            llm = LlamaForCausalLM(sizes)
        llm.to_empty(device="cpu")
        llm.model.rotary_emb = type(llm.model.rotary_emb)(sizes)  # its buffers are computed, never loaded
    else:
        llm = LlamaForCausalLM(sizes)
    if config.activation_checkpointing:
        enable_activation_checkpointing(llm)
    return llm


def enable_activation_checkpointing(llm: Any) -> None:
    """Recompute activations in the backward pass; transformers before 5.23 has only the former name."""
    former = "gradient_checkpointing_enable"
    enable = getattr(llm, "activation_checkpointing_enable", None) or getattr(llm, former)
    enable({"use_reentrant": False})


def cache_argument(forward: Callable[..., Any]) -> str:
    """The argument that takes the keys and values: `cache` since transformers 5.24, before `past_key_values`."""
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


def in_compute_dtype(hidden: Tensor) -> Tensor:
    """Embeddings in the dtype of autocast where it is on.

    The residual stream, keys and values follow the embeddings: one matrix kept in fp32, such as trained token rows,
    must not change the dtype of all.
    """
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden
