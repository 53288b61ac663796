"""Multi-Granularity Vision Flow: image tokens fused from both towers, object and part tokens by the mean of
the stage maps over boxes.

Shapes: B images, N visual tokens, O region boxes (objects or parts), D model width, C channels, h w grid. Boxes are
xyxy in the high frame (pixels of the high tower's input).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.config import MLLMConfig

LEAST_SIDE = 1 / 64  # of a cell: thinner boxes are widened to it, so that the mean of an empty box is defined


def box_mean(map_BChw: Tensor, boxes_BO4: Tensor, side: float) -> Tensor:
    """Mean of the bilinearly interpolated map over each box -> (B, O, C).

    The mean of RoIAlign (He et al. 2017; half-pixel alignment, map borders clamped) tends to it with ever more
    samples, whatever the size of the box. Its integral is a sum over cells, whose weights are known in closed form
    and are a product of one factor per axis. `side` is the high frame's side in pixels.
    """
    h, w = map_BChw.shape[-2:]
    x0, y0, x1, y1 = (boxes_BO4.float() / side).unbind(-1)
    row_weights_BOh = _interval_weights(y0 * h, y1 * h, h).to(map_BChw.dtype)
    column_weights_BOw = _interval_weights(x0 * w, x1 * w, w).to(map_BChw.dtype)
    rows_BOwC = (row_weights_BOh @ map_BChw.permute(0, 2, 3, 1).flatten(2)).unflatten(2, (w, -1))
    return (column_weights_BOw[:, :, None] @ rows_BOwC).squeeze(2)


def _interval_weights(start_BO: Tensor, end_BO: Tensor, cells: int) -> Tensor:
    """Weight of each of `cells` values in the mean of their linear interpolation over an interval -> (B, O, cells).

    Ends are in cells from the map's border; the value of a cell is at its centre, and constant beyond the outermost
    centres.
    """
    middle_BO, half_BO = (start_BO + end_BO) / 2, ((end_BO - start_BO) / 2).clamp(min=LEAST_SIDE / 2)
    index = torch.arange(cells, device=start_BO.device, dtype=start_BO.dtype)

    def integral(end_BO1: Tensor) -> Tensor:
        """Integral of each value's share of the interpolation, up to a constant, from 0 to an end."""
        inside = end_BO1.clamp(0, cells - 1)
        distance = (inside - index).clamp(-1, 1)
        share = distance - distance * distance.abs() / 2  # of the tent around each centre
        before, after = end_BO1.clamp(max=0), (end_BO1 - (cells - 1)).clamp(min=0)
        return share + before * (index == 0) + after * (index == cells - 1)

    low, high = (middle_BO - half_BO - 0.5)[..., None], (middle_BO + half_BO - 0.5)[..., None]
    return (integral(high) - integral(low)) / (high - low)


def box_embedding(boxes_BO4: Tensor, side: float, width: int) -> Tensor:
    """Sine-cosine code of (cx, cy, w, h) relative to the frame, over six octaves (our choice) -> (B, O, width)."""
    x0, y0, x1, y1 = (boxes_BO4 / side).unbind(-1)
    values = torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), dim=-1)
    octaves = torch.arange(width // 8, device=boxes_BO4.device, dtype=boxes_BO4.dtype)
    phase = values[..., None] * (2.0 ** (octaves * 6 / max(width // 8 - 1, 1))) * torch.pi
    return torch.cat((phase.sin(), phase.cos()), dim=-1).flatten(-2)


class RegionTokens(nn.Module):
    """Boxes -> tokens of one granularity: mean of each stage map, joined, MLP, + box and level embedding."""

    def __init__(self, config: MLLMConfig, count: int, enabled: bool) -> None:
        super().__init__()
        self.side, self.enabled = float(config.high_size), enabled
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
        pooled = torch.cat([box_mean(m, boxes_BO4, self.side) for m in stages], dim=-1)
        place = self.box(box_embedding(boxes_BO4, self.side, 8 * (self.level.numel() // 8)))
        return self.mlp(pooled) + place + self.level


def _projector(config: MLLMConfig) -> nn.Module:
    """Low-tower width -> LLM width; `mlp2x_gelu` is LLaVA-1.5's (linear, GELU, linear)."""
    C, D = config.low_config.hidden_size, config.llm_width
    if config.projector == "linear":
        return nn.Linear(C, D)
    return nn.Sequential(nn.Linear(C, D), nn.GELU(), nn.Linear(D, D))


class ImageTokens(nn.Module):
    """Gated fusion `low + G(low, high) * high` on the low tower's grid (MG-LLaVA's conv-gate form).

    With `fusion_starts_as_low` the high branch starts at zero: the tokens of pretrained weights are at first LLaVA's.
    A model that starts from nothing learns more slowly so (docs/log.md).
    """

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__()
        D, C = config.llm_width, config.high_widths[-1] + config.high_widths[-2]
        self.grid, self.use_high = config.low_grid, config.use_high
        self.low = _projector(config)
        self.high = nn.Conv1d(C, D, 1)
        if config.fusion_starts_as_low:
            for parameter in self.high.parameters():
                nn.init.zeros_(parameter)
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
