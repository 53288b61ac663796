"""The report page: whole, self-contained, safe with any text, and the cases it should show."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval.report as report_module
from eval.cases import choose_cases
from eval.pictures import TRUTH, mask_uri, photo_uri, shown_size
from eval.published import Kind, published_for, split_and_setting
from eval.report import report
from eval.score import origin, score
from uniresxx import masks
from uniresxx.errors import InputError
from uniresxx.evaluate import evaluate, score_file, write_metrics
from uniresxx.segmenter import Decoding
from uniresxx.types import Expression, Granularity, ImageRecord, Prediction

MINI_REAL = Path(__file__).resolve().parents[1].parent / "shared" / "mini_real"
H, W = 20, 30
NASTY = '<script>alert("x")</script> & the dog\'s "ear" [SEG]'


def bar(width):
    mask = np.zeros((H, W), bool)
    mask[:, :width] = True
    return mask


def made(number):
    """Truth is a bar of 10 columns, once per granularity; one absent thing."""
    rng = np.random.default_rng(number)
    expressions = [
        Expression(
            f"scenes_easy/val/{number}_{g}", f"{g} {number} {NASTY}", g, masks.encode(bar(10)), level=1
        )
        for g in (Granularity.PART, Granularity.OBJECT, Granularity.MULTI)
    ]
    expressions.append(Expression(f"scenes_easy/val/{number}_none", NASTY, Granularity.NONE, None))
    pixels = rng.integers(0, 255, (H, W, 3), dtype=np.uint8)
    return ImageRecord(f"im{number}", H, W, tuple(expressions), pixels=pixels)


RECORDS = [made(k) for k in range(16)]


class Varied:
    """Answers with bars of all widths, rejects some, accepts some absent things."""

    decision_rule = "token"

    def __init__(self):
        self.count = 0

    def look(self, photos):
        return len(photos)

    def answer(self, sight, texts, decoding):
        answers = []
        for _ in (text for given in texts for text in given):
            self.count += 1
            rejected = self.count % 7 == 0
            mask = None if rejected else masks.encode(bar(self.count % 20))
            answers.append(Prediction(rejected, mask, "[SEG].", 0.5, (self.count % 10) / 10))
        return answers


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An evaluated run folder with a curve."""
    out = tmp_path / "run"
    for module in ("eval.report", "eval.score"):
        monkeypatch.setattr(f"{module}.load_records", lambda name, data, limit=None: RECORDS[:limit])
    path = evaluate(
        Varied(), RECORDS, "scenes_easy/val", Decoding(), out / "scenes_easy/val", checkpoint="step:12"
    )
    entry = score_file(path, RECORDS, "scenes_easy/val") | origin(path, out, None, None)
    write_metrics(out / "metrics.json", [entry])
    Image.new("RGB", (40, 30)).save(out / "curve.png")
    return out


class Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(folder):
    page = report([folder])
    assert page == folder / "report" / "index.html"
    text = page.read_text()
    parser = Parser()
    parser.feed(text)
    assert parser.open == [], "every tag is closed"
    assert not {"script", "link", "iframe", "object", "base"} & set(parser.tags)
    assert parser.links and all(link.startswith("data:image/") for link in parser.links)
    assert all(url.startswith("data:image/") for url in re.findall(r"url\(([^)]*)\)", text))
    assert "://" not in text and "@import" not in text
    assert "default-src 'none'" in text and 'name="viewport"' in text
    assert "<script" not in text and NASTY in unescape(text)
    assert "say nothing about photographs" in text
    assert "Published numbers" not in text  # never beside scenes
    assert "class=curve" in text


def test_the_page_shows_every_chosen_case(folder):
    text = unescape(report([folder]).read_text())
    (section,) = report_module._sections(folder, None)
    shown = [case for groups in section.cases.values() for cases in groups.values() for case in cases]
    assert set(section.cases) == {"part", "object", "multi", "none"}
    for name in ("part", "object", "multi"):
        assert list(section.cases[name]) == ["best", "median", "worst", "false reject"]
    assert list(section.cases["none"]) == ["false accept", "rightly rejected"]
    assert text.count("<figure>") == len(shown) >= 30
    for case in shown:
        assert case.expression.expression_id in text
        if case.targeted:
            assert f"IoU {case.iou:.2f}" in text
    for heading in ("Parts", "Objects", "Several objects", "Nothing there", "all objects", "never reject"):
        assert heading in text


def test_cases_are_the_extremes(folder):
    (section,) = report_module._sections(folder, None)
    everything = choose_cases(
        RECORDS, {c.expression.expression_id: c.prediction for c in _all(section, folder)}, 99
    )
    for name in ("part", "object", "multi"):
        ious = sorted(c.iou for g in ("best", "median", "worst") for c in everything[name].get(g, []))
        best = [c.iou for c in section.cases[name]["best"]]
        assert best == sorted(ious)[::-1][: len(best)]
        assert min(c.iou for c in section.cases[name]["worst"]) == ious[0]
        middle = ious[len(ious) // 2]
        assert abs(section.cases[name]["median"][0].iou - middle) < 0.15


def _all(section, folder):
    from uniresxx.predictions import read_predictions

    given = read_predictions(folder / "scenes_easy/val/predictions.jsonl", RECORDS)
    return [
        type(section.cases["part"]["best"][0])(r, e, given[e.expression_id], 0.0, True)
        for r in RECORDS
        for e in r.expressions
    ]


def test_no_expression_is_shown_twice(folder):
    (section,) = report_module._sections(folder, None)
    shown = [
        c.expression.expression_id for groups in section.cases.values() for cs in groups.values() for c in cs
    ]
    assert len(shown) == len(set(shown))


def test_several_folders_stand_side_by_side(folder, tmp_path):
    other = tmp_path / "other"
    score(folder / "scenes_easy/val/predictions.jsonl", "scenes_easy/val", other)
    text = report([folder, other]).read_text()
    assert "Side by side" in text and text.count("<h2>scenes_easy/val</h2>") == 2
    assert text.count("<figure>") % 2 == 0 and (folder / "report/index.html").exists()


def test_numbers_without_their_pictures_still_make_a_page(folder):
    (folder / "scenes_easy/val/predictions.jsonl").unlink()
    text = report([folder]).read_text()
    assert "No pictures" in text and "Beside the trivial answers" in text


def test_a_deleted_photo_costs_the_pictures_and_not_the_numbers(folder, tmp_path, monkeypatch):
    records = []
    for record in RECORDS:
        path = tmp_path / f"{record.image_id}.png"
        Image.fromarray(record.pixels).save(path)
        records.append(replace(record, pixels=None, path=str(path)))
    monkeypatch.setattr("eval.report.load_records", lambda name, data, limit=None: records[:limit])
    assert "No pictures" not in report([folder]).read_text()
    for record in records[1:]:  # the first one stays: no half of a gallery may be left
        Path(record.path).unlink()
    text = unescape(report([folder]).read_text())
    assert re.search(r"No pictures: \S+im\d+\.png: no such photo", text)
    assert "Beside the trivial answers" in text and "All scores" in text and "class=curve" in text
    assert "<figure>" not in text


def test_folders_without_scores_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no metrics"):
        report([tmp_path])
    (tmp_path / "metrics.json").write_text('[{"benchmark": "x"}]')
    with pytest.raises(InputError, match="score it again"):
        report([tmp_path])


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize("size", [(64, 64), (96, 70), (480, 640), (1, 1), (3, 900)])
def test_mask_layers_cover_the_mask(size):
    rng = np.random.default_rng(0)
    mask = np.zeros(size, bool)
    mask[rng.integers(size[0]), rng.integers(size[1])] = True  # one pixel must stay visible
    layer = np.asarray(decoded(mask_uri(mask, TRUTH)).convert("RGBA"))
    assert layer.shape[:2] == shown_size(*size) and max(layer.shape) <= 480
    inside = (layer[..., :3] == TRUTH).all(axis=2)
    assert (layer[~inside][:, 3] > 100).all(), "outside lies under a veil"
    y, x = np.argwhere(mask)[0]
    at_y, at_x = int((y + 0.5) * layer.shape[0] / size[0]), int((x + 0.5) * layer.shape[1] / size[1])
    assert inside[at_y, at_x]
    assert inside.sum() <= max(1, np.ceil(inside.size / mask.size)) * 4


def test_small_pictures_are_embedded_exactly_and_large_ones_are_reduced():
    small = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    assert (np.asarray(decoded(photo_uri(small))) == small).all()
    assert decoded(photo_uri(np.zeros((700, 1400, 3), np.uint8))).size == (480, 240)


def test_published_rows_are_typed_and_plausible():
    rows = [
        row
        for name in ("refcocom", "grefcoco", "refcoco", "refcoco+", "refcocog_umd")
        for row in published_for(name)
    ]
    assert len({(r.benchmark, r.setting, r.method, r.metric) for r in rows}) == len(rows) > 60
    for row in rows:
        assert row.values and all(0 < value < 100 for value in row.values.values()) and row.source
        assert "//" not in row.source
    ours = {(r.benchmark, r.metric): r for r in rows if r.method == "UniRES++"}
    assert ours["grefcoco", "gIoU"].values == {"val": 74.4, "testA": 76.0, "testB": 69.8}
    assert published_for("scenes") == published_for("mini_real") == []
    assert split_and_setting("testA_part_only") == ("testA", "part")
    assert split_and_setting("val") == ("val", None)


def test_kinds_of_systems_are_never_in_one_table():
    entry = {
        "benchmark": "refcocom",
        "split": "val_part_only",
        "protocol": "strict",
        "overall": {"mIoU": 12.3},
    }
    parts = report_module._published(entry).split("<h4>")[1:]
    assert [part.split("<")[0] for part in parts] == [kind.value for kind in Kind]
    methods = {k: {r.method for r in published_for("refcocom") if r.kind is k} for k in Kind}
    for kind, part in zip(Kind, parts, strict=True):
        for other in Kind:
            assert all((f">{name}<" in part) == (other is kind) for name in methods[other])
        assert ("12.3" in part) == (kind is Kind.TRAINED)


@pytest.mark.skipif(not MINI_REAL.is_dir(), reason="the shared photographs are not on this machine")
def test_report_on_real_photographs(tmp_path):
    from eval.score import load_records

    records = load_records("mini_real/val", MINI_REAL)
    path = evaluate(Halves(records), records, "mini_real/val", Decoding(), tmp_path / "mini_real/val")
    entry = score_file(path, records, "mini_real/val") | origin(path, tmp_path, MINI_REAL, None)
    write_metrics(tmp_path / "metrics.json", [entry])
    page = report([tmp_path])
    assert page.stat().st_size < 3_000_000
    text = page.read_text()
    assert "://" not in text and text.count("<figure>") >= 12


class Halves(Varied):
    """Answers with the left part of whatever photo it is given."""

    def __init__(self, records):
        super().__init__()
        self.records = records

    def look(self, photos):
        return [photo.shape[:2] for photo in photos]

    def answer(self, sight, texts, decoding):
        answers = []
        for (height, width), given in zip(sight, texts, strict=True):
            for k, _ in enumerate(given):
                mask = np.zeros((height, width), bool)
                mask[:, : width * (k + 1) // (len(given) + 1)] = True
                answers.append(Prediction(k % 5 == 4, None if k % 5 == 4 else masks.encode(mask), "[SEG]."))
        return answers
