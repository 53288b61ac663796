"""Whether a picture looks like a drawn scene, from its noise alone."""

from __future__ import annotations

import numpy as np

MOST_ROWS = 64  # looked at
SHARED = 0.45  # measured: scenes up to 0.39, enlarged ones too; photographs from 0.48 on


def looks_drawn(photo: np.ndarray) -> bool:
    """Whether a photo, uint8 (y, x, 3), has the noise of a drawn scene: each colour channel its own.

    In a photograph the channels mostly change together, and JPEG makes them do so. Of the smaller half of the
    differences between neighbours in a row, this takes the share of their squares that all channels have in common:
    a third where the channels are independent, all where they are equal. A picture without noise is no such scene.
    """
    rows = np.unique(np.linspace(0, len(photo) - 1, MOST_ROWS).astype(int))
    steps_N3 = np.diff(photo[rows].astype(np.float32), axis=1).reshape(-1, 3)
    steps_N3 = steps_N3[steps_N3.any(axis=1)]
    if not len(steps_N3):
        return False
    largest_N = np.abs(steps_N3).max(axis=1)
    noise_N3 = steps_N3[largest_N <= np.median(largest_N)]
    shared = 3 * np.square(noise_N3.mean(axis=1)).sum() / np.square(noise_N3).sum()
    return bool(shared < SHARED)
