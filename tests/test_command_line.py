"""What every command line has in common: one line for each error, near misses named, quiet ends of pipes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from uniresxx.cli import main, wrapped

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["segmnt", "a.png"], "unknown command 'segmnt'; did you mean 'segment'?; known: segment, "),
        (["zzz"], "unknown command 'zzz'; known: segment, "),
        (["segment", "a.png", "red", "--chekpoint", "c"], "'--chekpoint'; did you mean '--checkpoint'?"),
        (["export", "a", "b", "--mask-hed=torch"], "'--mask-hed'; did you mean '--mask-head'?"),
        (["export", "a", "b", "--mask-head", "onxx"], "(choose from torch, onnx); did you mean 'onnx'?"),
        (["export", "a", "b", "--zzz"], "unknown option '--zzz'; see `uniresxx export --help`"),
        (["data", "inspct", "scenes"], "did you mean 'inspect'?"),
        (["doctor", "--jsn"], "did you mean '--json'?"),
        (["export", "a"], "required: OUT"),
    ],
)  # fmt: skip
def test_near_misses_are_named(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and says in said.err and said.err.count("\n") == 1 and not said.out


def test_options_may_be_shortened_and_values_may_look_like_options() -> None:
    from uniresxx.cli import OneLineParser

    parser = OneLineParser(prog="p")
    parser.add_argument("--checkpoint")
    parser.add_argument("-e")
    parser.add_argument("words", nargs="*")
    found = parser.parse_args(["--check", "x", "-e=--odd", "--", "--word"])
    assert (found.checkpoint, found.e, found.words) == ("x", "--odd", ["--word"])


@pytest.mark.parametrize(
    "words",
    [
        ["uniresxx", "--help"],
        ["uniresxx", "segment", "--help"],
        ["uniresxx", "data", "dump", "scenes_easy/val"],
        ["chat_demo", "--help"],
    ],
)
def test_a_reader_that_stops_early_sees_no_traceback(words: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None and program.stderr is not None
        program.stdout.close()  # before a line is written, as `| head -0`
        assert program.stderr.read() == ""
    assert program.returncode in (0, 1)  # 0 where argparse itself met the closed pipe


@pytest.mark.parametrize(
    "words", [["segment"], ["export"], ["data"], ["data", "prepare"], ["data", "inspect"], ["data", "verify"]]
)
def test_help_fits_a_terminal_of_80_columns(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with suppress(SystemExit):
        main([*words, "--help"])
    usage, _, rest = capsys.readouterr().out.partition("\n")
    assert usage and rest and max(map(len, rest.splitlines())) <= 80


def test_wrapped_text_fills_paragraphs_and_keeps_columns() -> None:
    text = "One sentence\nin two lines.\n\n  name.png   a long explanation\n  b\nThe end."
    assert wrapped(text, 24).splitlines() == [
        "One sentence in two",
        "lines.",
        "",
        "  name.png   a long",
        "             explanation",
        "  b",
        "The end.",
    ]


FIRST_LOAD = """
import gc, sys
from uniresxx.cli import first_load

before = gc.get_freeze_count()
try:
    with first_load():
        assert not gc.isenabled()
        import torch
        raise OSError
except OSError:
    pass
after = gc.get_freeze_count()
assert gc.isenabled() and after > before + 100_000, (before, after)
with first_load():  # torch is there: nothing to wait for
    assert gc.isenabled()
assert gc.get_freeze_count() == after
"""


def test_the_garbage_collector_pauses_for_the_first_load_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LOAD], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
