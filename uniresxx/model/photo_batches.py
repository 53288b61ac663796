"""Encoded photos joined to one batch, and a batch cut into its photos.

A tree is a tensor, or a tuple, list or named tuple of trees; the first axis of every tensor is the photo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mllm.prefix import PrefixCache


def join_tensors(trees: Sequence[Any]) -> Any:
    """Trees of one shape as one tree, photo after photo."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(list(trees)) if len(trees) > 1 else first
    return _like(first, [join_tensors(same) for same in zip(*trees, strict=True)])


def split_tensors(tree: Any, photos: int) -> list[Any]:
    """A tree for each photo. Each has memory of its own, so that dropping one frees it."""
    if photos == 1:
        return [tree]
    return [_changed(tree, partial(_row, b)) for b in range(photos)]


def join_prefixes(prefixes: Sequence[PrefixCache]) -> PrefixCache:
    """The prefixes of several photos as one batch."""
    return PrefixCache(*join_tensors([(prefix.layers, prefix.valid_BL) for prefix in prefixes]))


def split_prefix(prefix: PrefixCache) -> list[PrefixCache]:
    """The prefix of each photo."""
    parts = split_tensors((prefix.layers, prefix.valid_BL), len(prefix.valid_BL))
    return [PrefixCache(*part) for part in parts]


def _changed(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    return _like(tree, [_changed(part, change) for part in tree])


def _row(place: int, tensor: Tensor) -> Tensor:
    return tensor[place : place + 1].clone()


def _like(tree: Any, parts: list[Any]) -> Any:
    """The parts in a container of the tree's kind; a named tuple takes them one by one."""
    kind = type(tree)
    return kind(parts) if kind in (tuple, list) else kind(*parts)
