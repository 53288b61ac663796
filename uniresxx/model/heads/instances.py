"""Several instances of one target: Q prompts per [SEG] instead of one, decoded by any mask head (an ablation).

Each query gives a mask, its predicted IoU, and whether it is an instance at all (the no-object class of DETR, Carion
et al. 2020). The mask of the expression is the union of the instances.

Shapes: E expressions of all images, Q queries, D LLM width, h w the head's grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uniresxx.model.heads.base import HeadOutput, MaskHead


class InstanceOutput(NamedTuple):  # ZeRO-3 finds tensors only in tuples, lists and dicts
    """As HeadOutput, for every query; presence is that of an instance."""

    masks_EQhw: Tensor
    quality_EQ: Tensor
    presence_EQ: Tensor

    def accepted(self) -> Tensor:
        """Which queries are instances, bool (E, Q): those more likely present than not, at least the likeliest."""
        best_EQ = self.presence_EQ == self.presence_EQ.amax(dim=1, keepdim=True)
        return best_EQ | (self.presence_EQ > 0)

    def united(self) -> HeadOutput:
        """The union: a pixel, the quality and the presence are those of the likeliest accepted instance."""
        accepted_EQ = self.accepted()
        masks_EQhw = self.masks_EQhw.masked_fill(~accepted_EQ[..., None, None], -torch.inf)
        quality_EQ = self.quality_EQ.masked_fill(~accepted_EQ, -torch.inf)
        return HeadOutput(masks_EQhw.amax(dim=1), quality_EQ.amax(dim=1), self.presence_EQ.amax(dim=1))


class InstanceQueries(nn.Module):
    """Turns each [SEG] state into Q: the state plus learned offsets, which differ from the start."""

    def __init__(self, queries: int, llm_width: int) -> None:
        super().__init__()
        self.offsets_QD = nn.Parameter(torch.randn(queries, llm_width))

    def forward(self, prompts_ED: Tensor) -> Tensor:
        """Prompts (E * Q, D), query by query of each expression."""
        return (prompts_ED[:, None] + self.offsets_QD).flatten(0, 1)

    def decode(
        self,
        head: MaskHead,
        features: Any,
        prompts_ED: Tensor,
        image_of_expr_E: Tensor,
        most: int | None = None,
    ) -> InstanceOutput:
        """All queries of all expressions of all images at once; `most`: expressions of one image, if known."""
        Q = len(self.offsets_QD)
        prompts = self(prompts_ED)
        output = head(
            features, prompts, image_of_expr_E.repeat_interleave(Q), None if most is None else most * Q
        )
        return InstanceOutput(*(value.unflatten(0, (len(prompts_ED), Q)) for value in output))
