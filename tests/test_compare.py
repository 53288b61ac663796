"""`python -m eval compare` of run folders: a page of the questions that two models answer differently."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import eval.__main__ as program
from uniresxx.evaluation.metrics_file import read_metrics, score_file, write_metrics
from uniresxx.imaging import masks
from uniresxx.types import Expression, Granularity, ImageRecord

H, W = 20, 30
G = Granularity


def bar(width):
    mask = np.zeros((H, W), bool)
    mask[4:14, 2 : 2 + width] = True
    return mask


def record(k):
    truths = {"thing": bar(10), "part": bar(4), "absent": None}
    expressions = tuple(
        Expression(
            f"made/val/{k}_{name}", f"{name} <{k}>",
            G.NONE if truth is None else G.OBJECT, None if truth is None else masks.encode(truth),
        )
        for name, truth in truths.items()
    )  # fmt: skip
    return ImageRecord(f"im{k}", H, W, expressions, pixels=np.full((H, W, 3), 9 * k, np.uint8))


RECORDS = [record(k) for k in range(12)]


def lines(width, absent_rejected):
    """Answers of one model: bars of `width` pixels more than the truth."""
    found = []
    for k, r in enumerate(RECORDS):
        for e in r.expressions:
            if e.rle is None:
                rejected = k % 2 == 0 if absent_rejected else False
                mask = None if rejected else masks.encode(bar(5))
            else:
                rejected, mask = False, masks.encode(bar((10 if "thing" in e.text else 4) + width))
            found.append({"expression_id": e.expression_id, "rejected": rejected, "mask": mask})
    return "".join(json.dumps(line) + "\n" for line in found)


def folder_of(path, text, benchmark="made/val", **changes):
    answers = path / benchmark / "predictions.jsonl"
    answers.parent.mkdir(parents=True)
    answers.write_text(text)
    entry = score_file(answers, RECORDS, benchmark)
    write_metrics(
        path / "metrics.json",
        [entry | {"predictions": f"{benchmark}/predictions.jsonl", "limit": None} | changes],
    )
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    for module in ("eval.compare", "eval.report.runs", "eval.score"):
        monkeypatch.setattr(f"{module}.load_records", lambda name, data, limit=None: RECORDS[:limit])

    def run(*words):
        code = program.main([str(word) for word in words])
        return code, capsys.readouterr()

    return run


@pytest.fixture
def folders(tmp_path):
    return folder_of(tmp_path / "a", lines(0, True)), folder_of(tmp_path / "b", lines(3, False))


def test_run_folders_give_a_table_and_a_page_with_pictures_first(call, folders, tmp_path):
    a, b = folders
    code, said = call("compare", a, b)
    page = a / "compare" / "index.html"
    assert code == 0 and "12 pictures" in said.out and f"page: {page}" in said.out
    text = page.read_text()
    assert text.index("<figure>") < text.index("<table>"), "pictures come before numbers"
    assert "0 targets better by B, 24 targets better by A" in text
    assert "0 absent ones rejected by B alone, 6 absent ones rejected by A alone" in text
    assert "A finds it better: 8 of 24" in text and "and only A says so: 6 of 6" in text
    assert "B finds it better" not in text.partition("<h3>")[2]
    assert text.count("<figure>") == 14 and "&lt;3&gt;" in text and "://" not in text
    assert len(set(re.findall(r"made/val/(\d+)_(?:thing|part)", text))) == 8, "of different pictures"
    shown = re.findall(r"<small>(\w): IoU ([\d.]+)", text)
    assert shown[:2] == [("A", "1.00"), ("B", "0.57")]
    assert {path.name for path in b.rglob("*")} == {"metrics.json", "made", "val", "predictions.jsonl"}


def test_open_shows_the_page_and_out_names_its_folder(call, folders, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    code, said = call("compare", *folders, "--out", tmp_path / "page", "--open")
    assert code == 0 and opened == [(tmp_path / "page/index.html").as_uri()]
    assert not (folders[0] / "compare").exists()
    code, said = call("compare", *folders, "--out", tmp_path / "page")
    assert code == 0, "an own page is replaced"
    (tmp_path / "page/index.html").write_text("mine")
    code, said = call("compare", *folders, "--out", tmp_path / "page")
    assert (
        code == 2
        and "was not written by" in said.err
        and (tmp_path / "page/index.html").read_text() == "mine"
    )


def test_files_write_a_page_only_where_it_is_named(call, folders, tmp_path):
    files = [f / "made/val/predictions.jsonl" for f in folders]
    assert call("compare", *files, "--benchmark", "made/val")[0] == 0
    assert not list(tmp_path.rglob("index.html"))
    code, said = call("compare", *files, "--benchmark", "made/val", "--open")
    assert code == 2 and "--out" in said.err
    assert call("compare", *files, "--benchmark", "made/val", "--out", tmp_path / "page")[0] == 0
    assert "A finds it better" in (tmp_path / "page/index.html").read_text()
    code, said = call("compare", *files)
    assert code == 2 and "--benchmark NAME/SPLIT is needed" in said.err


def test_folders_that_share_nothing_are_refused_with_what_they_hold(call, folders, tmp_path):
    other = folder_of(tmp_path / "c", lines(0, True), "made/test")
    code, said = call("compare", folders[0], other)
    assert code == 2 and "the first holds made/val, the second made/test" in said.err
    code, said = call("compare", *folders, "--benchmark", "made/test")
    assert code == 2 and "share no made/test" in said.err
    entry = read_metrics(other / "metrics.json")[0]
    write_metrics(other / "metrics.json", [entry | {"benchmark": "made", "split": "val", "limit": 3}])
    assert call("compare", folders[0], other)[0] == 2, "another number of pictures is another question"


def test_equal_answers_have_no_pictures(call, tmp_path):
    pair = folder_of(tmp_path / "a", lines(0, True)), folder_of(tmp_path / "b", lines(0, True))
    assert call("compare", *pair)[0] == 0
    text = (pair[0] / "compare/index.html").read_text()
    assert "<figure>" not in text and "0 targets better by A" in text


def test_a_missing_photo_leaves_the_numbers(call, folders, monkeypatch):
    gone = [ImageRecord(r.image_id, H, W, r.expressions, path="gone.jpg") for r in RECORDS]
    monkeypatch.setattr("eval.compare.load_records", lambda name, data, limit=None: gone)
    assert call("compare", *folders)[0] == 0
    text = (folders[0] / "compare/index.html").read_text()
    assert "Pictures are not shown: " in text and "<table>" in text and "<figure>" not in text
