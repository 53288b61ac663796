"""The two image encoders: a low-resolution ViT and a high-resolution pyramid, models of transformers.

Shapes: B images, N low-tower tokens, D width, C channels, h w pixels of the low frame, H W of the high frame,
g side of the low grid, s side of a patch.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoModel

from mllm.config import MLLMConfig
from mllm.language import unwritten
from mllm.tower_families import LOW_FAMILIES, family_of


class LowTower(nn.Module):
    """A ViT; returns patch tokens without CLS and registers (METHOD section 1)."""

    def __init__(self, config: MLLMConfig, from_file: bool = False) -> None:
        """`from_file`: leave the weights unwritten, because all of them are loaded next."""
        super().__init__()
        self.select_layer, self.grid = config.low_select_layer, config.low_grid
        family = family_of(config.low, LOW_FAMILIES, "mllm.low")
        self.patch = config.low_config.patch_size if family.takes_patches else None
        attention = "flash_attention_2" if config.attention == "flash_attention_2" else "sdpa"
        build = partial(AutoModel.from_config, config.low_config, attn_implementation=attention)
        self.vit = unwritten(build) if from_file else build()

    def forward(self, pixels_B3hw: Tensor) -> Tensor:
        """Normalised pixels -> tokens (B, N, D), row by row."""
        inputs = (
            {"pixel_values": pixels_B3hw} if self.patch is None else self._patches(pixels_B3hw, self.patch)
        )
        hidden = self.select_layer != -1
        output = self.vit(**inputs, output_hidden_states=hidden)
        states = output.hidden_states[self.select_layer] if hidden else output.last_hidden_state
        return states[:, -(self.grid**2) :]

    def _patches(self, pixels_B3hw: Tensor, side: int) -> dict[str, Tensor]:
        """The same pixels as patches (channels last, no padding) with the size of the grid."""
        B, g = len(pixels_B3hw), self.grid
        patches_Bggss3 = pixels_B3hw.unflatten(3, (g, side)).unflatten(2, (g, side)).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": patches_Bggss3.flatten(3).flatten(1, 2),
            "pixel_attention_mask": None,
            "spatial_shapes": torch.tensor(
                [[g, g]] * B
            ),  # read by the CPU, which must not wait for the device
        }


class HighTower(nn.Module):
    """A backbone with one map per stage."""

    def __init__(self, config: MLLMConfig, from_file: bool = False) -> None:
        """`from_file`: leave the weights unwritten, because all of them are loaded next."""
        super().__init__()
        build = partial(AutoBackbone.from_config, config.high_config)
        self.backbone = unwritten(build) if from_file else build()

    def forward(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Normalised pixels -> stage maps (B, C_s, H/stride_s, W/stride_s), finest first."""
        return list(self.backbone(pixels_B3HW.contiguous(memory_format=torch.channels_last)).feature_maps)
