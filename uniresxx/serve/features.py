"""Encoded photos by the digest of their file, the least recently used dropped first, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields, is_dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class EncodedPhoto:
    """What a segmenter made of one photo, and the photo's size in pixels."""

    features: Any
    height: int
    width: int


def byte_count(value: Any) -> int:
    """Bytes of all tensors and arrays in a tree of data classes, tuples and lists."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return int(value.nbytes)
    if isinstance(value, tuple | list):
        return sum(map(byte_count, value))
    if is_dataclass(value):
        return sum(byte_count(getattr(value, field.name)) for field in fields(value))
    return 0


class FeatureCache:
    """Safe for several threads. A photo that alone takes more than `max_bytes` is never kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._lock = Lock()
        self._kept: OrderedDict[bytes, tuple[EncodedPhoto, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, digest: bytes) -> EncodedPhoto | None:
        """The photo of this digest, which becomes the most recently used; None where it is not kept."""
        with self._lock:
            if digest not in self._kept:
                return None
            self._kept.move_to_end(digest)
            return self._kept[digest][0]

    def put(self, digest: bytes, photo: EncodedPhoto) -> None:
        """Keep a photo, and drop others until all fit."""
        size = byte_count(photo.features)
        if size > self.max_bytes:
            return
        with self._lock:
            if digest in self._kept:
                self.used_bytes -= self._kept.pop(digest)[1]
            self._kept[digest] = photo, size
            self.used_bytes += size
            while self.used_bytes > self.max_bytes:
                self.used_bytes -= self._kept.popitem(last=False)[1][1]
