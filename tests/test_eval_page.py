"""docs/eval.md is right: its drawings are read, and every number it states is computed from them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from eval.report.curves import rejection_curve, reliability
from eval.report.runs import Case, judge_all
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import SCORE_KEYS, Tally
from uniresxx.scoring.predictions import from_json
from uniresxx.scoring.protocols import STRICT
from uniresxx.types import Expression, Granularity, ImageRecord

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "eval.md").read_text(encoding="utf-8")
H, W = 3, 8


def drawings() -> dict[str, tuple[str, list[str], str]]:
    """Per letter: the heading, the rows of its grid, the line under it."""
    block = re.search(r"```text\n(A .*?)```", PAGE, re.S)
    assert block is not None
    found = {}
    for part in block[1].strip().split("\n\n"):
        columns = [re.split(r" {2,}", line.strip()) for line in part.splitlines()]
        for k in range(3):
            heading, *rows, below = (line[k] for line in columns)
            found[heading[0]] = (heading, rows, below)
    return found


def numbers_of(key: str) -> list[float | None]:
    """The row of the table of `p_absent` or `score`."""
    row = re.search(rf"^\| `{key}` \| ([0-9.–| ]+) \|$", PAGE, re.M)
    assert row is not None
    return [None if value == "–" else float(value) for value in row[1].split(" | ")]


def example() -> list[Case]:
    """The six questions of the page, judged by `strict`."""
    absent, scores = numbers_of("p_absent"), numbers_of("score")
    expressions, given = [], {}
    for k, (letter, (heading, rows, below)) in enumerate(sorted(drawings().items())):
        grid = np.array([row.split() for row in rows])
        assert grid.shape == (H, W) and set(grid.ravel()) <= set(".#ta")
        truth, answer = np.isin(grid, ["#", "t"]), np.isin(grid, ["#", "a"])
        kind = Granularity(heading.split()[1])
        assert truth.any() == (kind != Granularity.NONE)
        text = re.search('"(.*)"', heading)
        assert text is not None
        rle = masks.encode(truth) if truth.any() else None
        expressions.append(Expression(letter, text[1], kind, rle, twin="bowls" if letter in "ABC" else None))
        rejected = below == "rejected"
        assert rejected != answer.any()
        if below.startswith("IoU"):
            assert below == f"IoU {(truth & answer).sum()}/{(truth | answer).sum()}"
        mask = None if rejected else masks.encode(answer)
        given[letter] = Prediction(rejected, mask, None, scores[k], absent[k])
    return judge_all([ImageRecord("picture", H, W, tuple(expressions))], given, STRICT)


def stated(name: str) -> str:
    """The number that the page gives for a metric."""
    found = re.search(rf"\*\*`?{re.escape(name)}`?\*\* = ([\d.]+)", PAGE)
    assert found is not None, name
    return found[1]


@pytest.mark.parametrize("key", [key for key in SCORE_KEYS if key not in ("Pr@0.7", "Pr@0.8")])
def test_scores_of_the_example(key: str) -> None:
    tally = Tally.of_image(STRICT.judge(case.expression, case.prediction) for case in example())
    value = tally.overall.scores()[key]
    assert value is not None and stated(key) == f"{value:.1f}"


def test_twins_and_no_answer_of_the_example() -> None:
    tally = Tally.of_image(STRICT.judge(case.expression, case.prediction) for case in example())
    assert (tally.twins, tally.twin_score) == (1, float(stated("Twin score")))
    assert tally.overall["no_answer"] == int(stated("no_answer"))


def test_curves_of_the_example() -> None:
    curve, calibration = rejection_curve(example()), reliability(example())
    assert curve is not None and calibration is not None
    assert stated("Area under the rejection curve") == f"{100 * curve.area:.1f}"
    assert stated("Calibration error") == f"{100 * calibration.error:.1f}"
    assert (sum(calibration.counts), calibration.unknown) == (4, 0)


def test_every_metric_has_its_five_lines() -> None:
    entries = re.findall(r"^\*\*(?!1)([^*]+)\*\*[^\n]*\n\n((?:- .*\n)+)", PAGE, re.M)
    assert len(entries) >= 12
    assert {name: text.count("\n") for name, text in entries if text.count("\n") != 5} == {}
    named = " ".join(line for line in PAGE.splitlines() if line.startswith("**"))
    assert all(key in named for key in SCORE_KEYS if key not in ("Pr@0.7", "Pr@0.8"))


def test_the_line_of_the_format_is_one() -> None:
    block = re.search(r"```json\n(.*?)\n```", PAGE, re.S)
    assert block is not None
    line = json.loads(block[1].replace('"…"', json.dumps(masks.empty(480, 640)["counts"])))
    prediction = from_json(line, (480, 640))
    assert (prediction.rejected, prediction.score, prediction.p_absent) == (False, 0.83, 0.02)
    keys = re.findall(r"^\| `(\w+)` \| ", PAGE.split("| key | what it holds |")[1].split("\n\n")[0], re.M)
    assert set(line) <= set(keys) and "mask_if_forced" in keys
