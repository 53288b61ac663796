"""What a mask head is: it sees images once, then answers any number of prompts. No head loops over masks.

Shapes: B images, E expressions of all images, D LLM width, M region tokens, S side of the mask frame, h w grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor


class HeadOutput(NamedTuple):  # a tuple: ZeRO-3 looks for the tensors in what modules give
    """Mask logits on the head's grid over the padded square, predicted-IoU and presence logits."""

    masks_Ehw: Tensor
    quality_E: Tensor
    presence_E: Tensor


class MaskHead(Protocol):
    """`pyramid`, `sam` or `sam2`; what `see` returns is opaque to the caller."""

    def encode(
        self,
        stages: list[Tensor],
        image_BDhw: Tensor,
        regions_BMD: Tensor,
        region_valid_BM: Tensor,
        pixels_B3SS: Tensor | None = None,
    ) -> Any:
        """Once per image, from the high tower's stages, the refined tokens and, for SAM, its own pixels."""
        ...

    def __call__(self, features: Any, prompts_ED: Tensor, image_of_expr_E: Tensor) -> HeadOutput:
        """All expressions of all images at once."""
        ...
