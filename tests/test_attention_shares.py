"""What the state of each decision listened to: against transformers' own attention, and on the page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("prometheus_client", reason="no serve extra: pip install -e '.[demo]'")

from chat_demo.web.models import Model, photo_of
from chat_demo.web.talk import Talk, attention_rows
from mllm.attention_shares import STREAMS, attention_shares
from mllm.chat import ChatTurn, render
from mllm.tokens import Vocabulary
from tests.test_mllm import CORPUS, encode_images, make
from uniresxx.segmenters.load import load_segmenter
from uniresxx.testing import ColourSegmenter

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(CORPUS, 340)


def asked(vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
    """A question, and an answer with two decisions."""
    branch = render([ChatTurn("the car and the left wheel")], vocabulary).ids_T
    return branch, [*vocabulary.encode("a:"), vocabulary.seg, *vocabulary.encode(", b:"), vocabulary.rej]


@pytest.mark.parametrize("kind", ["predict", "own"])
def test_shares_are_those_of_transformers_own_attention(vocabulary: Vocabulary, kind: str) -> None:
    model = make(vocabulary, prompt_state=kind)
    features = encode_images(model, 1)
    branch, answer = asked(vocabulary)
    found = attention_shares(model, model.prefill(features), branch, answer)
    layout, valid = features.layout, features.valid_BL[0]
    model.llm.set_attn_implementation("eager")
    hidden = torch.cat(
        (features.prefix_BLD[:, valid], model.embed(torch.tensor([[*branch, *answer]]))), dim=1
    )
    position = (
        torch.arange(len(valid))[valid] if model.config.count_padding else torch.arange(int(valid.sum()))
    )
    after = (len(valid) if model.config.count_padding else int(valid.sum())) + torch.arange(
        len(branch + answer)
    )
    output = model.llm.model(
        inputs_embeds=hidden, position_ids=torch.cat((position, after))[None], output_attentions=True
    )
    attention = torch.stack(output.attentions).mean(dim=(0, 2))[0]  # rows, then keys of valid tokens
    stream = torch.full((len(valid),), STREAMS.index("words"))
    for number, name in enumerate(("image", "objects", "parts")):
        stream[getattr(layout, name)] = number
    stream = torch.cat((stream[valid], torch.full((len(branch + answer),), 3)))
    places = [i for i, token in enumerate(answer) if token in (vocabulary.seg, vocabulary.rej)]
    assert len(found) == len(places) == 2
    for shares, place in zip(found, places, strict=True):
        row = attention[int(valid.sum()) + len(branch) + place - (kind == "predict")]
        expected = [float(row[stream == number].detach().sum()) for number in range(4)]
        assert list(shares) == list(STREAMS)
        assert list(shares.values()) == pytest.approx(expected, abs=1e-5)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6) and min(shares.values()) > 0.005
    assert model.config.attention == "sdpa"


def test_a_stream_without_a_real_region_is_not_listened_to(vocabulary: Vocabulary) -> None:
    model = make(vocabulary)
    branch, answer = asked(vocabulary)
    prefix = model.prefill(encode_images(model, 1, valid=False))
    for shares in attention_shares(model, prefix, branch, answer):
        assert shares["objects"] == shares["parts"] == 0
    assert attention_shares(model, prefix, branch, vocabulary.encode("a car")) == []


def test_the_page_says_it_of_each_phrase() -> None:
    stream = io.BytesIO()
    Image.open(ROOT / "assets" / "scenes" / "01.png").convert("RGB").save(stream, format="PNG")
    photo = photo_of(stream.getvalue(), "01.png")
    model, other = (
        Model(load_segmenter(None, device="cpu"), "tiny", True),
        Model(ColourSegmenter(), "c", True),
    )
    try:
        one = model.attention_shares(photo, "the red house")
        two = model.attention_shares(photo, "the red house, the chair")
        assert other.attention_shares(photo, "red") == []
    finally:
        model.close()
        other.close()
    assert len(one) == 1 and len(two) == 2
    assert all(sum(shares.values()) == pytest.approx(1, abs=1e-5) for shares in two)
    assert np.std([shares["image"] for shares in two]) > 0
    assert attention_rows(Talk(), [{"image": 0.615, "words": 0.385}]) == [
        ("Attention for phrase 1", "image 62 %, words 38 %")
    ]
