"""Mask heads of SAM and SAM 2 (transformers' classes): the projected [SEG] state is the sparse prompt.

The image encoder runs once per image (freeze it by `tuning.frozen mask_encoder`); the two-way decoder runs for all
expressions of all images at once. Prompts by points, boxes and masks are not used and never trained.

Shapes: B images, E expressions of all images, K tokens per expression, C decoder width, S side of the mask frame
(1024 as published), h w grid of the image embedding (S / 16), D LLM width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Sam2Config, Sam2Model, SamConfig, SamModel

from uniresxx.model.config import Sam2HeadConfig, SamHeadConfig
from uniresxx.model.heads.base import HeadOutput, RegionBoxes
from uniresxx.model.heads.painting import RegionPainting

IOU_EPS = 1e-4  # SAM 2 predicts IoU after a sigmoid; this bounds its logit


class SamFeatures(NamedTuple):
    """B images encoded."""

    image_BChw: Tensor
    fine: tuple[Tensor, ...]  # SAM 2: maps of strides 4 and 8, as its decoder takes them


def prompt_mlp(llm_width: int, width: int) -> nn.Sequential:
    """[SEG] state -> sparse prompt."""
    return nn.Sequential(nn.Linear(llm_width, llm_width), nn.GELU(), nn.Linear(llm_width, width))


def freeze_unused(sam: Any) -> None:
    """No gradient for what a single mask by a given prompt never uses."""
    for unused in (
        sam.prompt_encoder,
        sam.shared_image_embedding,
        *sam.mask_decoder.output_hypernetworks_mlps[1:],
    ):
        unused.requires_grad_(False)


def no_mask(sam: Any) -> Tensor:
    """SAM's dense prompt where no mask is given, (1, C, 1, 1)."""
    return sam.prompt_encoder.no_mask_embed.weight[:, :, None, None]


def nothing(features: SamFeatures) -> HeadOutput:
    """The answer to no expression at all; transformers' attention takes no empty batch."""
    none_Ehw = features.image_BChw[:0, 0].repeat(1, 4, 4)
    return HeadOutput(none_Ehw, none_Ehw.new_zeros(0), none_Ehw.new_zeros(0))


def two_way(sam: Any, first_KC: Tensor, prompts_EC: Tensor, image_EChw: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's two-way transformer over its own tokens and one prompt -> tokens (E, K + 1, C), image (E, C, h, w)."""
    E = prompts_EC.shape[0]
    tokens = torch.cat((first_KC.expand(E, -1, -1), prompts_EC[:, None]), dim=1)
    place = sam.get_image_wide_positional_embeddings().expand(E, -1, -1, -1)
    tokens, image = sam.mask_decoder.transformer(tokens[:, None], image_EChw, place, None)
    return tokens[:, 0], image[:, 0].transpose(1, 2).reshape(image_EChw.shape)


class SamHead(nn.Module):
    """Segment Anything (Kirillov et al. 2023), sizes B, L, H."""

    def __init__(self, config: SamHeadConfig, llm_width: int) -> None:
        super().__init__()
        C = config.decoder_width
        self.config = config
        self.sam = SamModel(_sam_config(config))
        freeze_unused(self.sam)
        self.prompt = prompt_mlp(llm_width, C)
        self.judge = nn.Sequential(nn.Linear(2 * C, C), nn.GELU(), nn.Linear(C, 1))
        self.early = None
        if config.fuse_early:
            last = nn.Conv2d(C, C, 1)
            nn.init.zeros_(last.weight)  # starts as plain SAM
            last.bias = nn.Parameter(torch.zeros(C))
            self.early = nn.Sequential(nn.Conv2d(config.width, C, 1), nn.GELU(), last)
        self.painting = RegionPainting(llm_width, C, gated=True) if config.paint_regions else None

    def encode(
        self,
        stages: list[Tensor],
        image_BDhw: Tensor,
        regions_BMD: Tensor,
        region_valid_BM: Tensor,
        pixels_B3SS: Tensor | None = None,
        boxes: RegionBoxes | None = None,
    ) -> SamFeatures:
        """The image embedding; with `fuse_early`, the output of the first global-attention layer is added.

        After HQ-SAM (Ke et al. 2023), which feeds the same early layer to its mask features; here it joins the
        decoder's image embedding through two 1x1 convolutions (our choice).
        """
        assert pixels_B3SS is not None, "SAM needs the pixels of its own frame"
        encoder = self.sam.vision_encoder
        x = encoder.patch_embed(pixels_B3SS) + encoder.pos_embed
        early = None
        for index, layer in enumerate(encoder.layers):
            x = layer(x)
            if index == self.config.global_blocks[0]:
                early = x
        image = encoder.neck(x)
        if self.early is not None:
            assert early is not None
            image = image + self.early(early.permute(0, 3, 1, 2))
        if self.painting is not None:
            assert boxes is not None, "paint_regions needs the boxes of the regions"
            image = self.painting(image, regions_BMD, boxes)
        return SamFeatures(image, ())

    def forward(
        self, features: SamFeatures, prompts_ED: Tensor, image_of_expr_E: Tensor, most: int | None = None
    ) -> HeadOutput:
        """All expressions of all images at once; `most` is not needed."""
        if prompts_ED.shape[0] == 0:  # not len(): torch.export keeps a shape symbolic
            return nothing(features)
        decoder = self.sam.mask_decoder
        first = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight))
        image = features.image_BChw[image_of_expr_E] + no_mask(self.sam)
        tokens_EKC, image = two_way(self.sam, first, self.prompt(prompts_ED), image)
        fine = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image)))
        fine = decoder.activation(decoder.upscale_conv2(fine))
        filters_EC = decoder.output_hypernetworks_mlps[0](tokens_EKC[:, 1])
        # SAM regresses the IoU itself; 4 (x - 1/2) touches its logit at 1/2 and never saturates (our choice)
        quality = 4 * (decoder.iou_prediction_head(tokens_EKC[:, 0])[:, 0] - 0.5)
        presence = self.judge(torch.cat((tokens_EKC[:, 0], tokens_EKC[:, -1]), dim=-1))[:, 0]
        return HeadOutput(torch.einsum("ec,echw->ehw", filters_EC, fine), quality, presence)


class Sam2Head(nn.Module):
    """SAM 2 (Ravi et al. 2024) on single images; its object score is the presence."""

    def __init__(self, config: Sam2HeadConfig, llm_width: int) -> None:
        super().__init__()
        self.sam = Sam2Model(_sam2_config(config))
        freeze_unused(self.sam)
        C = config.decoder_width
        self.prompt = prompt_mlp(llm_width, C)
        widths = (C, C // 8, C // 4) if config.paint_regions else ()  # image embedding, strides 4 and 8
        self.painting = nn.ModuleList(RegionPainting(llm_width, width, gated=True) for width in widths)

    def encode(
        self,
        stages: list[Tensor],
        image_BDhw: Tensor,
        regions_BMD: Tensor,
        region_valid_BM: Tensor,
        pixels_B3SS: Tensor | None = None,
        boxes: RegionBoxes | None = None,
    ) -> SamFeatures:
        """The three maps of the feature pyramid; the two finer ones are SAM 2's own early features."""
        assert pixels_B3SS is not None, "SAM 2 needs the pixels of its own frame"
        fine, middle, image = self.sam.vision_encoder(pixels_B3SS).fpn_hidden_states
        image = image + self.sam.no_memory_embedding.reshape(1, -1, 1, 1)
        decoder = self.sam.mask_decoder
        maps = [image, decoder.conv_s0(fine), decoder.conv_s1(middle)]
        if len(self.painting):
            assert boxes is not None, "paint_regions needs the boxes of the regions"
            maps = [paint(x, regions_BMD, boxes) for paint, x in zip(self.painting, maps, strict=True)]
        return SamFeatures(maps[0], (maps[1], maps[2]))

    def forward(
        self, features: SamFeatures, prompts_ED: Tensor, image_of_expr_E: Tensor, most: int | None = None
    ) -> HeadOutput:
        """All expressions of all images at once; `most` is not needed."""
        if prompts_ED.shape[0] == 0:  # not len(): torch.export keeps a shape symbolic
            return nothing(features)
        decoder = self.sam.mask_decoder
        first = torch.cat(
            (decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight)
        )
        image = features.image_BChw[image_of_expr_E] + no_mask(self.sam)
        tokens_EKC, image = two_way(self.sam, first, self.prompt(prompts_ED), image)
        finest, finer = (map_BChw[image_of_expr_E] for map_BChw in features.fine)
        fine = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image) + finer))
        fine = decoder.activation(decoder.upscale_conv2(fine) + finest)
        filters_EC = decoder.output_hypernetworks_mlps[0](tokens_EKC[:, 2])
        iou = decoder.iou_prediction_head(tokens_EKC[:, 1])[:, 0]
        return HeadOutput(
            torch.einsum("ec,echw->ehw", filters_EC, fine),
            torch.logit(iou, eps=IOU_EPS),
            decoder.pred_obj_score_head(tokens_EKC[:, 0])[:, 0],
        )


def _sam_config(config: SamHeadConfig) -> SamConfig:
    C = config.decoder_width
    return SamConfig(
        vision_config={
            "hidden_size": config.width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "global_attn_indexes": list(config.global_blocks),
            "window_size": config.window,
            "image_size": config.size,
            "output_channels": C,
            "num_pos_feats": C // 2,
        },
        prompt_encoder_config={"hidden_size": C, "image_size": config.size},
        mask_decoder_config={
            "hidden_size": C,
            "mlp_dim": config.decoder_mlp,
            "num_attention_heads": config.decoder_heads,
            "iou_head_hidden_dim": C,
        },
    )


def _sam2_config(config: Sam2HeadConfig) -> Sam2Config:
    C, side = config.decoder_width, config.size
    widths = [config.width * 2**i for i in range(4)]
    return Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": config.width,
                "num_attention_heads": config.heads[0],
                "image_size": [side, side],
                "embed_dim_per_stage": widths,
                "blocks_per_stage": list(config.blocks),
                "num_attention_heads_per_stage": list(config.heads),
                "window_size_per_stage": list(config.windows),
                "global_attention_blocks": list(config.global_blocks),
                "window_positional_embedding_background_size": [config.background] * 2,
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[side // s, side // s] for s in (4, 8, 16)],
            "fpn_hidden_size": C,
        },
        prompt_encoder_config={"hidden_size": C, "image_size": side},
        mask_decoder_config={
            "hidden_size": C,
            "mlp_dim": config.decoder_mlp,
            "num_attention_heads": config.decoder_heads,
            "iou_head_hidden_dim": C,
        },
    )
