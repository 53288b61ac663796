"""The chat as a process: with pipes, and on a real pseudo-terminal of 80 columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600  # seconds for a process on a machine that is busy with other work
STUBBED = """
import sys, time
from pathlib import Path
from chat_demo import terminal
from uniresxx.predictor import Predictor
from uniresxx.testing import ColourSegmenter

class Slow(ColourSegmenter):
    def answer(self, encoded, texts, decoding, on_text=None):
        if "slow" in texts[0][0].text:
            on_text(0, "I am thinking")
            time.sleep(600)
        return super().answer(encoded, texts, decoding, on_text)

Predictor.from_pretrained = classmethod(lambda cls, path, decoding=None, **options: cls(Slow(), decoding))
sys.exit(terminal.run("none", sys.argv[1], Path("."), "--no-pictures" not in sys.argv))
"""
CTRL_C, CTRL_D, TAB = b"\x03", b"\x04", b"\t"


def card(path):
    photo = np.full((40, 60, 3), 90, dtype=np.uint8)
    photo[5:10, 10:20] = (255, 0, 0)
    Image.fromarray(photo).save(path)
    return str(path)


def environment():
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLORTERM": "truecolor"}


def start(arguments, **kwargs):
    return subprocess.Popen([sys.executable, *arguments], **{"env": environment()} | kwargs)


class Person:
    """Somebody at a terminal of 24 x 80 in which the chat runs."""

    def __init__(self, folder, *arguments):
        self.seen = b""
        self.hand, program = pty.openpty()
        fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = start(
            ["-c", STUBBED, *arguments], stdin=program, stdout=program, stderr=program, cwd=folder,
            start_new_session=True, preexec_fn=take_terminal,
        )  # fmt: skip
        os.close(program)

    def type(self, keys):
        os.write(self.hand, keys)

    def wait_for(self, mark, silence=PATIENCE):
        """What was printed up to a mark; AssertionError where it never comes."""
        assert self.comes(mark, silence), (mark, self.seen)
        end = self.seen.index(mark) + len(mark)
        printed, self.seen = self.seen[:end], self.seen[end:]
        return printed.decode()

    def comes(self, mark, silence):
        while mark not in self.seen and select.select([self.hand], [], [], silence)[0]:
            try:
                block = os.read(self.hand, 4096)
            except OSError:  # Linux: the other side is closed
                break
            if not block:
                break
            self.seen += block
        return mark in self.seen

    def press(self, key, mark):
        """Press a key until it is heard: one pressed while the prompt is still being drawn can be lost."""
        for _ in range(10):
            time.sleep(0.1)
            self.type(key)
            if self.comes(mark, 10.0):
                break
        return self.wait_for(mark)

    def leave(self, code=0):
        assert self.process.wait(timeout=PATIENCE) == code
        os.close(self.hand)


def take_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C becomes a signal
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test runner in the background hands down "ignored"


@pytest.fixture
def person(tmp_path):
    someone = Person(tmp_path, card(tmp_path / "my card.png"))
    yield someone
    if someone.process.poll() is None:
        someone.process.kill()
        someone.process.wait()


# pipes


def test_options_of_the_terminal_without_it_are_one_line_and_exit_2():
    process = start(["-m", "chat_demo", "--image", "x"], stderr=subprocess.PIPE, cwd=ROOT)
    _, printed = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and printed.decode().count("\n") == 1 and b"--terminal" in printed


def test_closed_input_is_one_line_and_exit_2():
    command = f"exec {sys.executable} -m chat_demo --checkpoint x --terminal <&-"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=environment(), capture_output=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1 and b"standard input is closed" in done.stderr


def test_piped_bytes_that_are_no_text(tmp_path):
    arguments = ["-c", STUBBED, card(tmp_path / "card.png")]
    process = start(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    printed, wrong = process.communicate(b"red \xff\xfe\n:save\n", timeout=PATIENCE)
    assert (process.returncode, wrong) == (0, b"")
    assert b"50 pixels" in printed and (tmp_path / "chat_001.png").exists()
    assert b"\x1b" not in printed  # neither pictures nor words that are taken back


# a terminal


def test_a_conversation_on_a_terminal(person, tmp_path):
    opened = person.wait_for(b"> ")
    assert opened.count("▀") > 100 and "60 x 40 pixels" in opened
    person.type(b"the red block\n")
    answer = person.wait_for(b"score 0.88).")
    assert answer.count("▀") > 100 and "■" in answer and "the red block: mask 1 (50 pixels" in answer
    columns = [len(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)) for line in answer.splitlines()]
    assert max(columns) <= 80
    person.wait_for(b"> ")
    person.type(b"my" + TAB)
    person.wait_for(b"my card.png")
    person.type(b"\n")
    assert "60 x 40 pixels" in person.wait_for(b"says more.")
    person.wait_for(b"> ")
    person.type(b":qu" + TAB + b"\n")
    person.wait_for(b"Bye.")
    person.leave()


def test_ctrl_c_drops_a_line_then_an_answer_and_twice_leaves(person):
    person.wait_for(b"> ")
    person.type(b"the blu")
    person.wait_for(b"the blu")
    assert "Bye" not in person.press(CTRL_C, b"Dropped.")
    person.wait_for(b"> ")
    person.type(b"slow red\n")
    person.wait_for(b"thinking")  # its words come before it is done
    assert "Bye" not in person.press(CTRL_C, b"Dropped.")
    person.wait_for(b"> ")
    person.type(b"red\n")
    person.wait_for(b"50 pixels")
    person.wait_for(b"> ")
    person.press(CTRL_C, b"Dropped.")
    person.wait_for(b"> ")
    assert "Traceback" not in person.press(CTRL_C, b"Bye.")
    person.leave()


def test_ctrl_d_leaves(person):
    person.wait_for(b"> ")
    assert "Traceback" not in person.press(CTRL_D, b"Bye.")
    person.leave()


def test_words_only(tmp_path):
    someone = Person(tmp_path, card(tmp_path / "card.png"), "--no-pictures")
    printed = someone.wait_for(b"> ")
    someone.type(b"red\n")
    printed += someone.wait_for(b"score 0.88).")
    someone.type(b"quit\n")
    someone.wait_for(b"Bye.")
    someone.leave()
    assert "▀" not in printed and "■" not in printed
