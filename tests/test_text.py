"""Text is cleaned in one place, at every door: what people type, what a model is asked, what data sets hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from chat_demo.terminal import Chat
from mllm.chat_templates import ChatTemplate
from mllm.tokens import Vocabulary
from uniresxx.cli import segment as command
from uniresxx.cli.segment.job import job_of
from uniresxx.data.readers.jsonl import read_jsonl
from uniresxx.model.templates import asked_branches
from uniresxx.predictor import Predictor
from uniresxx.testing import ColourSegmenter
from uniresxx.text import asked_questions, clean_question, clean_text, is_blank
from uniresxx.types import Decoding, Question

CLEAN = "the red fish"
WRITTEN = (
    "the\nred\nfish",
    "the\tred fish",
    "the\r\nred fish",
    "\n the  red   fish \t",
    "the\u00a0red\u2003fish",
    "the\u3000red\u2028fish",
    "the\x0bred\x0cfish",
    "the\x00red\x1ffish",
    "the\u0085red fish",
    "\ufeffthe red fish\u200b",
    "the r\u00aded \u202efish\u202c",
    "\uff54\uff48\uff45 \uff52\uff45\uff44 \uff46\uff49\uff53\uff48",  # full-width letters
    "the red \ufb01sh",  # a ligature
)


@pytest.mark.parametrize("text", WRITTEN)
def test_the_same_words_are_the_same_text(text):
    assert clean_text(text) == CLEAN


@given(st.text())
@example("e\u200b\u0301")
@example("\u00a8")
@example("\ud800a")
def test_cleaning_again_changes_nothing(text):
    clean = clean_text(text)
    assert clean_text(clean) == clean == clean.strip()
    assert not any(letter.isspace() and letter != " " for letter in clean) and "  " not in clean


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_plain_words_stay_as_they_are(word):
    assert clean_text(f"{word} {word}") == f"{word} {word}"


def test_accents_joiners_and_other_scripts_stay():
    assert clean_text("cafe\u0301") == "caf\u00e9"
    assert (
        clean_text("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645")
        == "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )
    assert clean_text("\u5de6\u8fb9\u7684\u9c7c") == "\u5de6\u8fb9\u7684\u9c7c"


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\u200d", "\x00", "\ufeff"])
def test_text_that_shows_nothing_is_blank(text):
    assert is_blank(clean_text(text))


def test_answers_in_a_history_stay_as_they_were_generated():
    question = clean_question(Question("its\neye", (("the\tfish", " fish:  [SEG].\n"),)))
    assert question == Question("its eye", (("the fish", " fish:  [SEG].\n"),))


def test_questions_keep_their_photos():
    texts = [["a\nb"], [], [Question("c "), "d"]]
    assert asked_questions(texts) == [(0, Question("a b")), (2, Question("c")), (2, Question("d"))]


# ---- the doors: each takes every spelling of WRITTEN as CLEAN


@pytest.mark.parametrize("text", WRITTEN)
def test_door_predictor(text):
    predictor = Predictor(ColourSegmenter())
    predictor.set_image(np.zeros((9, 9, 3), dtype=np.uint8))
    predictor.segment([text, Question(text, ((text, "[SEG]."),))])
    assert [asked[0] for asked in predictor.segmenter.asked] == [CLEAN, CLEAN]
    assert predictor.segmenter.asked[1][1] == ((CLEAN, "[SEG]."),)


@pytest.mark.parametrize("text", WRITTEN)
def test_door_answer_of_a_model(text):
    vocabulary, chat = Vocabulary.train([CLEAN], 400), ChatTemplate()
    asked = asked_branches([[text, Question(text, ((text, "[SEG]."),))]], Decoding(), vocabulary, chat)
    clean = asked_branches([[CLEAN, Question(CLEAN, ((CLEAN, "[SEG]."),))]], Decoding(), vocabulary, chat)
    assert asked == clean


@pytest.mark.parametrize("text", WRITTEN)
def test_door_command_line(text, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    words = [str(tmp_path / "a.png"), text, "--checkpoint", "x", "--out", str(tmp_path / "out")]
    assert job_of(command.parser().parse_intermixed_args(words)).asked[0].texts == (CLEAN,)


def test_door_chat(tmp_path, capsys):
    chat = Chat(Predictor(ColourSegmenter()), open(tmp_path / "out", "w"), tmp_path)  # noqa: SIM115
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    chat.handle(f":image {tmp_path / 'a.png'}")
    for text in WRITTEN:
        chat.handle(text)
    assert {asked[0] for asked in chat.predictor.segmenter.asked} == {CLEAN}


def test_door_data_sets(tmp_path):
    folder = tmp_path / "mres32m"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "images" / "a.png")
    row = {"image": "a.png", "height": 9, "width": 9, "granularity": "none"}
    lines = [json.dumps({**row, "text": text}) for text in (*WRITTEN, "\u200b")]
    (folder / "val.jsonl").write_text("\n".join(lines))
    records = list(read_jsonl(tmp_path, "val", "mres32m", prefix="mres32m"))
    assert [e.text for r in records for e in r.expressions] == [CLEAN] * len(WRITTEN)
    assert "is blank" in records[-1].source["left_out"][0]
