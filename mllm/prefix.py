"""One visual prefix, many branches: the attention layout of training and the KV reuse of generation.

Shapes: B images, R rows (branches to generate), L prefix tokens, T text tokens of a row, S keys (prefix and text),
G heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import DynamicCache
from transformers.utils import is_flash_attn_2_available

from mllm.config import Attention

CACHE_BYTES = 4 * 2**30  # 11 rows of the 7B model in bf16, thousands of the tiny one (our choice)


def packed_mask(prefix_valid_BL: Tensor, branch_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, L+T, L+T): i sees j iff j <= i and j is in the prefix or in i's own branch.

    `branch` is -1 on padding, which nothing else sees; every position sees itself, so that no row is empty.
    """
    B, L = prefix_valid_BL.shape
    branch = torch.cat((branch_BT.new_full((B, L), -2), branch_BT), dim=1)
    key_ok = torch.cat((prefix_valid_BL, branch_BT >= 0), dim=1)
    same = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == -2)
    visible = same & key_ok[:, None, :]
    visible &= torch.ones(visible.shape[-2:], dtype=torch.bool, device=visible.device).tril()
    visible |= torch.eye(visible.shape[-1], dtype=torch.bool, device=visible.device)
    return _additive(visible, dtype)


def packed_blocks(prefix_valid_BL: Tensor, branch_BT: Tensor) -> BlockMask:
    """The rule of `packed_mask` for FlexAttention: fully masked blocks are never computed."""
    B, L = prefix_valid_BL.shape
    branch_BS = torch.cat((branch_BT.new_full((B, L), -2), branch_BT), dim=1)
    key_ok_BS = torch.cat((prefix_valid_BL, branch_BT >= 0), dim=1)

    def visible(b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (branch_BS[b, key] == branch_BS[b, query]) | (branch_BS[b, key] == -2)
        return ((key <= query) & same & key_ok_BS[b, key]) | (key == query)

    S = branch_BS.shape[1]
    return create_block_mask(visible, B, None, S, S, device=str(branch_BS.device))


def check_attention(name: Attention) -> None:
    """ValueError for a backend that is not installed."""
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "attention='flash_attention_2' needs the package flash-attn and a CUDA GPU, and here one of them is "
            "missing: pip install flash-attn, or use 'flex_attention' on a GPU, 'sdpa' anywhere"
        )


def check_packed(name: Attention) -> None:
    """ValueError for a backend that cannot hide branches from one another, which packed training rows need."""
    if name == "flash_attention_2":
        raise ValueError(
            "attention='flash_attention_2' cannot hide branches from one another, which packed training rows need: "
            "train with 'flex_attention' on a GPU, or 'sdpa'; flash serves generation"
        )


def packed_positions(prefix_length: int, position_BT: Tensor) -> Tensor:
    """Position ids (B, L+T): the prefix counts up, each branch goes on from its end."""
    B = position_BT.shape[0]
    prefix = torch.arange(prefix_length, device=position_BT.device).expand(B, -1)
    return torch.cat((prefix, position_BT + prefix_length), dim=1)


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """Keys and values of the encoded prefix of B images, one pair per layer, each (B, G, L, d)."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    valid_BL: Tensor

    @property
    def length(self) -> int:
        """Tokens of the prefix, padding included."""
        return int(self.valid_BL.shape[1])

    def row_bytes(self, tokens: int) -> int:
        """Bytes of the cache of one row: its copy of the prefix and `tokens` of text, all layers."""
        per_token = 0
        for keys, values in self.layers:
            per_token += sum(x.shape[1] * x.shape[3] * x.element_size() for x in (keys, values))
        return per_token * (self.length + tokens)

    def repeat(self, image_of_row_R: Tensor) -> tuple[DynamicCache, Tensor]:
        """A fresh cache with one row per branch, and its key validity (R, L)."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys[image_of_row_R], values[image_of_row_R], index)
        return cache, self.valid_BL[image_of_row_R]


def decoding_mask(key_valid_RS: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (R, 1, new, S) for the last `new` of S keys: causal among them, all valid keys before."""
    S = key_valid_RS.shape[1]
    causal = torch.ones(new, S, dtype=torch.bool, device=key_valid_RS.device).tril(S - new)
    visible = causal & key_valid_RS[:, None, :]
    own = torch.eye(new, dtype=torch.bool, device=visible.device)
    visible[:, :, S - new :] |= own
    return _additive(visible, dtype)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, else the smallest number, with an axis for the heads."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
