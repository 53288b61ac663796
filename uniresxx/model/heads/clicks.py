"""What lies at a click: the prompt by a point of SAM and SAM 2, which our heads never train.

Shapes: H W grid of the mask logits (a quarter of the mask frame's side).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.heads.sam import Sam2Head, SamFeatures, SamHead
from uniresxx.model.processing import View, photo_masks


@torch.no_grad()
def mask_at(head: SamHead | Sam2Head, features: SamFeatures, image: int, x: float, y: float) -> Tensor:
    """Logits (H, W): of the decoder's three masks for one point, the one whose predicted IoU is the highest.

    Args:
        head: with its published weights.
        features: of `head.encode`.
        image: which of their images.
        x: place in the mask frame in pixels, 0.5 at the middle of the first one.
        y: likewise, downwards.
    """
    own, sam, device = slice(image, image + 1), head.sam, features.image_BChw.device
    point = torch.tensor([[[[x - 0.5, y - 0.5]]]], device=device)  # the encoder adds the half pixel
    is_thing = torch.ones(1, 1, 1, dtype=torch.int, device=device)
    sparse, dense = sam.prompt_encoder(point, is_thing, None, None)
    maps = {}
    if isinstance(head, Sam2Head):
        maps["high_resolution_features"] = [map_BCHW[own] for map_BCHW in features.fine]
    masks, iou, *_ = sam.mask_decoder(
        image_embeddings=features.image_BChw[own],
        image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        **maps,
    )
    best: Tensor = masks[0, 0, iou[0, 0].argmax()]
    return best


def region_at(head: SamHead | Sam2Head, features: SamFeatures, view: View, x: float, y: float) -> np.ndarray:
    """What lies at a click, bool (y, x) at the size of the photo.

    Args:
        head: with its published weights.
        features: of the one photo.
        view: that photo; the mask frame is a letterbox of it.
        x: place in the photo in pixels, from its left edge.
        y: likewise, from its upper edge.
    """
    assert view.mask_SS3 is not None, "heads of SAM have a frame of their own"
    box, side = view.letterbox, len(view.mask_SS3)
    place = Letterbox.fit(box.height, box.width, side).boxes(np.array([[x, y, x, y]]))[0]
    logits_HW = mask_at(head, features, 0, float(place[0]), float(place[1]))
    return photo_masks(logits_HW[None].float(), [0], [view])[0]
