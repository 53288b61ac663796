"""Photos stretched to a square, as SAM 2 and SAM 3 take them, by the numbers of their own preprocessor.

Shapes: y x pixels of the photo, H W the model's frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uniresxx.checkpoints.tensors import read_json
from uniresxx.errors import InputError

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


@dataclass(frozen=True, slots=True)
class Square:
    """Size and normalisation of a model's frame. transformers' own classes for it need torchvision."""

    height: int
    width: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, folder: Path) -> Square:
        """The numbers of a folder, from either of the two files that transformers writes; InputError without."""
        file = folder / (PREPROCESSOR if (folder / PREPROCESSOR).is_file() else PROCESSOR)
        values: dict[str, Any] = read_json(file)
        values = values.get("image_processor", values)
        try:
            size = values["size"]
            mean, deviation = (tuple(map(float, values[key])) for key in ("image_mean", "image_std"))
            return cls(int(size["height"]), int(size["width"]), mean, deviation)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{file} has no size, image_mean and image_std ({error!r}): copy the whole folder"
            ) from None

    def pixels(self, photo: np.ndarray, device: torch.device) -> Tensor:
        """uint8 (y, x, 3) -> (1, 3, H, W): bilinear with antialiasing, rounded to 0..255, normalised from 0..1."""
        whole_1CHW = torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)[None]
        size = (self.height, self.width)
        resized = F.interpolate(whole_1CHW, size, mode="bilinear", antialias=True, align_corners=False)
        x_1CHW = resized.to(device).float() / 255
        mean, deviation = (
            torch.tensor(value, device=device)[:, None, None] for value in (self.mean, self.deviation)
        )
        return (x_1CHW - mean) / deviation

    def boxes(self, boxes_N4: Tensor, height: int, width: int) -> Tensor:
        """xyxy boxes of a photo of (height, width) in the frame."""
        across, down = self.width / width, self.height / height
        return boxes_N4 * boxes_N4.new_tensor([across, down, across, down])
