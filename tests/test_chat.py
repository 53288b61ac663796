"""The chat: pure session first, then the terminal with a stub model, then real processes."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chat_demo import session as state
from chat_demo.terminal import next_free, talk
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.predictor import Predictor
from uniresxx.testing import ColourSegmenter
from uniresxx.types import Prediction, Segment

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600  # seconds for a process on a machine that is busy with other work
MASK = masks.encode(np.eye(4, dtype=bool))
THERE = Prediction(rejected=False, mask=MASK, text="[SEG].", score=0.5)
ABSENT = Prediction(rejected=True, mask=None, text="[REJ].")


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


@pytest.mark.parametrize(
    ("typed", "phrase"),
    [
        ("the red car", "the red car"),
        ("Please segment the red car.", "the red car"),
        ("Where is the blue cat?", "the blue cat"),
        ("show me  all wheels", "all wheels"),
        ("And its roof?", "its roof"),
        ("segmented worm", "segmented worm"),
        ("finder", "finder"),
        ("segment", "segment"),
        ("?", "that"),
    ],
)
def test_phrase_of_a_question(typed, phrase):
    assert state.phrase_of(typed) == phrase


@pytest.mark.parametrize(
    ("phrase", "sentence"),
    [
        ("blue cat", "There is no blue cat in this picture."),
        ("the blue cat", "There is no blue cat in this picture."),
        ("all the wheels of the bus", "There are no wheels of the bus in this picture."),
        ("the glass on the tables", "There is no glass on the tables in this picture."),
        ("a bus", "There is no bus in this picture."),
        ("both vases", "There are no vases in this picture."),
        ("both vases and the mirror", "Not in this picture: both vases and the mirror."),
        ("its roof", "There is no roof in this picture."),
        ("the", "There is no the in this picture."),
    ],
)
def test_absent_things_get_a_sentence(phrase, sentence):
    assert state.absent_sentence(phrase) == sentence


@given(st.text(max_size=80))
def test_every_text_has_a_phrase_and_a_sentence(text):
    assert state.phrase_of(text)
    assert "in this picture" in state.words_for(text, ABSENT)


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


def test_history_holds_the_generated_text_and_is_bounded():
    session = state.Session()
    for number in range(state.TURNS_REMEMBERED + 3):
        session = state.with_answer(session, f"q{number}", ABSENT)
    question = state.question_for(session, "now?")
    assert len(session.turns) == state.TURNS_REMEMBERED + 3
    assert question.text == "now?" and len(question.history) == state.TURNS_REMEMBERED
    assert question.history[0] == ("q3", "[REJ].") and question.history[-1] == ("q10", "[REJ].")


def test_answers_phrase_by_phrase():
    parts = (Segment("wheel", MASK, None), Segment("", None, 0.4))
    found = Prediction(rejected=False, mask=MASK, text="wheel: [SEG], the blue cat: [REJ].", segments=parts)
    assert state.words_for("the blue cat", found).splitlines() == [
        "wheel: mask 1 (4 pixels).",
        "There is no blue cat in this picture.",
    ]
    assert state.segments_of("the blue cat", found)[1] == Segment("the blue cat", None, None)


def test_plain_words_are_passed_on():
    found = Prediction(rejected=True, mask=None, text=" Two cars. ")
    assert state.words_for("what is this?", found) == "Two cars."
    assert state.segments_of("what is this?", found) == ()
    nothing = Prediction(rejected=True, mask=None, text=" . ")
    assert state.words_for("the cat", nothing) == "There is no cat in this picture."


def test_rejected_by_presence_is_absent_even_where_the_text_points():
    found = Prediction(rejected=True, mask=None, text="[SEG].", p_absent=0.9)
    assert state.words_for("the cat", found) == "There is no cat in this picture."


# the terminal


def test_several_turns_encode_the_photo_once(tmp_path):
    photo = card(tmp_path / "card.png")
    code, printed, segmenter = conversation(
        tmp_path, "the red block", "where is it?", "the blue cat", "what is this?", image=photo
    )
    assert code == 0 and segmenter.encoded == 1
    assert "the red block: mask 1 (50 pixels, score 0.88)." in printed
    assert "it: mask 1 (50 pixels" in printed
    assert "There is no blue cat in this picture." in printed
    assert "A test card." in printed and printed.endswith("Bye.\n")
    texts, histories, templates = zip(*segmenter.asked, strict=True)
    assert texts[1] == "where is it?" and histories[1] == (("the red block", "[SEG]."),)
    assert [len(history) for history in histories] == [0, 1, 2, 3] and set(templates) == {"{expression}"}


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
    predictor.segmenter.answer = lambda *args: [Prediction(rejected=True, mask=None, text="a\x1b[2Jb\x07")]
    talk(predictor, card(tmp_path / "card.png"), tmp_path, io.StringIO("x\x1b[31m\n"), out)
    assert not {"\x1b", "\x07"} & set(out.getvalue())


# processes

STUBBED = """
import sys
from chat_demo import terminal
from uniresxx.predictor import Predictor
from uniresxx.testing import ColourSegmenter
Predictor.from_pretrained = classmethod(lambda cls, path, decoding=None, **options: cls(ColourSegmenter(), decoding))
from pathlib import Path
sys.exit(terminal.run("none", sys.argv[1], Path(".")))
"""


def start(arguments, **kwargs):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *arguments], env=environment, **kwargs)


def test_without_terminal_one_line_and_exit_2():
    process = start(["-m", "chat_demo", "--checkpoint", "x"], stderr=subprocess.PIPE, cwd=ROOT)
    _, printed = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and printed.decode().count("\n") == 1 and b"--terminal" in printed


def test_piped_bytes_that_are_no_text(tmp_path):
    arguments = ["-c", STUBBED, card(tmp_path / "card.png")]
    process = start(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    printed, wrong = process.communicate(b"red \xff\xfe\n:save\n", timeout=PATIENCE)
    assert (process.returncode, wrong) == (0, b"")
    assert b"50 pixels" in printed and (tmp_path / "chat_001.png").exists()


@pytest.mark.parametrize("key", [b"\x03", b"\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_keys_leave_cleanly_on_a_real_terminal(tmp_path, key):
    person, program = pty.openpty()
    arguments = ["-c", STUBBED, card(tmp_path / "card.png")]
    process = start(
        arguments, stdin=program, stdout=program, stderr=program, cwd=tmp_path, start_new_session=True,
        preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(program)
    printed = read_until(person, b"> ")
    os.write(person, b"red\n")
    printed += read_until(person, b"> ")
    for _ in range(10):  # a key pressed while the prompt is still being drawn can be lost, as for a person
        os.write(person, key)
        printed += read_until(person, b"Bye.\r\n", silence=20.0)  # a second Ctrl-C would break the farewell
        if printed.endswith(b"Bye.\r\n"):
            break
    assert process.wait(timeout=PATIENCE) == 0
    os.close(person)
    assert b"50 pixels" in printed and b"Bye." in printed and b"Traceback" not in printed


def take_terminal():
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C becomes a signal
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test runner in the background hands down "ignored"


def read_until(person, mark, silence=120.0):
    """What the program printed, up to a mark, its end, or that many seconds of silence."""
    printed = b""
    while not printed.endswith(mark) and select.select([person], [], [], silence)[0]:
        try:
            block = os.read(person, 4096)
        except OSError:  # Linux: the other side is closed
            break
        if not block:
            break
        printed += block
    return printed
