"""The language model: any causal one of transformers; names that its releases spell differently.

Shapes: B images, Q newest tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from threading import get_ident
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel

from mllm.config import MLLMConfig
from mllm.packed_attention import backend_of
from mllm.pretrained_config import build_config
from mllm.tokens import Vocabulary

Module = TypeVar("Module", bound=nn.Module)
_LAYOUT = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def build_language_model(
    config: MLLMConfig, vocabulary: Vocabulary, skip_init: bool = False
) -> PreTrainedModel:
    """The language model with random weights.

    Args:
        config: its own config `llm`, attention backend and activation checkpointing.
        vocabulary: gives the id of padding.
        skip_init: leave the weights unwritten, because all of them are loaded next; writing them takes minutes
            at 7B.

    Raises:
        ValueError: `llm` is not the config of a causal language model of Llama's layout with full attention.
    """
    config.check_llm()
    own = build_config(config.llm, "mllm.llm", initializer_range=config.init_std, pad_token_id=vocabulary.pad)
    build = partial(AutoModelForCausalLM.from_config, own, attn_implementation=backend_of(config.attention))
    llm: PreTrainedModel = unwritten(build) if skip_init else build()
    if not {name for name, _ in llm.named_parameters(remove_duplicate=False)} >= _LAYOUT:
        raise ValueError(
            f"mllm.llm: {own.model_type} has not the layout of Llama: {', '.join(sorted(_LAYOUT))}"
        )
    if config.activation_checkpointing:
        enable_activation_checkpointing(llm)
    return llm


def unwritten(build: Callable[[], Module]) -> Module:
    """What `build` gives, with parameters whose memory is not written, and so not taken, before they are loaded."""
    with parameters_without_memory():
        module = build()
    _allocate_parameters(module)
    return module


def _allocate_parameters(module: nn.Module) -> None:
    """Give the parameters of a module memory on the CPU with no values in it; tied ones stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for inner in module.modules():
        for name, old in inner.named_parameters(recurse=False):
            if old not in made:
                made[old] = nn.Parameter(torch.empty_like(old, device="cpu"), old.requires_grad)
            setattr(inner, name, made[old])


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Build modules of this thread with parameters on the meta device; buffers are real, with their values."""
    thread = get_ident()

    def forget(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or get_ident() != thread:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(forget)  # type: ignore[arg-type]  # it may return one
    try:
        yield
    finally:
        hook.remove()


def enable_activation_checkpointing(llm: Any) -> None:
    """Recompute activations in the backward pass; transformers before 5.23 has only the former name."""
    former = "gradient_checkpointing_enable"
    enable = getattr(llm, "activation_checkpointing_enable", None) or getattr(llm, former)
    enable({"use_reentrant": False})


def cache_argument(forward: Callable[..., Any]) -> str:
    """The argument that takes the keys and values: `cache` since transformers 5.24, before `past_key_values`."""
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


def newest_states(
    decoder: nn.Module, hidden_BQD: Tensor, position_BQ: Tensor, cache: Cache, mask: Tensor, argument: str
) -> Tensor:
    """States (B, Q, D) of the newest tokens; their keys and values are appended to `cache`.

    `argument`: the `cache_argument` of the decoder's forward.
    """
    output = decoder(
        inputs_embeds=hidden_BQD,
        attention_mask=mask,
        position_ids=position_BQ,
        use_cache=True,
        **{argument: cache},
    )
    states: Tensor = output.last_hidden_state
    return states


def in_compute_dtype(hidden: Tensor) -> Tensor:
    """Embeddings in the dtype of autocast where it is on.

    The residual stream, keys and values follow the embeddings: one matrix kept in fp32, such as trained token rows,
    must not change the dtype of all.
    """
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden
