"""What a converted model generated.

Shapes: K decisions of one answer, D LLM width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer, with the states that predict its decisions."""

    ids: list[int]
    decisions: list[int]  # tokens among the ids
    states_KD: Tensor
    p_seg_K: Tensor  # P([SEG] | [SEG] or [REJ]); 1 where the peer has no [REJ]
    truncated: bool
