"""Mask heads of SAM and SAM 2 (transformers' classes): the projected [SEG] state is the sparse prompt.

The image encoder runs once per image (freeze it by `tuning.frozen mask_encoder`); transformers' `mask_decoder` runs
for all expressions of all images at once. Prompts by points, boxes and masks are not used and never trained.

Region and image tokens reach the mask in two ways, each through gates that start at zero, so that step 0 is the
published decoder. With `region_memory` the prompt attends to them before it enters the decoder; with `paint_regions`
the maps that the decoder reads get the tokens of the boxes that each cell lies in. Both surround the decoder and need
nothing of its inside. More sparse tokens would not be step 0, even zeros: they change every softmax of the decoder.

Shapes: B images, E expressions of all images, C decoder width, M image and region tokens, S side of the mask frame
(1024 as published), h w grid of the image embedding (S / 16), H W grid of the mask (S / 4), D LLM width.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam2Config, Sam2Model, SamConfig, SamModel

from mllm.language import unwritten
from uniresxx.model.config import Sam2HeadConfig, SamHeadConfig
from uniresxx.model.heads.attention import PromptAttention
from uniresxx.model.heads.base import HeadInputs, HeadOutput, PresenceLayers
from uniresxx.model.heads.painting import RegionPainting

IOU_EPS = 1e-4  # SAM 2 predicts IoU after a sigmoid; this bounds its logit


class SamFeatures(NamedTuple):  # ZeRO-3 finds tensors only in tuples, lists and dicts
    """B images encoded."""

    image_BChw: Tensor
    fine: tuple[Tensor, ...]  # SAM 2: maps of strides 4 and 8, as its decoder takes them; SAM: the early map
    memory: tuple[Tensor, ...]  # what prompts attend to (B, M, C) and its bias (B, M); empty without


class _SamBase(nn.Module):
    """What the heads of SAM and SAM 2 share: the prompt, and the call of the decoder."""

    def __init__(
        self, sam: SamModel | Sam2Model, config: SamHeadConfig | Sam2HeadConfig, llm_width: int
    ) -> None:
        super().__init__()
        C = config.decoder_width
        self.sam = sam
        for unused in (
            sam.prompt_encoder,
            sam.shared_image_embedding,
            *sam.mask_decoder.output_hypernetworks_mlps[1:],  # of SAM's three masks for ambiguous points
        ):
            unused.requires_grad_(False)
        self.prompt = nn.Sequential(nn.Linear(llm_width, llm_width), nn.GELU(), nn.Linear(llm_width, C))
        self.attention = PromptAttention(llm_width, C, config.decoder_heads) if config.region_memory else None

    def _memory(self, inputs: HeadInputs) -> tuple[Tensor, ...]:
        """What prompts attend to, once per image."""
        return () if self.attention is None else self.attention.encode(inputs)

    def _prompts(self, features: SamFeatures, prompts_ED: Tensor, image_of_expr_E: Tensor) -> Tensor:
        """Sparse prompts (E, C)."""
        prompts_EC = self.prompt(prompts_ED)
        if self.attention is None:
            return prompts_EC
        memory_EMC, bias_EM = (x[image_of_expr_E] for x in features.memory)
        return self.attention(prompts_EC, memory_EMC, bias_EM)

    def _decode(self, image_EChw: Tensor, prompts_EC: Tensor, **maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Masks (E, 1, 1, H, W), IoU (E, 1, 1) and what else `mask_decoder` returns; one prompt per image map."""
        _, no_mask_1Chw = self.sam.prompt_encoder(None, None, None, None)
        return self.sam.mask_decoder(
            image_embeddings=image_EChw,
            image_positional_embeddings=self.sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=prompts_EC[:, None, None],
            dense_prompt_embeddings=no_mask_1Chw,
            multimask_output=False,
            **maps,
        )


class SamHead(_SamBase):
    """Segment Anything (Kirillov et al. 2023), sizes B, L, H."""

    def __init__(
        self, config: SamHeadConfig, llm_width: int, stage_widths: tuple[int, ...], from_file: bool = False
    ) -> None:
        """Random weights, but those of SAM are not written where they are loaded next (`from_file`).

        `stage_widths`: of the high tower, finest first.
        """
        build = partial(SamModel, _sam_config(config))
        super().__init__(unwritten(build) if from_file else build(), config, llm_width)
        C = config.decoder_width
        self.config = config
        self.presence = nn.Sequential(nn.Linear(2 * C, C), nn.GELU(), nn.Linear(C, 1))
        self.early = EarlyMap(config.width, stage_widths[0], C) if config.fuse_early else None
        self.painting = RegionPainting(llm_width, C, gated=True) if config.paint_regions else None

    @property
    def presence_layers(self) -> PresenceLayers:
        """Our own, beside SAM."""
        return PresenceLayers(self.presence, 0)

    def encode(self, inputs: HeadInputs) -> SamFeatures:
        """The image embedding, and with `fuse_early` the early map."""
        assert inputs.pixels_B3SS is not None, "SAM needs the pixels of its own frame"
        encoder, early_BhwC = self.sam.vision_encoder, None
        x = encoder.patch_embed(inputs.pixels_B3SS) + encoder.pos_embed
        for index, layer in enumerate(encoder.layers):
            x = layer(x)
            if index == self.config.global_blocks[0]:
                early_BhwC = x
        image = encoder.neck(x)
        if self.painting is not None:
            image = self.painting(image, inputs.regions_BMD, inputs.boxes)
        fine: tuple[Tensor, ...] = ()
        if self.early is not None:
            assert early_BhwC is not None, "a global block is one of the encoder's layers"
            fine = (self.early(early_BhwC.permute(0, 3, 1, 2), inputs.stages[0]),)
        return SamFeatures(image, fine, self._memory(inputs))

    def forward(
        self, features: SamFeatures, prompts_ED: Tensor, image_of_expr_E: Tensor, most: int | None = None
    ) -> HeadOutput:
        """All expressions of all images at once; `most` is not needed."""
        prompts_EC = self._prompts(features, prompts_ED, image_of_expr_E)
        image_EChw = features.image_BChw[image_of_expr_E]
        masks, iou = self._decode(image_EChw, prompts_EC)
        masks_EHW = masks[:, 0, 0]
        if self.early is not None:
            masks_EHW = masks_EHW + self.early.dot(prompts_EC, features.fine[0][image_of_expr_E])
        # SAM regresses the IoU itself; 4 (x - 1/2) touches its logit at 1/2 and never saturates (our choice)
        quality_E = 4 * (iou[:, 0, 0] - 0.5)
        seen_EC = _mean_inside(image_EChw, masks_EHW)
        presence_E = self.presence(torch.cat((prompts_EC, seen_EC), dim=-1))[:, 0]
        return HeadOutput(masks_EHW, quality_E, presence_E)


class EarlyMap(nn.Module):
    """An early map of the encoder and the finest one of the high tower, as a second term of the mask.

    After HQ-SAM (Ke et al. 2023), whose two transposed convolutions bring the output of the first global-attention
    layer to stride 4, where it is added to the mask features. A filter of its own, which starts at zero, takes the
    place of SAM's there (our choice): filters * (features + early) without touching the decoder.
    """

    def __init__(self, encoder_width: int, stage_width: int, width: int) -> None:
        super().__init__()
        C = width
        self.up = nn.Sequential(
            nn.ConvTranspose2d(encoder_width, C, 2, stride=2),
            nn.GroupNorm(1, C),
            nn.GELU(),
            nn.ConvTranspose2d(C, C // 8, 2, stride=2),
        )
        self.stage = nn.Conv2d(stage_width, C // 8, 1)
        self.filter = nn.Sequential(nn.Linear(C, C), nn.GELU(), _zero(nn.Linear(C, C // 8)))

    def forward(self, early_BChw: Tensor, stage_BChw: Tensor) -> Tensor:
        """The early map (B, C / 8, H, W)."""
        map_BCHW = self.up(early_BChw)
        return map_BCHW + _resized(self.stage(stage_BChw), map_BCHW)

    def dot(self, prompts_EC: Tensor, map_ECHW: Tensor) -> Tensor:
        """What it adds to the mask logits (E, H, W)."""
        return torch.einsum("ec,echw->ehw", self.filter(prompts_EC), map_ECHW)


class Sam2Head(_SamBase):
    """SAM 2 (Ravi et al. 2024) on single images; its object score is the presence.

    The decoder's first mask is taken always. Published models take the best of three others in evaluation where the
    first is unstable; training never does, so neither do answers.
    """

    def __init__(
        self, config: Sam2HeadConfig, llm_width: int, stage_widths: tuple[int, ...], from_file: bool = False
    ) -> None:
        """Random weights, but those of SAM are not written where they are loaded next (`from_file`).

        `stage_widths`: of the high tower, finest first.
        """
        build = partial(Sam2Model, _sam2_config(config))
        super().__init__(unwritten(build) if from_file else build(), config, llm_width)
        C = config.decoder_width
        widths = (C, C // 8, C // 4) if config.paint_regions else ()  # image embedding, strides 4 and 8
        self.painting = nn.ModuleList(RegionPainting(llm_width, width, gated=True) for width in widths)
        pairs = zip(stage_widths, (C // 8, C // 4), strict=False) if config.fuse_early else ()
        self.early = nn.ModuleList(_zero(nn.Conv2d(stage, width, 1)) for stage, width in pairs)

    @property
    def presence_layers(self) -> PresenceLayers:
        """SAM 2's object score."""
        return PresenceLayers(self.sam.mask_decoder.pred_obj_score_head, 0)

    def encode(self, inputs: HeadInputs) -> SamFeatures:
        """The three maps of the feature pyramid; the two finer ones are SAM 2's own early features.

        With `fuse_early` they get the two finest maps of the high tower, through convolutions that start at zero.
        """
        assert inputs.pixels_B3SS is not None, "SAM 2 needs the pixels of its own frame"
        fine, middle, image = self.sam.vision_encoder(inputs.pixels_B3SS).fpn_hidden_states
        image = image + self.sam.no_memory_embedding.reshape(1, -1, 1, 1)
        decoder = self.sam.mask_decoder
        maps = [image, decoder.conv_s0(fine), decoder.conv_s1(middle)]
        for index, (convolution, stage) in enumerate(zip(self.early, inputs.stages, strict=False), start=1):
            maps[index] = maps[index] + _resized(convolution(stage), maps[index])
        if len(self.painting):
            pairs = zip(self.painting, maps, strict=True)
            maps = [paint(x, inputs.regions_BMD, inputs.boxes) for paint, x in pairs]
        return SamFeatures(maps[0], (maps[1], maps[2]), self._memory(inputs))

    def forward(
        self, features: SamFeatures, prompts_ED: Tensor, image_of_expr_E: Tensor, most: int | None = None
    ) -> HeadOutput:
        """All expressions of all images at once; `most` is not needed."""
        prompts_EC = self._prompts(features, prompts_ED, image_of_expr_E)
        fine = [map_BCHW[image_of_expr_E] for map_BCHW in features.fine]
        masks, iou, _, presence = self._decode(
            features.image_BChw[image_of_expr_E], prompts_EC, high_resolution_features=fine
        )
        return HeadOutput(masks[:, 0, 0], torch.logit(iou[:, 0, 0], eps=IOU_EPS), presence[:, 0, 0])


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer with all weights zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _resized(map_BChw: Tensor, like_BCHW: Tensor) -> Tensor:
    """Bilinear to the size of another map; both show the same square."""
    return F.interpolate(map_BChw, size=like_BCHW.shape[-2:], mode="bilinear")


def _mean_inside(image_EChw: Tensor, masks_EHW: Tensor) -> Tensor:
    """Mean of the image embedding over the predicted mask (E, C), without a gradient to the mask."""
    share_E1hw = F.avg_pool2d(masks_EHW.detach().sigmoid()[:, None], 4)
    return (image_EChw * share_E1hw).sum(dim=(2, 3)) / share_E1hw.sum(dim=(2, 3)).clamp(min=1e-4)


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
            "dynamic_multimask_via_stability": False,
        },
    )
