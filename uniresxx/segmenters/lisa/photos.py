"""Photos as LISA's two vision models take them (CLIP's centre crop, SAM's longest side with zeros around), and back.

Shapes: B images, y x pixels of a photo, H W CLIP's frame, S SAM's frame, Y X low-resolution mask logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mllm.prefix import PrefixCache
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.photo_batches import join_prefixes, join_tensors, split_prefix, split_tensors
from uniresxx.model.processing import PixelNorm, pixels


@dataclass(frozen=True, slots=True)
class EncodedPhotos:
    """Photos encoded once: the LLM's prefix and SAM's image embeddings."""

    letterboxes: list[Letterbox]
    prefix: PrefixCache
    image_BChw: Tensor


def join_photos(encoded: Sequence[EncodedPhotos]) -> EncodedPhotos:
    """Photos encoded apart, as if they had been encoded together."""
    return EncodedPhotos(
        [box for photos in encoded for box in photos.letterboxes],
        join_prefixes([photos.prefix for photos in encoded]),
        join_tensors([photos.image_BChw for photos in encoded]),
    )


def split_photos(encoded: EncodedPhotos) -> list[EncodedPhotos]:
    """Each encoded photo alone."""
    images = split_tensors(encoded.image_BChw, len(encoded.letterboxes))
    parts = zip(encoded.letterboxes, split_prefix(encoded.prefix), images, strict=True)
    return [EncodedPhotos([box], prefix, image) for box, prefix, image in parts]


def clip_pixels(photos: Sequence[np.ndarray], settings: Mapping[str, Any]) -> Tensor:
    """uint8 (y, x, 3) each -> (B, 3, H, W), as transformers' CLIPImageProcessor with these settings.

    The shortest side is resized (bicubic), the centre cut out, values normalised from 0..1.
    """
    shortest, crop = settings["size"]["shortest_edge"], settings["crop_size"]
    mean, std = (np.array(settings[name], dtype=np.float32) for name in ("image_mean", "image_std"))
    cut = []
    for photo in photos:
        height, width = photo.shape[:2]
        rows, columns = (int(shortest * side / min(height, width)) for side in (height, width))
        resized = np.asarray(Image.fromarray(photo).resize((columns, rows), Image.Resampling.BICUBIC))
        top, left = (rows - crop["height"]) // 2, (columns - crop["width"]) // 2
        cut.append(resized[top : top + crop["height"], left : left + crop["width"]])
    x_BHW3 = (np.stack(cut).astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(x_BHW3).permute(0, 3, 1, 2).contiguous()


def sam_pixels(photo_yx3: np.ndarray, box: Letterbox) -> Tensor:
    """uint8 (y, x, 3) -> (3, S, S): longest side resized, normalised, then zeros at the bottom and the right."""
    x_3SS = PixelNorm("imagenet")(pixels([box.photo(photo_yx3)]))[0]
    return x_3SS * torch.from_numpy(box.valid())


def photo_logits(low_YX: Tensor, box: Letterbox) -> Tensor:
    """SAM's `postprocess_masks`: to its frame, without the padding, to the photo's size (y, x); always fp32."""
    frame = F.interpolate(
        low_YX.float()[None, None], (box.side, box.side), mode="bilinear", align_corners=False
    )
    frame = frame[..., : box.inner_height, : box.inner_width]
    return F.interpolate(frame, (box.height, box.width), mode="bilinear", align_corners=False)[0, 0]


def photo_mask(low_YX: Tensor, box: Letterbox) -> np.ndarray:
    """Bool (y, x) at the photo's size."""
    return (photo_logits(low_YX, box) > 0).cpu().numpy()
