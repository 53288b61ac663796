"""The store: what goes in comes out, opening reads no row, damage and crashes are reported in one line."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from uniresxx.cli import main as program
from uniresxx.cli.data import prepare as command
from uniresxx.data.catalog import load_benchmark
from uniresxx.data.store import write as store_write
from uniresxx.data.store.folder import INDEX, META, RECORDS, meta_checksum
from uniresxx.data.store.photos import encoded_photo, photo_of
from uniresxx.data.store.read import Store
from uniresxx.data.store.rows import SCHEMA
from uniresxx.data.store.verify import check_store
from uniresxx.data.store.write import Preparation, write_store
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import Dialogue, Expression, Granularity, ImageRecord, PhotoInside, Phrase, Turn

MINI_REAL = Path(__file__).resolve().parents[1].parent / "shared" / "mini_real"
needs_photos = pytest.mark.skipif(
    not (MINI_REAL / "expected.json").is_file(), reason="the developers' photos are not here"
)
KINDS = {"single": Granularity.OBJECT, "multi": Granularity.MULTI, "none": Granularity.NONE}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
sources = st.dictionaries(text.filter(lambda key: key != "left_out"), plain, max_size=2)


def run_data(words):
    return program(["data", *words])


@st.composite
def records(draw):
    """Any small record, its photo below `photos` (or none), its masks of its size."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    array = st.binary(min_size=height * width * 3, max_size=height * width * 3).map(
        lambda data: np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
    )
    mask = st.binary(min_size=height * width, max_size=height * width).map(
        lambda data: masks.encode(np.frombuffer(data, dtype=np.uint8).reshape(height, width) % 2)
    )
    rle, kind = st.none() | mask, st.sampled_from(Granularity)
    level, twin = st.none() | st.integers(1, 3), st.none() | text
    area = st.integers(0, 2**40)
    expressions = st.builds(Expression, text, text, kind, rle, area, level, twin, sources)
    turns = st.builds(Turn, text, st.lists(st.builds(Phrase, text, rle, kind), max_size=2).map(tuple), twin)
    dialogues = st.builds(Dialogue, text, st.lists(turns, max_size=2).map(tuple))
    boxes = st.integers(0, 2).map(lambda count: np.arange(4 * count, dtype=np.float32).reshape(-1, 4) / 3)
    source = draw(sources)
    if draw(st.booleans()):
        source["left_out"] = ("a record", "another")
    return ImageRecord(
        draw(text),
        height,
        width,
        tuple(draw(st.lists(expressions, max_size=3))),
        path=draw(st.none() | st.sampled_from(["a.jpg", "b/ü.png"])),
        inside=draw(st.none() | st.just(PhotoInside("lmdb", "x.lmdb", "3", "ü.jpg", 1, 2, 2**32 - 1))),
        pixels=draw(st.none() | array),
        dialogues=tuple(draw(st.lists(dialogues, max_size=2))),
        boxes=draw(st.dictionaries(st.sampled_from(["object", "part"]), boxes)),
        dense=draw(st.none() | array),
        source=source | draw(st.sampled_from([{}, {"licence": "CC BY 2.0"}, {"licence": 4}])),
    )


def below(record, root):
    """The record with its photo, a file or inside one, below a folder."""
    path = None if record.path is None else str(root / record.path)
    inside = None if record.inside is None else replace(record.inside, file=str(root / record.inside.file))
    return replace(record, path=path, inside=inside)


def assert_equal(found, expected):
    for item in fields(ImageRecord):
        mine, other = getattr(found, item.name), getattr(expected, item.name)
        if item.name == "boxes":
            assert mine.keys() == other.keys()
            assert all(
                mine[key].dtype == np.float32 and np.array_equal(mine[key], other[key]) for key in mine
            )
        elif item.name in ("pixels", "dense"):
            assert (mine is None) == (other is None) and (mine is None or np.array_equal(mine, other))
        else:
            assert mine == other, item.name


def simple(number, **changes):
    mask_yx = np.zeros((4, 6), dtype=bool)
    mask_yx[number % 4, : 1 + number % 5] = True
    rle = masks.encode(mask_yx)
    asked = (
        Expression(f"d/{number}/0", f"thing {number}", Granularity.OBJECT, rle, area=masks.area(rle)),
        Expression(f"d/{number}/1", "nothing", Granularity.NONE, None),
    )
    return replace(ImageRecord(str(number), 4, 6, asked), **changes)


def work_of(splits, root=None, **changes):
    loads = {name: (lambda found=found: (found, {})) for name, found in splits.items()}
    return replace(Preparation("d", loads, root), **changes)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(store_write, "ROWS_PER_BATCH", 3)


@pytest.fixture
def store(tmp_path, small_batches):
    """Rows 0..9: seven of train, none of extra, three of val, with photos."""
    root = tmp_path / "photos"
    root.mkdir()
    found = []
    for number in range(10):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(root / f"{number}.png")
        found.append(simple(number, path=str(root / f"{number}.png")))
    return write_store(tmp_path / "store", work_of({"train": found[:7], "extra": [], "val": found[7:]}, root))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(records(), max_size=4), st.lists(records(), max_size=2))
def test_records_come_back_as_they_went_in(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("round")
    root = folder / "photos"
    first, second = ([below(item, root) for item in items] for items in (first, second))
    store = write_store(folder / "s", work_of({"one": first, "two": second}, root))
    assert len(store) == len(first) + len(second)
    for split, expected in (("one", first), ("two", second), (None, first + second)):
        assert len(store.records(split)) == len(expected)
        for found, item in zip(store.records(split), expected, strict=True):
            assert_equal(found, item)
    assert not [line for _, lines in check_store(store) for line in lines if "differs" in line]


def test_access_by_number_and_split(store):
    assert len(store) == 10 and store.splits == ["train", "extra", "val"]
    assert [store[at].image_id for at in (0, 6, 7, 9, -1)] == ["0", "6", "7", "9", "9"]
    assert [item.image_id for item in store.records("val")[1:]] == ["8", "9"]
    assert list(store.records("extra")) == []
    assert [list(rows) for _, rows in store.batches()] == [[0, 1, 2], [3, 4, 5], [6], [7, 8, 9]]
    for index in (10, -11):
        with pytest.raises(IndexError):
            store[index]
    with pytest.raises(InputError, match="no split 'test'; it has train, extra, val"):
        store.records("test")


def test_the_file_is_plain_arrow(store):
    table = pa.ipc.open_file(pa.memory_map(str(store.path / RECORDS))).read_all()
    assert table.column("image_id").to_pylist() == [str(number) for number in range(10)]
    assert table.schema.equals(SCHEMA)


def test_opening_reads_no_row(store, monkeypatch):
    """Every byte of the rows may be wrong, and the store opens and counts."""
    path = store.path / RECORDS
    size = path.stat().st_size
    path.write_bytes(bytes(size))

    def never(*arguments):
        raise AssertionError("a row was read")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "batch", never)
        opened = Store.open(store.path)
        assert len(opened) == 10 and len(opened.records("val")) == 3
        assert (
            opened.fingerprint == store.fingerprint
            and opened.meta["splits"]["train"]["counts"]["images"] == 7
        )
    with pytest.raises(InputError, match="is damaged in record batch 0"):
        opened[0]


def test_opening_parses_as_much_for_many_rows(tmp_path, monkeypatch):
    """The metadata, all that is parsed at opening, does not grow with the rows but for a few digits."""
    monkeypatch.setattr(store_write, "ROWS_PER_BATCH", 4)
    sizes = [
        (write_store(tmp_path / str(count), work_of({"train": [simple(1)] * count})).path / META)
        .stat()
        .st_size
        for count in (4, 400)
    ]
    assert sizes[1] - sizes[0] < 40


def test_one_record_is_read_without_the_others(store, monkeypatch):
    seen = []
    real = Store.batch
    monkeypatch.setattr(Store, "batch", lambda self, number: seen.append(number) or real(self, number))
    assert Store.open(store.path).records("val")[0].image_id == "7"
    assert seen == [3]


def fingerprint_and_ids(store, rows):
    return store.fingerprint, [store[row].image_id for row in rows]


def test_many_processes_read_one_store(store):
    copy = pickle.loads(pickle.dumps(store))
    assert copy.path == store.path and len(pickle.dumps(store)) < 500
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = [pool.submit(fingerprint_and_ids, store, rows).result() for rows in ([0, 9], [5])]
    assert found == [(store.fingerprint, ["0", "9"]), (store.fingerprint, ["5"])]


def test_the_fingerprint_is_of_the_content(tmp_path):
    expected = [simple(number, path=str(tmp_path / "a" / f"{number}.jpg")) for number in range(5)]
    moved = [replace(item, path=item.path.replace("/a/", "/b/")) for item in expected]
    first = write_store(tmp_path / "1", work_of({"train": expected}, tmp_path / "a"))
    second = write_store(tmp_path / "2", work_of({"train": moved}, tmp_path / "b"))
    assert first.fingerprint == second.fingerprint
    for number, other in enumerate(
        (expected[1:], expected[::-1], [replace(expected[0], width=7, expressions=()), *expected[1:]])
    ):
        assert write_store(
            tmp_path / f"o{number}", work_of({"train": other}, tmp_path / "a")
        ).fingerprint != (first.fingerprint)
    assert (
        write_store(tmp_path / "3", work_of({"val": expected}, tmp_path / "a")).fingerprint
        != first.fingerprint
    )


def test_store_and_photos_move_together_or_apart(store, tmp_path):
    both = tmp_path / "elsewhere"
    both.mkdir()
    (tmp_path / "photos").rename(both / "photos")
    (tmp_path / "store").rename(both / "store")
    assert Store.open(both / "store")[0].path == str(both / "photos" / "0.png")
    (both / "photos").rename(tmp_path / "apart")
    assert Store.open(both / "store", tmp_path / "apart")[0].path == str(tmp_path / "apart" / "0.png")
    assert run_data(["verify", str(both / "store")]) == 1
    assert run_data(["verify", str(both / "store"), "--images", str(tmp_path / "apart")]) == 0


# ---- what is refused


def change_meta(store, **changes):
    path = store.path / META
    meta = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**meta, "checksum": meta_checksum(meta)}))


@pytest.mark.parametrize("version", [0, 1, 2, 4, "3", None])
def test_another_format_version_is_refused(store, version, capsys):
    change_meta(store, version=version)
    assert run_data(["inspect", str(store.path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"is of store format {version!r}, this program reads 3" in lines[0]


@pytest.mark.parametrize("name", [META, RECORDS, INDEX])
def test_a_file_cut_short_or_away_is_refused_at_opening(store, name):
    path = store.path / name
    whole = path.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as error:
            Store.open(store.path)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(InputError):
        Store.open(store.path)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_a_flipped_bit_is_an_input_error_or_changes_nothing(store, data):
    """Nothing but InputError comes out, no record is ever another one, and verify finds the damage."""
    path = store.path / data.draw(st.sampled_from([META, RECORDS, INDEX]))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    expected = list(store)
    try:
        path.write_bytes(damaged)
        try:
            found = Store.open(store.path)
            wrong = [line for _, lines in check_store(found, threads=1) for line in lines]
            assert wrong, f"{path.name} byte {at}: the damage was not found"
            for item, other in zip(found, expected, strict=True):
                assert_equal(item, other)
        except InputError as error:
            assert "\n" not in str(error)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (simple(1, height=5), r"d/1/0: its mask is \[4, 6\] \(height, width\), its photo \[5, 6\]"),
        (simple(1, source={"a": {1, 2}}), "image 1: source must be JSON data"),
        (simple(1, image_id="7", source={}, expressions=(Expression("e", "\ud800", Granularity.NONE, None),)),
         "image 7: holds text that is no Unicode"),
        (simple(1, pixels=np.zeros((4, 6), dtype=np.uint8)), "image 1: pixels must be uint8"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_named(tmp_path, bad, message):
    with pytest.raises(InputError, match=message):
        write_store(tmp_path / "s", work_of({"train": [simple(0), bad]}))
    assert not (tmp_path / "s").exists()


def test_no_folder_of_another_kind_is_overwritten(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "notes.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(InputError, match="exists and is not a store"):
            write_store(tmp_path / "s", work_of({"train": [simple(0)]}), fresh=fresh)
    with pytest.raises(InputError, match="is no store"):
        Store.open(tmp_path / "s")


# ---- interrupted, continued, refused


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("after", range(9))
def test_a_crash_at_any_write_continues(tmp_path, small_batches, monkeypatch, after):
    splits = {"train": [simple(number) for number in range(7)], "val": [simple(7)]}
    whole = write_store(tmp_path / "whole", work_of(splits))
    real, made, left = store_write.write_atomic, [], [after]

    def fails(path, content):
        if left[0] == 0:
            path.with_name(".writing-k1ll3d").write_bytes(content[:9])  # what a kill would leave
            raise OSError(28, "No space left on device", str(path))
        left[0] -= 1
        made.append(path.name)
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(store_write, "write_atomic", fails)
        with pytest.raises(OSError, match="No space"):
            write_store(tmp_path / "s", work_of(splits))
    assert not (tmp_path / "s").exists()
    again = []
    monkeypatch.setattr(
        store_write, "write_atomic", lambda path, content: again.append(path.name) or real(path, content)
    )
    write_store(tmp_path / "s", work_of(splits))
    assert files_of(tmp_path / "s") == files_of(whole.path)
    assert not {name for name in made if name.endswith(".chunk")} & set(again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "whole"]


def test_a_finished_split_is_not_read_again(tmp_path):
    def stops():
        raise KeyboardInterrupt

    def never():
        raise AssertionError("read again")

    first = Preparation("d", {"train": lambda: ([simple(0)], {"removed": 1}), "val": stops})
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "s", first)
    second = Preparation("d", {"train": never, "val": lambda: ([simple(1)], {})})
    store = write_store(tmp_path / "s", second)
    assert [item.image_id for item in store] == ["0", "1"]
    assert store.meta["splits"]["train"]["notes"] == {"removed": 1}
    assert len(write_store(tmp_path / "s", Preparation("d", {"train": never, "val": never}))) == 2  # done


@pytest.mark.parametrize("finished", [False, True])
def test_another_input_is_refused_with_a_diff(tmp_path, finished):
    def stops():
        raise KeyboardInterrupt

    work = work_of({"train": [simple(0)], "val": [simple(1)]}, inputs={"guard": "on", "a.json": "3 bytes"})
    if finished:
        write_store(tmp_path / "s", work)
    else:
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path / "s", replace(work, splits={**work.splits, "val": stops}))
    other = replace(work, inputs={"guard": "strict", "b.json": "4 bytes"})
    with pytest.raises(InputError) as error:
        write_store(tmp_path / "s", other)
    for part in ("guard: on then, strict now", "a.json: 3 bytes then, nothing now", "--fresh"):
        assert part in str(error.value)
    assert write_store(tmp_path / "s", other, fresh=True).meta["inputs"]["guard"] == "strict"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_damaged_pieces_are_not_put_together(tmp_path):
    def stops():
        raise KeyboardInterrupt

    loads = {"train": lambda: ([simple(0)], {}), "val": stops}
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "s", Preparation("d", loads))
    (piece,) = (tmp_path / "s.partial").glob("*.chunk")
    content = bytearray(piece.read_bytes())
    content[100] ^= 1
    piece.write_bytes(content)
    loads["val"] = lambda: ([simple(1)], {})
    with pytest.raises(InputError, match="is missing or damaged; --fresh"):
        write_store(tmp_path / "s", Preparation("d", loads))


# ---- verify


def test_verify_lists_every_fault(tmp_path, capsys):
    root = tmp_path / "photos"
    root.mkdir()
    for number, size in ((0, (6, 4)), (1, (4, 6)), (3, (6, 4)), (4, (6, 4))):
        Image.new("RGB", size).save(root / f"{number}.png")
    (root / "3.png").write_bytes((root / "3.png").read_bytes()[:40])
    full, empty = simple(4).expressions[0], masks.empty(4, 6)
    asked = (
        replace(full, expression_id="ok"),
        replace(full, expression_id="area", area=full.area + 1),
        replace(full, expression_id="empty", rle=empty, area=0),
        replace(full, expression_id="none", granularity=Granularity.NONE),
        replace(full, expression_id="lost", rle=None),
        replace(full, expression_id="code", rle={"size": [4, 6], "counts": "0"}),
    )
    talk = (Dialogue("talk", (Turn("q", (Phrase("p", empty, Granularity.PART),)),)),)
    found = [simple(number, path=str(root / f"{number}.png")) for number in range(5)]
    found[4] = replace(found[4], expressions=asked, dialogues=talk)
    store = write_store(tmp_path / "s", work_of({"train": [*found, simple(5)]}, root))
    capsys.readouterr()
    assert run_data(["verify", str(store.path)]) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "verify: 6 of 6" in printed.err
    wanted = [
        "image 1: .*1.png is 6 x 4 .* says 4 x 6",
        "image 2: .*2.png: no such photo",
        "image 3: .*3.png: .* damaged",
        "image 4: area: the mask covers",
        "image 4: empty: the mask covers no pixel",
        "image 4: none: is none and has a mask",
        "image 4: lost: is object and has no mask",
        "image 4: lost: has an area of",
        "image 4: code: mask code",
        "image 4: talk: 'p': the mask covers no pixel",
        "image 5: has neither a photo nor pixels",
    ]
    for pattern in wanted:
        assert any(re.search(pattern, line) for line in lines), pattern
    assert not any("image 0:" in line or ": ok:" in line for line in lines)
    assert lines[-1].endswith("wrong")


def test_verify_finds_nothing_wrong_in_a_whole_store(store, capsys):
    assert run_data(["verify", str(store.path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{store.path}: 10 rows checked, nothing wrong"]


# ---- the command line, on the developers' photos


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """Every data set of mini_real through `uniresxx data prepare`."""
    folder = tmp_path_factory.mktemp("mini")
    for name in ("refcoco", "grefcoco", "refcocom", "mini_real"):
        words = [name, "--root", str(MINI_REAL), "--out", str(folder / name)]
        assert command.main(words + ["--pack-images"] * (name == "refcoco")) == 0
    return {path.name: Store.open(path) for path in folder.iterdir()}


@needs_photos
@pytest.mark.parametrize("dataset", ["refcoco", "grefcoco"])
def test_refs_are_as_recorded_through_the_store(mini, dataset):
    expected, store = json.loads((MINI_REAL / "expected.json").read_text())[dataset], mini[dataset]
    for split, counts in expected["splits"].items():
        refs = {int(key): item for key, item in expected["refs"].items() if item["split"] == split}
        asked = [item for record in store.records(split) for item in record.expressions]
        assert (len(store.records(split)), len(asked)) == (counts["images"], counts["sentences"])
        assert Counter(item.source["ref_id"] for item in asked) == {
            key: item["sentences"] for key, item in refs.items()
        }
        for item in asked:
            ref = refs[item.source["ref_id"]]
            assert item.area == ref.get("area", 0)
            assert item.granularity is KINDS[ref.get("kind", "single")]
            if item.rle is not None:
                assert hashlib.sha1(item.rle["counts"].encode()).hexdigest() == ref["rle_sha1"]


@needs_photos
def test_segments_are_as_recorded_through_the_store(mini):
    expected, store = json.loads((MINI_REAL / "expected.json").read_text())["refcocom"], mini["refcocom"]
    assert set(store.splits) == set(expected["files"])
    for stem, counts in expected["files"].items():
        asked = [item for record in store.records(stem) for item in record.expressions]
        assert (len(store.records(stem)), len(asked)) == (counts["images"], counts["sentences"])
        for item in asked:
            segment = expected["segments"][item.source["segment_id"]]
            assert (str(item.granularity), item.area) == (segment["kind"], segment["area"])
            assert hashlib.sha1(item.rle["counts"].encode()).hexdigest() == segment["rle_sha1"]


@needs_photos
def test_packed_photos_are_the_files(mini):
    for split in ("train", "val", "testA", "testB"):
        expected = load_benchmark(f"refcoco/{split}", MINI_REAL)
        for found, item in zip(mini["refcoco"].records(split), expected, strict=True):
            assert encoded_photo(found.inside) == Path(item.path).read_bytes()
            assert np.array_equal(photo_of(found), photo_of(item))


@needs_photos
def test_a_store_gives_what_the_readers_give(mini):
    for split in ("train", "val", "testA", "testB"):
        for found, expected in zip(
            mini["mini_real"].records(split), load_benchmark(f"mini_real/{split}", MINI_REAL), strict=True
        ):
            assert_equal(found, replace(expected, path=os.path.realpath(expected.path)))


@needs_photos
def test_the_commands_take_a_store(mini, capsys):
    path = mini["mini_real"].path
    assert run_data(["verify", str(path)]) == 0
    assert run_data(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "warning: found no id list of refcoco+, refcocog_umd" in shown
    assert "val and test images held out: refcoco 6, grefcoco 6, refcocom 6" in shown
    assert run_data(["dump", f"{path}/val"]) == 0
    from_store = capsys.readouterr().out
    assert run_data(["dump", "mini_real/val", "--data", str(MINI_REAL)]) == 0
    drop = [
        [
            {key: value for key, value in json.loads(line).items() if key != "image"}
            for line in printed.splitlines()
        ]
        for printed in (from_store, capsys.readouterr().out)
    ]
    assert drop[0] == drop[1] and len(drop[0]) == 38
    assert run_data(["dump", f"{path}/nosplit"]) == 2


@needs_photos
def test_the_guard_of_prepare(tmp_path, capsys):
    words = ["prepare", "refcoco", "--root", str(MINI_REAL), "--out", str(tmp_path / "s")]
    assert run_data([*words, "--guard", "strict"]) == 2
    assert "found no id list of refcoco+, refcocog_umd" in capsys.readouterr().err
    assert run_data([*words, "--guard", "published_data"]) == 0
    assert "off (published_data)" in capsys.readouterr().out
    assert Store.open(tmp_path / "s").meta["guard"]["mode"] == "published_data"
    assert run_data(words) == 2  # another guard is another input
    assert "guard: published_data then, on now" in capsys.readouterr().err


def tiny_root(root):
    """RefCOCO whose train image 1 is a val image of RefCOCO+."""
    box = [[0, 0, 3, 0, 3, 3, 0, 3]]
    names = {number: f"COCO_train2014_{number:012d}.jpg" for number in (1, 2, 3)}
    photos = [{"id": key, "file_name": name, "height": 4, "width": 6} for key, name in names.items()]
    anns = [{"id": key, "image_id": key, "iscrowd": 0, "segmentation": box} for key in names]
    for folder, splits in (("refcoco", ("train", "train", "val")), ("refcoco+", ("val", "train", "train"))):
        (root / folder).mkdir(parents=True)
        (root / folder / "instances.json").write_text(json.dumps({"images": photos, "annotations": anns}))
        refs = [
            {"ref_id": key, "ann_id": key, "image_id": key, "split": split,
             "sentences": [{"sent": "it", "raw": "it", "sent_id": key}]}
            for key, split in zip(names, splits, strict=True)
        ]  # fmt: skip
        (root / folder / "refs(unc).json").write_text(json.dumps(refs))
    return root


def test_prepare_removes_and_stores_the_report(tmp_path, capsys):
    root = tiny_root(tmp_path / "root")
    assert run_data(["prepare", "refcoco/train", "--root", str(root), "--out", str(tmp_path / "s")]) == 0
    assert "guard: refcoco/train: removed 1 images, 1 expressions" in capsys.readouterr().out
    store = Store.open(tmp_path / "s")
    assert [record.image_id for record in store] == ["2"]
    assert store.meta["splits"]["train"]["notes"] == {"images": 1, "expressions": 1, "without_coco_id": 0}
    assert store.meta["guard"]["benchmarks"] == {"refcoco": 1, "refcoco+": 1}


def test_prepare_names_what_is_missing(tmp_path, capsys):
    out = ["--out", str(tmp_path / "s")]
    for words, message in (
        (["refcoco", *out], "--data DIR must be the root"),
        (["refcoco", "--root", str(tmp_path), *out], "holds no refcoco"),
        (["nodata", "--root", str(tmp_path), *out], "unknown data set 'nodata'"),
        (["refcoco"], "--out"),
    ):
        assert run_data(["prepare", *words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert message in lines[-1]


def test_input_that_was_corrected_needs_no_fresh_start(tmp_path, capsys):
    """Nothing was written for the wrong files, so there is nothing of theirs to keep."""
    root = tiny_root(tmp_path / "root")
    words = ["prepare", "refcoco/train", "--root", str(root), "--out", str(tmp_path / "s")]
    path = root / "refcoco/instances.json"
    good = path.read_text()
    path.write_text(good[:-2])
    assert run_data(words) == 2
    path.write_text(good)
    assert run_data(words) == 0, capsys.readouterr().err


def test_a_store_may_lie_below_the_data_folder(tmp_path, monkeypatch, capsys):
    root = tiny_root(tmp_path / "root")
    words = ["prepare", "refcoco", "--root", str(root), "--out", str(root / "stores/refcoco")]
    with monkeypatch.context() as stop:
        stop.setattr(store_write, "_assemble", Mock(side_effect=KeyboardInterrupt))
        assert run_data(words) == 75
    assert (root / "stores/refcoco.partial/manifest.json").is_file()
    for _ in range(2):  # continues, and keeps what is finished
        assert run_data(words) == 0, capsys.readouterr().err
    other = ["prepare", "refcoco+", "--root", str(root), "--out", str(root / "stores/refcoco+")]
    assert run_data(other) == 0
    assert run_data(words) == 0, capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_a_file_whose_name_is_no_unicode_is_input(tmp_path):
    root = tiny_root(tmp_path / "root")
    (root / "refcocom/annotations").mkdir(parents=True)
    listed = root / "refcocom/annotations" / os.fsdecode(b"val_\xff.json")
    listed.write_text("[]")
    words = ["prepare", "refcoco", "--root", str(root), "--out", str(tmp_path / "s")]
    assert run_data(words) == 0 == run_data(words)
    assert "refcocom/annotations/val_\udcff.json" in Store.open(tmp_path / "s").meta["inputs"]
    listed.write_text("[ ]")
    assert run_data(words) == 2


def test_annotations_behind_a_link_are_input(tmp_path, capsys):
    far = tiny_root(tmp_path / "far")
    root = tmp_path / "root"
    root.mkdir()
    (root / "refcoco").symlink_to(far / "refcoco")
    (root / "refcoco/up").symlink_to(root)  # round and round
    (root / "gone.json").symlink_to(tmp_path / "nothing")
    words = ["prepare", "refcoco", "--root", str(root), "--out", str(tmp_path / "s")]
    assert run_data(words) == 0
    path = far / "refcoco/refs(unc).json"
    path.write_text(path.read_text().replace('"it"', '"that"'))
    assert run_data(words) == 2
    assert "refcoco/refs(unc).json: " in capsys.readouterr().err


def test_prepare_stops_with_75_and_continues(tmp_path, monkeypatch, capsys):
    root = tiny_root(tmp_path / "root")
    words = ["prepare", "refcoco/train", "--root", str(root), "--out", str(tmp_path / "s")]
    real = command.stream_benchmark

    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(command, "stream_benchmark", stopped)
    assert run_data(words) == 75
    assert capsys.readouterr().err.splitlines()[-1] == "uniresxx data: stopped; the same command continues"
    assert run_data([*words, "--fresh"]) == 75
    assert capsys.readouterr().err.endswith("starts over, without --fresh it continues\n")
    monkeypatch.setattr(command, "stream_benchmark", real)
    assert run_data(words) == 0
    monkeypatch.setattr(command, "stream_benchmark", stopped)
    assert run_data([*words, "--fresh"]) == 75  # the finished store stays until then
    assert capsys.readouterr().err.endswith("the same command starts over\n")
    assert run_data(words) == 0


def test_the_command_line_starts_without_arrow():
    code = "import sys, uniresxx.cli.data\nassert 'pyarrow' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
