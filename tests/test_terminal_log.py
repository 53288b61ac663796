"""Training on a terminal of 80 columns: step, bar, loss and time left come first."""

from __future__ import annotations

import re

import pytest

from train.log import Display, fitting

RECORD = {
    "step": 100, "loss": 12.345, "lr": 3e-4, "grad_norm": 1.0, "expressions": 56, "expressions_per_s": 123.4,
    "seconds": 10.0, "skipped": False, "text_tokens_per_s": 5000.0, "visual_tokens_per_s": 90000.0, "mfu": None,
    "data_wait": 0.01, "memory_gb": 1.2, "text": 0.5, "mask": 1.25, "dice": 0.75, "presence": 0.1, "quality": 0.2,
    "boxes": 3.3, "dense": 0.4,
}  # fmt: skip


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("steps", [2000, 200_000])
def test_loss_and_time_left_are_seen(columns, steps, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    with Display(steps, 0, 5.0, None) as display:
        display.count(56)
        display.show(RECORD)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", capsys.readouterr().out).replace("\r", "\n")
    whole = "".join(lines.split("\n"))
    assert re.search(rf"100/{steps} ━+.*loss 12\.345, \d+:\d\d:\d\d left", whole)
    assert ("dice 0.750" in whole) == (columns == 200) and "…" not in whole


def test_parts_in_order_of_importance():
    assert fitting(["loss 1", "0:10 left", "12 expr/s", "lr 1"], 20) == "loss 1, 0:10 left"
    assert fitting(["loss 1", "0:10 left", "lr 1"], 23) == "loss 1, 0:10 left, lr 1"
    assert fitting(["loss 1", "0:10 left"], 3) == "loss 1"
