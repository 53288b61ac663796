"""Shell completion: the script that bash loads completes commands, options, choices and files."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

import pytest

from uniresxx.cli import COMMANDS, main
from uniresxx.cli.completion import all_commands, script


@pytest.fixture(scope="module")
def bash():
    """The script for bash."""
    return script("bash")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["seg"], {"segment"}),
        (["segment", "--form"], {"--format"}),
        (["segment", "--format", "c"], {"coco", "cvat"}),
        (["segment", "fis"], {"fish.png"}),
        (["segment", "fish.png", "--out", "res"], {"results"}),
        (["data", "pre"], {"prepare"}),
        (["data", "prepare", "own", "--frame", ""], {"raw", "upright"}),
        (["data", "prepare", "scenes", "--gua"], {"--guard"}),
    ],
)
def test_bash_completes(tmp_path, bash, words, offered):
    (tmp_path / "fish.png").write_bytes(b"")
    (tmp_path / "results").mkdir()
    line = ["uniresxx", *words]
    asked = f"COMP_WORDS=({shlex.join(line)}); COMP_CWORD={len(words)}; _shtab_uniresxx"
    program = f'{bash}\n{asked}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


def test_zsh_gets_every_command():
    zsh = script("zsh")
    assert zsh.startswith("#compdef uniresxx") and "--threshold[leave out masks" in zsh
    for name, _ in COMMANDS:
        assert f"    {name}:" in zsh


def test_options_are_those_of_the_commands():
    found = all_commands().parse_args(["segment", "a.png", "red", "--format", "yolo"])
    assert (found.command, found.words, found.format) == ("segment", ["a.png", "red"], "yolo")


def test_without_shtab_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert (
        capsys.readouterr().err == "error: completion needs shtab: run `pip install 'uniresxx[completion]'`\n"
    )
