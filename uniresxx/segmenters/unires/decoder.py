"""The language-guided region filter, and the layers of both vision-language decoders.

Shapes: B images, E expressions, N patches, G groups of a level, M tokens of a memory (text, or filtered groups),
C width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from uniresxx.model.heads.attention import Attention


def feed_forward(width: int, ratio: int) -> nn.Sequential:
    """Norm and two layers."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
    )


class RegionFilter(nn.Module):
    """Groups attend to the words, then a feed-forward network; both are residual (figure of arXiv 2312.08007).

    Norms before each step are our choice.
    """

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp = feed_forward(width, ratio)

    def forward(self, groups_EGC: Tensor, text_EMC: Tensor, bias_EM: Tensor) -> Tensor:
        """Filtered groups (E, G, C); `bias` is very negative where the text is padding."""
        filtered_EGC = groups_EGC + self.attention(self.norm(groups_EGC), text_EMC, text_EMC, bias_EM)
        return filtered_EGC + self.mlp(filtered_EGC)


class DecoderLayer(nn.Module):
    """Patches attend to one another, to a memory, then a feed-forward network (as in CRIS, arXiv 2111.15174; norms
    before each step are our choice). Without `mixing` the first step is left out, without `has_memory` the second."""

    def __init__(self, width: int, heads: int, ratio: int, mixing: bool, has_memory: bool = True) -> None:
        super().__init__()
        self.norm_own = nn.LayerNorm(width) if mixing else None
        self.own = Attention(width, heads) if mixing else None
        self.norm_cross = nn.LayerNorm(width) if has_memory else None
        self.cross = Attention(width, heads) if has_memory else None
        self.mlp = feed_forward(width, ratio)

    def among_patches(self, patches_ENC: Tensor) -> Tensor:
        """The first step alone."""
        if self.own is None or self.norm_own is None:
            return patches_ENC
        x_ENC = self.norm_own(patches_ENC)
        return patches_ENC + self.own(x_ENC, x_ENC, x_ENC, None)

    def from_memory(self, patches_ENC: Tensor, memory_EMC: Tensor, bias_EM: Tensor | None) -> Tensor:
        """The steps after the first."""
        if self.cross is not None and self.norm_cross is not None:
            read_ENC = self.cross(self.norm_cross(patches_ENC), memory_EMC, memory_EMC, bias_EM)
            patches_ENC = patches_ENC + read_ENC
        return patches_ENC + self.mlp(patches_ENC)


def first_stage(
    layers: Sequence[DecoderLayer], patches_BNC: Tensor, text_EMC: Tensor, bias_EM: Tensor, image_E: Tensor
) -> Tensor:
    """Patches of each expression's image with what the words say (E, N, C).

    Before the first words are read all expressions of an image share the patches, so that step runs per image.
    """
    first, *others = layers
    x_ENC = first.from_memory(first.among_patches(patches_BNC)[image_E], text_EMC, bias_EM)
    for layer in others:
        x_ENC = layer.from_memory(layer.among_patches(x_ENC), text_EMC, bias_EM)
    return x_ENC


def second_stage(layers: Sequence[DecoderLayer], patches_ENC: Tensor, groups_EMC: Tensor) -> Tensor:
    """Patches with what the filtered groups of both levels say (E, N, C)."""
    for layer in layers:
        patches_ENC = layer.from_memory(layer.among_patches(patches_ENC), groups_EMC, None)
    return patches_ENC
