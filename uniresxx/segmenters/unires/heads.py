"""The mask logits of every patch, and the presence score (an extension).

Shapes: B images, E expressions, N patches, D width of the image encoder, C decoder width, F fine channels, S cells
of a patch (a square of them), g side of the grid of patches, h w the grid of cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FINE_CHANNELS = 16


class MaskHead(nn.Module):
    """Logits of the cells of each patch: a dot product of what the patch means for the expression and what its cells
    look like, plus a linear layer. The figure of the paper shows a binary mask and no more: our choice.

    The look of the cells does not depend on the expression and is computed once per image.
    """

    def __init__(self, vision_width: int, width: int, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.look = nn.Sequential(
            nn.LayerNorm(vision_width), nn.Linear(vision_width, cells**2 * FINE_CHANNELS)
        )
        self.norm = nn.LayerNorm(width)
        self.meaning, self.plain = nn.Linear(width, FINE_CHANNELS), nn.Linear(width, cells**2)

    def encode(self, patches_BND: Tensor) -> Tensor:
        """The look of all cells (B, N, S, F)."""
        return self.look(patches_BND).unflatten(-1, (self.cells**2, FINE_CHANNELS))

    def forward(self, patches_ENC: Tensor, look_BNSF: Tensor, image_E: Tensor) -> Tensor:
        """Logits (E, h, w) over the whole square."""
        x_ENC = self.norm(patches_ENC)
        matched_ENS = (look_BNSF[image_E] @ self.meaning(x_ENC)[..., None])[..., 0]
        logits_ENS = matched_ENS + self.plain(x_ENC)
        g = round(logits_ENS.shape[1] ** 0.5)
        logits_Eggss = logits_ENS.unflatten(2, (self.cells, self.cells)).unflatten(1, (g, g))
        return logits_Eggss.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class PresenceHead(nn.Module):
    """Whether the expression means anything in the picture: an extension, the paper's model always answers a mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, patches_ENC: Tensor, sentence_EC: Tensor) -> Tensor:
        """Logits (E,)."""
        x_ENC = self.norm(patches_ENC)
        return self.mlp(torch.cat((x_ENC.mean(1), x_ENC.amax(1), sentence_EC), dim=1))[:, 0]
