"""Attention of mask heads: a few tokens per expression and a memory of many.

Shapes: E expressions of all images, K tokens per expression, M tokens of the memory, C head width, B images, N image
tokens, h w their grid, D LLM width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniresxx.model.heads.base import HeadInputs


def key_bias(valid_BM: Tensor) -> Tensor:
    """What is added to attention logits: 0 where valid, very negative elsewhere."""
    return torch.where(valid_BM, 0.0, -1e4)


class Attention(nn.Module):
    """Multi-head attention over (E, K, C) queries and (E, M, C) keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, query_EKC: Tensor, key_EMC: Tensor, value_EMC: Tensor, bias_EM: Tensor | None
    ) -> Tensor:
        """Mixed values (E, K, C)."""
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.q(query_EKC), self.k(key_EMC), self.v(value_EMC))
        )
        mask = None if bias_EM is None else bias_EM[:, None, None].expand(-1, self.heads, q.shape[2], -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Tokens attend to each other and to the memory, MLP, the memory attends to tokens (SAM's order, pre-norm)."""

    def __init__(self, width: int, heads: int, last: bool) -> None:
        super().__init__()
        self.own, self.to_memory = Attention(width, heads), Attention(width, heads)
        self.back = None if last else Attention(width, heads)
        self.norm_own, self.norm_tokens, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.norm_memory = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm_back = None if last else nn.LayerNorm(width)

    def forward(self, tokens_EKC: Tensor, memory_EMC: Tensor, bias_EM: Tensor) -> tuple[Tensor, Tensor]:
        """Updated tokens and memory; the last block leaves the memory as it is, because nothing uses it."""
        x = self.norm_own(tokens_EKC)
        tokens_EKC = tokens_EKC + self.own(x, x, x, None)
        memory = self.norm_memory(memory_EMC)
        tokens_EKC = tokens_EKC + self.to_memory(self.norm_tokens(tokens_EKC), memory, memory, bias_EM)
        tokens_EKC = tokens_EKC + self.mlp(self.norm_mlp(tokens_EKC))
        if self.back is not None and self.norm_back is not None:
            x = self.norm_back(tokens_EKC)
            memory_EMC = memory_EMC + self.back(memory, x, x, None)
        return tokens_EKC, memory_EMC


class PromptAttention(nn.Module):
    """The prompt of a pretrained decoder attends to image and region tokens; what it reads is added by a gate.

    The gate starts at zero: step 0 is the decoder with the plain prompt.
    """

    def __init__(self, llm_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.memory = nn.Linear(llm_width, width)
        self.block = TwoWayBlock(width, heads, last=True)
        self.gate = nn.Parameter(torch.zeros(1))

    def encode(self, inputs: HeadInputs) -> tuple[Tensor, Tensor]:
        """Memory (B, M, C) of image and region tokens, once per image, and its bias (B, M)."""
        image_BND = inputs.image_BDhw.flatten(2).transpose(1, 2)
        valid_BM = torch.cat((image_BND.new_ones(image_BND.shape[:2]).bool(), inputs.region_valid_BM), dim=1)
        return self.memory(torch.cat((image_BND, inputs.regions_BMD), dim=1)), key_bias(valid_BM)

    def forward(self, prompts_EC: Tensor, memory_EMC: Tensor, bias_EM: Tensor) -> Tensor:
        """Prompts (E, C)."""
        read_EKC, _ = self.block(prompts_EC[:, None], memory_EMC, bias_EM)
        return prompts_EC + self.gate * read_EKC[:, 0]
