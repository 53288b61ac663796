"""The chat: pure session first, then whole conversations with a stub model."""

from __future__ import annotations

import io
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from PIL import Image

from chat_demo import session as state
from chat_demo.terminal import next_free, talk
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction, Segment
from uniresxx.predictor import Predictor
from uniresxx.testing import ColourSegmenter

MASK = masks.encode(np.eye(4, dtype=bool))
THERE = Prediction(rejected=False, rle=MASK, text="[SEG].", score=0.5)
ABSENT = Prediction(rejected=True, rle=None, text="[REJ].")


def card(path):
    photo = np.full((40, 60, 3), 90, dtype=np.uint8)
    photo[5:10, 10:20] = (255, 0, 0)
    Image.fromarray(photo).save(path)
    return str(path)


def conversation(tmp_path, *lines, image=None):
    segmenter, out = ColourSegmenter(), io.StringIO()
    predictor = Predictor(segmenter, state.CHAT_DECODING)
    code = talk(predictor, image, tmp_path, io.StringIO("".join(f"{line}\n" for line in lines)), out)
    return code, out.getvalue(), segmenter


# the session


def test_transitions_make_new_sessions():
    empty = state.Session()
    photo = np.zeros((4, 4, 3), dtype=np.uint8)
    opened = state.with_photo(empty, "x.png", photo)
    asked = state.with_answer(opened, "the line", THERE)
    assert (empty.photo, opened.turns, len(asked.turns)) == (None, (), 1)
    assert asked.turns[0] == state.ChatTurn(
        "the line", "the line: mask 1 (4 pixels, score 0.50).", "[SEG].", (Segment("the line", MASK, 0.5),)
    )
    assert state.reset(asked) == opened and state.reset(asked).photo is photo
    assert state.with_photo(asked, "y.png", photo).turns == ()
    with pytest.raises(FrozenInstanceError):
        asked.turns = ()


def test_only_questions_that_point_back_carry_turns():
    session = state.Session()
    for text, found in (("the red car", THERE), ("the blue cat", ABSENT), ("a tree", THERE)):
        session = state.with_answer(session, text, found)
    assert state.question_for(session, "the house").history == ()
    assert state.question_for(session, "And its leaf?").history == (("a tree", "[SEG]."),)
    session = state.with_answer(session, "And its leaf?", THERE)
    asked = [question for question, _ in state.question_for(session, "the edge of it").history]
    assert asked == ["a tree", "And its leaf?"]


# the terminal


def test_several_turns_encode_the_photo_once(tmp_path):
    photo = card(tmp_path / "card.png")
    code, printed, segmenter = conversation(
        tmp_path, "the red block", "where is it?", "the blue cat", "what do you see?", image=photo
    )
    assert code == 0 and segmenter.encoded == 1
    assert "the red block: mask 1 (50 pixels, score 0.88)." in printed
    assert "it: mask 1 (50 pixels" in printed
    assert "There is no blue cat in this picture." in printed
    assert "A test card." in printed and printed.endswith("Bye.\n")
    texts, histories, templates = zip(*segmenter.asked, strict=True)
    assert texts[1] == "where is it?" and histories[1] == (("the red block", "[SEG]."),)
    assert [len(history) for history in histories] == [0, 1, 0, 0] and set(templates) == {"{expression}"}


def test_mistakes_are_one_line_and_the_chat_goes_on(tmp_path):
    photo = card(tmp_path / "card.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    lines = ["red?", f":image {photo}", ":image gone.png", f":image {tmp_path}/broken.jpg", ":image", ":frob"]
    code, printed, segmenter = conversation(tmp_path, *lines, "x" * 600, "", "red")
    assert code == 0 and segmenter.encoded == 1
    answers = [line for line in printed.splitlines() if not line.startswith("> ")]
    assert len(answers) == 10, answers
    for line, word in zip(
        answers[1:], ["no picture yet", "60 x 40", "gone", "broken", "needs", ":frob", "600"], strict=False
    ):
        assert word in line
    assert "mask 1 (50 pixels" in answers[-2]  # the picture before the bad ones is still there


def test_a_wrong_first_picture_ends_the_program(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png"):
        conversation(tmp_path, "red", image=str(tmp_path / "gone.png"))


def test_reset_and_a_new_picture_forget_the_turns(tmp_path):
    photo = card(tmp_path / "my card.png")
    _, _, segmenter = conversation(
        tmp_path, "red", ":reset", "green", f':image "{photo}"', "blue", image=photo
    )
    assert [history for _, history, _ in segmenter.asked] == [(), (), ()]
    assert segmenter.encoded == 2


def test_saves_are_numbered_and_replace_nothing(tmp_path):
    photo = card(tmp_path / "card.png")
    (tmp_path / "chat_007.png").write_bytes(b"mine")
    named = tmp_path / "deep" / "shot"
    _, printed, _ = conversation(
        tmp_path,
        ":save",
        "red and blue",
        ":save",
        "what?",
        ":save",
        f":save {named}",
        f":save {photo}",
        image=photo,
    )
    assert "nothing to save yet" in printed and f"{photo} exists already" in printed
    assert sorted(path.name for path in tmp_path.glob("chat_*.png")) == [f"chat_00{n}.png" for n in (7, 8, 9)]
    assert (tmp_path / "chat_007.png").read_bytes() == b"mine"
    with Image.open(f"{named}.png") as picture:
        assert picture.width >= 320
    assert next_free(tmp_path).name == "chat_010.png"


def test_quit_help_and_end_of_input(tmp_path):
    code, printed, segmenter = conversation(tmp_path, ":help", ":quit", "red")
    assert code == 0 and ":save [PATH]" in printed and not segmenter.asked
    assert conversation(tmp_path)[1].endswith("Bye.\n")


def test_special_tokens_are_text(tmp_path):
    _, printed, segmenter = conversation(tmp_path, "[SEG] <image> red", image=card(tmp_path / "card.png"))
    assert segmenter.asked[0][0] == "[SEG] <image> red"
    assert printed.count("mask 1") == 1 and "mask 2" not in printed


def test_control_characters_of_a_model_do_not_reach_the_terminal(tmp_path):
    out = io.StringIO()
    predictor = Predictor(ColourSegmenter())
    predictor.segmenter.answer = lambda *args: [Prediction(rejected=True, rle=None, text="a\x1b[2Jb\x07")]
    talk(predictor, card(tmp_path / "card.png"), tmp_path, io.StringIO("x\x1b[31m\n"), out)
    assert not {"\x1b", "\x07"} & set(out.getvalue())
