"""CLIP's image encoder with learnable group tokens of two levels.

Low-level groups join the patches before the first block and leave after the first half of the blocks; high-level
ones join there and leave after the last block (figure of arXiv 2312.08007). In between, groups and patches attend to
one another as any tokens do. Our choice: groups join behind CLIP's first norm, and CLS stays.

Shapes: B images, H W pixels, N patches, G groups of a level, D width, T tokens: CLS, patches, groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from uniresxx.segmenters.unires.config import UniresConfig


class GroupedTokens(NamedTuple):  # ZeRO-3 finds tensors only in tuples, lists and dicts
    """CLS and patches after the last block, and the groups of each level where they leave."""

    tokens_BTD: Tensor
    low_BGD: Tensor
    high_BGD: Tensor


class GroupedVision(nn.Module):
    """transformers' CLIPVisionModel, whose blocks run with more tokens; without groups it computes the same."""

    def __init__(self, config: UniresConfig) -> None:
        super().__init__()
        self.clip = CLIPVisionModel(config.vision_config)
        width = int(self.clip.config.hidden_size)
        # as large as patches are behind CLIP's first norm: our choice
        self.low = nn.Parameter(torch.randn(config.low_groups, width))
        self.high = nn.Parameter(torch.randn(config.high_groups, width))

    @property
    def halves(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The blocks that low-level groups pass, and those that high-level ones pass."""
        layers = [*self.clip.encoder.layers]
        return layers[: len(layers) // 2], layers[len(layers) // 2 :]

    def embedded(self, pixels_B3HW: Tensor) -> Tensor:
        """CLS and patches before the first block (B, T, D)."""
        return self.clip.pre_layrnorm(self.clip.embeddings(pixels_B3HW))

    def forward(self, pixels_B3HW: Tensor) -> GroupedTokens:
        """Normalised pixels of `config.size`."""
        first, second = self.halves
        tokens_BTD, low_BGD = passed(self.embedded(pixels_B3HW), self.low, first)
        tokens_BTD, high_BGD = passed(tokens_BTD, self.high, second)
        return GroupedTokens(tokens_BTD, low_BGD, high_BGD)


def passed(tokens_BTD: Tensor, groups_GD: Tensor, layers: Iterable[nn.Module]) -> tuple[Tensor, Tensor]:
    """Tokens and groups after the blocks that they pass together."""
    B, T, _ = tokens_BTD.shape
    joined_BTD = joined(tokens_BTD, groups_GD)
    for layer in layers:
        joined_BTD = layer(joined_BTD, None)
    assert joined_BTD.shape[:2] == (B, T + len(groups_GD))
    return joined_BTD[:, :T], joined_BTD[:, T:]


def joined(tokens_BTD: Tensor, groups_GD: Tensor) -> Tensor:
    """The groups behind the tokens of every image."""
    return torch.cat((tokens_BTD, groups_GD.to(tokens_BTD.dtype).expand(len(tokens_BTD), -1, -1)), dim=1)
