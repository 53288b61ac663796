"""Names of SAM's weights: as Meta publishes them (image_encoder, …) -> as transformers' SamModel has them."""

from __future__ import annotations

from collections.abc import Sequence

_ENCODER, _DECODER = "vision_encoder", "mask_decoder"
_MLPS = r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)"
# (pattern of Meta's name, ours); each of the positional matrix's two names is filled from Meta's one
META_SAM_RULES: Sequence[tuple[str, str | None]] = (
    (r"pixel_(?:mean|std)", None),
    (r"image_encoder\.pos_embed", rf"{_ENCODER}.pos_embed"),
    (r"image_encoder\.patch_embed\.proj\.(.*)", rf"{_ENCODER}.patch_embed.projection.\1"),
    (r"image_encoder\.blocks\.(\d+)\.norm([12])\.(.*)", rf"{_ENCODER}.layers.\1.layer_norm\2.\3"),
    (r"image_encoder\.blocks\.(.*)", rf"{_ENCODER}.layers.\1"),
    (r"image_encoder\.neck\.0\.(.*)", rf"{_ENCODER}.neck.conv1.\1"),
    (r"image_encoder\.neck\.1\.(.*)", rf"{_ENCODER}.neck.layer_norm1.\1"),
    (r"image_encoder\.neck\.2\.(.*)", rf"{_ENCODER}.neck.conv2.\1"),
    (r"image_encoder\.neck\.3\.(.*)", rf"{_ENCODER}.neck.layer_norm2.\1"),
    (
        r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix",
        "shared_image_embedding.positional_embedding",
    ),
    (r"prompt_encoder\.point_embeddings\.(.*)", r"prompt_encoder.point_embed.\1"),
    (r"prompt_encoder\.mask_downscaling\.0\.(.*)", r"prompt_encoder.mask_embed.conv1.\1"),
    (r"prompt_encoder\.mask_downscaling\.1\.(.*)", r"prompt_encoder.mask_embed.layer_norm1.\1"),
    (r"prompt_encoder\.mask_downscaling\.3\.(.*)", r"prompt_encoder.mask_embed.conv2.\1"),
    (r"prompt_encoder\.mask_downscaling\.4\.(.*)", r"prompt_encoder.mask_embed.layer_norm2.\1"),
    (r"prompt_encoder\.mask_downscaling\.6\.(.*)", r"prompt_encoder.mask_embed.conv3.\1"),
    (rf"mask_decoder\.{_MLPS}\.layers\.0\.(.*)", rf"{_DECODER}.\1.proj_in.\2"),
    (rf"mask_decoder\.{_MLPS}\.layers\.1\.(.*)", rf"{_DECODER}.\1.layers.0.\2"),
    (rf"mask_decoder\.{_MLPS}\.layers\.2\.(.*)", rf"{_DECODER}.\1.proj_out.\2"),
    (r"mask_decoder\.output_upscaling\.0\.(.*)", rf"{_DECODER}.upscale_conv1.\1"),
    (r"mask_decoder\.output_upscaling\.1\.(.*)", rf"{_DECODER}.upscale_layer_norm.\1"),
    (r"mask_decoder\.output_upscaling\.3\.(.*)", rf"{_DECODER}.upscale_conv2.\1"),
    (
        r"mask_decoder\.transformer\.layers\.(\d+)\.norm(\d)\.(.*)",
        rf"{_DECODER}.transformer.layers.\1.layer_norm\2.\3",
    ),
    (
        r"mask_decoder\.transformer\.norm_final_attn\.(.*)",
        rf"{_DECODER}.transformer.layer_norm_final_attn.\1",
    ),
    (r"((?:prompt_encoder|mask_decoder)\..*)", r"\1"),
)
