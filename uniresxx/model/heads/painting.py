"""Region tokens painted into a map: a dot product with the map can then tell two equal-looking things apart.

A cell lies in a box if its centre does; a box thinner than a cell counts as one cell wide, about its own centre.

Shapes: B images, O boxes of one kind, M region tokens (objects, then parts), C map width, D LLM width, h w grid,
K cells of one axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniresxx.model.heads.base import RegionBoxes


class RegionPainting(nn.Module):
    """Adds to each cell the mean object token and the mean part token of the boxes that it lies in."""

    def __init__(self, llm_width: int, width: int, gated: bool = False) -> None:
        """Random projections.

        Args:
            llm_width: of the region tokens.
            width: of the map.
            gated: both additions start at zero, for the map of a pretrained decoder.
        """
        super().__init__()
        self.objects, self.parts = nn.Linear(llm_width, width), nn.Linear(llm_width, width)
        self.gate = nn.Parameter(torch.zeros(2)) if gated else None

    def forward(self, map_BChw: Tensor, regions_BMD: Tensor, boxes: RegionBoxes) -> Tensor:
        """The map with both additions; it may have any size and shows the whole square that the boxes are in."""
        size, O = (map_BChw.shape[-2], map_BChw.shape[-1]), boxes.objects_BO4.shape[1]
        weights_BOhw = cell_weights(boxes.objects_BO4, boxes.object_valid_BO, boxes.side, size)
        objects_BChw = _paint(self.objects(regions_BMD[:, :O]), weights_BOhw)
        weights_BOhw = cell_weights(boxes.parts_BP4, boxes.part_valid_BP, boxes.side, size)
        parts_BChw = _paint(self.parts(regions_BMD[:, O:]), weights_BOhw)
        if self.gate is not None:
            objects_BChw, parts_BChw = self.gate[0] * objects_BChw, self.gate[1] * parts_BChw
        return map_BChw + objects_BChw + parts_BChw


def cell_weights(boxes_BO4: Tensor, valid_BO: Tensor, side: float, size: tuple[int, int]) -> Tensor:
    """Share of each box in each cell of an (h, w) grid, proportional to 1 / area^2 -> (B, O, h, w).

    Shares of a cell sum to 1, or are all 0 where no valid box is. No gradient reaches the boxes.
    """
    x0, y0, x1, y1 = boxes_BO4.detach().float().unbind(-1)
    area_BO = ((x1 - x0) * (y1 - y0) / side**2).clamp(1e-6, 1.0)  # of the square
    inside_BOh, inside_BOw = _inside(y0, y1, side, size[0]), _inside(x0, x1, side, size[1])
    inside_BOhw = inside_BOh[..., None] & inside_BOw[:, :, None] & valid_BO[..., None, None]
    weights_BOhw = inside_BOhw * area_BO[..., None, None] ** -2
    return weights_BOhw / weights_BOhw.sum(dim=1, keepdim=True).clamp(min=1)  # each weight is at least 1


def _inside(low_BO: Tensor, high_BO: Tensor, side: float, cells: int) -> Tensor:
    """Which of the cells along one axis have their centre in low <= centre < high -> bool (B, O, K)."""
    cell = side / cells
    middle_BO = (low_BO + high_BO) / 2
    low_BO = torch.minimum(low_BO, middle_BO - cell / 2)
    high_BO = torch.maximum(high_BO, middle_BO + cell / 2)
    centre_K = (torch.arange(cells, device=low_BO.device, dtype=low_BO.dtype) + 0.5) * cell
    return (centre_K >= low_BO[..., None]) & (centre_K < high_BO[..., None])


def _paint(tokens_BOC: Tensor, weights_BOhw: Tensor) -> Tensor:
    """Mixed tokens of each cell -> (B, C, h, w)."""
    mixed = tokens_BOC.transpose(1, 2) @ weights_BOhw.flatten(2).to(tokens_BOC.dtype)
    return mixed.unflatten(2, weights_BOhw.shape[-2:])
