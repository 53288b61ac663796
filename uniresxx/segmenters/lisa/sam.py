"""SAM's image embedding, with M2SA's early features (jdg900/MMR:model/M2SA.py, mask_decoder.py), and masks.

Shapes: B images, E expressions, S SAM's frame, C decoder width, h w SAM's grid, D encoder width, Y X low-resolution
masks.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamLayerNorm

MASK_SCALE = 4  # pixels of mask logits per cell of the grid, each way


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


def decoded_masks(
    sam: SamModel, image_BChw: Tensor, prompts_EC: Tensor, image_of_expr: Sequence[int] | Tensor
) -> tuple[Tensor, Tensor]:
    """Mask logits (E, Y, X) over SAM's whole frame and predicted IoU (E); each prompt is the only one of its mask."""
    image_EChw = image_BChw[image_of_expr]
    if not len(prompts_EC):  # attention takes no empty batch
        h, w = image_EChw.shape[2:]
        return prompts_EC.new_zeros(0, MASK_SCALE * h, MASK_SCALE * w), prompts_EC.new_zeros(0)
    place = sam.get_image_wide_positional_embeddings().to(image_EChw.dtype)
    no_mask_1C11 = sam.prompt_encoder.no_mask_embed.weight[:, :, None, None]
    masks, iou = sam.mask_decoder(
        image_embeddings=image_EChw,
        image_positional_embeddings=place.expand(len(image_EChw), -1, -1, -1),
        sparse_prompt_embeddings=prompts_EC[:, None, None],
        dense_prompt_embeddings=no_mask_1C11.expand(image_EChw.shape).to(image_EChw.dtype),
        multimask_output=False,
    )[:2]
    return masks[:, 0, 0], iou[:, 0, 0]
