"""SAM's image embedding with M2SA's early features (github.com/jdg900/MMR:model/M2SA.py, mask_decoder.py).

Shapes: B images, S SAM's frame, C decoder width, h w SAM's grid, D encoder width.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamLayerNorm


def early_layers(width: int, decoder_width: int) -> nn.Sequential:
    """What M2SA calls `compress_vit`."""
    return nn.Sequential(
        nn.Conv2d(width, decoder_width, 3, padding=1),
        SamLayerNorm(decoder_width, data_format="channels_first"),
        nn.GELU(),
        nn.Conv2d(decoder_width, decoder_width, 3, padding=1),
    )


def image_embedding(sam: SamModel, early: nn.Module | None, pixels_B3SS: Tensor) -> Tensor:
    """SAM's image embedding (B, C, h, w); with `early`, the output of the first global block is added through it."""
    encoder = sam.vision_encoder
    x_BhwD = encoder.patch_embed(pixels_B3SS) + encoder.pos_embed
    added = None
    for index, layer in enumerate(encoder.layers):
        x_BhwD = layer(x_BhwD)
        if early is not None and index == min(sam.config.vision_config.global_attn_indexes):
            added = early(x_BhwD.permute(0, 3, 1, 2))
    image_BChw = encoder.neck(x_BhwD)
    return image_BChw if added is None else image_BChw + added
