"""Evaluation of stub models on made pictures: truth stays outside, stopping is cheap, mixing is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import eval.__main__ as program
import eval.compare as compare_module
import eval.run as run_module
import eval.score as score_module
from uniresxx.checkpoints.folders import checkpoint_identity
from uniresxx.data.store.photos import photo_of
from uniresxx.data.store.write import Preparation, write_store
from uniresxx.errors import InputError
from uniresxx.evaluation.ahead import THREADS, ahead
from uniresxx.evaluation.dialogues import evaluate_dialogues
from uniresxx.evaluation.metrics_file import read_metrics, score_file, write_metrics
from uniresxx.evaluation.regions import box_recall
from uniresxx.evaluation.run import evaluate
from uniresxx.evaluation.talk_scores import judge_phrases
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import SCORE_KEYS
from uniresxx.segmenters import load
from uniresxx.segmenters.base import Segmenter
from uniresxx.testing import ColourSegmenter
from uniresxx.types import (
    EVALUATION_TEMPLATE,
    Decoding,
    Dialogue,
    Expression,
    Granularity,
    ImageRecord,
    Phrase,
    Question,
    Turn,
)

ROOT = Path(__file__).resolve().parents[1]
H, W = 12, 16
G = Granularity


def box_mask(y0, x0, y1, x1):
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def made(number, dialogues=False):
    """One picture whose pixels name it; a part inside an object inside a group, and something absent."""
    shapes = {
        G.PART: box_mask(2, 2, 4, 4),
        G.OBJECT: box_mask(1, 1, 6, 6),
        G.MULTI: box_mask(1, 1, 6, 6) | box_mask(7, 9, 11, 15),
        G.NONE: None,
    }
    expressions = tuple(
        Expression(
            f"made/val/{number}_{g.value}",
            f"{g.value} {number}",
            g,
            None if shape is None else masks.encode(shape),
            0 if shape is None else int(shape.sum()),
            level=1 + number % 2,
            twin=None if g is G.NONE else "t",
        )
        for g, shape in shapes.items()
    )
    part, thing = expressions[0], expressions[1]
    talk = Dialogue(
        f"d{number}",
        (
            Turn(thing.text, (Phrase(thing.text, thing.rle, G.OBJECT),)),
            Turn(
                "and its part? and a cow?", (Phrase(part.text, part.rle, G.PART), Phrase("cow", None, G.NONE))
            ),
        ),
    )
    pixels = np.full((H, W, 3), number, np.uint8)
    return ImageRecord(
        f"im{number}", H, W, expressions, pixels=pixels, dialogues=(talk,) if dialogues else ()
    )


RECORDS = [made(k) for k in range(5)]


class Stub:
    """A model given as a function (photo number, text) -> Prediction; counts its calls."""

    decision_rule = "token"
    question_template = EVALUATION_TEMPLATE
    finds_instances = False

    def __init__(self, answer, stop_after=None):
        self.reply, self.stop_after = answer, stop_after
        self.encodings, self.answers, self.asked = 0, 0, []

    def encode_images(self, photos):
        self.encodings += 1
        assert all(p.dtype == np.uint8 and p.shape == (H, W, 3) for p in photos)
        return [int(photo[0, 0, 0]) for photo in photos]

    def join_images(self, encoded):
        return [number for numbers in encoded for number in numbers]

    def split_images(self, encoded):
        return [[number] for number in encoded]

    def answer(self, encoded, texts, decoding, on_text=None):
        assert len(encoded) == len(texts)
        self.answers += 1
        if self.stop_after is not None and self.answers > self.stop_after:
            raise KeyboardInterrupt
        self.asked += [(n, text) for n, given in zip(encoded, texts, strict=True) for text in given]
        return [self.reply(n, text) for n, given in zip(encoded, texts, strict=True) for text in given]


TRUTH = {(k, e.text): e.rle for k, r in enumerate(RECORDS) for e in r.expressions}


def perfect(number, text):
    rle = TRUTH[number, text]
    return Prediction(rle is None, rle, "[REJ]." if rle is None else "[SEG].", 1.0, float(rle is None))


def always(rejected, mask):
    return lambda number, text: Prediction(rejected, None if mask is None else masks.encode(mask), "x", 0.5)


EMPTY, FULL = np.zeros((H, W), bool), np.ones((H, W), bool)


def score(tmp_path, answer, records=RECORDS):
    path = evaluate(Stub(answer), records, "made/val", Decoding(), tmp_path)
    return score_file(path, records, "made/val")


def test_stub_is_a_segmenter():
    assert isinstance(Stub(perfect), Segmenter)


def test_perfect_model_scores_100_everywhere(tmp_path):
    entry = score(tmp_path, perfect)
    assert set(entry["overall"].values()) == {100.0}
    assert entry["twin_score"] == 100 and entry["twin_groups"] == 5
    assert entry["by_granularity"]["none"]["mIoU"] is None
    assert entry["by_granularity"]["part"]["N-acc"] is None


def test_empty_masks(tmp_path):
    entry = score(tmp_path, always(False, EMPTY))
    assert entry["overall"] == {key: 100.0 if key == "T-acc" else 0.0 for key in SCORE_KEYS}


def test_always_rejecting(tmp_path):
    entry = score(tmp_path, always(True, None))
    assert entry["overall"]["gIoU"] == 25 and entry["overall"]["N-acc"] == 100
    assert entry["overall"]["mIoU"] == entry["overall"]["T-acc"] == entry["overall"]["cIoU"] == 0
    assert entry["overall"] == entry["trivial"]["always_reject"]["overall"]
    assert entry["no_answer"] == 20  # its text holds neither mark


def test_cut_off_answers_are_counted_and_printed(tmp_path):
    whole = score(tmp_path / "whole", perfect)
    assert whole["truncated"] == 0 and not any("truncated" in line for line in score_module.notes(whole))
    cut = score(tmp_path / "cut", lambda n, text: replace(perfect(n, text), truncated=n == 1))
    assert cut["truncated"] == cut["counts"]["overall"]["truncated"] == len(RECORDS[1].expressions)
    assert any(line.startswith(f"truncated: {cut['truncated']} answers") for line in score_module.notes(cut))
    assert whole["overall"] == cut["overall"]


def test_full_masks(tmp_path):
    entry = score(tmp_path, always(False, FULL))
    areas = {"part": 4, "object": 25, "multi": 49}
    for name, area in areas.items():
        assert entry["by_granularity"][name]["mIoU"] == pytest.approx(100 * area / (H * W))
    # per picture: the three truths over four whole pictures (the absent one adds its pixels to the union)
    assert entry["overall"]["cIoU"] == pytest.approx(100 * sum(areas.values()) / (4 * H * W))
    assert entry["overall"]["N-acc"] == 0 and entry["overall"]["T-acc"] == 100


def test_trivial_answers(tmp_path):
    reply = Prediction(True, None, "[REJ].", mask_if_forced=masks.encode(FULL))
    trivial = score(tmp_path, lambda number, text: reply)["trivial"]
    objects = trivial["all_objects"]
    assert objects["by_granularity"]["multi"]["mIoU"] == 100
    assert objects["by_granularity"]["object"]["mIoU"] == pytest.approx(100 * 25 / 49)
    assert objects["by_granularity"]["part"]["mIoU"] == pytest.approx(100 * 4 / 49)
    assert (objects["overall"]["N-acc"], objects["overall"]["T-acc"]) == (0, 100)
    forced = trivial["never_reject"]["overall"]
    assert (forced["N-acc"], forced["T-acc"]) == (0, 100)
    assert forced["mIoU"] == pytest.approx(100 * (4 + 25 + 49) / 3 / (H * W))


def test_a_batch_is_encoded_once_and_all_its_expressions_are_answered_in_one_call(tmp_path):
    stub = Stub(perfect)
    evaluate(stub, RECORDS, "made/val", Decoding(), tmp_path, batch_images=2)
    assert (stub.encodings, stub.answers, len(stub.asked)) == (3, 3, 20)


def photographed(folder, damaged=()):
    """RECORDS with their photos in files."""
    records = []
    for k, record in enumerate(RECORDS):
        path = folder / f"{k}.png"
        Image.fromarray(record.pixels).save(path)
        if k in damaged:
            path.write_bytes(path.read_bytes()[:40])
        records.append(replace(record, pixels=None, path=str(path)))
    return records


def test_photos_are_decoded_ahead_and_answered_in_order(tmp_path, monkeypatch):
    decoded, answered = [], []
    plain = photo_of
    monkeypatch.setattr(
        "uniresxx.evaluation.run.photo_of", lambda record: decoded.append(record.image_id) or plain(record)
    )

    class Slow(Stub):
        def encode_images(self, photos):
            deadline = time.monotonic() + 10
            while len(decoded) < min(5, 2 * (self.encodings + 2)) and time.monotonic() < deadline:
                time.sleep(0.01)  # the next batch is decoded while this one is answered
            answered.append(len(decoded))
            return super().encode_images(photos)

    found = evaluate(
        Slow(perfect), photographed(tmp_path), "made/val", Decoding(), tmp_path / "a", batch_images=2
    )
    assert sorted(decoded) == sorted(r.image_id for r in RECORDS) and answered[0] >= 4
    whole = evaluate(Stub(perfect), RECORDS, "made/val", Decoding(), tmp_path / "b", batch_images=2)
    assert found.read_bytes() == whole.read_bytes()
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead") and decoding(t)]


def decoding(thread):
    """Whether a thread is still there a moment later."""
    thread.join(timeout=10)
    return thread.is_alive()


def test_a_damaged_photo_ends_the_evaluation_where_its_batch_comes(tmp_path):
    records = photographed(tmp_path, damaged=(3,))
    with pytest.raises(InputError, match=r"3\.png: .*damaged"):
        evaluate(Stub(perfect), records, "made/val", Decoding(), tmp_path / "a", batch_images=2)
    assert len((tmp_path / "a" / "predictions.jsonl").read_text().splitlines()) == 8  # the batch before


def test_work_ahead_is_bounded_in_order_and_stops_when_it_is_closed():
    begun, held = [], threading.Event()

    def work(number):
        begun.append(number)
        held.wait(10)
        return -number

    results = ahead(work, range(100), 3)
    held.set()
    assert [next(results) for _ in range(4)] == [0, -1, -2, -3] and len(begun) <= 7
    held.clear()
    results.close()
    held.set()
    assert len(begun) <= 7 + THREADS
    assert list(ahead(lambda n: n * n, range(5), 2)) == [0, 1, 4, 9, 16] and not list(ahead(str, [], 2))


def test_warnings_are_shown_again_after_threads_have_decoded_together(tmp_path):
    records = photographed(tmp_path) * 20
    before = list(warnings.filters)
    for _ in ahead(photo_of, records, 8):
        pass
    assert warnings.filters == before


def test_interrupted_evaluation_continues_to_the_same_file(tmp_path):
    whole = evaluate(Stub(perfect), RECORDS, "made/val", Decoding(), tmp_path / "a", batch_images=2)
    stub = Stub(perfect, stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        evaluate(stub, RECORDS, "made/val", Decoding(), tmp_path / "b", batch_images=2)
    path = tmp_path / "b" / "predictions.jsonl"
    assert len(path.read_text().splitlines()) == 8
    path.write_bytes(path.read_bytes()[:-9])  # and the machine stopped in the middle of a line
    seen = []
    stub = Stub(perfect)
    evaluate(
        stub,
        RECORDS,
        "made/val",
        Decoding(),
        tmp_path / "b",
        batch_images=2,
        progress=lambda *c: seen.append(c),
    )
    assert path.read_bytes() == whole.read_bytes()
    assert len(stub.asked) == 20, "a batch that was cut off is asked again as a whole"
    assert seen[0] == (0, 20) and seen[-1] == (20, 20)
    again = Stub(perfect)
    evaluate(again, RECORDS, "made/val", Decoding(), tmp_path / "b")
    assert again.encodings == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "b"}, "checkpoint: a -> b"),
        ({"decoding": Decoding(rule="token_and_presence")}, "decoding.rule: token -> token_and_presence"),
        ({"decoding": Decoding(template="Find {expression}.")}, "decoding.template"),
        ({"records": RECORDS[:4]}, "n_expressions: 20 -> 16"),
        ({"benchmark": "made/test"}, "benchmark: made/val -> made/test"),
        ({"records": [*RECORDS[:4], ImageRecord("im4", H, W, RECORDS[3].expressions)]}, "benchmark_sha256"),
    ],
)
def test_another_evaluation_is_refused_with_the_difference(tmp_path, change, message):
    same = {
        "records": RECORDS,
        "benchmark": "made/val",
        "decoding": Decoding(),
        "checkpoint": "a",
        "out": tmp_path,
    }
    evaluate(Stub(perfect), **same)
    before = (tmp_path / "predictions.jsonl").read_bytes()
    with pytest.raises(InputError, match=message):
        evaluate(Stub(always(True, None)), **(same | change))
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_fresh_starts_over(tmp_path):
    evaluate(Stub(perfect), RECORDS, "made/val", Decoding(), tmp_path, checkpoint="a")
    path = evaluate(
        Stub(always(True, None)), RECORDS, "made/val", Decoding(), tmp_path, checkpoint="b", fresh=True
    )
    assert score_file(path, RECORDS, "made/val")["overall"]["T-acc"] == 0


def test_predictions_of_unknown_origin_are_not_continued(tmp_path):
    (tmp_path / "predictions.jsonl").write_text("")
    with pytest.raises(InputError, match=r"without its evaluation\.json, so .* did not write it"):
        evaluate(Stub(perfect), RECORDS, "made/val", Decoding(), tmp_path)


@pytest.mark.parametrize("name", ["predictions.jsonl", "images.jsonl", "dialogues.jsonl", "chats.jsonl"])
@pytest.mark.parametrize("fresh", [False, True])
def test_files_of_another_origin_stay_as_they_are(tmp_path, name, fresh):
    """Without evaluation.json nobody knows that they are ours: they are neither continued, cut nor removed."""
    (tmp_path / name).write_text('{"mine": 1}\n{"cut')
    with pytest.raises(InputError, match="move it away or use another --out"):
        evaluate(Stub(perfect), RECORDS, "made/val", Decoding(), tmp_path, fresh=fresh)
    assert (tmp_path / name).read_text() == '{"mine": 1}\n{"cut'
    assert [path.name for path in tmp_path.glob("[!.]*")] == [name]


@pytest.mark.parametrize("content", ["[1, 2]", '{"tool": "another"}', "not JSON"])
def test_another_evaluation_json_stays_as_it_is(tmp_path, content):
    (tmp_path / "evaluation.json").write_text(content)
    (tmp_path / "predictions.jsonl").write_text("theirs")
    for fresh in (False, True):
        with pytest.raises(InputError, match="was not written by `eval run`"):
            evaluate(Stub(perfect), RECORDS, "made/val", Decoding(), tmp_path, fresh=fresh)
    assert (tmp_path / "evaluation.json").read_text() == content
    assert (tmp_path / "predictions.jsonl").read_text() == "theirs"


def test_fresh_removes_the_evaluation_and_nothing_else(tmp_path):
    evaluate(Stub(perfect), RECORDS, "made/val", Decoding(), tmp_path, checkpoint="a")
    (tmp_path / "notes.txt").write_text("mine")
    evaluate(Stub(perfect), RECORDS, "made/val", Decoding(), tmp_path, checkpoint="b", fresh=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_second_evaluation_into_the_folder_is_refused_while_the_first_runs(tmp_path):
    """The second one asks for --fresh, which would remove what the first one has answered so far."""

    class Meanwhile(Stub):
        def answer(self, encoded, texts, decoding, on_text=None):
            for work in (
                lambda: evaluate(Stub(perfect), RECORDS, "made/val", Decoding(), tmp_path, fresh=True),
                lambda: evaluate_dialogues(Stub(talk), TALKING, Decoding(), tmp_path),
            ):
                with pytest.raises(InputError, match=rf"process {os.getpid()} on .* works there"):
                    work()
            return super().answer(encoded, texts, decoding)

    path = evaluate(Meanwhile(perfect), RECORDS, "made/val", Decoding(), tmp_path, batch_images=2)
    assert score_file(path, RECORDS, "made/val")["overall"]["gIoU"] == 100


def write_entries(path, writer, start):
    start.wait()
    for k in range(40):
        write_metrics(path, [{"benchmark": f"b{writer}_{k}", "split": "val"}])


def test_two_processes_keep_each_others_scores(tmp_path):
    context = multiprocessing.get_context("fork")
    path, start = tmp_path / "metrics.json", context.Barrier(2)
    writers = [context.Process(target=write_entries, args=(path, k, start)) for k in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(read_metrics(path)) == 80


def test_scores_of_answers_that_are_gone_are_replaced(tmp_path):
    """Two protocols scored the answers of one checkpoint; another checkpoint's answers took their place."""
    entry = score(tmp_path, perfect) | {"predictions": "made/val/predictions.jsonl", "checkpoint": "a"}
    path = tmp_path / "metrics.json"
    write_metrics(path, [entry, entry | {"protocol": "rela"}, entry | {"predictions": "x.jsonl"}])
    kept = write_metrics(path, [entry | {"checkpoint": "b"}])
    assert [(e["predictions"], e["checkpoint"]) for e in kept] == [
        ("x.jsonl", "a"),
        ("made/val/predictions.jsonl", "b"),
    ]


def test_a_model_that_answers_too_few_is_a_failure_not_a_shift(tmp_path):
    class Forgetful(Stub):
        def answer(self, encoded, texts, decoding, on_text=None):
            return super().answer(encoded, texts, decoding)[:-1]

    with pytest.raises(RuntimeError, match="20 texts asked, 19 predictions"):
        evaluate(Forgetful(perfect), RECORDS, "made/val", Decoding(), tmp_path)
    assert (tmp_path / "predictions.jsonl").read_text() == ""


def test_scoring_reads_the_file_and_nothing_else(tmp_path):
    path = evaluate(Stub(perfect), RECORDS, "made/val", Decoding(), tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"rejected": True}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert score_file(path, RECORDS, "made/val")["overall"]["T-acc"] == pytest.approx(100 * 14 / 15)


def test_golden_metrics(tmp_path):
    """By hand: picture 0 has its 2x2 part shifted by one (IoU 1/3) and the absent thing accepted (24 px)."""

    def answer(number, text):
        if (number, text) == (0, "part 0"):
            return Prediction(False, masks.encode(box_mask(2, 3, 4, 5)), "[SEG].")
        if (number, text) == (0, "none 0"):
            return Prediction(False, masks.encode(box_mask(0, 0, 4, 6)), "[SEG].")
        return perfect(number, text)

    entry = score(tmp_path, answer, RECORDS[:2])
    golden = {
        "gIoU": 100 * (1 / 3 + 2 + 0 + 4) / 8,
        "cIoU": 100 * (2 + 25 + 49 + 78) / (6 + 25 + 49 + 24 + 78),
        "mIoU": 100 * (1 / 3 + 5) / 6,
        **{f"Pr@{x}": 100 * 5 / 6 for x in (0.5, 0.6, 0.7, 0.8, 0.9)},
        "N-acc": 50.0,
        "T-acc": 100.0,
    }
    assert list(entry["overall"]) == list(SCORE_KEYS) == list(golden)
    assert entry["overall"] == pytest.approx(golden, abs=1e-9)
    assert entry["twin_score"] == 50
    assert (entry["benchmark"], entry["split"], entry["protocol"]) == ("made", "val", "strict")
    assert entry["n_expressions"] == 8 and entry["template"] == "Segment {expression}."
    assert entry["decoding"]["rule"] == "token" and entry["decoding"]["template_sha256"]
    assert list(entry["by_granularity"]) == ["part", "object", "multi", "none"]
    assert entry["by_granularity"]["none"]["N-acc"] == 50
    assert set(entry["by_level"]) == {"1", "2"} and entry["by_level"]["2"]["gIoU"] == 100
    assert entry["counts"]["overall"] == {
        "n": 8, "n_target": 6, "n_none": 2, "no_answer": 0, "truncated": 0, "empty": 0,
    }  # fmt: skip
    write_metrics(tmp_path / "metrics.json", [entry])
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    assert read_metrics(tmp_path / "metrics.json") == [json.loads(json.dumps(entry))]


def test_metrics_file_keeps_other_benchmarks(tmp_path):
    one = score(tmp_path, always(True, None))
    other = one | {"split": "test"}
    path = tmp_path / "metrics.json"
    write_metrics(path, [one])
    write_metrics(path, [other])
    assert [e["split"] for e in write_metrics(path, [one | {"no_answer": 9}])] == ["test", "val"]
    assert read_metrics(path)[1]["no_answer"] == 9
    path.write_text('{"loss": 1}')
    with pytest.raises(InputError, match="not a list of benchmark scores"):
        write_metrics(path, [one])


class WithRegions(Stub):
    def regions(self, encoded):
        boxes = np.array([[1, 1, 6, 6], [20, 20, 30, 30]], np.float32)
        return [{"object": boxes, "part": np.zeros((0, 4), np.float32)} for _ in encoded]

    def proposal_seconds(self, encoded):
        return 0.5 * len(encoded)


def test_proposal_recall_is_measured_where_the_model_shows_its_regions(tmp_path):
    path = evaluate(WithRegions(perfect), RECORDS, "made/val", Decoding(), tmp_path, batch_images=2)
    entry = score_file(path, RECORDS, "made/val")
    assert entry["proposal_recall"] == {"object": 100.0, "part": 0.0}
    assert entry["proposal_boxes"] == {"object": 5, "part": 5}
    assert entry["seconds_per_image"] > 0
    assert entry["proposal_seconds_per_image"] == 0.5
    plain = score(tmp_path / "plain", perfect)
    assert plain["proposal_recall"] is None and plain["proposal_seconds_per_image"] is None


def test_box_recall_against_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(30):
        corners = [np.sort(rng.integers(0, 12, (n, 2, 2)), axis=1).reshape(n, 4) for n in (6, 9)]
        truth, boxes = (c.astype(np.float32) + np.array([0, 0, 1, 1], np.float32) for c in corners)
        drawn = np.zeros((H, W, 3), np.uint8)
        record = ImageRecord("i", H, W, (), pixels=drawn, boxes={"object": truth, "part": truth[:0]})
        hits = 0
        for t in truth:
            a = np.zeros((20, 20), bool)
            a[int(t[1]) : int(t[3]), int(t[0]) : int(t[2])] = True
            best = 0.0
            for p in boxes:
                b = np.zeros((20, 20), bool)
                b[int(p[1]) : int(p[3]), int(p[0]) : int(p[2])] = True
                best = max(best, (a & b).sum() / (a | b).sum())
            hits += best >= 0.5
        found, total = box_recall(record, {"object": boxes, "part": boxes})
        assert (found, total) == ({"object": hits, "part": 0}, {"object": 6, "part": 0})


def test_the_box_recall_of_a_photo_counts_its_referents():
    mask = np.zeros((H, W), bool)
    mask[2:6, 2:6] = True
    asked = Expression("a/val/1", "it", Granularity.OBJECT, masks.encode(mask), 16)
    known = np.array([[2, 2, 6, 6], [8, 8, 12, 12], [0, 0, 3, 3]], np.float32)
    photo = ImageRecord("i", H, W, (asked,), path="photo.jpg", boxes={"object": known})
    found = box_recall(photo, {"object": known[:1], "part": known[:0]})
    assert found == ({"object": 1, "part": 0}, {"object": 1, "part": 0})


# -------------------------------------------------------------------------------------- the truth stays out


def coloured(number):
    """A photo of two blocks with expressions in every granularity, truth boxes and dense truth."""
    pixels = np.full((32, 40, 3), 90, np.uint8)
    red, blue = np.zeros((32, 40), bool), np.zeros((32, 40), bool)
    red[3 + number : 15 + number, 2:14] = True
    blue[10:25, 22 + number : 34 + number] = True
    pixels[red], pixels[blue] = (255, 0, 0), (0, 0, 255)
    texts = ("the red block", "the blue block", "the red block and the blue block", "the green block")
    truths = (red, blue, red | blue, None)
    expressions = tuple(
        Expression(
            f"made/val/{number}_{g}", text, g, None if truth is None else masks.encode(truth),
            0 if truth is None else int(truth.sum()), level=1 + k % 3, twin="t", source={"tag": k},
        )
        for k, (text, truth, g) in enumerate(zip(texts, truths, (G.OBJECT, G.PART, G.MULTI, G.NONE), strict=True))
    )  # fmt: skip
    boxes = [masks.box_of(masks.encode(truth)) for truth in (red, blue)]
    return ImageRecord(
        f"im{number}", 32, 40, expressions, pixels=pixels, boxes={
            "object": np.array(boxes, np.float32), "part": np.array(boxes[:1], np.float32)
        }, dense=np.repeat((red + 2 * blue).astype(np.uint8)[..., None], 3, axis=2),
    )  # fmt: skip


def scrambled(record):
    """The same photo and the same texts; everything else that is said about them is wrong."""
    rng = np.random.default_rng(len(record.image_id))
    kinds = [e.granularity for e in record.expressions]
    expressions = []
    for e, kind in zip(record.expressions, kinds[1:] + kinds[:1], strict=True):
        rle = masks.encode(rng.random((record.height, record.width)) < 0.3) if e.rle is None else None
        expressions.append(
            replace(e, rle=rle, area=e.area + 7, granularity=kind, level=9, twin=None, source={})
        )
    return replace(
        record,
        expressions=tuple(expressions),
        boxes={name: boxes / 2 for name, boxes in record.boxes.items()},
        dense=rng.integers(0, 3, record.dense.shape, dtype=np.uint8),
        source={"tag": "other"},
    )


def answers_of(segmenter, records, out):
    return evaluate(segmenter, records, "made/val", Decoding(max_new_tokens=6), out).read_bytes()


COLOURED = [coloured(k) for k in range(3)]


def test_the_truth_cannot_reach_an_answer(tmp_path):
    plain = answers_of(ColourSegmenter(), COLOURED, tmp_path / "a")
    assert plain == answers_of(ColourSegmenter(), [scrambled(r) for r in COLOURED], tmp_path / "b")
    assert plain.count(b'"rejected":false') == 9


@pytest.mark.parametrize("boxes", ["classical", "truth"])
def test_the_truth_cannot_reach_an_answer_of_the_real_model(tmp_path, boxes):
    """Its ablation with truth boxes is the control: there the same scrambling must be seen."""
    import torch

    from mllm.config import MLLMConfig, tiny_llama
    from mllm.tokens import Vocabulary
    from mllm.tower_families import clip_vit, convnext
    from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig
    from uniresxx.model.modeling import UniRESPlusPlusModel
    from uniresxx.model.templates import TRAINING_TEMPLATES

    sizes = MLLMConfig(
        low=clip_vit(32, 1, 2), low_size=32, high=convnext((8, 16, 24, 32)), high_size=32,
        llm=tiny_llama(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=340
        ),
        max_objects=3, max_parts=4, mgfe_heads=4,
    )  # fmt: skip
    config = UniRESPlusPlusConfig(mllm=sizes, head=PyramidHeadConfig(width=16, heads=2), boxes=boxes)
    texts = [e.text for r in COLOURED for e in r.expressions]
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, *texts], 340)
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(config, vocabulary).eval()
    plain = answers_of(model, COLOURED, tmp_path / "a")
    same = plain == answers_of(model, [scrambled(r) for r in COLOURED], tmp_path / "b")
    assert same == (boxes == "classical")


# -------------------------------------------------------------------------------------- conversations


TALKING = [made(k, dialogues=True) for k in range(3)]


def talk(number, question):
    """Finds the thing; then its part but no cow, only where the history holds its own words."""
    assert isinstance(question, Question)
    if not question.history:
        return Prediction(False, TALKING[number].expressions[1].rle, f"own words {number}: [SEG].")
    assert question.history == ((f"object {number}", f"own words {number}: [SEG]."),)
    if "cow" in question.text:
        return Prediction(True, None, "[REJ].")
    return Prediction(False, TALKING[number].expressions[0].rle, "[SEG].", 0.9)


def test_follow_ups_see_the_generated_first_answer(tmp_path):
    result = evaluate_dialogues(Stub(talk), TALKING, Decoding(), tmp_path, batch_images=2)
    follow = result["follow_up"]
    assert (follow["mIoU"], follow["N-acc"], follow["n_target"], follow["n_none"]) == (100, 100, 3, 3)
    assert result["first_turn"]["mIoU"] == 100 and result["n_dialogues"] == 3
    assert result["decoding"]["template"] == "{expression}"
    lines = [json.loads(line) for line in (tmp_path / "dialogues.jsonl").read_text().splitlines()]
    assert [line["dialogue_id"] for line in lines] == ["d0", "d1", "d2"]
    assert lines[0]["turns"][0]["text"] == "own words 0: [SEG]."


def test_conversations_continue_and_are_not_held_twice(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate_dialogues(Stub(talk, stop_after=3), TALKING, Decoding(), tmp_path, batch_images=1)
    stub = Stub(talk)
    result = evaluate_dialogues(stub, TALKING, Decoding(), tmp_path, batch_images=1)
    assert stub.encodings == 2 and result["follow_up"]["mIoU"] == 100


def test_answers_that_are_not_finite_are_one_line(tmp_path):
    """A model whose training diverged; what it wrote before stays readable."""

    def gone(number, text):
        good = talk(number, text) if isinstance(text, Question) else perfect(number, text)
        return replace(good, p_absent=float("nan")) if number == 1 else good

    first = RECORDS[1].expressions[0].expression_id
    with pytest.raises(
        InputError, match=f"answers {first} with numbers that are not finite.*earlier checkpoint"
    ):
        evaluate(Stub(gone), RECORDS, "made/val", Decoding(), tmp_path)
    with pytest.raises(InputError, match="answers d1 with numbers that are not finite"):
        evaluate_dialogues(Stub(gone), TALKING, Decoding(), tmp_path)


def test_pictures_without_conversations_have_no_such_score(tmp_path):
    assert evaluate_dialogues(Stub(perfect), RECORDS, Decoding(), tmp_path) is None


def test_too_few_segments_count_as_rejected():
    truth = (Phrase("a", masks.encode(FULL), G.OBJECT), Phrase("b", masks.encode(FULL), G.OBJECT))
    first, second = judge_phrases(truth, Prediction(False, masks.encode(FULL), "[SEG]."))
    assert first.iou == 1 and (second.iou, second.rejected, second.union) == (0, True, H * W)


# -------------------------------------------------------------------------------------- the program


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """`python -m eval …` with made benchmarks and a stub checkpoint; returns (exit code, stderr, stub)."""
    stubs = defaultdict(lambda: Stub(perfect))

    def load(name, data, limit=None, images=None):
        if not name.startswith("made/"):
            raise InputError(f"unknown benchmark {name!r}")
        return TALKING[:limit] if name.endswith("talk") else RECORDS[:limit]

    def reply(number, text):
        if not isinstance(text, Question):
            return perfect(number, text)
        asked = text.text.removeprefix("Segment ").removesuffix(".")
        in_chat = asked != text.text and (number, asked) in TRUTH
        return perfect(number, asked) if in_chat else talk(number, text)

    monkeypatch.setattr(run_module, "load_records", load)
    monkeypatch.setattr(score_module, "load_records", load)
    monkeypatch.setattr(compare_module, "load_records", load)
    monkeypatch.setattr("uniresxx.checkpoints.resolve.resolve", lambda name, log: Path(name))
    monkeypatch.setattr("uniresxx.checkpoints.resolve.checkpoint_identity", lambda path: path.name)
    monkeypatch.setattr("uniresxx.segmenters.load.load_folder", lambda path, placement: stubs[path.name])
    stubs["talker"] = Stub(reply)

    def call(*words):
        code = program.main([str(w) for w in words])
        return code, capsys.readouterr()

    call.stubs = stubs
    return call


def test_run_writes_predictions_and_metrics_and_prints_tables(cli, tmp_path):
    out = tmp_path / "out"
    code, said = cli(
        "run",
        "--checkpoint",
        "talker",
        "--benchmark",
        "made/val",
        "made/talk",
        "--out",
        out,
        "--limit",
        3,
    )
    assert code == 0
    assert [f"{e['benchmark']}/{e['split']}" for e in read_metrics(out / "metrics.json")] == [
        "made/val",
        "made/talk",
    ]
    assert len((out / "made/val/predictions.jsonl").read_text().splitlines()) == 12
    entry = read_metrics(out / "metrics.json")[1]
    assert entry["dialogues"]["follow_up"]["mIoU"] == 100 and entry["checkpoint"] == "talker"
    assert entry["chats"]["chat"] == entry["chats"]["fresh"] == {"n": 9, "right": 100}
    for word in (
        "all objects",
        "never reject",
        "always reject",
        "N behind it",
        "N-acc",
        "follow-ups that point",
    ):
        assert word in said.out


def test_run_stopped_by_a_signal_exits_75_and_continues(cli, tmp_path):
    words = (
        "run",
        "--checkpoint",
        "c",
        "--benchmark",
        "made/val",
        "--out",
        tmp_path / "o",
        "--batch-images",
        "2",
    )
    cli.stubs["c"] = Stub(perfect, stop_after=1)
    code, said = cli(*words)
    assert code == 75 and "the same command continues" in said.err
    cli.stubs["c"] = Stub(perfect)
    assert cli(*words)[0] == 0
    assert len(cli.stubs["c"].asked) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--checkpoint", "c", "--benchmark", "none/such", "--out", "OUT"), "unknown benchmark"),
        (("run", "--checkpoint", "c", "--out", "OUT"), "--benchmark"),
        (("run", "--checkpoint", "c", "--benchmark", "made/val", "--out", "OUT", "--rule", "x"), "--rule"),
        (
            ("run", "--checkpoint", "c", "--benchmark", "made/val", "--out", "OUT", "--limit", "0"),
            "from 1 up",
        ),
        (
            ("run", "--checkpoint", "c", "--benchmark", "made/val", "--out", "OUT", "--protocol", "x"),
            "known: strict",
        ),
        (("score", "OUT/nope.jsonl", "--benchmark", "made/val", "--out", "OUT"), "is not a file"),
        (("report", "OUT"), "holds no metrics.json"),
        ((), "required"),
        (("dance",), "invalid choice"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(cli, tmp_path, words, message):
    code, said = cli(*(w.replace("OUT", str(tmp_path / "o")) for w in words))
    assert code == 2 and message in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_another_metrics_json_is_refused_before_the_work_and_stays(cli, tmp_path):
    out = tmp_path / "o"
    out.mkdir()
    (out / "metrics.json").write_text('{"loss": 1}')
    for words in (
        ("run", "--checkpoint", "c", "--benchmark", "made/val", "--fresh"),
        ("score", tmp_path, "--benchmark", "made/val"),
    ):
        code, said = cli(*words, "--out", out)
        assert code == 2 and "not a list of benchmark scores" in said.err
    assert (out / "metrics.json").read_text() == '{"loss": 1}' and cli.stubs["c"].encodings == 0
    assert [path.name for path in out.glob("[!.]*")] == ["metrics.json"]


def test_a_run_that_died_before_its_scores_were_written_continues(cli, tmp_path, monkeypatch):
    words = ("run", "--checkpoint", "c", "--benchmark", "made/val", "--out", tmp_path / "o")

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_metrics", die)
        assert cli(*words)[0] == 75
    cli.stubs["c"] = Stub(perfect)
    assert cli(*words)[0] == 0 and cli.stubs["c"].encodings == 0
    assert read_metrics(tmp_path / "o/metrics.json")[0]["overall"]["gIoU"] == 100


def test_under_a_launcher_process_0_alone_scores(cli, tmp_path, monkeypatch):
    path, _ = scored(cli, tmp_path)
    words = ("--local_rank=0", "score", path, "--benchmark", "made/val", "--out", tmp_path / "two")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, said = cli(*words)
    assert code == 0 and said.err == "process 1 of 2: nothing to do, process 0 works alone\n"
    assert not (tmp_path / "two").exists()
    monkeypatch.setenv("RANK", "0")
    assert cli(*words)[0] == 0 and (tmp_path / "two/metrics.json").exists()
    monkeypatch.setenv("RANK", "2")
    code, said = cli(*words)
    assert code == 2 and "RANK=2 and WORLD_SIZE=2" in said.err


def test_another_checkpoint_in_the_same_folder_is_refused_even_for_another_benchmark(cli, tmp_path):
    words = ("--out", tmp_path / "o", "--limit", "2")
    assert cli("run", "--checkpoint", "a", "--benchmark", "made/val", *words)[0] == 0
    code, said = cli("run", "--checkpoint", "b", "--benchmark", "made/test", *words)
    assert code == 2 and "answered by checkpoint a, not b" in said.err
    assert cli("run", "--checkpoint", "b", "--benchmark", "made/val", *words, "--fresh")[0] == 0


def test_another_rule_in_the_same_folder_is_refused_named_or_not(cli, tmp_path):
    """The stub's own rule is `token`, which counts as well where --rule is left out."""
    words = ("run", "--checkpoint", "c", "--limit", "2", "--out")
    for out, first, other in (
        (tmp_path / "a", ("--rule", "token_and_presence"), ()),
        (tmp_path / "b", (), ("--rule", "token_and_presence")),
    ):
        assert cli(*words, out, "--benchmark", "made/val", *first)[0] == 0
        code, said = cli(*words, out, "--benchmark", "made/test", *other)
        assert code == 2 and len(said.err.strip().splitlines()) == 1
        assert re.search(r"was answered with --rule (\w+), not (?!\1:)\w+: use --rule \1", said.err)
        assert len(read_metrics(out / "metrics.json")) == 1 and not (out / "made/test").exists()
        assert cli(*words, out, "--benchmark", "made/test", *first)[0] == 0
    assert cli(*words, tmp_path / "b", "--benchmark", "made/val", "--rule", "token")[0] == 0


def test_the_checkpoint_that_is_named_is_the_one_that_answers(tmp_path, monkeypatch):
    """A run that still trains saves a newer checkpoint after the folder was resolved."""
    from torch import nn

    from uniresxx.checkpoints import folders as checkpoint

    model = nn.Linear(1, 1)
    model.config, model.tokenizer = SimpleNamespace(to_dict=lambda: {"model_type": "uniresxx"}), None
    run, loaded = tmp_path / "run", []
    checkpoint.save(run, 1, model, {}, {}, {})

    def save_another(name, data, limit, images):
        checkpoint.save(run, 2, model, {}, {}, {})
        return RECORDS

    monkeypatch.setattr(run_module, "load_records", save_another)
    monkeypatch.setitem(
        load.LOADERS, "uniresxx", lambda folder, placement: loaded.append(folder) or Stub(perfect)
    )
    (entry,) = run_module.run(run, ["made/val"], tmp_path / "out")
    assert len(loaded) == 1 and entry["checkpoint"].startswith(f"{loaded[0].name}:")


def test_score_any_file_gives_what_run_gave(cli, tmp_path):
    cli("run", "--checkpoint", "c", "--benchmark", "made/val", "--out", tmp_path / "o")
    path = tmp_path / "theirs.jsonl"
    path.write_text((tmp_path / "o/made/val/predictions.jsonl").read_text())
    code, _ = cli("score", path, "--benchmark", "made/val", "--out", tmp_path / "s", "--protocol", "strict")
    assert code == 0
    (ours,), (theirs,) = (read_metrics(tmp_path / name / "metrics.json") for name in ("o", "s"))
    assert theirs["overall"] == ours["overall"] and theirs["decoding"] is None
    path.write_text(path.read_text()[:-30])
    code, said = cli("score", path, "--benchmark", "made/val", "--out", tmp_path / "s")
    assert code == 2 and "truncated last line" in said.err


def scored(cli, tmp_path):
    """A predictions file and a folder with its scores."""
    cli("run", "--checkpoint", "c", "--benchmark", "made/val", "--out", tmp_path / "o")
    path = tmp_path / "theirs.jsonl"
    path.write_text((tmp_path / "o/made/val/predictions.jsonl").read_text())
    assert cli("score", path, "--benchmark", "made/val", "--out", tmp_path / "s")[0] == 0
    return path, tmp_path / "s"


def test_bad_files_change_nothing_and_partial_ones_say_how_much(cli, tmp_path):
    path, out = scored(cli, tmp_path)
    metrics = (out / "metrics.json").read_bytes()
    path.write_text(path.read_text()[:-30])
    before = path.read_bytes()
    words = ("score", path, "--benchmark", "made/val", "--out", out)
    code, said = cli(*words)
    assert code == 2 and "1 of 20 expressions missing" in said.err and "--allow-partial" in said.err
    assert (out / "metrics.json").read_bytes() == metrics
    code, said = cli(*words, "--allow-partial")
    assert code == 0 and "PARTIAL: 19 of 20 expressions scored" in said.out
    assert "truncated last line" in said.out
    whole, partial = read_metrics(out / "metrics.json")
    assert whole["partial"] is None and partial["partial"] == {"scored": 19, "expressions": 20}
    assert path.read_bytes() == before and [p.name for p in out.glob("[!.]*")] == ["metrics.json"]


def test_another_file_or_rule_stands_beside_the_first(cli, tmp_path):
    path, out = scored(cli, tmp_path)
    other = tmp_path / "others.jsonl"
    other.write_text(path.read_text())
    words = ("--benchmark", "made/val", "--out", out)
    assert cli("score", other, *words)[0] == 0
    assert cli("score", path, *words, "--rejected", "empty_mask")[0] == 0
    assert cli("score", path, *words)[0] == 0  # the same question again
    entries = read_metrics(out / "metrics.json")
    assert [e["rejection"]["rule"] for e in entries] == ["flag", "empty_mask", "flag"]
    assert len({e["predictions"] for e in entries}) == 2


def test_scoring_leaves_the_files_beside_the_predictions_alone(cli, tmp_path):
    cli("run", "--checkpoint", "c", "--benchmark", "made/val", "--out", tmp_path / "o")
    folder = tmp_path / "o/made/val"
    (folder / "images.jsonl").write_bytes((folder / "images.jsonl").read_bytes()[:-5])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    words = ("score", folder / "predictions.jsonl", "--benchmark", "made/val", "--out", tmp_path / "s")
    assert cli(*words)[0] == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_another_file_in_an_evaluation_folder_is_not_its_answer(cli, tmp_path):
    cli("run", "--checkpoint", "c", "--benchmark", "made/val", "--out", tmp_path / "o")
    folder = tmp_path / "o/made/val"
    (folder / "other.jsonl").write_text((folder / "predictions.jsonl").read_text())
    for name, checkpoint in (("predictions", "c"), ("other", None)):
        entry = score_file(folder / f"{name}.jsonl", RECORDS, "made/val")
        assert entry["checkpoint"] == checkpoint and (entry["decoding"] is None) == (checkpoint is None)


def test_the_terminal_shows_intervals_and_the_rule(cli, tmp_path):
    path, out = scored(cli, tmp_path)
    words = ("--benchmark", "made/val", "--out", out, "--rejected", "p_absent")
    code, said = cli("score", path, *words, "--threshold", "0.25")
    assert code == 0
    for word in ("95 % from", "95 % to", "words 1-2", "small", "above the threshold 0.25", "of 5 pictures"):
        assert word in said.out, word
    code, said = cli("score", path, *words, "--tune-on", path, "made/val")
    assert code == 0 and "best mean of N-acc and T-acc on made/val" in " ".join(said.out.split())
    for more, message in (
        (("--tune-on", path, "made/test"), "named val only"),
        ((), "--threshold X, or --tune-on"),
        (("--threshold", "1", "--tune-on", path, "made/val"), "without --threshold"),
    ):
        code, said = cli("score", path, *words, *more)
        assert code == 2 and message in said.err and len(said.err.strip().splitlines()) == 1


def test_compare_pairs_two_files_and_writes_nothing(cli, tmp_path):
    path, _ = scored(cli, tmp_path)
    other = tmp_path / "worse.jsonl"
    lines = [json.loads(line) | {"rejected": True} for line in path.read_text().splitlines()]
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    code, said = cli("compare", path, other, "--benchmark", "made/val")
    assert code == 0 and "p" in said.out and "+100.0" in said.out and "5 pictures" in said.out
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    other.write_text(other.read_text()[:-30])
    code, said = cli("compare", path, other, "--benchmark", "made/val")
    assert code == 2 and "truncated last line" in said.err
    code, said = cli("compare", path, tmp_path / "nope", "--benchmark", "made/val")
    assert code == 2 and "is not a file" in said.err


def test_a_stopped_score_changes_nothing(cli, tmp_path, monkeypatch):
    path, out = scored(cli, tmp_path)
    before = (out / "metrics.json").read_bytes()

    def stop(*args, **changes):
        raise KeyboardInterrupt

    monkeypatch.setattr(score_module, "score_file", stop)
    code, said = cli("score", path, "--benchmark", "made/val", "--out", out)
    assert code == 75 and said.err == "stopped: nothing was changed\n"
    assert (out / "metrics.json").read_bytes() == before


def test_full_disk_is_exit_1(cli, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", "metrics.json")

    monkeypatch.setattr(run_module, "write_metrics", full)
    code, said = cli("run", "--checkpoint", "c", "--benchmark", "made/val", "--out", tmp_path / "o")
    assert code == 1 and "No space left" in said.err and len(said.err.strip().splitlines()) == 1


def test_a_missing_photo_names_the_path_and_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr("uniresxx.checkpoints.resolve.resolve", lambda name, log: Path(name))
    monkeypatch.setattr("uniresxx.checkpoints.resolve.checkpoint_identity", lambda path: path.name)
    monkeypatch.setattr("uniresxx.segmenters.load.load_folder", lambda path, placement: Stub(perfect))
    photos = tmp_path / "photos"
    photos.mkdir()
    records = [
        replace(record, pixels=None, path=str(photos / f"{number}.png"))
        for number, record in enumerate(RECORDS)
    ]
    for old, new in zip(RECORDS, records, strict=True):
        Image.fromarray(photo_of(old)).save(new.path)
    write_store(tmp_path / "made", Preparation("made", {"val": lambda: (records, {})}, image_root=photos))
    photos.rename(tmp_path / "moved")
    call = (Path("stub"), [f"{tmp_path}/made/val"], tmp_path / "out")
    with pytest.raises(InputError, match=r"photos/0\.png: no such photo .*with --images DIR"):
        run_module.run(*call)
    (entry,) = run_module.run(*call, images=tmp_path / "moved")
    assert entry["overall"]["mIoU"] == 100


def test_the_identity_of_a_checkpoint_follows_its_content(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        checkpoint_identity(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = checkpoint_identity(tmp_path)
    assert first == checkpoint_identity(tmp_path) and first.startswith(f"{tmp_path.name}:")
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert checkpoint_identity(tmp_path) != first


def test_a_checkpoint_in_shards_is_known_by_all_of_them(tmp_path):
    """As models above 5 GB are exported."""
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    )
    (tmp_path / names[0]).write_bytes(b"one")
    with pytest.raises(InputError, match="copy all shards"):
        checkpoint_identity(tmp_path)
    found = []
    for content in (b"two", b"three"):
        (tmp_path / names[1]).write_bytes(content)
        found.append(checkpoint_identity(tmp_path))
    assert len(set(found)) == 2


def test_help_and_wrong_names_load_no_torch():
    code = (
        "import sys, eval.__main__ as m; "
        "assert m.main(['score', 'x', '--benchmark', 'a/b', '--out', 'o']) == 2; "
        "import eval.report.write, eval.run; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
