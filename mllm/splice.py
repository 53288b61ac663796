"""The visual prefix: text, image tokens, and two region streams after marks of their own; their places in the row.

Without regions it is the row of LLaVA: text, image tokens.

Shapes: B images, F tokens of text before the picture, N image tokens, O objects, P parts, L prefix length, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Half-open ranges of the streams inside the prefix."""

    image: slice
    objects: slice
    parts: slice
    length: int


def splice(
    first_FD: Tensor,
    marks_2D: Tensor,
    image_BND: Tensor,
    object_BOD: Tensor,
    part_BPD: Tensor,
    object_valid_BO: Tensor,
    part_valid_BP: Tensor,
    hide_empty: bool,
) -> tuple[Tensor, Tensor, Layout]:
    """Join the streams -> prefix (B, L, D), valid (B, L), layout.

    Args:
        first_FD: embeddings of the text before the picture.
        marks_2D: embeddings of <object> and <part>.
        image_BND: image tokens.
        object_BOD: object tokens.
        part_BPD: part tokens.
        object_valid_BO: which objects are real.
        part_valid_BP: which parts are real.
        hide_empty: the mark of a stream without any real region is not valid either.
    """
    B, N, _ = image_BND.shape
    F, O, P = len(first_FD), object_BOD.shape[1], part_BPD.shape[1]
    marks = marks_2D.expand(B, -1, -1)
    prefix = torch.cat(
        (first_FD.expand(B, -1, -1), image_BND, marks[:, :1], object_BOD, marks[:, 1:], part_BPD), dim=1
    )
    true_B1 = object_valid_BO.new_ones(B, 1)
    has_objects_B1, has_parts_B1 = (
        valid.any(dim=1, keepdim=True) if hide_empty else true_B1
        for valid in (object_valid_BO, part_valid_BP)
    )
    valid = torch.cat(
        (true_B1.expand(B, F + N), has_objects_B1, object_valid_BO, has_parts_B1, part_valid_BP), dim=1
    )
    start_o, start_p = F + N + 1, F + N + 1 + O + 1
    layout = Layout(slice(F, F + N), slice(start_o, start_o + O), slice(start_p, start_p + P), start_p + P)
    assert prefix.shape[1] == layout.length == valid.shape[1]
    return prefix, valid, layout
