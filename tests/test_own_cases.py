"""Own data as annotation tools write it, against the results that lie beside it (../shared/own_cases)."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import unicodedata
from pathlib import Path

import pytest

from uniresxx.cli import main as program
from uniresxx.data.store.read import Store

CASES = Path(__file__).resolve().parents[2] / "shared" / "own_cases"
REASONS = ("box_only", "no_pixels", "missing_photo", "unknown_image", "no_sentence", "crowd")
GRANULARITIES = ("part", "object", "multi", "none")

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not on this machine")


def stated(text, reason):
    """The counts that a text states for a reason, in either order."""
    word = reason.replace("_", "[ _-]")
    found = re.findall(rf"{word}s?\W*(\d+)|(\d+)\W*{word}", text)
    return {int(one or other) for one, other in found} - {0}


def line_of(split, photo, text, granularity, no_target, area, sha1):
    photo, text = (unicodedata.normalize("NFC", item) for item in (photo, text))
    return split, photo, " ".join(text.split()), granularity, no_target, area, sha1


def expressions_of(store, capsys):
    lines = []
    for split in Store.open(store).splits:
        program(["data", "dump", f"{store}/{split}"])
        for row in map(json.loads, capsys.readouterr().out.splitlines()):
            sha1 = row["rle"] and hashlib.sha1(row["rle"]["counts"].encode()).hexdigest()
            what = (row["granularity"], row["no_target"], row["area"], sha1)
            lines.append(line_of(split, Path(row["image"]).name, row["text"], *what))
    return lines


@pytest.mark.parametrize("case", sorted(CASES.glob("*/")), ids=lambda path: path.name)
def test_a_case_gives_exactly_what_lies_beside_it(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(case)
    expected = json.loads((case / "expected.json").read_text())
    words = shlex.split((case / "command.txt").read_text())
    code = program(["data", "prepare", "own", *words, "--out", str(tmp_path / "s")])
    printed = "".join(capsys.readouterr()).lower()
    assert code == expected["exit"], printed
    for word in expected["says"]:
        assert word in printed
    for reason in REASONS:
        wanted = expected["left_out"].get(reason, 0)
        assert stated(printed, reason) == ({wanted} if wanted else set()), reason
    if expected["outcome"] == "refused":
        assert not (tmp_path / "s").exists()
        return
    found = expressions_of(tmp_path / "s", capsys)
    for item in expected["expressions"]:
        what = [item[key] for key in ("split", "photo", "text", "granularity", "no_target", "area")]
        either = [line_of(*what, item[key]) for key in ("rle_sha1", "also") if key in item]
        there = [line for line in either if line in found]
        assert there, (either, found)
        found.remove(there[0])
    assert not found, "more than expected"
    splits = {
        name: {
            **{key: entry["counts"][key] for key in ("images", "expressions")},
            "by_granularity": {key: entry["counts"][key] for key in GRANULARITIES},
        }
        for name, entry in Store.open(tmp_path / "s").meta["splits"].items()
    }
    assert splits == expected["splits"]
    assert program(["data", "verify", str(tmp_path / "s")]) == 0
