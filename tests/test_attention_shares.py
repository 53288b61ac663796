"""What the state of each decision listened to: against transformers' own attention, and on the page."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("prometheus_client", reason="no serve extra: pip install -e '.[demo]'")

from chat_demo.session import CHAT_DECODING
from chat_demo.web.models import Model, Photo, photo_of
from chat_demo.web.talk import Talk, attention_rows
from mllm.attention_shares import STREAMS, attention_shares
from mllm.chat import ChatTurn, render
from mllm.tokens import Vocabulary
from tests.test_mllm import CORPUS, encode_images, make
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import asked_branches
from uniresxx.segmenters.load import load_segmenter
from uniresxx.testing import ColourSegmenter
from uniresxx.types import Decoding, Question

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(CORPUS, 340)


def asked(vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
    """A question, and an answer with two decisions."""
    branch = render([ChatTurn("the car and the left wheel")], vocabulary).ids_T
    return branch, [*vocabulary.encode("a:"), vocabulary.seg, *vocabulary.encode(", b:"), vocabulary.rej]


@pytest.mark.parametrize("kind", ["predict", "own"])
@pytest.mark.parametrize("changes", [{}, {"count_padding": False}, {"use_parts": False}])
def test_shares_are_those_of_transformers_own_attention(
    vocabulary: Vocabulary, kind: str, changes: dict[str, bool]
) -> None:
    model = make(vocabulary, prompt_state=kind, **changes)
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
    had = [name for name in STREAMS if name != "parts" or model.config.use_parts]
    stream = torch.full((len(valid),), had.index("system"))
    for number, name in enumerate(had):
        if name in ("image", "objects", "parts"):
            stream[getattr(layout, name)] = number
    stream = torch.cat((stream[valid], torch.full((len(branch + answer),), had.index("words"))))
    places = [i for i, token in enumerate(answer) if token in (vocabulary.seg, vocabulary.rej)]
    assert len(found) == len(places) == 2
    for shares, place in zip(found, places, strict=True):
        row = attention[int(valid.sum()) + len(branch) + place - (kind == "predict")]
        expected = [float(row[stream == number].detach().sum()) for number in range(len(had))]
        assert list(shares) == had
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


def scene() -> Photo:
    """A drawn picture."""
    stream = io.BytesIO()
    Image.open(ROOT / "assets" / "scenes" / "01.png").convert("RGB").save(stream, format="PNG")
    return photo_of(stream.getvalue(), "01.png")


def test_earlier_turns_that_do_not_fit_are_left_out_as_in_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = load_segmenter(None, device="cpu")
    assert isinstance(segmenter, UniRESPlusPlusModel)
    encoded = segmenter.encode_images([scene().pixels])
    question = Question("the red house", (("the blue house", "[SEG]."), ("the chair", "[REJ].")))
    whole = segmenter.attention_shares(encoded, question, CHAT_DECODING)
    _, (branch,) = asked_branches(
        [[question]], CHAT_DECODING, segmenter.mllm.vocabulary, segmenter.mllm.config.chat
    )
    monkeypatch.setattr(segmenter.mllm, "room", lambda *_: len(branch) - 1)
    (answer,) = segmenter.answer(encoded, [[question]], CHAT_DECODING)
    assert answer.dropped_turns == 1
    short = replace(question, history=question.history[1:])
    found = segmenter.attention_shares(encoded, question, CHAT_DECODING)
    assert found == segmenter.attention_shares(encoded, short, CHAT_DECODING) != whole


class ToldOfChairs(ColourSegmenter):
    """It decides about chairs alone, and answers all else in words."""

    def attention_shares(
        self, encoded: Any, question: str | Question, decoding: Decoding
    ) -> list[dict[str, float]]:
        return [{"image": 1.0}] if isinstance(question, Question) and "chair" in question.text else []


def test_a_phrase_answered_in_words_does_not_get_the_attention_of_the_next() -> None:
    model = Model(ToldOfChairs(), "c", True)
    try:
        found = model.attention_shares(scene(), "the house, the chair")
        assert model.attention_shares(scene(), "the house") == []
    finally:
        model.close()
    assert found == [{}, {"image": 1.0}]
    assert attention_rows(Talk(), found) == [("Attention for phrase 2", "image 100 %")]


def test_the_page_says_it_of_each_phrase() -> None:
    photo = scene()
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
