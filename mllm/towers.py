"""The two image encoders: a low-resolution ViT and a high-resolution ConvNeXt, both from transformers.

Shapes: B images, N low-tower tokens, D width, C channels, h w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, ConvNextBackbone, ConvNextConfig

from mllm.config import MLLMConfig


class LowTower(nn.Module):
    """CLIP-type ViT; returns patch tokens without CLS (METHOD section 1)."""

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__()
        self.select_layer = config.low_select_layer
        self.vit = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.low_width,
                intermediate_size=config.low_mlp or 3 * config.low_width,
                num_hidden_layers=config.low_layers,
                num_attention_heads=config.low_heads,
                image_size=config.low_size,
                patch_size=config.low_patch,
                hidden_act=config.low_activation,
                attn_implementation="flash_attention_2"
                if config.attention == "flash_attention_2"
                else "sdpa",
            )
        )

    def forward(self, pixels_B3hw: Tensor) -> Tensor:
        """Normalised pixels -> tokens (B, N, D), row by row."""
        hidden = self.select_layer != -1
        output = self.vit(pixel_values=pixels_B3hw, output_hidden_states=hidden)
        states = output.hidden_states[self.select_layer] if hidden else output.last_hidden_state
        return states[:, 1:]


class HighTower(nn.Module):
    """ConvNeXt with one map per stage, strides patch, 2 patch, 4 patch, 8 patch."""

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__()
        self.widths = config.high_widths
        self.backbone = ConvNextBackbone(
            ConvNextConfig(
                patch_size=config.high_patch,
                num_stages=len(config.high_widths),
                hidden_sizes=list(config.high_widths),
                depths=list(config.high_depths),
                layer_scale_init_value=config.high_layer_scale,
                out_features=[f"stage{i + 1}" for i in range(len(config.high_widths))],
            )
        )

    def forward(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Normalised pixels -> stage maps (B, C_s, H/stride_s, W/stride_s), finest first."""
        return list(self.backbone(pixels_B3HW.contiguous(memory_format=torch.channels_last)).feature_maps)
