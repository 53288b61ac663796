"""What a typed line is, and what Tab makes of half a line."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_demo.commands import Command, Kind, path_of, understand
from chat_demo.completion import completions
from uniresxx.errors import InputError

FILES = {"/p/a b.png", "/p/x.png", "rel.jpg", "cup", "cat.gif", "/p", "/p/noending"}


def read(line):
    return [(command.kind.value, command.rest) for command in understand(line, FILES.__contains__)]


@pytest.mark.parametrize("line", [":quit", "/quit", "quit", "QUIT", "exit", ":q", ":exit", "  quit  "])
def test_ways_to_leave(line):
    assert read(line) == [("quit", "")]


@pytest.mark.parametrize("line", [":help", "/help", "help", "Help", "?"])
def test_ways_to_get_help(line):
    assert read(line) == [("help", "")]


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("/p/x.png", "/p/x.png"),
        ("'/p/a b.png'", "/p/a b.png"),
        ('"/p/a b.png" ', "/p/a b.png"),
        (r"/p/a\ b.png", "/p/a b.png"),
        ("/p/a b.png", "/p/a b.png"),
        ("file:///p/a%20b.png", "/p/a b.png"),
        ("file://localhost/p/x.png", "/p/x.png"),
        ("FILE:///p/x.png", "/p/x.png"),
        ("rel.jpg", "rel.jpg"),
        ("cat.gif", "cat.gif"),
        ("/p/noending", "/p/noending"),
        ("/p", "/p"),
        ("gone.png", "gone.png"),
        ("'/p/gone too.png'", "/p/gone too.png"),
        ("open /p/x.png", "/p/x.png"),
        ("open file:///p/a%20b.png", "/p/a b.png"),
        (":image /p/a b.png", "/p/a b.png"),
        (":image '/p/a b.png'", "/p/a b.png"),
        ("/image file:///p/a%20b.png", "/p/a b.png"),
        (":open rel.jpg", "rel.jpg"),
        (":image", ""),
    ],
)
def test_lines_that_open_a_picture(line, path):
    assert read(line) == [("image", path)]


@pytest.mark.parametrize(
    ("line", "question"),
    [
        ("the red cup", "the red cup"),
        ("cup", "cup"),
        ('"the red cup"', "the red cup"),
        ("the man's hat", "the man's hat"),
        ("what is in x.png?", "what is in x.png?"),
        ("open the door", "open the door"),
        ("help me find the cup", "help me find the cup"),
        ("quit smoking sign", "quit smoking sign"),
        ("the cup and/or the fork", "the cup and/or the fork"),
        ("save", "save"),
    ],
)
def test_lines_that_are_questions(line, question):
    assert read(line) == [("question", question)]


def test_a_picture_with_a_question_behind_it():
    for line in ("/p/x.png the red house", "file:///p/x.png the red house", "'/p/x.png' the red house"):
        assert read(line) == [("image", "/p/x.png"), ("question", "the red house")]


@pytest.mark.parametrize("line", [":frob", ":frob x", "/frob", "/p/x.png '/p/a b.png'"])
def test_what_is_neither_is_refused(line):
    with pytest.raises(InputError):
        read(line)


def test_other_commands():
    assert read("") == read("   ") == [("nothing", "")]
    assert read(":reset") == [("reset", "")]
    assert read(":save '/p/my shot.png'") == [("save", "/p/my shot.png")]


def test_paths_of_other_systems():
    assert path_of("file:///C:/my%20photo.png") == "C:/my photo.png"
    assert path_of(r"C:\photos\x.png") == r"C:\photos\x.png"
    assert path_of("~/x.png") == os.path.expanduser("~/x.png")


@given(st.text(max_size=60))
def test_every_line_is_understood_or_refused_in_a_line(line):
    try:
        commands = understand(line, os.path.exists)
    except InputError as error:
        assert str(error)
        return
    assert commands and all(isinstance(command, Command) for command in commands)
    assert all(command.rest for command in commands if command.kind is Kind.QUESTION)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("scene one.png", "scene two.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "inside.webp").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tab_completes_commands_and_paths(folder):
    assert completions("") == [":image", ":save", ":reset", ":help", ":quit"]
    assert completions(":h") == [":help"] and completions("/Q") == ["/quit"]
    assert completions(":image ") == [f":image more{os.sep}", ":image scene one.png", ":image scene two.jpg"]
    assert completions(":image scene t") == [":image scene two.jpg"]
    assert completions("/image 'scene o") == ["/image 'scene one.png'"]
    assert completions("more/") == ["more/inside.webp"] and completions("./more/in") == ["./more/inside.webp"]
    assert completions(f"{folder}/mo") == [f"{folder}/more{os.sep}"]
    assert completions(f"file://{folder}/more/") == [f"file://{folder}/more/inside.webp"]
    assert completions(".hid") == [".hidden.png"]
    assert completions("the red") == completions(":image gone/") == []
