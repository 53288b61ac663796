"""The report: complete, self-contained, safe with any text, and harmless to the files of others."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import replace
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.report import browser
from eval.report.gallery import TRUTH, choose_cases, mask_uri, photo_uri, shown_size
from eval.report.published import Kind, not_compared, published_tables, read_published, split_and_setting
from eval.report.runs import Run, group_runs, judge_all, read_runs
from eval.report.write import MARKS, report, template
from eval.score import load_records, origin, score
from uniresxx.data.catalog import load_benchmark
from uniresxx.data.published_counts import published_of
from uniresxx.data.store.write import Preparation, write_store
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import score_file, write_metrics
from uniresxx.evaluation.run import evaluate
from uniresxx.files import write_json
from uniresxx.imaging import masks
from uniresxx.imaging.shapes import shape_of
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import JsonlWriter, sizes_of, stream_predictions, to_json
from uniresxx.scoring.problems import Problems
from uniresxx.scoring.protocols import STRICT
from uniresxx.scoring.rejection import Rejection
from uniresxx.types import EVALUATION_TEMPLATE, Decoding, Expression, Granularity, ImageRecord

MINI_REAL = Path(__file__).resolve().parents[1].parent / "shared" / "mini_real"
H, W = 20, 30
NASTY = '<script>alert("x")</script> & the dog\'s "ear" [SEG]'


def bar(width):
    mask = np.zeros((H, W), bool)
    mask[:, :width] = True
    return mask


def made(number):
    """A record with a truth of 10 columns per granularity and one absent target."""
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


ANSWERS = "scenes_easy/val/predictions.jsonl"


def answers_of(folder):
    return dict(stream_predictions(folder / ANSWERS, sizes_of(RECORDS), Problems()))


def entry_of(folder):
    """The only entry of a folder's metrics.json."""
    (entry,) = json.loads((folder / "metrics.json").read_text())
    return entry


def run_of(folder, data=None):
    """The only run of a folder."""
    (run,) = read_runs([folder], data)
    return run


def group_of(*folders):
    """The only benchmark of the folders."""
    (group,) = group_runs(read_runs(folders, None))
    return group


def texts_of(folder):
    """The written page and its Markdown."""
    page = report([folder])
    return page.read_text(), (page.parent / "report.md").read_text()


class Varied:
    """Answers with bars of all widths; rejects some targets and accepts some absent ones."""

    decision_rule = "token"
    question_template = EVALUATION_TEMPLATE

    def __init__(self):
        self.count = 0

    def encode_images(self, photos):
        return len(photos)

    def answer(self, encoded, texts, decoding, on_text=None):
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
    for module in ("eval.report.runs", "eval.score"):
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
        self.open, self.links, self.tags, self.scripts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]
        self.scripts += [dict(attrs).get("type", "")] if tag == "script" else []
        if tag not in ("meta", "img", "input") and not (tag == "line" and "x1" in dict(attrs)):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_complete_and_loads_nothing(folder):
    page = report([folder])
    assert page == folder / "report" / "index.html"
    text = page.read_text()
    parser = Parser()
    parser.feed(text)
    assert parser.open == [], "every tag is closed"
    assert not {"link", "iframe", "object", "base"} & set(parser.tags)
    assert parser.scripts == ["application/json", ""], "one block of data, one script"
    assert parser.links and all(link.startswith("data:image/") for link in parser.links)
    assert all(url.startswith("data:image/") for url in re.findall(r"url\(([^)]*)\)", text))
    assert "://" not in text and "@import" not in text
    assert "default-src 'none'" in text and 'name="viewport"' in text
    script = re.search(r"<script>(.*)</script>", text, re.S)[1]
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in text and "unsafe-eval" not in text
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttp", script)
    assert "<script>alert" not in text and NASTY in unescape(text)
    assert "say nothing about photographs" in text
    assert "Published numbers" not in text  # never beside scenes
    assert 'class="curve"' in text


def test_names_of_folders_are_escaped(folder, tmp_path):
    other = folder.rename(tmp_path / '<b>"a" & |b|')
    page, markdown = texts_of(other)
    assert "<b>" not in page.replace('<b class="', "") and "&lt;b&gt;&#34;a&#34; &amp; |b|" in page
    assert '- run: &lt;b&gt;"a" & \\|b\\|\n' in markdown


def cases_of(folder, per_name=3):
    return choose_cases(run_of(folder).cases, per_name)


def test_the_page_shows_every_chosen_case(folder):
    text = unescape(report([folder]).read_text())
    chosen = cases_of(folder)
    shown = [case for groups in chosen.values() for cases in groups.values() for case in cases]
    assert set(chosen) == {"part", "object", "multi", "none"}
    for name in ("part", "object", "multi"):
        assert list(chosen[name]) == ["best", "median", "worst", "false reject"]
    assert list(chosen["none"]) == ["false accept", "correct reject"]
    assert text.count("<figcaption><q>") == len(shown) >= 30
    for case in shown:
        assert case.expression.expression_id in text
        if case.targeted:
            assert f"IoU {case.iou:.2f}" in text
    for heading in ("Parts", "Objects", "Several objects", "No target", "all objects", "never reject"):
        assert heading in text


def test_best_median_and_worst_follow_the_iou(folder):
    chosen, everything = cases_of(folder), cases_of(folder, 99)
    for name in ("part", "object", "multi"):
        ious = sorted(c.iou for g in ("best", "median", "worst") for c in everything[name].get(g, []))
        best = [c.iou for c in chosen[name]["best"]]
        assert best == sorted(ious)[::-1][: len(best)]
        assert min(c.iou for c in chosen[name]["worst"]) == ious[0]
        middle = ious[len(ious) // 2]
        assert abs(chosen[name]["median"][0].iou - middle) < 0.15


def test_no_expression_is_shown_twice(folder):
    shown = [c.name for groups in cases_of(folder).values() for cs in groups.values() for c in cs]
    assert len(shown) == len(set(shown))


def test_cases_are_judged_as_the_entry_says(folder):
    """The protocol and the rule of rejection of the entry decide, not the file's flag alone."""
    run = run_of(folder)
    given = answers_of(folder)
    assert run.cases == judge_all(RECORDS, given, STRICT)
    entry = entry_of(folder)
    for rule, threshold, keep in (
        ("p_absent", 0.45, lambda p: p.p_absent > 0.45),
        ("empty_mask", None, lambda p: p.rle is None or not masks.area(p.rle)),
        ("flag", None, lambda p: p.rejected),
        ("no_seg", None, lambda p: "[SEG]" not in p.text),
    ):
        entry["rejection"] = {"rule": rule, "threshold": threshold, "tuned_on": None}
        write_json(folder / "metrics.json", [entry])
        run = run_of(folder)
        assert {c.name for c in run.cases if c.rejected} == {name for name, p in given.items() if keep(p)}


def test_a_folder_of_masks_is_shown_like_a_file(folder, tmp_path):
    pngs, other = tmp_path / "pngs", tmp_path / "other"
    given = answers_of(folder)
    for name, prediction in given.items():
        path = pngs / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros((H, W), bool) if prediction.rle is None else masks.decode(prediction.rle)
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    score(pngs, "scenes_easy/val", other, rejection=Rejection("empty_mask"))
    run = run_of(other)
    assert run.missing is None and {c.name for c in run.cases} == set(given)
    assert [c.iou for c in run.cases if c.targeted] == [c.iou for c in run_of(folder).cases if c.targeted]


def test_partial_answers_are_shown_where_scored_as_partial(folder):
    path = folder / ANSWERS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))
    assert "Single answers are not shown" in report([folder]).read_text()
    entry = entry_of(folder)
    write_json(folder / "metrics.json", [entry | {"partial": {"scored": 32, "expressions": 64}}])
    text = report([folder]).read_text()
    assert "Single answers are not shown" not in text and "32 of 64 expressions were answered" in text


def test_runs_of_several_folders_are_compared(folder, tmp_path):
    other = tmp_path / "other"
    score(folder / ANSWERS, "scenes_easy/val", other)
    text = report([folder, other]).read_text()
    assert "Side by side" in text and text.count(">scenes_easy/val</h2>") == 1
    assert "<small>run: IoU" in text and "<small>other: IoU" in text
    assert "where the runs differ" not in text.lower(), "equal answers differ nowhere"
    moved = [json.loads(line) for line in (folder / ANSWERS).open()]
    moved[5] |= {"rejected": False, "mask": masks.encode(bar(10))}
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(line) + "\n" for line in moved))
    score(changed, "scenes_easy/val", other)
    assert "Where the runs differ most" in report([folder, other]).read_text()


def test_several_benchmarks_have_a_section_each_and_links_to_it(folder):
    whole = {"benchmark": "refcoco", "predictions": None, "n_images": 1500, "n_expressions": 10_834}
    write_metrics(folder / "metrics.json", [entry_of(folder) | whole])
    page, markdown = texts_of(folder)
    for k, title in enumerate(("scenes_easy/val", "refcoco/val")):
        assert f'<a href="#g{k}">{title}</a>' in page and f'<h2 id="g{k}">{title}</h2>' in page
    assert page.count('<div class="browser-part">') == 1 and page.count("Single answers are not shown") == 1
    assert page.count("Published numbers") == 1, "not beside scenes"
    assert "## scenes\\_easy/val\n" in markdown and "## refcoco/val\n" in markdown


def test_equal_names_of_folders_are_numbered(folder, tmp_path):
    other = tmp_path / "elsewhere" / "run"
    score(folder / ANSWERS, "scenes_easy/val", other)
    group = group_of(folder, other)
    assert [run.label for run in group.runs] == ["run", "run #2"]
    rows = csv.DictReader((report([folder, other]).parent / "summary.csv").open())
    assert [row["run"] for row in rows] == ["run", "run #2"]


def test_labels_of_one_folder_name_what_differs(folder):
    changes = {
        "second.jsonl": {"predictions": "x/second.jsonl"},
        "partial": {"partial": {"scored": 32, "expressions": 64}},
        "first 4 pictures": {"limit": 4},
        "p_absent above 0.25": {"rejection": {"rule": "p_absent", "threshold": 0.25, "tuned_on": None}},
        "p_absent above 0.5": {"rejection": {"rule": "p_absent", "threshold": 0.5, "tuned_on": None}},
    }
    write_metrics(folder / "metrics.json", [entry_of(folder) | change for change in changes.values()])
    labels = [run.label for run in group_of(folder).runs][1:]
    for label, words in zip(labels, changes, strict=True):
        assert words in label and "#" not in label, labels


def test_a_report_without_predictions_holds_the_scores(folder):
    (folder / ANSWERS).unlink()
    text = report([folder]).read_text()
    assert "Single answers are not shown" in text and "Compared with trivial answers" in text
    assert "<script" not in text and "script-src" not in text, "no answers, no script"


def test_deleted_photos_remove_only_the_pictures(folder, tmp_path, monkeypatch):
    records = []
    for record in RECORDS:
        path = tmp_path / f"{record.image_id}.png"
        Image.fromarray(record.pixels).save(path)
        records.append(replace(record, pixels=None, path=str(path)))
    monkeypatch.setattr("eval.report.runs.load_records", lambda name, data, limit=None: records[:limit])
    assert "Pictures are not shown" not in report([folder]).read_text()
    for record in records[1:]:  # the first one stays: a gallery is complete or left out
        Path(record.path).unlink()
    text = unescape(report([folder]).read_text())
    assert re.search(r"Pictures are not shown: \S+im\d+\.png: no such photo", text)
    assert "Compared with trivial answers" in text and "All scores" in text and 'class="curve"' in text
    assert "<figcaption><q>" not in text
    assert f"{len(records) - 1} of {len(records)} could not be read" in text, "the browser still works"


def test_folders_without_scores_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no metrics"):
        report([tmp_path])
    (tmp_path / "metrics.json").write_text('[{"benchmark": "x"}]')
    with pytest.raises(InputError, match="score it again"):
        report([tmp_path])


@pytest.mark.parametrize("name", ["index.html", "report.md", "summary.csv"])
def test_a_file_that_no_report_wrote_stays(folder, name):
    theirs = folder / "report" / name
    theirs.parent.mkdir()
    theirs.write_text("mine")
    with pytest.raises(InputError, match=rf"{re.escape(str(theirs))} was not written by .* move it away"):
        report([folder])
    assert theirs.read_text() == "mine" and list(theirs.parent.iterdir()) == [theirs]


def test_a_report_replaces_its_own_files_and_no_others(folder):
    page = report([folder])
    others = [page.parent / "notes.txt", page.parent / "index.html.old", page.parent / "figures" / "a.png"]
    others[2].parent.mkdir()
    for path in others:
        path.write_text("mine")
    before = {name: (page.parent / name).stat().st_mtime_ns for name in MARKS}
    report([folder])
    assert all(path.read_text() == "mine" for path in others)
    assert all((page.parent / name).stat().st_mtime_ns > before[name] for name in MARKS)


def test_a_folder_that_is_named_twice_is_reported_once(folder):
    text = report([folder, folder]).read_text()
    assert text.count('class="curve"') == text.count("All scores") == 1


def test_a_file_in_the_place_of_the_report_folder_stays(folder):
    (folder / "report").write_text("mine")
    with pytest.raises(InputError, match="needs a folder of this name"):
        report([folder])
    assert (folder / "report").read_text() == "mine"


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize("size", [(64, 64), (96, 70), (480, 640), (1, 1), (3, 900)])
def test_mask_layers_cover_the_mask(size):
    rng = np.random.default_rng(0)
    mask = np.zeros(size, bool)
    mask[rng.integers(size[0]), rng.integers(size[1])] = True  # one pixel must stay visible
    shape = shape_of(mask)
    layer = np.asarray(decoded(mask_uri(shape, TRUTH)).convert("RGBA"))
    assert layer.shape[:2] == shown_size(*size) and max(layer.shape) <= 480
    clear = layer[..., 3] == 0
    y, x = np.argwhere(mask)[0]
    at_y, at_x = int((y + 0.5) * layer.shape[0] / size[0]), int((x + 0.5) * layer.shape[1] / size[1])
    assert clear[max(0, at_y - 1) : at_y + 2, max(0, at_x - 1) : at_x + 2].any()
    assert clear.sum() == max(1, clear.size // mask.size)
    assert (layer[~clear][:, 3] > 100).all(), "outside lies under a veil"
    assert mask.size == 1 or (layer[..., :3] == TRUTH).all(axis=2).any()
    photo = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    with_zoom = np.asarray(decoded(mask_uri(shape, TRUTH, photo)).convert("RGBA"))
    assert np.array_equal(with_zoom[clear], layer[clear])
    zoomed = min(layer.shape[:2]) > 100 and mask.size > 1
    assert np.array_equal(with_zoom, layer) != zoomed, "a small part is shown zoomed"


def test_small_pictures_are_embedded_exactly_and_large_ones_are_reduced():
    small = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    assert (np.asarray(decoded(photo_uri(small))) == small).all()
    assert decoded(photo_uri(np.zeros((700, 1400, 3), np.uint8))).size == (480, 240)


def test_published_numbers_are_complete_and_as_recorded():
    rows = read_published()
    assert (len(rows), sum(len(row.values) for row in rows)) == (145, 392)
    assert len({(r.benchmark, r.setting, r.method, r.metric) for r in rows}) == len(rows)
    for row in rows:
        assert row.values and all(0 < value < 100 for value in row.values.values())
        assert row.source and row.protocol and "//" not in row.source
        assert row.decoding in ("generated", "teacher-forced", "no text answer", "not checked")
    found = {(r.benchmark, r.setting, r.method, r.metric): r.values for r in rows}
    assert found["grefcoco", "all", "UniRES++", "gIoU"] == {"val": 74.4, "testA": 76.0, "testB": 69.8}
    assert found["refcocom", "part", "UniRES", "mIoU"] == {"val": 19.6, "testA": 16.4, "testB": 25.2}
    assert found["grefcoco", "all", "STAMP-7B", "cIoU"] == {"val": 73.6, "testA": 77.2, "testB": 71.6}
    assert found["refcocom", "part", "SAM3", "mIoU"] == {"val": 12.3, "testA": 9.0, "testB": 20.7}
    vasa = "VASA (Qwen3-VL-32B-Thinking + SAM3)"
    assert found["refcocom", "object and part", vasa, "mIoU"] == {"val": 51.1, "testA": 47.4, "testB": 54.1}
    assert found["refcocog_umd", "all", "DeRIS-L", "mIoU"] == {"val": 80.01, "test": 81.32}
    assert sum(row.secondary for row in rows) == 24
    assert [row.method for row in rows if not row.split_stated] == ["UniRES++ (split inferred)"]
    assert all(row.split_stated == ("inferred" not in row.method) for row in rows)
    names = ("testA_part_only", "val_object_part", "val_part", "val")
    assert [split_and_setting(name) for name in names] == [
        ("testA", "part"), ("val", "object and part"), ("val", "part"), ("val", "all")
    ]  # fmt: skip


def test_kinds_of_systems_never_share_a_table():
    rows = read_published()
    kinds = {}
    for row in rows:
        assert (row.kind is Kind.TEACHER_FORCED) == (row.decoding == "teacher-forced"), row
        kinds.setdefault(row.method, set()).add(row.kind)
    assert all(len(found) == 1 for found in kinds.values()), "a method is of one kind"
    tables = published_tables([fake_run("refcocom", "val_part_only", mIoU=1.2)])
    assert [kind for kind, _ in tables] == list(Kind)
    for kind, table in tables:
        assert table.header == ("method", "setting", "metric", "decoding", "protocol", "source", "value")
        expected = {
            row.method
            for row in rows
            if (row.benchmark, row.setting, row.kind) == ("refcocom", "part", kind)
            and "val" in row.values
            and row.split_stated
        }
        own = {"fake (this report)"} if kind is Kind.TRAINED else set()
        assert {row[0] for row in table.rows} == expected | own and expected
        assert any("1.2" in row for row in table.rows) == bool(own)
    for benchmark in ("scenes", "mini_real"):
        assert published_tables([fake_run(benchmark, "val")]) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({}, None), ({"n_images": 1480, "n_expressions": 10_700}, None),
     ({"n_images": 6}, "6 pictures, the benchmark has 1,500"),
     ({"n_images": 12, "limit": 12}, "12 pictures, the benchmark has 1,500"),
     ({"n_expressions": 3_811}, "3,811 expressions, the benchmark has 10,834"),
     ({"n_expressions": 3_811, "protocol": "cris-validate"}, None),
     ({"partial": {"scored": 10_800, "expressions": 10_834}}, None),
     ({"benchmark": "grefcoco", "n_expressions": 9, "partial": {"scored": 9, "expressions": 20}},
      "9 answers, the benchmark has 20"),
     # gRefCOCO's number of expressions is quoted, not confirmed
     ({"benchmark": "grefcoco", "n_expressions": 15_000}, None),
     ({"n_images": None, "n_expressions": None}, "how many pictures were scored is not known")],
)  # fmt: skip
def test_published_numbers_stand_only_beside_the_same_pictures_and_expressions(changes, reason):
    run = fake_run("refcoco", "val", cIoU=50.0)
    run = replace(run, entry={**run.entry, **changes})
    assert bool(published_tables([run])) == (reason is None)
    assert not_compared([run]) == ([] if reason is None else [("fake", reason)])


def test_only_the_runs_of_the_whole_benchmark_stand_beside_published_numbers():
    whole = fake_run("refcoco", "val", cIoU=50.0)
    part = replace(whole, label="part", entry={**whole.entry, "n_images": 100, "limit": 100})
    for runs in ([part, whole], [whole, part]):
        rows = [row for _, table in published_tables(runs) for row in table.rows]
        assert sum("this report" in row[0] for row in rows) == 2  # cIoU and mIoU
        assert not any(row[0].startswith("part") for row in rows)
        assert [label for label, _ in not_compared(runs)] == ["part"]
    assert not_compared([fake_run("scenes", "val")]) == []


@pytest.mark.parametrize(
    ("benchmark", "split", "shown", "hidden"),
    [("refcocom", "val_part_only", "VASA (Qwen3-VL-32B-Thinking + SAM3)", "UniRES++ (split inferred)"),
     ("gseval", "val", "EVF-SAM + GSTrain-10M", "GSVA-13B (GroundingSuite's run)"),
     ("gseval", "val_part", "GSVA-13B (GroundingSuite's run)", "EVF-SAM + GSTrain-10M"),
     ("reasonseg", "test", "X2SAM", "UniRES++"), ("refcoco_m", "val", "Moondream Segmentation", "EVF-SAM")],
)  # fmt: skip
def test_published_numbers_are_those_of_the_split_and_setting(benchmark, split, shown, hidden):
    names = {row[0] for _, table in published_tables([fake_run(benchmark, split)]) for row in table.rows}
    assert shown in names and hidden not in names


def fake_run(benchmark, split, **overall):
    """A run that scored the whole of a benchmark, by its published counts."""
    known = published_of(benchmark, split)
    entry = {"benchmark": benchmark, "split": split, "protocol": "strict", "overall": overall}
    if known is not None:
        entry |= {"n_images": known.images, "n_expressions": known.sentences}
    return Run("fake", Path("fake"), entry, (), None)


def blocks(text):
    """JSON data of a page, as a browser reads it: everything to the first end of a script."""
    return [
        json.loads(m) for m in re.findall(r'<script type="application/json"[^>]*>(.*?)</script', text, re.S)
    ]


def test_the_data_of_the_browser_is_what_was_scored(folder):
    (data,) = blocks(report([folder]).read_text())
    run = run_of(folder)
    assert data["id"] == [c.name for c in run.cases] and data["text"] == [
        c.expression.text for c in run.cases
    ]
    column = data["runs"][0]
    for k, case in enumerate(run.cases):
        assert column["iou"][k] == round(case.iou, 4)
        assert data["outcomes"][column["outcome"][k]] == case.outcome
        assert column["absent"][k] == case.prediction.p_absent
        assert data["images"][data["image"][k]][:2] == [H, W]
        for index, rle in (
            (data["truth"][k], case.expression.rle),
            (column["mask"][k], None if case.rejected else case.prediction.rle),
        ):
            if rle is None or not masks.area(rle):
                assert index == -1
            else:
                code = {"size": [H, W], "counts": data["masks"][index]}
                assert (masks.decode(code) == masks.decode(rle)).all()
    assert len(data["masks"]) == len(set(data["masks"])), "each mask once"


@pytest.mark.parametrize("text", ["</script>", "<!--", "<SCRIPT>", "</ScRiPt ", "\u2028", "\\u003c/", "'\"&"])
def test_no_text_ends_the_data_of_the_browser(text):
    data = {"runs": [{"label": text}], "outcomes": [text], "granularities": [text], text: 1}
    html = template("browser.html").render(section={"browser": (text, data)}, number=0)
    assert blocks(html) == [data]
    assert len(re.findall("<script|</script|<!--", html, re.I)) == 2


def test_masks_of_large_photos_are_reduced_and_small_things_stay():
    found = browser.MaskTable(256)
    dot = np.zeros((480, 640), bool)
    dot[100, 200] = True
    half = np.zeros((480, 640), bool)
    half[:, :320] = True
    assert found.index(masks.encode(dot)) == 0 and found.index(masks.encode(half)) == 1
    assert found.index(masks.encode(dot)) == 0 and found.index(None) == -1
    assert found.index(masks.empty(480, 640)) == -1
    small = [masks.decode({"size": [192, 256], "counts": code}) for code in found.codes]
    assert small[0].sum() == 1 and small[0][40, 80]
    assert (small[1] == (np.arange(256) < 128)).all()


def test_photos_fit_into_their_budget():
    rng = np.random.default_rng(0)
    records = [
        ImageRecord(f"p{k}", 300, 400, (), pixels=rng.integers(0, 255, (300, 400, 3), dtype=np.uint8))
        for k in range(6)
    ]
    large, small, none = (browser.thumbnails(records, size) for size in (10**7, 120_000, 10_000))
    assert (large.side, small.side) == browser.SIDES
    assert sum(map(len, small.uris.values())) <= 120_000 < sum(map(len, large.uris.values()))
    assert none.uris == {} and "left out" in none.note


def test_markdown_has_the_tables_and_escapes_texts(folder):
    text = (report([folder]).parent / "report.md").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "| scenes\\_easy/val |" in text and "say nothing about photographs" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(tables) >= 6
    for table in tables:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


def test_the_summary_holds_one_row_per_score(folder):
    (row,) = csv.DictReader((report([folder]).parent / "summary.csv").open())
    entry = entry_of(folder)
    assert row["benchmark"] == "scenes_easy" and row["split"] == "val" and row["protocol"] == "strict"
    assert float(row["gIoU"]) == pytest.approx(entry["overall"]["gIoU"], abs=1e-4)
    assert float(row["mIoU part"]) == pytest.approx(entry["by_granularity"]["part"]["mIoU"], abs=1e-4)
    assert row["checkpoint"] == "step:12" and row["numpy"] == np.__version__ and row["commit"]
    assert row["twin_score"] == ""


def test_optional_scores_are_shown(folder):
    entry = entry_of(folder)
    between = {"gIoU": [30.0, 41.5], "cIoU": None}
    entry |= {
        "by_size": {"small": entry["overall"], "large": entry["overall"]},
        "by_length": {"1-2": entry["overall"]},
        "intervals": {
            **{"level": 0.95, "resamples": 1000, "seed": 0, "images": 16},
            **{"overall": between, "by_granularity": {}, "twin_score": None},
        },
        "padded_world_size": 8,
        "padded_expressions": 3,
    }
    entry["counts"] |= {"by_size": {"small": {"n": 7}, "large": {"n": 0}}, "by_length": {"1-2": {"n": 5}}}
    write_json(folder / "metrics.json", [entry])
    for text in texts_of(folder):
        assert "size small" in text and "size large" not in text and "words 1-2" in text
        assert re.search(r"\[30\.0, 41\.5\\?\]", text) and "8 processes" in text


def test_two_protocols_of_the_same_answers_are_two_rows_and_one_gallery(folder):
    entry = entry_of(folder)
    write_metrics(folder / "metrics.json", [entry | {"protocol": "unheard-of"}])
    group = group_of(folder)
    assert [run.label for run in group.runs] == ["run (strict)", "run (unheard-of)"]
    assert len(group.answered) == 1 and "unknown protocol" in group.runs[1].missing
    assert report([folder]).read_text().count('<div class="browser-part">') == 1


def test_the_rule_of_scoring_is_shown_and_not_the_models_own(folder):
    """An entry that was scored by another rule still names the model's own."""
    entry = entry_of(folder)
    assert entry["decoding"]["rule"] == "token"
    by_hand = {"rule": "p_absent", "threshold": 0.25, "tuned_on": None}
    tuned = by_hand | {"threshold": 0.5, "tuned_on": "scenes_easy/val"}
    empty = {"rule": "empty_mask", "threshold": None, "tuned_on": None}
    write_metrics(
        folder / "metrics.json", [entry | {"rejection": rejection} for rejection in (empty, by_hand, tuned)]
    )
    page = report([folder])
    rows = list(csv.DictReader((page.parent / "summary.csv").open()))
    assert [row["rejected_by"] for row in rows] == ["token", "empty_mask", "p_absent", "p_absent"]
    text = (page.parent / "report.md").read_text()
    for words in ("token", r"empty\_mask", r"p\_absent &gt; 0.25, set by hand",
                  r"p\_absent &gt; 0.5, tuned on scenes\_easy/val"):  # fmt: skip
        assert f"- rejected by: {words}\n" in text


def test_each_threshold_and_limit_is_a_set_of_answers(folder):
    """Histograms, curves and the browser show each of them."""
    entry = entry_of(folder)
    absent = [{"rule": "p_absent", "threshold": x, "tuned_on": None} for x in (0.25, 0.5)]
    write_json(
        folder / "metrics.json",
        [
            entry | {"limit": 4, "problems": "48 unknown ids"},
            entry,
            *(entry | {"rejection": rejection} for rejection in absent),
        ],
    )
    group = group_of(folder)
    assert [len(run.cases) for run in group.answered] == [16, 64, 64, 64]
    rejected = [sum(c.rejected for c in run.cases) for run in group.answered[2:]]
    assert rejected[0] > rejected[1]


def test_part_of_a_benchmark_is_marked_beside_published_numbers(folder):
    entry = entry_of(folder)
    entry |= {"benchmark": "refcoco", "n_images": 1500, "n_expressions": 10_800}
    write_json(folder / "metrics.json", [entry | {"partial": {"scored": 10_800, "expressions": 10_834}}])
    for text in texts_of(folder):
        assert "trained, single pass" in text
        assert "run (this report, only 10,800 of 10,834 expressions)" in text
    write_json(folder / "metrics.json", [entry | {"limit": 12, "n_images": 12}])
    for text in texts_of(folder):
        assert "trained, single pass" not in text
        assert "run is not beside published numbers: 12 pictures, the benchmark has 1,500" in text


@pytest.mark.skipif(not MINI_REAL.is_dir(), reason="the shared photographs are not on this machine")
def test_report_on_real_photographs(tmp_path):
    records = load_records("mini_real/val", MINI_REAL)
    path = evaluate(Halves(records), records, "mini_real/val", Decoding(), tmp_path / "mini_real/val")
    entry = score_file(path, records, "mini_real/val") | origin(path, tmp_path, MINI_REAL, None)
    write_metrics(tmp_path / "metrics.json", [entry])
    page = report([tmp_path])
    assert page.stat().st_size < 3_000_000
    text = page.read_text()
    assert "://" not in text and text.count("<figcaption><q>") >= 12


class Halves(Varied):
    """Answers with the left part of whatever photo it is given."""

    def __init__(self, records):
        super().__init__()
        self.records = records

    def encode_images(self, photos):
        return [photo.shape[:2] for photo in photos]

    def answer(self, encoded, texts, decoding, on_text=None):
        answers = []
        for (height, width), given in zip(encoded, texts, strict=True):
            for k, _ in enumerate(given):
                mask = np.zeros((height, width), bool)
                mask[:, : width * (k + 1) // (len(given) + 1)] = True
                answers.append(Prediction(k % 5 == 4, None if k % 5 == 4 else masks.encode(mask), "[SEG]."))
        return answers


@pytest.mark.skipif(not MINI_REAL.is_dir(), reason="the shared photographs are not on this machine")
def test_a_moved_store_is_found_by_its_data_folder(tmp_path):
    made, split = tmp_path / "made" / "refcoco", "refcoco/val"
    records = load_benchmark(split, MINI_REAL)
    write_store(made, Preparation("refcoco", {"val": lambda: (records, {})}, image_root=MINI_REAL))
    answers = tmp_path / "answers.jsonl"
    with JsonlWriter(answers) as lines:
        for record in records:
            for e in record.expressions:
                lines.write(to_json(e.expression_id, Prediction(False, e.rle, None)))
    out = tmp_path / "run"
    score(answers, f"{made}/val", out)
    data = tmp_path / "moved"
    (data / "stores").mkdir(parents=True)
    made.rename(data / "stores" / "refcoco")
    run = run_of(out)
    assert run.missing is not None and run.missing.startswith(
        f"{made}/val: the store does not exist any more"
    )
    for place in (data, MINI_REAL):  # the store, the native files
        run = run_of(out, place)
        assert run.missing is None and len(run.cases) == 15
