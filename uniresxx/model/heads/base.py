"""The protocol of mask heads: encode images once, then decode any number of prompts. No head loops over masks.

Shapes: B images, E expressions of all images, D LLM width, O objects, P parts, M = O + P region tokens, S side of the
mask frame, h w grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class HeadOutput(NamedTuple):  # ZeRO-3 finds tensors only in tuples, lists and dicts
    """Mask logits on the head's grid over the padded square, predicted-IoU and presence logits."""

    masks_Ehw: Tensor
    quality_E: Tensor
    presence_E: Tensor


class PresenceLayers(NamedTuple):
    """The layers whose output is the presence logit; the last one may give other numbers in other rows."""

    layers: nn.Module
    row: int


class RegionBoxes(NamedTuple):
    """Boxes of the regions, xyxy in a padded square of `side` pixels that shows the same picture as the mask frame.

    A stream that is switched off has no valid box: its tokens are constants and belong to no place.
    """

    objects_BO4: Tensor
    object_valid_BO: Tensor
    parts_BP4: Tensor
    part_valid_BP: Tensor
    side: float


class HeadInputs(NamedTuple):
    """What a mask head may read of B images.

    Attributes:
        stages: stage maps of the high tower, finest first.
        image_BDhw: image tokens after MGFE, as a map.
        regions_BMD: object and part tokens after MGFE.
        region_valid_BM: which of them are real.
        boxes: of the region tokens.
        pixels_B3SS: normalised pixels of the mask frame, for heads with an encoder of their own.
    """

    stages: list[Tensor]
    image_BDhw: Tensor
    regions_BMD: Tensor
    region_valid_BM: Tensor
    boxes: RegionBoxes
    pixels_B3SS: Tensor | None = None


class MaskHead(Protocol):
    """`pyramid`, `sam` or `sam2`; the result of `encode` is opaque to the caller."""

    @property
    def presence_layers(self) -> PresenceLayers:
        """What can be trained without a change of any mask."""
        ...

    def encode(self, inputs: HeadInputs) -> Any:
        """Encode images, once for all expressions."""
        ...

    def __call__(
        self, features: Any, prompts_ED: Tensor, image_of_expr_E: Tensor, most: int | None = None
    ) -> HeadOutput:
        """Masks of all expressions, at least one, of all images at once; `prompts_ED` are the states before [SEG].

        `most`: the most expressions of an image; a head that needs it and gets None waits for the device.
        """
        ...
