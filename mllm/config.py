"""Sizes and switches of the multimodal LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PromptState = Literal["predict", "own"]


@dataclass(frozen=True)
class MLLMConfig:
    """Defaults are the tiny size; METHOD section 1 has the full one.

    `low_*`: ViT of the low-resolution tower. `high_*`: ConvNeXt of the high-resolution tower, strides
    `high_patch * 2**stage`. `llm_*`: Llama. Switches at the end are the ablations the method names.
    """

    low_size: int = 64
    low_patch: int = 8
    low_width: int = 128
    low_layers: int = 3
    low_heads: int = 4
    low_select_layer: int = -1
    high_size: int = 64
    high_patch: int = 2
    high_widths: tuple[int, ...] = (32, 64, 96, 128)
    high_depths: tuple[int, ...] = (1, 1, 2, 1)
    llm_width: int = 128
    llm_layers: int = 3
    llm_heads: int = 4
    llm_mlp: int = 384
    vocabulary: int = 1024
    max_objects: int = 12
    max_parts: int = 24
    roi_size: int = 4
    mgfe_blocks: int = 2
    mgfe_heads: int = 8
    init_std: float = 0.05
    embedding_std: float = 0.05
    # Ablations: a stream switched off becomes learned constants of the same count.
    use_high: bool = True
    use_objects: bool = True
    use_parts: bool = True
    objects_see_image: bool = True
    parts_see_objects: bool = True
    parts_see_image: bool = True
    image_sees_regions: bool = True
    containment_bias: bool = True
    prompt_state: PromptState = "predict"
    blind_to_image: bool = False
    blind_to_text: bool = False

    def __post_init__(self) -> None:
        """Reject sizes that cannot fit together."""
        for name, size, patch in (
            ("low_size", self.low_size, self.low_patch),
            ("high_size", self.high_size, self.high_patch * 2 ** (len(self.high_widths) - 1)),
        ):
            if size % patch:
                raise ValueError(f"{name}={size} is not a multiple of {patch}: choose one that is")
        if len(self.high_widths) != len(self.high_depths):
            raise ValueError(
                f"high_widths {self.high_widths} and high_depths {self.high_depths} differ in length"
            )
        if self.llm_width % self.llm_heads or self.llm_width % self.mgfe_heads:
            raise ValueError(f"llm_width={self.llm_width} must divide by llm_heads and mgfe_heads")

    @property
    def low_grid(self) -> int:
        """Side of the low tower's token grid."""
        return self.low_size // self.low_patch
