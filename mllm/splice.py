"""The visual prefix: three token streams, each after a special token of its own, and their places in the row.

Shapes: B images, N image tokens, O objects, P parts, L prefix length, D width.
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
    marks_3D: Tensor,
    image_BND: Tensor,
    object_BOD: Tensor,
    part_BPD: Tensor,
    object_valid_BO: Tensor,
    part_valid_BP: Tensor,
    bos_D: Tensor | None = None,
) -> tuple[Tensor, Tensor, Layout]:
    """Join the streams -> prefix (B, L, D), valid (B, L), layout.

    Args:
        marks_3D: embeddings of <image>, <object>, <part>.
        image_BND: image tokens.
        object_BOD: object tokens.
        part_BPD: part tokens.
        object_valid_BO: which objects are real.
        part_valid_BP: which parts are real.
        bos_D: embedding of the token that a pretrained LLM expects first, where there is one.
    """
    B, N, _ = image_BND.shape
    O, P = object_BOD.shape[1], part_BPD.shape[1]
    mark = [marks_3D[i].expand(B, 1, -1) for i in range(3)]
    first = [] if bos_D is None else [bos_D.expand(B, 1, -1)]
    prefix = torch.cat((*first, mark[0], image_BND, mark[1], object_BOD, mark[2], part_BPD), dim=1)
    true, start = object_valid_BO.new_ones, len(first) + 1
    valid = torch.cat((true(B, start + N + 1), object_valid_BO, true(B, 1), part_valid_BP), dim=1)
    start_o, start_p = start + N + 1, start + N + 1 + O + 1
    layout = Layout(
        slice(start, start + N), slice(start_o, start_o + O), slice(start_p, start_p + P), start_p + P
    )
    assert prefix.shape[1] == layout.length == valid.shape[1]
    return prefix, valid, layout
