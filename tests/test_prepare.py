"""`uniresxx data prepare` and the files of its user: what it reads, what it writes, what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from uniresxx.cli import main as program
from uniresxx.data.store import output
from uniresxx.data.store import write as store_write
from uniresxx.data.store.read import Store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def data(tmp_path):
    """RefCOCO with a photo in train and one in val, as JSON."""
    folder = tmp_path / "data" / "refcoco"
    folder.mkdir(parents=True)
    box = [[0, 0, 3, 0, 3, 3, 0, 3]]
    names = {1: "COCO_train2014_000000000001.jpg", 2: "COCO_train2014_000000000002.jpg"}
    photos = [{"id": key, "file_name": name, "height": 4, "width": 6} for key, name in names.items()]
    anns = [{"id": key, "image_id": key, "iscrowd": 0, "segmentation": box} for key in names]
    (folder / "instances.json").write_text(json.dumps({"images": photos, "annotations": anns}))
    refs = [
        {"ref_id": key, "ann_id": key, "image_id": key, "split": split, "sentences": [sentence_of(key)]}
        for key, split in ((1, "train"), (2, "val"))
    ]
    (folder / "refs(unc).json").write_text(json.dumps(refs))
    return tmp_path / "data"


def sentence_of(key):
    return {"sent": "it", "raw": "it", "sent_id": key}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "s"


def prepare(data, out, *options):
    return program(["data", "prepare", "refcoco", "--data", str(data), "--out", str(out), *options])


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# ---- folders of others


@pytest.mark.parametrize("options", [[], ["--fresh"]])
def test_a_folder_beside_the_store_is_untouched(data, out, options):
    for name in ("s.old", "s.bak", "s.lock"):
        (out.parent / name).mkdir()
        (out.parent / name / "notes.txt").write_text("mine")
    before = content(out.parent)
    assert prepare(data, out) == 0 == prepare(data, out, *options)
    after = content(out.parent)
    assert {name: after[name] for name in before} == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["data", "s", "s.bak", "s.lock", "s.old"]
    assert sorted(path.name for path in out.iterdir()) == ["index.bin", "meta.json", "records.arrow"]


@pytest.mark.parametrize("options", [[], ["--fresh"]])
@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("s", {"meta.json": '{"my": "notes"}'}),
        ("s", {"meta.json": "not JSON", "photo.jpg": "x"}),
        ("s", {"records.arrow": "x"}),
        ("s.partial", {"notes.txt": "mine"}),
        ("s.partial", {"manifest.json": '{"name": "an app"}'}),
        ("s.partial", {"meta.json": "{}", "photos.bin": "mine"}),
    ],
)
def test_a_folder_of_another_program_is_refused_and_untouched(data, out, capsys, name, files, options):
    folder = out.parent / name
    folder.mkdir()
    for item, text in files.items():
        (folder / item).write_text(text)
    before = content(out.parent)
    assert prepare(data, out, *options) == 2
    assert str(folder) in capsys.readouterr().err.splitlines()[-1]
    assert content(out.parent) == before


def test_what_a_user_put_into_a_store_stays_there(data, out):
    assert prepare(data, out) == 0
    (out / "notes.txt").write_text("mine")
    (out / "my.chunk").write_text("mine")
    (out / "manifest.json").write_text("mine")
    (out / "photos-mine.tar").write_text("mine")
    (out / "photos").mkdir()
    (out / "photos" / "a.jpg").write_text("mine")
    assert prepare(data, out) == 0 == prepare(data, out, "--fresh")
    mine = {name: text for name, text in content(out).items() if text == b"mine"}
    assert set(mine) == {"notes.txt", "my.chunk", "manifest.json", "photos-mine.tar", "photos/a.jpg"}
    assert [path.name for path in out.parent.iterdir() if path.name not in ("s", "data")] == []
    (out.parent / "s.partial").mkdir()
    (out.parent / "s.partial" / "manifest.json").write_text('{"inputs": {}, "splits": {}}')
    (out.parent / "s.partial" / "0000-0000000.chunk").write_text("of an earlier run")
    (out.parent / "s.partial" / "other.txt").write_text("mine")
    assert prepare(data, out, "--fresh") == 0
    assert (out / "other.txt").read_text() == "mine" and not list(out.glob("0*.chunk"))


@pytest.mark.parametrize("where", ["_assemble", "_write_split", "put"])
def test_a_fresh_start_that_stops_leaves_the_finished_store(data, out, monkeypatch, where):
    assert prepare(data, out) == 0
    before = content(out)
    with monkeypatch.context() as patch:
        patch.setattr(store_write, where, Mock(side_effect=OSError(28, "No space left on device")))
        assert prepare(data, out, "--fresh") == 1
    assert content(out) == before
    assert prepare(data, out) == 0 and len(Store.open(out)) == 2


def test_the_old_store_comes_back_where_the_new_one_cannot_take_its_place(data, out, monkeypatch):
    assert prepare(data, out) == 0
    before, real = content(out), Path.rename

    def fails(path, target):
        if path.name == "s.partial":
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(output.Path, "rename", fails)
    assert prepare(data, out, "--fresh") == 1
    assert content(out) == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["data", "s", "s.partial"]


def test_a_store_behind_a_link_is_replaced_where_it_lies(data, out):
    far = out.parent / "far"
    assert prepare(data, far) == 0
    out.symlink_to(far)
    assert prepare(data, out, "--fresh") == 0
    assert out.is_symlink() and len(Store.open(far)) == 2


@pytest.mark.parametrize("name", [".", ".."])
def test_a_store_needs_a_name(data, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    assert prepare(data, name) == 2
    assert "--out must name a folder of its own" in capsys.readouterr().err
    assert not any((tmp_path / "in").iterdir())


# ---- one at a time

HOLDS = """
import sys
from uniresxx.cli import main
from uniresxx.data.store import write
def waits(*arguments):
    print("writing", flush=True)
    sys.stdin.read()
write._assemble = waits
main(["data", "prepare", *sys.argv[1:]])
"""


def test_the_second_of_two_says_who_is_there(data, out, capsys):
    command = [sys.executable, "-c", HOLDS, "refcoco", "--data", str(data), "--out", str(out)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "writing\n"
        for options in ([], ["--fresh"]):
            before = content(out.parent)
            assert prepare(data, out, *options) == 2
            last = capsys.readouterr().err.splitlines()[-1]
            assert f"cannot prepare {out}: process {first.pid} on " in last and "wait for it" in last
            assert content(out.parent) == before
        first.kill()
    assert prepare(data, out) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["data", "s"]


# ---- which files count


def test_files_that_were_not_read_do_not_count(data, out):
    (data / "old.json").write_text("{}")
    assert prepare(data, out) == 0
    (data / "old.json").unlink()
    (data / "notes").mkdir()
    (data / "notes" / "todo.json").write_text("{}")
    (data / "refcoco" / "refs(google).p").write_bytes(b"another way of splitting")
    assert prepare(data, out) == 0
    assert set(Store.open(out).meta["inputs"]) >= {"refcoco/instances.json", "refcoco/refs(unc).json"}


@pytest.mark.parametrize("name", ["instances.json", "refs(unc).json"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_file_that_was_read_counts(data, out, capsys, monkeypatch, name, finished):
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(store_write, "_assemble", Mock(side_effect=KeyboardInterrupt))
        assert prepare(data, out) == (0 if finished else 75)
    path = data / "refcoco" / name
    path.write_text(path.read_text() + " ")
    assert prepare(data, out) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"refcoco/{name}: " in line and " then, " in line and "--fresh" in line
    path.unlink()
    assert prepare(data, out) == 2
    assert f"{name}" in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_changes_before_the_first_piece_was_whole_counts(data, out, capsys, monkeypatch):
    """Pieces of a split that stopped half-way came from the old file."""
    real = store_write.write_atomic

    def stops(path, text):
        real(path, text)
        if path.suffix == ".chunk":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_write, "write_atomic", stops)
        assert prepare(data, out) == 75
    path = data / "refcoco" / "instances.json"
    path.write_text(path.read_text() + " ")
    assert prepare(data, out) == 2
    assert "refcoco/instances.json" in capsys.readouterr().err.splitlines()[-1]


def test_a_list_that_the_guard_would_read_now_counts(data, out, capsys):
    assert prepare(data, out) == 0
    (data / "refcoco+").mkdir()
    (data / "refcoco+" / "refs(unc).json").write_text("[]")
    assert prepare(data, out) == 2
    assert "refcoco+/refs(unc).json: nothing then" in capsys.readouterr().err.splitlines()[-1]


def test_a_split_that_is_there_now_counts(data, out, capsys):
    """CRIS has one file for each split."""
    lists = data / "anns" / "refcoco"
    masks = data / "masks" / "refcoco"
    lists.mkdir(parents=True)
    masks.mkdir(parents=True)
    Image.new("L", (6, 4), 255).save(masks / "1.png")
    record = {"img_name": "COCO_train2014_000000000001.jpg", "segment_id": 1, "sentences": [{"sent": "it"}]}
    (lists / "val.json").write_text(json.dumps([record]))
    words = ["data", "prepare", "cris_refcoco", "--data", str(data), "--out", str(out)]
    assert program(words) == 0 == program(words)
    (lists / "testA.json").write_text(json.dumps([record]))
    assert program(words) == 2
    assert "without testA, which is there now" in capsys.readouterr().err.splitlines()[-1]


def test_the_same_file_read_twice_must_be_the_same(data, out, capsys, monkeypatch):
    real = store_write.counts_of

    def changes(records):
        path = data / "refcoco" / "instances.json"
        path.write_text(path.read_text() + " ")
        return real(records)

    monkeypatch.setattr(store_write, "counts_of", changes)
    assert prepare(data, out) == 2
    assert "instances.json: changed while" in capsys.readouterr().err.splitlines()[-1]


# ---- options


@pytest.mark.parametrize("option", ["--data", "--root"])
def test_the_data_folder_has_one_name_and_a_former_one(data, out, capsys, option):
    folder = [option, str(data)]
    assert program(["data", "prepare", "refcoco", *folder, "--out", str(out)]) == 0
    assert program(["data", "inspect", "refcoco", *folder]) == 0
    assert program(["data", "dump", "refcoco/val", *folder]) == 0
    assert '"expression_id": "refcoco/val/2"' in capsys.readouterr().out
    for command in ("prepare", "inspect", "dump"):
        with pytest.raises(SystemExit):
            program(["data", command, "--help"])
        text = capsys.readouterr().out
        assert "--data DIR" in text and "--root" not in text


def test_the_sheet_replaces_only_a_sheet(data, out, capsys):
    photo = out.parent / "photo.png"
    Image.new("RGB", (6, 4)).save(photo)
    before = photo.read_bytes()
    assert program(["data", "inspect", "refcoco", "--data", str(data), "--sheet", str(photo)]) == 2
    assert f"{photo} exists and is not a contact sheet" in capsys.readouterr().err.splitlines()[-1]
    assert photo.read_bytes() == before
    sheet = out.parent / "sheet.png"
    for _ in range(2):
        assert program(["data", "inspect", "refcoco", "--data", str(data), "--sheet", str(sheet)]) == 0
    assert (
        program(["data", "inspect", "refcoco", "--data", str(data), "--sheet", str(out.parent / "a.jpg")])
        == 2
    )
