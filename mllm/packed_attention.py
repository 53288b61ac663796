"""SDPA over packed training rows: a causal kernel for the prefix, and a mask for the branches behind it alone.

A mask over whole rows makes SDPA compute every pair of tokens. Of a row of 801 tokens 675 are prefix, where a causal
kernel computes half of them and needs no mask, once the tokens that are not real lie behind all others.

Shapes: B images, G heads, L prefix tokens, T text tokens, S = L + T, d head width, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from mllm.config import Attention

_NAME = "packed_sdpa"


def backend_of(attention: Attention) -> str:
    """The name under which transformers knows the language model's attention."""
    if attention != "sdpa":
        return attention
    AttentionInterface.register(_NAME, packed_sdpa)
    AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return _NAME


def packed_sdpa(
    module: nn.Module,
    query_BGSd: Tensor,
    key_BGSd: Tensor,
    value_BGSd: Tensor,
    attention_mask: Tensor | None,
    prefix_length: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA; with `prefix_length`, in two calls. Returns (B, S, G, d) and None, as attentions do.

    Args:
        module: the attention layer.
        query_BGSd: queries.
        key_BGSd: keys, with fewer heads where they are grouped.
        value_BGSd: likewise.
        attention_mask: additive; with `prefix_length` (B, 1, T, S), of the text alone.
        prefix_length: L tokens of causal prefix; None: the mask is of all tokens.
        others: of transformers' attentions.
    """
    if prefix_length is None:
        found, _ = sdpa_attention_forward(module, query_BGSd, key_BGSd, value_BGSd, attention_mask, **others)
        return found, None
    others.pop("is_causal", None)
    of_prefix = (x[:, :, :prefix_length] for x in (query_BGSd, key_BGSd, value_BGSd))
    prefix, _ = sdpa_attention_forward(module, *of_prefix, None, is_causal=True, **others)
    text_BGTd = query_BGSd[:, :, prefix_length:]
    if text_BGTd.shape[2] == 0:  # a batch without any words
        return prefix, None
    text, _ = sdpa_attention_forward(
        module, text_BGTd, key_BGSd, value_BGSd, attention_mask, is_causal=False, **others
    )
    return torch.cat((prefix, text), dim=1), None


def real_first(prefix_BLD: Tensor, valid_BL: Tensor, position_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The prefix, its validity and its position ids with the tokens that are not real behind all others.

    The real ones keep their order, so that each sees the same tokens as before under a causal kernel.
    """
    order_BL = valid_BL.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    prefix_BLD = prefix_BLD.gather(1, order_BL[..., None].expand_as(prefix_BLD))
    return prefix_BLD, valid_BL.gather(1, order_BL), position_BL.gather(1, order_BL)
