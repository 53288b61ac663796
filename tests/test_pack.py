"""Photos inside other files: packed into shards by prepare, or read where they lie, in LMDB and parquet."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tarfile
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from uniresxx.cli import main as program
from uniresxx.data.guard import record_coco_id
from uniresxx.data.store import shards
from uniresxx.data.store import write as store_write
from uniresxx.data.store.photos import encoded_photo, photo_of
from uniresxx.data.store.read import Store
from uniresxx.data.store.verify import check_store
from uniresxx.data.store.write import Preparation, write_store
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import Expression, Granularity, ImageRecord, PhotoInside

HERE = Path(__file__).resolve().parents[1]
H, W = 20, 30
PATIENCE = 600  # seconds for a process on a machine that is busy with other work


def run_data(words):
    return program(["data", *words])


def encoded(number, kind="PNG"):
    """A photo that no other number has."""
    picture = np.random.default_rng(number).integers(0, 256, (H, W, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind)
    return stream.getvalue()


def record(path, number):
    mask = np.zeros((H, W), dtype=bool)
    mask[1:4, 2:9] = True
    asked = (Expression(f"d/{number}", "it", Granularity.OBJECT, masks.encode(mask), area=21),)
    return ImageRecord(str(number), H, W, asked, path=str(path))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Seven rows; rows 2 and 5 are the same file, row 6 another file of the same bytes as row 0."""
    monkeypatch.setattr(store_write, "ROWS_PER_BATCH", 2)
    monkeypatch.setattr(shards, "FLUSH_ROWS", 2)
    root = tmp_path / "root"
    root.mkdir()
    for number in range(5):
        (root / f"COCO_train2014_{number:012d}.png").write_bytes(encoded(number))
    (root / "again.png").write_bytes(encoded(0))
    names = [f"COCO_train2014_{at:012d}.png" for at in (0, 1, 2, 3, 4, 2)] + ["again.png"]
    return root, [record(root / name, number) for number, name in enumerate(names)]


def work_of(root, records, shard_bytes=6000):
    loads = {"train": lambda: (records[:4], {}), "val": lambda: (records[4:], {})}
    return Preparation("d", loads, root, shard_bytes=shard_bytes)


def wrong(store):
    return [line for _, lines in check_store(store) for line in lines]


def test_packed_photos_are_those_of_the_files(tmp_path, photos):
    root, records = photos
    plain = write_store(tmp_path / "plain", work_of(root, records, None))
    store = write_store(tmp_path / "s", work_of(root, records))
    assert store.fingerprint == plain.fingerprint  # the same data, wherever its photos lie
    for at, expected in enumerate(records):
        found = store[at]
        assert (
            found.path is None
            and found.inside.kind == "tar"
            and found.inside.name == Path(expected.path).name
        )
        assert np.array_equal(photo_of(found), photo_of(expected))
        assert encoded_photo(found.inside) == Path(expected.path).read_bytes()
        assert record_coco_id(found) == record_coco_id(expected)
        assert photo_of(store[at - len(records)]).shape == (H, W, 3)
    assert wrong(store) == []


def test_the_photos_can_go_and_the_store_move(tmp_path, photos):
    root, records = photos
    expected = [photo_of(item) for item in records]
    write_store(tmp_path / "s", work_of(root, records))
    for path in root.iterdir():
        path.unlink()
    (tmp_path / "s").rename(tmp_path / "moved")
    found = Store.open(tmp_path / "moved")
    assert all(np.array_equal(photo_of(item), photo) for item, photo in zip(found, expected, strict=True))
    assert wrong(found) == []


def test_shards_are_plain_tar_files_and_equal_photos_are_stored_once(tmp_path, photos):
    root, records = photos
    store = write_store(tmp_path / "s", work_of(root, records))
    files = sorted((tmp_path / "s").glob("photos-*.tar"))
    assert len(files) > 1 and store.meta["photos"]["photos"] == 5
    content = []
    for path in files:
        assert path.stat().st_size <= 6000
        listed = subprocess.run(["tar", "-tf", str(path)], capture_output=True, text=True, check=True)
        with tarfile.open(path) as archive:
            assert listed.stdout.split() == archive.getnames()
            assert all(member.isreg() and "/" not in member.name for member in archive)
            content += [archive.extractfile(member).read() for member in archive]
    assert sorted(content) == sorted(encoded(number) for number in range(5))
    entries = [store.shards.entry(row) for row in range(len(store))]
    assert entries[2] == entries[5] and entries[0] == entries[6] and len(set(entries)) == 5
    for entry, item in zip(entries, records, strict=True):
        data = Path(item.path).read_bytes()
        assert (entry.height, entry.width, entry.length) == (H, W, len(data))
        assert (entry.crc, entry.sha256) == (zlib.crc32(data), hashlib.sha256(data).digest())


def test_opening_reads_no_entry_and_no_photo(tmp_path, photos):
    """Every byte of index and shards may be wrong: opening looks at sizes alone, however many rows there are."""
    root, records = photos
    write_store(tmp_path / "s", work_of(root, records))
    for path in [tmp_path / "s" / shards.INDEX, *(tmp_path / "s").glob("photos-*.tar")]:
        path.write_bytes(b"\xff" * path.stat().st_size)
    store = Store.open(tmp_path / "s")
    assert len(store) == 7
    with pytest.raises(InputError, match=r"photos\.bin is damaged at row 0"):
        store[0]


def read_all(store):
    return [photo_of(item).sum() for item in store]


def test_processes_and_threads_share_a_store(tmp_path, photos):
    root, records = photos
    store = write_store(tmp_path / "s", work_of(root, records))
    expected = [photo_of(item).sum() for item in records]
    item = store[3]
    assert pickle.loads(pickle.dumps(item)).inside == item.inside and len(pickle.dumps(store)) < 500
    with ThreadPoolExecutor(4) as pool:
        assert [f.result() for f in [pool.submit(read_all, Store.open(store.path)) for _ in range(4)]] == [
            expected
        ] * 4
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert pool.submit(read_all, store).result() == expected


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_a_flipped_bit_is_never_another_photo(tmp_path, photos, data):
    root, records = photos
    store = write_store(tmp_path / "s", work_of(root, records))
    expected = [photo_of(item) for item in records]
    path = data.draw(st.sampled_from(sorted(store.path.glob("photos*"))))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    try:
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]
        )
        found = Store.open(store.path)
        for number, photo in enumerate(expected):
            try:
                assert np.array_equal(photo_of(found[number]), photo)
            except InputError as error:
                assert "\n" not in str(error)
        assert wrong(found) or path.suffix == ".tar"  # headers and padding of a tar are nobody's photo
    finally:
        path.write_bytes(whole)


def test_a_store_without_photos_can_be_packed(tmp_path):
    drawn = replace(record("x", 1), path=None, pixels=np.zeros((H, W, 3), np.uint8))
    for name, records in (("none", []), ("drawn", [drawn])):
        store = write_store(tmp_path / name, work_of(tmp_path, records))
        assert len(list(store)) == len(records) and wrong(Store.open(store.path)) == []


# ---- stopped and continued


@pytest.mark.parametrize("after", range(1, 6))
def test_packing_stopped_anywhere_gives_the_same_bytes(tmp_path, photos, monkeypatch, after):
    root, records = photos
    whole = write_store(tmp_path / "whole", work_of(root, records))
    real, left = shards._Packing._write, [after]

    def stops(self, source):
        left[0] -= 1
        if left[0] == 0:
            self.shard.write(b"half a photo")
            self.index.write(b"half an entry")
            raise KeyboardInterrupt
        return real(self, source)

    with monkeypatch.context() as patch:
        patch.setattr(shards._Packing, "_write", stops)
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path / "s", work_of(root, records))
    assert not (tmp_path / "s").exists()
    again = []
    monkeypatch.setattr(shards._Packing, "_write", lambda self, item: again.append(item) or real(self, item))
    write_store(tmp_path / "s", work_of(root, records))
    assert len(again) <= 6 - (after - 1) // 2 * 2  # what was flushed is not read again
    for path in whole.path.iterdir():
        assert (tmp_path / "s" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_photo_that_is_missing_or_none_stops_packing_by_name(tmp_path, photos):
    root, records = photos
    bad = Path(records[4].path)
    data = bad.read_bytes()
    for content, message in ((None, "no such photo"), (b"GIF89a", "is no photo"), (b"", "is no photo")):
        bad.unlink(missing_ok=True)
        if content is not None:
            bad.write_bytes(content)
        with pytest.raises(InputError, match=message) as error:
            write_store(tmp_path / "s", work_of(root, records))
        assert bad.name in str(error.value) and "--pack-images" in str(error.value)
    bad.write_bytes(data)
    assert wrong(write_store(tmp_path / "s", work_of(root, records))) == []


def test_packing_and_not_packing_are_different_preparations(tmp_path, photos):
    root, records = photos
    write_store(tmp_path / "s", work_of(root, records))
    with pytest.raises(InputError, match="photos: in shards of 6000 bytes then, not packed now"):
        write_store(tmp_path / "s", work_of(root, records, None))


# ---- what others may have made of the files


def test_a_hostile_shard_or_index_writes_nothing_and_reads_nothing_else(tmp_path, photos):
    root, records = photos
    store = write_store(tmp_path / "s", work_of(root, records, 10**6))
    (path,) = store.path.glob("photos-*.tar")
    size, before = path.stat().st_size, sorted(tmp_path.rglob("*"))
    hostile = io.BytesIO()
    with tarfile.open(fileobj=hostile, mode="w") as archive:
        for name, kind, link in (
            ("/absolute", tarfile.REGTYPE, ""),
            ("../../up", tarfile.REGTYPE, ""),
            ("soft", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard", tarfile.LNKTYPE, "../../root"),
            ("device", tarfile.CHRTYPE, ""),
            ("pipe", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            archive.addfile(member)
    path.write_bytes(hostile.getvalue()[:size].ljust(size, b"\0"))
    for item in Store.open(store.path):
        with pytest.raises(InputError, match="differs from what was packed"):
            photo_of(item)
    assert len(wrong(Store.open(store.path))) == 7
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 2**40}, "no photo's place"),
        ({"length": 0}, "no photo's place"),
        ({"offset": 2**62}, "differs"),
        ({"offset": 2**64 - 1}, "cannot be read"),
        ({"file": "none.tar"}, "cannot be read"),
        ({"file": "a\0b"}, "cannot be read"),
        ({"kind": "zip"}, "no place of the kind 'zip'"),
        ({"kind": "parquet", "key": "-1"}, "no place of the kind"),
        ({"kind": "parquet", "key": "1"}, "no readable parquet"),
        ({"kind": "lmdb", "file": "none.lmdb"}, "no such file"),
    ],
)
def test_impossible_places_are_refused(tmp_path, photos, monkeypatch, changes, message):
    root, records = photos
    store = write_store(tmp_path / "s", work_of(root, records, 10**6))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        encoded_photo(replace(store[0].inside, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [shards.INDEX, "photos-00000.tar"])
def test_a_shard_cut_short_or_away_is_refused_at_opening(tmp_path, photos, name):
    root, records = photos
    path = write_store(tmp_path / "s", work_of(root, records)).path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{name} has"):
        Store.open(path.parent)
    path.unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        Store.open(path.parent)


def test_a_linked_photo_is_followed_and_its_bytes_packed(tmp_path, photos):
    """Links below the root are the user's own: COCO's folder is often one."""
    root, records = photos
    (tmp_path / "elsewhere").mkdir()
    Path(records[1].path).rename(tmp_path / "elsewhere" / "x.png")
    Path(records[1].path).symlink_to(tmp_path / "elsewhere" / "x.png")
    store = write_store(tmp_path / "s", work_of(root, records))
    with tarfile.open(store.path / "photos-00000.tar") as archive:
        assert all(member.isreg() for member in archive)
    assert encoded_photo(store[1].inside) == encoded(1)


# ---- photos inside LMDB and parquet


def png_mask():
    stream = io.BytesIO()
    values = np.zeros((H, W), np.uint8)
    values[2:8, 2:8] = 255
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def lmdb_root(root):
    path = root / "datasets" / "lmdb" / "refcoco" / "val.lmdb"
    path.parent.mkdir(parents=True)
    with (
        lmdb.open(str(path), subdir=False, map_size=2**22) as environment,
        environment.begin(write=True) as put,
    ):
        for at in range(3):
            value = {"img": encoded(at, "JPEG"), "mask": png_mask(), "cat": 0, "seg_id": at, "num_sents": 2}
            value |= {"img_name": f"COCO_train2014_{at:012d}.jpg", "sents": ["the man", " "]}
            put.put(b"%d" % at, pickle.dumps(value, 5))
        put.put(b"__len__", pickle.dumps(3, 5))
    return "cris_refcoco/val"


def parquet_root(root):
    path = root / "lmms-lab" / "RefCOCO" / "data" / "testA-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    rows = [
        {
            "question_id": f"q{at}", "image": {"bytes": encoded(at, "JPEG"), "path": None}, "iscrowd": int(at == 3),
            "answer": ["the man"], "segmentation": [2.0, 2, 8, 2, 8, 8, 2, 8], "bbox": [2.0, 2, 6, 6],
            "file_name": f"COCO_train2014_{at:012d}_1.jpg",
        }
        for at in range(5)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return "lmms_refcoco/testA"


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("make", [lmdb_root, parquet_root])
def test_photos_inside_are_read_and_packed_from_there(tmp_path, make, pack, capsys):
    root = tmp_path / "root"
    words = ["prepare", make(root), "--root", str(root), "--out", str(tmp_path / "s")]
    assert run_data(words + ["--pack-images"] * pack) == 0
    store = Store.open(tmp_path / "s")
    assert len(store) > 2
    for item in store:
        number = int(item.image_id)
        assert item.path is None and encoded_photo(item.inside) == encoded(number, "JPEG")
        assert photo_of(item).shape == (H, W, 3) and record_coco_id(item) == number
        assert int(masks.area(item.expressions[0].rle)) == 36
    assert run_data(["verify", str(tmp_path / "s")]) == 0
    capsys.readouterr()
    assert run_data(["inspect", str(tmp_path / "s")]) == 0
    assert "photos missing            0" in capsys.readouterr().out
    root.rename(tmp_path / "away")
    assert run_data(["verify", str(tmp_path / "s")]) == (0 if pack else 1)
    assert run_data(["verify", str(tmp_path / "s"), "--images", str(tmp_path / "away")]) == 0


@pytest.mark.parametrize("make", [lmdb_root, parquet_root])
def test_one_fingerprint_wherever_the_data_lies(tmp_path, make):
    """Also with records left out, whose lines name files."""
    found = set()
    for name in ("a", "deeper/b"):
        benchmark = make(tmp_path / name)
        out = tmp_path / f"{name.replace('/', '-')}-store"
        assert run_data(["prepare", benchmark, "--root", str(tmp_path / name), "--out", str(out)]) == 0
        store = Store.open(out)
        found.add(store.fingerprint)
        assert store[0].source["left_out"] and not any(str(tmp_path) in str(item.source) for item in store)
    assert len(found) == 1


# ---- as a user: a full disk, a signal, a folder that cannot be written


def refcoco_root(root, count=600):
    """RefCOCO with photos of about 2 KB."""
    (root / "refcoco").mkdir(parents=True)
    (root / "images" / "train2014").mkdir(parents=True)
    box, photos, anns, refs = [[2, 2, 8, 2, 8, 8, 2, 8]], [], [], []
    for at in range(count):
        name = f"COCO_train2014_{at:012d}.png"
        (root / "images" / "train2014" / name).write_bytes(encoded(at))
        photos.append({"id": at, "file_name": name, "height": H, "width": W, "license": 4})
        anns.append({"id": at, "image_id": at, "iscrowd": 0, "segmentation": box})
        sentence = {"sent": "it", "raw": "it", "sent_id": at}
        refs.append({"ref_id": at, "ann_id": at, "image_id": at, "split": "val", "sentences": [sentence]})
    content = {"images": photos, "annotations": anns, "licenses": [{"id": 4, "name": "Mine", "url": "u"}]}
    (root / "refcoco" / "instances.json").write_text(json.dumps(content))
    (root / "refcoco" / "refs(unc).json").write_text(json.dumps(refs))
    return ["refcoco/val", "--root", str(root), "--out", str(root.parent / "s"), "--pack-images"]


PREPARE = "import sys; from uniresxx.cli import main; sys.exit(main(['data', 'prepare', *sys.argv[1:]]))"
WAITING = """
import time
from uniresxx.cli.data import prepare
show = prepare.show_progress
def waits(what, done, of):
    show(what, done, of)
    if what == "packing photos":
        time.sleep(3600)
prepare.show_progress = waits
"""


def prepare(words, code=PREPARE, **options):
    # no bytecode: Python 3.11 leaves half of it where the size of files is limited
    return subprocess.Popen(
        [sys.executable, "-B", "-c", code, *words], cwd=HERE, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, **options,
    )  # fmt: skip


def test_a_full_disk_is_one_line_and_the_same_command_continues(tmp_path):
    words = refcoco_root(tmp_path / "root", 300)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # noqa: E731
    run = prepare(words, preexec_fn=limit)
    _, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 1 and "Traceback" not in err, err
    assert "File too large" in err.splitlines()[-1]
    again = prepare(words)
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    assert "photos: 300 packed" in out and wrong(Store.open(tmp_path / "s")) == []


def test_a_signal_stops_with_75_and_the_same_command_continues(tmp_path):
    words = refcoco_root(tmp_path / "root")
    run = prepare(words, WAITING + PREPARE)
    try:
        line = next(line for line in run.stderr if line.startswith("packing photos"))
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert line == "packing photos: 256 of 600\n" and (tmp_path / "s.partial" / shards.INDEX).is_file()
    assert run.returncode == 75 and err.splitlines()[-1].endswith("stopped; the same command continues"), err
    again = prepare(words)
    _, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    assert wrong(Store.open(tmp_path / "s")) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    words = refcoco_root(tmp_path / "root", 2)
    (tmp_path / "closed").mkdir(mode=0o500)
    words[words.index("--out") + 1] = str(tmp_path / "closed" / "s")
    assert run_data(["prepare", *words]) == 1
    assert "Permission denied" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("size", ["0", "-5", "x", "99999999"])
def test_a_wrong_shard_size_is_refused(tmp_path, capsys, size):
    words = ["prepare", *refcoco_root(tmp_path / "root", 1), "--shard-mb", size]
    assert run_data(words) == 2
    assert "shard-mb" in capsys.readouterr().err.splitlines()[-1]


def test_a_packed_photo_is_not_taken_for_a_path():
    """Nothing that opens paths can take a packed photo for a file."""
    item = replace(record("x", 1), path=None, inside=PhotoInside("tar", "a.tar", "0", "x.jpg", 0, 1, 0))
    with pytest.raises(TypeError):
        os.fspath(item.inside)
