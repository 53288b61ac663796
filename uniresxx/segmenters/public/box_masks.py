"""Boxes to masks: SAM (Kirillov et al. 2023) or SAM 2 (Ravi et al. 2024), prompted with one box for each mask.

Shapes: N boxes of a photo (xyxy), y x its pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Sam2Model, SamModel

from uniresxx.model.placement import Placement
from uniresxx.segmenters.public.base import EncodedPhoto, at_photo_size
from uniresxx.segmenters.public.files import chosen_by_type, image_inputs, load_image_processor, load_model
from uniresxx.segmenters.public.squares import Square


class BoxMask(NamedTuple):
    """The mask of one box."""

    mask: np.ndarray  # bool (y, x)
    quality: float  # predicted IoU, 0..1


class SamBoxes(nn.Module):
    """SAM: the photo's longest side is resized, zeros fill the square."""

    def __init__(self, model: SamModel, folder: Path) -> None:
        super().__init__()
        self.model, self.images = model, load_image_processor(folder)

    def encode(self, photo: np.ndarray) -> Any:
        """The image embedding, and rows and columns of the square that show the photo."""
        inputs = image_inputs(self.images, photo)
        rows, columns = inputs["reshaped_input_sizes"][0].tolist()
        device = next(self.model.parameters()).device
        return self.model.get_image_embeddings(inputs["pixel_values"].to(device)), (rows, columns)

    def masks(self, features: Any, boxes_N4: Tensor, photo: EncodedPhoto) -> list[BoxMask]:
        """The mask of each box, which is given in pixels of the photo."""
        embedding, (rows, columns) = features
        across, down = columns / photo.width, rows / photo.height
        prompts = boxes_N4 * boxes_N4.new_tensor([across, down, across, down])
        output = self.model(
            image_embeddings=embedding, input_boxes=prompts[None].to(embedding.dtype), multimask_output=False
        )
        size = [(photo.height, photo.width)]
        found = self.images.post_process_masks([output.pred_masks[0].float()], size, [(rows, columns)])[0]
        return [
            BoxMask(mask.cpu().numpy(), quality)
            for mask, quality in zip(found[:, 0], _qualities(output.iou_scores), strict=True)
        ]


class Sam2Boxes(nn.Module):
    """SAM 2 on single images: the photo is stretched to the square."""

    def __init__(self, model: Sam2Model, folder: Path) -> None:
        super().__init__()
        self.model, self.square = model, Square.of(folder)

    def encode(self, photo: np.ndarray) -> Any:
        """The maps of the feature pyramid, as the decoder takes them."""
        device = next(self.model.parameters()).device
        return self.model.get_image_embeddings(self.square.pixels(photo, device))

    def masks(self, features: Any, boxes_N4: Tensor, photo: EncodedPhoto) -> list[BoxMask]:
        """The mask of each box, which is given in pixels of the photo."""
        prompts = self.square.boxes(boxes_N4, photo.height, photo.width)
        output = self.model(
            image_embeddings=features,
            input_boxes=prompts[None].to(features[-1].dtype),
            multimask_output=False,
        )
        return [
            BoxMask((at_photo_size(mask_hw, photo) > 0).cpu().numpy(), quality)
            for mask_hw, quality in zip(
                output.pred_masks[0, :, 0], _qualities(output.iou_scores), strict=True
            )
        ]


SEGMENTERS: dict[str, tuple[Any, type[SamBoxes] | type[Sam2Boxes]]] = {
    "sam": (SamModel, SamBoxes),
    "sam2": (Sam2Model, Sam2Boxes),
    "sam2_video": (Sam2Model, Sam2Boxes),  # as published; the memory for video is not loaded
}


def load_box_masks(folder: Path, placement: Placement, family: str) -> SamBoxes | Sam2Boxes:
    """SAM or SAM 2 of a folder, as its config says."""
    kind, boxes = chosen_by_type(folder, SEGMENTERS, family)
    return boxes(load_model(kind, folder, placement), folder)


def _qualities(iou_1N1: Tensor) -> list[float]:
    found: list[float] = iou_1N1[0, :, 0].float().clamp(0, 1).tolist()
    return found


def boxes_on(photo: EncodedPhoto, boxes_N4: Tensor) -> Tensor:
    """xyxy boxes cut at the edges of the photo."""
    edge_4 = boxes_N4.new_tensor([photo.width, photo.height] * 2)
    return torch.minimum(boxes_N4.clamp(min=0), edge_4)
