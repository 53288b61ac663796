"""Records -> UniresBatch: letterboxed photos, expressions as CLIP's tokens, masks in the square frame.

Shapes: B images, E expressions, Q tokens of the longest expression, H W the square frame, y x a photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.collate import decoded
from uniresxx.model.processing import pixels
from uniresxx.segmenters.unires.config import UniresConfig
from uniresxx.segmenters.unires.vocabulary import ClipVocabulary
from uniresxx.types import AS_TYPED, Granularity, ImageRecord, TrainingBatch


@dataclass(slots=True, kw_only=True)
class UniresBatch(TrainingBatch):
    """Prepared photos with their expressions; names that the mask losses read are those of `uniresxx.types.Batch`."""

    not_tensors: ClassVar[frozenset[str]] = TrainingBatch.not_tensors | {"shown"}
    pixels_B3HW: Tensor  # uint8
    text_EQ: Tensor  # token ids, padded with the end
    length_E: Tensor
    image_of_expr_E: Tensor
    present_E: Tensor  # bool: the truth has a mask
    masks_EHW: Tensor  # bool
    pixel_valid_BHW: Tensor  # bool: False on padding
    masks_photo: list[Tensor] = field(
        default_factory=list
    )  # by image, bool (targets, y, x): for loss "photo"
    present_P: Tensor = field(init=False)  # expressions that have a mask
    shown: tuple[int, int] = field(init=False)  # rows and columns beyond which all is padding

    def __post_init__(self) -> None:
        """Find these here, on the host: on a GPU they would be waited for."""
        self.present_P = self.present_E.nonzero()[:, 0]
        rows_BH, columns_BW = self.pixel_valid_BHW.any(dim=2), self.pixel_valid_BHW.any(dim=1)
        self.shown = int(rows_BH.sum(dim=1).max()), int(columns_BW.sum(dim=1).max())


@dataclass(frozen=True, slots=True)
class UniresSample:
    """One prepared photo and what is asked of it."""

    letterbox: Letterbox
    photo_HW3: np.ndarray
    texts: list[list[int]]
    masks: list[np.ndarray | None]  # bool (H, W)
    masks_photo: list[np.ndarray]  # bool (y, x) of targets, for loss "photo"
    granularities: list[Granularity]
    expression_ids: list[str]


@dataclass(frozen=True, slots=True)
class UniresCollator:
    """What prepares the training samples of a config. Conversations are not used: the model answers expressions."""

    config: UniresConfig
    vocabulary: ClipVocabulary

    @property
    def reads_boxes(self) -> bool:
        """The model has no boxes."""
        return False

    @property
    def question_templates(self) -> Sequence[str]:
        """The expression alone."""
        return (AS_TYPED,)

    def sample(self, record: ImageRecord, photo: np.ndarray, choices: Sequence[int]) -> UniresSample:
        """One image; without `presence` expressions that mean nothing are left out. InputError where a mask does not
        fit the photo."""
        asked = [e for e in record.expressions if e.rle is not None or self.config.presence]
        box = Letterbox.fit(record.height, record.width, self.config.size)
        truth = [None if e.rle is None else decoded(e.rle, record) for e in asked]
        own = [m for m in truth if m is not None] if self.config.loss.resolution == "photo" else []
        most = int(self.config.text_config.to_dict()["max_position_embeddings"])
        return UniresSample(
            box,
            box.photo(photo),
            [self.vocabulary.encode(e.text, most) for e in asked],
            [None if mask_yx is None else box.mask(mask_yx) for mask_yx in truth],
            own,
            [e.granularity for e in asked],
            [e.expression_id for e in asked],
        )

    def collate(self, samples: Sequence[UniresSample]) -> UniresBatch:
        """Stack prepared images; expressions are flattened image by image."""
        side = self.config.size
        text_EQ, length_E = padded([ids for s in samples for ids in s.texts], self.vocabulary.end)
        nothing = np.zeros((side, side), dtype=bool)
        masks = [np.zeros((0, side, side), dtype=bool)]
        masks += [(nothing if mask is None else mask)[None] for s in samples for mask in s.masks]
        return UniresBatch(
            pixels_B3HW=pixels([s.photo_HW3 for s in samples]),
            text_EQ=text_EQ,
            length_E=length_E,
            image_of_expr_E=torch.tensor(
                [b for b, s in enumerate(samples) for _ in s.masks], dtype=torch.long
            ),
            present_E=torch.tensor([mask is not None for s in samples for mask in s.masks], dtype=torch.bool),
            masks_EHW=torch.from_numpy(np.concatenate(masks)),
            pixel_valid_BHW=torch.from_numpy(np.stack([s.letterbox.valid() for s in samples])),
            masks_photo=[_stacked(s) for s in samples] if self.config.loss.resolution == "photo" else [],
            expression_ids=[name for s in samples for name in s.expression_ids],
            granularities=[granularity for s in samples for granularity in s.granularities],
        )


def padded(texts: Sequence[Sequence[int]], end: int) -> tuple[Tensor, Tensor]:
    """Token ids (E, Q), padded with `end`, and their lengths (E,)."""
    longest = max(map(len, texts), default=0)
    rows = [[*ids, *[end] * (longest - len(ids))] for ids in texts]
    lengths = torch.tensor([len(ids) for ids in texts], dtype=torch.long)
    return torch.tensor(rows, dtype=torch.long).view(len(texts), longest), lengths


def _stacked(sample: UniresSample) -> Tensor:
    box = sample.letterbox
    masks = [np.zeros((0, box.height, box.width), dtype=bool), *(m[None] for m in sample.masks_photo)]
    return torch.from_numpy(np.concatenate(masks))
