"""predictions.jsonl: what is written comes back, what is cut off is redone, what is wrong is listed."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction, Segment
from uniresxx.scoring.predictions import (
    JsonlWriter,
    from_json,
    sizes_of,
    stream_predictions,
    to_json,
)
from uniresxx.scoring.problems import Problems
from uniresxx.types import Expression, Granularity, ImageRecord

H, W = 5, 8
FULL = masks.encode(np.ones((H, W), bool))
HALF = masks.encode(np.tri(H, W, dtype=bool))


def record(names=("a", "b", "c")):
    return ImageRecord("im", H, W, tuple(Expression(n, n, Granularity.OBJECT, FULL) for n in names))


def write(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def good(name, **changes):
    return to_json(name, Prediction(False, HALF, "[SEG].", 0.5, 0.1)) | changes


numbers = st.none() | st.floats(0, 1, allow_nan=False)
segments = st.builds(Segment, st.text(max_size=5), st.sampled_from([None, HALF]), numbers)


@given(
    st.builds(
        Prediction,
        rejected=st.booleans(),
        rle=st.sampled_from([FULL, HALF]),
        text=st.none() | st.text(max_size=20),
        score=numbers,
        p_absent=numbers,
        mask_if_forced=st.sampled_from([None, FULL]),
        segments=st.lists(segments, max_size=2).map(tuple),
        truncated=st.booleans(),
    )
)  # fmt: skip
def test_a_line_comes_back_as_it_was(prediction):
    line = json.loads(json.dumps(to_json("x", prediction)))
    assert line["expression_id"] == "x"
    assert from_json(line, (H, W)) == prediction


def test_no_text_is_not_the_empty_text():
    """A model that generated nothing gave no answer; of a file without texts nobody knows."""
    line = good("a")
    assert from_json(line | {"text": ""}).text == ""
    assert from_json(line | {"text": None}).text is None
    del line["text"]
    assert from_json(line).text is None


def test_writing_continues_after_a_cut_last_line(tmp_path):
    path = tmp_path / "deep" / "p.jsonl"
    with JsonlWriter(path) as lines:
        lines.write(good("a"))
        lines.write(good("b", text="ü\n"))
    whole = path.read_bytes()
    for cut in range(1, len(whole)):  # a crash can stop anywhere
        path.write_bytes(whole[:-cut])
        with JsonlWriter(path) as lines:
            kept = [line["expression_id"] for line in lines.kept]
            assert kept == ["a", "b"][: len(kept)]
            for name in ("a", "b")[len(kept) :]:
                lines.write(good("b", text="ü\n") if name == "b" else good("a"))
        assert path.read_bytes() == whole


def test_every_line_is_on_disk_at_once(tmp_path):
    lines = JsonlWriter(tmp_path / "p.jsonl")
    lines.write(good("a"))
    assert (tmp_path / "p.jsonl").read_text().endswith("\n")  # before close
    lines.close()


def test_damage_before_the_last_line_is_not_repaired(tmp_path):
    path = write(tmp_path / "p.jsonl", [good("a"), "broken\n", good("b")])
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"p\.jsonl:2: not JSON"):
        JsonlWriter(path)
    assert path.read_bytes() == before


def test_nan_is_not_written(tmp_path):
    with JsonlWriter(tmp_path / "p.jsonl") as lines, pytest.raises(ValueError, match="not JSON compliant"):
        lines.write({"score": float("nan")})
    assert (tmp_path / "p.jsonl").read_text() == ""


def read(path):
    """Answers to the expressions of `record`, and what is wrong with the file."""
    sizes, problems = sizes_of([record()]), Problems()
    found = dict(stream_predictions(path, sizes, problems))
    problems.add_missing([name for name in sizes if name not in found], len(sizes))
    return found, problems


def test_reading_in_any_order_ignoring_unknown_keys(tmp_path):
    path = write(tmp_path / "p.jsonl", [good("c", later="x"), good("a"), "\n", good("b")])
    found, problems = read(path)
    assert found["c"] == Prediction(False, HALF, "[SEG].", 0.5, 0.1) and not problems


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([good("a"), good("b")], "1 of 3 expressions missing, first 'c'"),
        ([good("a"), good("a"), good("b"), good("c")], "line 2: duplicate expression_id 'a'"),
        ([good("z"), good("a"), good("b"), good("c")], "line 1: unknown expression_id 'z'"),
        ([{"rejected": True}, good("a"), good("b"), good("c")], "line 1: `expression_id` is missing"),
        ([[1], good("a"), good("b"), good("c")], "line 1: `expression_id` is missing"),
        ([good("a"), good("b"), good("c", rejected="no")], "line 3: `rejected` must be true or false"),
        ([good("a"), good("b"), good("c", mask={"size": [H, W + 1], "counts": "0"})], "mask is 5 x 9"),
        ([good("a"), good("b"), good("c", mask={"size": [H, W], "counts": "0"})], "line 3: `mask`:"),
        ([good("a"), good("b"), good("c", mask=[1, 2])], "line 3: `mask`:"),
        ([good("a"), good("b"), good("c", mask_if_forced=7)], "line 3: `mask_if_forced`:"),
        ([good("a"), good("b"), '{"expression_id":"c","rejected":false}\n'], "line 3: `mask` is missing"),
        ([good("a"), good("b"), json.dumps(good("c"))[:-20]], r"line 3: not JSON \(truncated last line\)"),
        ([good("a"), good("b"), json.dumps(good("c")).replace("0.5", "NaN") + "\n"], r"not JSON \(NaN is not"),
        ([good("a"), good("b"), good("c", score="high")], "line 3: `score` must be a finite number"),
        ([good("a"), good("b"), json.dumps(good("c")).replace("0.5", "1e999") + "\n"], "line 3: `score`"),
        ([good("a"), good("b"), good("c", p_absent=True)], "line 3: `p_absent`"),
        ([good("a"), good("b"), good("c", text=3)], "line 3: `text` must be a string"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_with_the_place(tmp_path, lines, message):
    path = write(tmp_path / "p.jsonl", lines)
    _, problems = read(path)
    assert re.search(message, str(problems))


def test_all_problems_are_listed_and_long_lists_are_cut(tmp_path):
    path = write(tmp_path / "p.jsonl", [good(f"no{k}") for k in range(20)])
    _, problems = read(path)
    assert re.search(r"line 1: .*; line 2: .*; and 13 more", str(problems))


def test_the_first_missing_id_is_told_whole():
    """It is what one looks for in one's own file."""
    problems, name = Problems(), "refcocom/val_object_part/900031_0"
    problems.add_missing([name], 3)
    assert f"first {name!r}" in str(problems)


def test_a_missing_file_is_a_clear_line(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "nope.jsonl")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
keys = ("expression_id", "rejected", "mask", "mask_if_forced", "score", "p_absent", "text", "segments")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.dictionaries(st.sampled_from(keys), anything)))
)
def test_any_json_is_read_or_listed_and_nothing_is_raised(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(good(name) | changes) + "\n" for name, changes in lines))
    problems = Problems()
    found = list(stream_predictions(path, sizes_of([record()]), problems))
    assert len(found) + problems.entries == len(lines)
    assert len({name for name, _ in found}) == len(found)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_listed_and_nothing_is_raised(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    path.write_bytes(data)
    problems = Problems()
    try:
        assert list(stream_predictions(path, sizes_of([record()]), problems)) == []
    except InputError as error:  # the first bytes of another form, or of gzip
        assert re.search(r" is (a|text) |gzip file is damaged", str(error))
        return
    assert bool(problems) == bool(data.replace(b"\n", b"").strip())
