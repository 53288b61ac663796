"""The memory of a training step of UniRES, on sizes alone; shapes as in uniresxx.segmenters.unires.batch."""

from __future__ import annotations

from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from train.memory_estimate import PHOTO, ActivationMemory, Sizes, fake_activations
from uniresxx.segmenters.unires.batch import UniresBatch
from uniresxx.segmenters.unires.config import UniresConfig
from uniresxx.segmenters.unires.modeling import Unires
from uniresxx.segmenters.unires.vocabulary import ClipVocabulary


def unires_without_memory(config: UniresConfig) -> Unires:
    """The model of a config on the meta device. ValueError for sizes that do not fit together."""
    vocabulary = ClipVocabulary.train([], int(config.text_config.to_dict()["vocab_size"]))
    with torch.device("meta"):
        return Unires(config, vocabulary)


def estimate_unires(config: UniresConfig, sizes: Sizes, mixed: bool) -> ActivationMemory:
    """Forward, loss and backward of one micro-batch in which every expression has a mask."""
    return fake_activations(unires_without_memory(config), partial(_batch, config, sizes), mixed)


def _batch(config: UniresConfig, sizes: Sizes, fake: FakeTensorMode) -> UniresBatch:
    """A batch of `sizes`: pixels and masks without memory, everything small real."""
    B, K, S = sizes.images, sizes.expressions, config.size
    with fake:
        pixels = torch.empty(B, 3, S, S, dtype=torch.uint8)
        masks = torch.empty(B * K, S, S, dtype=torch.bool)
        photos = [torch.empty(K, *PHOTO, dtype=torch.bool) for _ in range(B)]
    return UniresBatch(
        pixels_B3HW=pixels,
        text_EQ=torch.zeros(B * K, sizes.tokens, dtype=torch.long),
        length_E=torch.full((B * K,), sizes.tokens),
        image_of_expr_E=torch.arange(B).repeat_interleave(K),
        present_E=torch.ones(B * K, dtype=torch.bool),
        masks_EHW=masks,
        masks_photo=photos if config.loss.resolution == "photo" else [],
        pixel_valid_BHW=torch.ones(B, S, S, dtype=torch.bool),
    )
