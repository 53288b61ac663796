"""Photos encoded apart, joined, get the answers of photos encoded together: for every kind of model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mllm.config import MLLMConfig, tiny_llama
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit, convnext
from uniresxx.imaging import masks
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.segmenters.film_unet.config import FilmUNetConfig
from uniresxx.segmenters.film_unet.modeling import FilmUNet
from uniresxx.types import Decoding

TINY = MLLMConfig(
    low=clip_vit(32, 1, 2), low_size=32, high=convnext((8, 16, 24, 32)), high_size=32,
    llm=tiny_llama(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=340),
    max_objects=3, max_parts=4, mgfe_heads=4,
)  # fmt: skip
TEXTS = [["the red square"], ["both squares", "the red square"], ["the blue square"]]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train(["Segment the red square, the blue square, both squares."] * 3, 340)


def photos():
    rng = np.random.default_rng(0)
    sizes = ((40, 60), (64, 32), (50, 50))
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


def model_of(kind, vocabulary):
    torch.manual_seed(0)
    if kind == "film_unet":
        inputs = UniRESPlusPlusConfig(mllm=TINY)
        return FilmUNet(FilmUNetConfig(inputs=inputs, widths=(16, 32), text_width=32), vocabulary).eval()
    config = UniRESPlusPlusConfig(mllm=TINY, head=PyramidHeadConfig(width=16, heads=2))
    return UniRESPlusPlusModel(config, vocabulary).eval()


def same(one, other):
    """Equal up to rounding: threshold pixels may differ."""
    found = [p.rle or p.mask_if_forced for p in (one, other)]
    a, b = map(masks.decode, found)
    assert a.shape == b.shape and (a != b).mean() < 0.002
    assert one.text == other.text and one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("kind", ["uniresxx", "film_unet"])
def test_joined_photos_are_answered_as_photos_encoded_together(kind, vocabulary):
    model, decoding = model_of(kind, vocabulary), Decoding(max_new_tokens=4)
    together = model.encode_images(photos())
    wanted = model.answer(together, TEXTS, decoding)
    apart = [model.encode_images([photo]) for photo in photos()]
    for parts in (apart, model.split_images(together)):
        for one, other in zip(model.answer(model.join_images(parts), TEXTS, decoding), wanted, strict=True):
            same(one, other)
    turned = model.answer(model.join_images([apart[2], apart[0]]), [TEXTS[2], TEXTS[0]], decoding)
    same(turned[0], wanted[3])
    same(turned[1], wanted[0])
