"""One visual prefix, many branches: the attention layout of training and the KV reuse of generation.

Shapes: B images, L prefix tokens, T text tokens of a row, S keys (prefix and text), Q newest of these keys, G heads
of keys and values, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.utils import is_flash_attn_2_available

from mllm.config import Attention

CACHE_BYTES = 4 * 2**30  # 5 images of 12 branches each for the 7B model in bf16 (our choice)
_PREFIX, _PADDING = -2, -1  # in place of a branch number


def packed_mask(prefix_valid_BL: Tensor, branch_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """`branch_mask` (B, 1, L+T, L+T) of whole rows: the prefix and the branches after it."""
    branch_BS = torch.cat((prefix_branch(prefix_valid_BL), branch_BT), dim=1)
    return branch_mask(branch_BS, branch_BS.shape[1], dtype)


def prefix_branch(prefix_valid_BL: Tensor) -> Tensor:
    """What `branch_mask` takes as the branch of prefix tokens."""
    return torch.where(prefix_valid_BL, _PREFIX, _PADDING)


def branch_mask(branch_BS: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, Q, S) for the Q = `new` last of S tokens.

    i sees j iff j <= i and j is in the prefix or in i's own branch. `branch_BS` is -1 on padding, which nothing else
    sees; every token sees itself, so that no row is empty.
    """
    S = branch_BS.shape[1]
    branch_BQ = branch_BS[:, S - new :]
    visible = (branch_BS[:, None, :] == branch_BQ[:, :, None]) & (branch_BS != _PADDING)[:, None, :]
    visible |= (branch_BS == _PREFIX)[:, None, :]
    visible &= torch.ones(new, S, dtype=torch.bool, device=visible.device).tril(S - new)
    visible[:, :, S - new :] |= torch.eye(new, dtype=torch.bool, device=visible.device)
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def packed_blocks(prefix_valid_BL: Tensor, branch_BT: Tensor) -> BlockMask:
    """The rule of `packed_mask` for FlexAttention: fully masked blocks are never computed."""
    branch_BS = torch.cat((prefix_branch(prefix_valid_BL), branch_BT), dim=1)

    def visible(b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (branch_BS[b, key] == branch_BS[b, query]) & (branch_BS[b, key] != _PADDING)
        return ((key <= query) & (own | (branch_BS[b, key] == _PREFIX))) | (key == query)

    B, S = branch_BS.shape
    return create_block_mask(visible, B, None, S, S, device=str(branch_BS.device))


def check_attention(name: Attention) -> None:
    """ValueError for a backend that is not installed."""
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "attention='flash_attention_2' needs the package flash-attn (2.3.3 or later) and a CUDA GPU, and here "
            "one of them is missing: pip install flash-attn, or use 'flex_attention' on a GPU, 'sdpa' anywhere"
        )


def check_packed(name: Attention, device: torch.device | None = None) -> None:
    """ValueError for a backend that cannot hide branches from one another, which packed training rows need.

    `device`: where the model is trained; None: not known, or not trained.
    """
    if name == "flex_attention" and device is not None and device.type != "cuda":
        raise ValueError(
            f"attention='flex_attention' has no backward pass on {device.type}: train with 'sdpa', or on a CUDA GPU"
        )
    if name == "flash_attention_2":
        raise ValueError(
            "attention='flash_attention_2' cannot hide branches from one another, which packed training rows need: "
            "train with 'flex_attention' on a GPU, or 'sdpa'; flash encodes the visual prefix in use"
        )


def prefix_positions(prefix_valid_BL: Tensor, count_padding: bool) -> Tensor:
    """Position ids (B, L): all tokens count up, or the valid ones alone."""
    if count_padding:
        return torch.arange(prefix_valid_BL.shape[1], device=prefix_valid_BL.device).expand_as(
            prefix_valid_BL
        )
    return (prefix_valid_BL.long().cumsum(dim=1) - 1).clamp(min=0)


def packed_positions(prefix_BL: Tensor, position_BT: Tensor) -> Tensor:
    """Position ids (B, L+T): the prefix has its own, each branch goes on from its end."""
    return torch.cat((prefix_BL, prefix_BL[:, -1:] + 1 + position_BT), dim=1)


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """Keys and values of the encoded prefix of B images, one pair per layer, each (B, G, L, d)."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    valid_BL: Tensor

    @property
    def length(self) -> int:
        """Tokens of the prefix, padding included."""
        return int(self.valid_BL.shape[1])

    def chunk_bytes(self, images: int, branches: int, tokens: int) -> int:
        """Bytes of the cache of a chunk: each image's prefix once, and `tokens` of text for each of its branches."""
        per_token = sum(x.shape[1] * x.shape[3] * x.element_size() for pair in self.layers for x in pair)
        return per_token * images * (self.length + branches * tokens)

    def with_room(self, images: Sequence[int], room: int) -> Cache:
        """A cache that begins with the prefixes of `images` and has room for `room` more tokens of each."""
        chosen = list(images)
        return Cache(
            layers=[BufferedLayer(keys[chosen], values[chosen], room) for keys, values in self.layers]
        )


class BufferedLayer(DynamicLayer):
    """Keys and values of one layer in a buffer that is allocated once; new ones are written behind the old ones."""

    def __init__(self, keys_BGLd: Tensor, values_BGLd: Tensor, room: int) -> None:
        super().__init__()
        self.buffers = tuple(_with_room(x, room) for x in (keys_BGLd, values_BGLd))
        self.dtype, self.device, self.is_initialized = keys_BGLd.dtype, keys_BGLd.device, True
        self._show(keys_BGLd.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new keys and values (B, G, Q, d); returns all so far, (B, G, S, d), without a copy."""
        start = self.keys.shape[2]
        stop = start + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = new
        self._show(stop)
        return self.keys, self.values

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)


def _with_room(x_BGLd: Tensor, room: int) -> Tensor:
    B, G, L, d = x_BGLd.shape
    buffer = x_BGLd.new_empty(B, G, L + room, d)
    buffer[:, :, :L] = x_BGLd
    return buffer
