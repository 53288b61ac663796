"""What every script of this folder prints: photo, label and the runs of each mask, row after row, outside first."""

from __future__ import annotations

import json

import numpy as np


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a mask."""
    pixels = np.asarray(mask, dtype=bool).ravel()
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    return np.diff(changes, prepend=0, append=pixels.size).tolist()


def show(rows: list[tuple[str, str, np.ndarray]]) -> None:
    """Print the rows as the last line."""
    print(json.dumps([[photo, label, runs(mask)] for photo, label, mask in rows]))
