"""Photos as LISA's two vision models take them: CLIP's centre crop, SAM's longest side with zeros around.

Shapes: B images, y x pixels of a photo, H W CLIP's frame, S SAM's frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil

from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.processing import pixels

PHOTO_KEYS = ("size", "crop_size", "image_mean", "image_std")  # of CLIP's preprocessor_config.json


def clip_pixels(photos: Sequence[np.ndarray], settings: Mapping[str, Any]) -> Tensor:
    """uint8 (y, x, 3) each -> (B, 3, H, W): shortest side resized, centre cropped, normalised."""
    processor = CLIPImageProcessorPil(**settings)
    return processor(list(photos), return_tensors="pt", input_data_format="channels_last")["pixel_values"]


def sam_pixels(photo_yx3: np.ndarray, box: Letterbox) -> Tensor:
    """uint8 (y, x, 3) -> (3, S, S): longest side resized, normalised, then zeros at the bottom and the right."""
    x_3SS = pixels([box.photo(photo_yx3)], "imagenet")[0]
    return x_3SS * torch.from_numpy(box.valid())
