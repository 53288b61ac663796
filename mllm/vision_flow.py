"""Multi-Granularity Vision Flow: image tokens fused from both towers, object and part tokens by RoIAlign.

Shapes: B images, N visual tokens, O region boxes (objects or parts), D model width, C channels, h w grid,
R side of the RoI sampling grid. Boxes are xyxy in the high frame (pixels of the high tower's input).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.config import MLLMConfig


def roi_align_mean(map_BChw: Tensor, boxes_BO4: Tensor, side: float, bins: int) -> Tensor:
    """Mean of `bins` x `bins` bilinear samples inside each box -> (B, O, C).

    One sample at each bin's centre, map borders clamped. `side` is the high frame's side in pixels. The mean of
    RoIAlign (He et al. 2017) with sampling ratio 1 and half-pixel alignment; checked against a loop in the tests.
    """
    B, O, _ = boxes_BO4.shape
    centre_R = (torch.arange(bins, device=boxes_BO4.device, dtype=boxes_BO4.dtype) + 0.5) / bins
    x0, y0, x1, y1 = (boxes_BO4 / side * 2 - 1).unbind(-1)
    x_BOR = x0[..., None] + (x1 - x0)[..., None] * centre_R
    y_BOR = y0[..., None] + (y1 - y0)[..., None] * centre_R
    grid = torch.stack(
        (x_BOR[:, :, None, :].expand(B, O, bins, bins), y_BOR[:, :, :, None].expand(B, O, bins, bins)), dim=-1
    )
    padding = "border"
    if map_BChw.device.type == "mps":  # has no border mode before torch 2.13: stop at the outermost centres
        padding = "zeros"
        h, w = map_BChw.shape[-2:]
        edge_2 = 1 - 1 / grid.new_tensor([w, h])
        grid = torch.minimum(torch.maximum(grid, -edge_2), edge_2)
    samples = F.grid_sample(
        map_BChw,
        grid.reshape(B, O, bins * bins, 2),
        mode="bilinear",
        padding_mode=padding,
        align_corners=False,
    )
    return samples.mean(dim=-1).transpose(1, 2)


def box_embedding(boxes_BO4: Tensor, side: float, width: int) -> Tensor:
    """Sine-cosine code of (cx, cy, w, h) relative to the frame, over six octaves (our choice) -> (B, O, width)."""
    x0, y0, x1, y1 = (boxes_BO4 / side).unbind(-1)
    values = torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), dim=-1)
    octaves = torch.arange(width // 8, device=boxes_BO4.device, dtype=boxes_BO4.dtype)
    phase = values[..., None] * (2.0 ** (octaves * 6 / max(width // 8 - 1, 1))) * torch.pi
    return torch.cat((phase.sin(), phase.cos()), dim=-1).flatten(-2)


class RegionTokens(nn.Module):
    """Boxes -> tokens of one granularity: RoIAlign per stage, joined, MLP, + box and level embedding."""

    def __init__(self, config: MLLMConfig, count: int, enabled: bool) -> None:
        super().__init__()
        self.side, self.bins, self.enabled = float(config.high_size), config.roi_size, enabled
        D = config.llm_width
        self.level = nn.Parameter(torch.zeros(D))
        if enabled:
            self.mlp = nn.Sequential(nn.Linear(sum(config.high_widths), D), nn.GELU(), nn.Linear(D, D))
            self.box = nn.Linear(8 * (D // 8), D)
        else:
            self.constant_OD = nn.Parameter(torch.randn(count, D) * config.init_std)

    def forward(self, stages: list[Tensor], boxes_BO4: Tensor) -> Tensor:
        """Stage maps and boxes -> (B, O, D)."""
        if not self.enabled:
            return (self.constant_OD + self.level).expand(len(boxes_BO4), -1, -1)
        pooled = torch.cat([roi_align_mean(m, boxes_BO4, self.side, self.bins) for m in stages], dim=-1)
        place = self.box(box_embedding(boxes_BO4, self.side, 8 * (self.level.numel() // 8)))
        return self.mlp(pooled) + place + self.level


def _projector(config: MLLMConfig) -> nn.Module:
    """Low-tower width -> LLM width; `mlp2x_gelu` is LLaVA-1.5's (linear, GELU, linear)."""
    C, D = config.low_width, config.llm_width
    if config.projector == "linear":
        return nn.Linear(C, D)
    return nn.Sequential(nn.Linear(C, D), nn.GELU(), nn.Linear(D, D))


class ImageTokens(nn.Module):
    """Gated fusion `low + G(low, high) * high` on the low tower's grid (MG-LLaVA's conv-gate form)."""

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__()
        D, C = config.llm_width, config.high_widths[-1] + config.high_widths[-2]
        self.grid, self.use_high = config.low_grid, config.use_high
        self.low = _projector(config)
        self.high = nn.Conv1d(C, D, 1)
        self.gate = nn.Conv1d(2 * D, D, 1)
        self.level = nn.Parameter(torch.zeros(D))

    def forward(self, low_BNC: Tensor, stages: list[Tensor]) -> Tensor:
        """Low tokens and stage maps -> fused tokens (B, N, D)."""
        low_BDN = self.low(low_BNC).transpose(1, 2)
        if not self.use_high:
            return low_BDN.transpose(1, 2) + self.level
        coarse = torch.cat(
            [
                F.adaptive_avg_pool2d(m, self.grid)
                if m.shape[-1] > self.grid
                else F.interpolate(m, size=(self.grid, self.grid), mode="bilinear")
                for m in stages[-2:]
            ],
            dim=1,
        )
        high_BDN = self.high(coarse.flatten(2))
        gate = torch.sigmoid(self.gate(torch.cat((low_BDN, high_BDN), dim=1)))
        return (low_BDN + gate * high_BDN).transpose(1, 2) + self.level
