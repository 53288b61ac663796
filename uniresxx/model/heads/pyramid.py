"""The pyramid mask head: stage maps fused top-down, a two-way decoder, masks as dot products with the fine map.

Shapes: B images, E expressions of all images, K tokens per expression (prompt, quality), M tokens that attention
reads (regions; in the decoder, the coarse map as well), C head width, h w grid of the finest map, D LLM width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniresxx.model.config import NORM_GROUPS, PyramidHeadConfig
from uniresxx.model.heads.attention import TwoWayBlock, key_bias
from uniresxx.model.heads.base import HeadInputs, HeadOutput, PresenceLayers
from uniresxx.model.heads.painting import RegionPainting


class MaskFeatures(NamedTuple):  # ZeRO-3 finds tensors only in tuples, lists and dicts
    """B images encoded: the fused fine map and the decoder's memory."""

    fine_BChw: Tensor
    memory_BMC: Tensor
    memory_bias_BM: Tensor  # 0 where valid, very negative elsewhere


class PyramidHead(nn.Module):
    """METHOD section 4, pyramid head."""

    def __init__(self, config: PyramidHeadConfig, llm_width: int, stage_widths: tuple[int, ...]) -> None:
        super().__init__()
        C, D = config.width, llm_width
        self.config = config
        self.lateral = nn.ModuleList(nn.Conv2d(width, C, 1) for width in stage_widths)
        self.smooth = nn.Sequential(
            nn.Conv2d(C, C, 3, padding=1),
            nn.GroupNorm(NORM_GROUPS, C),
            nn.GELU(),
            nn.Conv2d(C, C, 3, padding=1),
            nn.GroupNorm(NORM_GROUPS, C),
        )
        self.scene = nn.Conv2d(D, C, 1)  # image tokens after MGFE, for the coarsest map
        self.place = nn.Conv2d(2, C, 1)
        self.memory_map = nn.Conv2d(C, C, 1)
        self.memory_region = nn.Linear(D, C)
        self.prompt = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, C))
        self.quality_token = nn.Parameter(torch.randn(C) * 0.02)
        self.blocks = nn.ModuleList(
            TwoWayBlock(C, config.heads, i + 1 == config.blocks) for i in range(config.blocks)
        )
        self.norm = nn.LayerNorm(C)
        self.mask = nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C + 1))
        self.judge = nn.Sequential(nn.Linear(2 * C, C), nn.GELU(), nn.Linear(C, 2))
        self.painting = RegionPainting(D, C) if config.paint_regions else None

    @property
    def presence_layers(self) -> PresenceLayers:
        """The second row of the layer that judges a mask; the first one is its quality."""
        return PresenceLayers(self.judge[-1], 1)

    def encode(self, inputs: HeadInputs) -> MaskFeatures:
        """Once per image: fused fine map and memory (coarse map + object and part tokens)."""
        laterals = [conv(stage) for conv, stage in zip(self.lateral, inputs.stages, strict=True)]
        x = laterals[-1] + F.interpolate(
            self.scene(inputs.image_BDhw), size=laterals[-1].shape[-2:], mode="bilinear"
        )
        maps = [x]
        for lateral in reversed(laterals[:-1]):
            x = lateral + F.interpolate(x, size=lateral.shape[-2:], mode="bilinear")
            maps.insert(0, x)
        chosen = maps[self.config.memory_stage]
        coarse = self.memory_map(chosen + self.place(_grid_like(chosen)))
        memory = [coarse.flatten(2).transpose(1, 2)]
        bias = [coarse.new_zeros(len(coarse), memory[0].shape[1])]
        if self.config.region_memory:
            memory.append(self.memory_region(inputs.regions_BMD))
            bias.append(key_bias(inputs.region_valid_BM))
        x = x + self.place(_grid_like(x))
        if self.painting is not None:
            x = self.painting(x, inputs.regions_BMD, inputs.boxes)
        return MaskFeatures(self.smooth(x), torch.cat(memory, dim=1), torch.cat(bias, dim=1))

    def forward(
        self, features: MaskFeatures, prompts_ED: Tensor, image_of_expr_E: Tensor, most: int | None = None
    ) -> HeadOutput:
        """All expressions of all images at once; `most` as in `MaskHead`."""
        memory_EMC = features.memory_BMC[image_of_expr_E]
        bias_EM = features.memory_bias_BM[image_of_expr_E]
        filters, quality, presence = self._decode(memory_EMC, bias_EM, prompts_ED)
        C = features.fine_BChw.shape[1]
        masks = _dot(filters[:, :C], features.fine_BChw, image_of_expr_E, most) + filters[:, C, None, None]
        return HeadOutput(masks, quality, presence)

    def of_one_photo(self, features: MaskFeatures, prompts_ED: Tensor) -> HeadOutput:
        """`forward` for B = 1, without a step whose size depends on data: what torch.export can follow."""
        E, C = prompts_ED.shape[0], features.fine_BChw.shape[1]
        memory_EMC = features.memory_BMC.expand(E, -1, -1)
        filters, quality, presence = self._decode(
            memory_EMC, features.memory_bias_BM.expand(E, -1), prompts_ED
        )
        masks = torch.einsum("ec,chw->ehw", filters[:, :C], features.fine_BChw[0]) + filters[:, C, None, None]
        return HeadOutput(masks, quality, presence)

    def _decode(
        self, memory_EMC: Tensor, bias_EM: Tensor, prompts_ED: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Filters (E, C + 1) of the fine map and its offset, quality (E), presence (E)."""
        prompt_EC = self.prompt(prompts_ED)
        tokens_EKC = torch.stack((prompt_EC, self.quality_token.expand_as(prompt_EC)), dim=1)
        for block in self.blocks:
            tokens_EKC, memory_EMC = block(tokens_EKC, memory_EMC, bias_EM)
        tokens_EKC = self.norm(tokens_EKC)
        quality, presence = self.judge(tokens_EKC.flatten(1)).unbind(-1)
        return self.mask(tokens_EKC[:, 0]), quality, presence


def _dot(filters_EC: Tensor, fine_BChw: Tensor, image_of_expr_E: Tensor, most: int | None) -> Tensor:
    """Each expression's filter on its image's fine map -> (E, h, w); one matrix product per image, no map copied."""
    B, C, h, w = fine_BChw.shape
    same_EE = image_of_expr_E[:, None] == image_of_expr_E
    slot_E = same_EE.tril(-1).sum(dim=1)
    K = int(slot_E.max()) + 1 if most is None and len(slot_E) else most or 0
    filters_BKC = filters_EC.new_zeros(B, K, C).index_put((image_of_expr_E, slot_E), filters_EC)
    masks_BKhw = torch.bmm(filters_BKC, fine_BChw.flatten(2)).view(B, K, h, w)
    return masks_BKhw[image_of_expr_E, slot_E]


def _grid_like(map_BChw: Tensor) -> Tensor:
    """Coordinates in -1..1 as a (1, 2, h, w) map: words such as "left" need places."""
    h, w = map_BChw.shape[-2:]
    y = torch.linspace(-1, 1, h, device=map_BChw.device, dtype=map_BChw.dtype)
    x = torch.linspace(-1, 1, w, device=map_BChw.device, dtype=map_BChw.dtype)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))[None]
