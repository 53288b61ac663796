"""Saves that are killed, disks that are full or flip bits, folders that hold something else."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints import publish
from uniresxx.checkpoints import tensors as tensor_files
from uniresxx.checkpoints.publish import MARKER
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.tensors import load_weights, read_tensors, write_tensors
from uniresxx.errors import InputError
from uniresxx.files import lock_file
from uniresxx.segmenters import load


class Config:
    def to_dict(self):
        return {"model_type": "uniresxx", "width": 3}


class Tokenizer:
    def to_json(self):
        return '{"words": 5}'


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.config, self.tokenizer = Config(), Tokenizer()
        self.words = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.words.weight  # tied: safetensors refuses shared memory unless it is handled


@dataclass
class Lines:
    lines: list[str] = field(default_factory=list)

    def __call__(self, line):
        self.lines.append(line)


def save(run, step, keep_last=3, model=None):
    optimizer = {"words.weight/exp_avg": torch.full((5, 3), float(step))}
    return checkpoint.save(run, step, model or Tiny(), optimizer, {"step": step}, {"recipe": {}}, keep_last)


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def flip(path, where=-1):
    data = bytearray(path.read_bytes())
    data[where] ^= 0x10
    path.write_bytes(data)


def test_what_is_saved_comes_back(tmp_path):
    model, other = Tiny(), Tiny()
    folder = save(tmp_path, 7, model=model)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "manifest.json", "model.safetensors", "optimizer.safetensors", "recipe.json",
        "state.json", "tokenizer.json",
    ]  # fmt: skip
    assert checkpoint.damage(folder) is None
    load_weights(other, folder)
    assert torch.equal(other.words.weight, model.words.weight)
    assert other.head.weight is other.words.weight
    assert read_tensors(folder / "optimizer.safetensors")["words.weight/exp_avg"][0, 0] == 7


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_tensors_round_trip(tmp_path, dtype):
    value = torch.arange(12).reshape(3, 4).T.to(dtype)  # not contiguous
    write_tensors(tmp_path / "x", {"a": value, "scalar": value[1, 1], "view": value[1:]})
    back = read_tensors(tmp_path / "x")
    assert torch.equal(back["a"], value) and back["a"].dtype == dtype
    assert torch.equal(back["view"], value[1:]) and back["scalar"].shape == ()


def test_keeps_the_last_and_the_best(tmp_path):
    save(tmp_path, 1)
    checkpoint.mark_best(tmp_path, {"step": 1, "metric": "mIoU", "value": 40.0})
    for step in (2, 3, 4):
        save(tmp_path, step, keep_last=2)
    assert names(tmp_path) == ["best.json", "step_00000001", "step_00000003", "step_00000004"]
    assert resolve(tmp_path, print).name == "step_00000001"


def test_a_save_after_a_resume_from_an_older_one_is_not_deleted_for_the_damaged_one(tmp_path):
    save(tmp_path, 5)
    flip(save(tmp_path, 10) / "model.safetensors")
    save(tmp_path, 7, keep_last=1)
    assert checkpoint.newest_verified(tmp_path, print).name == "step_00000007"
    save(tmp_path, 10, keep_last=1)  # takes the damaged one's place
    assert checkpoint.damage(tmp_path / "checkpoints/step_00000010") is None
    assert names(tmp_path) == ["step_00000010"]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "remove"])
def test_every_damage_is_found_and_the_previous_checkpoint_used(tmp_path, file, how):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    match how:
        case "flip":
            flip(path, len(path.read_bytes()) // 2)
        case "truncate":
            path.write_bytes(path.read_bytes()[:-9])
        case "empty":
            path.write_bytes(b"")
        case "remove":
            path.unlink()
    log = Lines()
    assert checkpoint.newest_verified(tmp_path, log).name == "step_00000001"
    assert len(log.lines) == 1 and "step_00000002 is damaged" in log.lines[0] and file in log.lines[0]


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_manifest_is_found(tmp_path_factory, place, bit):
    run = tmp_path_factory.mktemp("run")
    path = save(run, 1) / "manifest.json"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    before = json.loads(path.read_bytes())
    path.write_bytes(data)
    try:
        same = json.loads(data) == before  # white space may turn into other white space
    except ValueError:
        same = False
    assert (checkpoint.damage(path.parent) is None) == same


def test_all_damaged_is_none_with_a_line_each(tmp_path):
    for step in (1, 2):
        flip(save(tmp_path, step) / "model.safetensors")
    log = Lines()
    assert checkpoint.newest_verified(tmp_path, log) is None
    assert len(log.lines) == 2
    with pytest.raises(InputError, match="no undamaged checkpoint"):
        resolve(tmp_path, log)


def test_a_renamed_folder_is_not_another_step(tmp_path):
    save(tmp_path, 1).rename(tmp_path / "checkpoints/step_00000009")
    assert "of step 1" in checkpoint.damage(tmp_path / "checkpoints/step_00000009")


def test_a_newer_format_is_refused_not_called_damaged(tmp_path):
    path = save(tmp_path, 1) / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": checkpoint.FORMAT + 1}
    manifest["digest"] = checkpoint._digest(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="update uniresxx"):
        checkpoint.newest_verified(tmp_path, print)


# ---- kills and full disks


class Counter:
    """Counts writes, flushes, renames and removals; at number `at` it does `then` before the real thing."""

    def __init__(self, at, then):
        self.at, self.then, self.count = at, then, 0

    def wrap(self, function):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == self.at:
                self.then(*args)
            return function(*args, **kwargs)

        return wrapped

    def install(self, monkeypatch):
        for owner, name in ((checkpoint, "write_file"), (os, "fsync"), (os, "rename"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))


def operations_of_a_save(tmp_path, monkeypatch):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        counter = Counter(-1, print)
        counter.install(patch)
        save(tmp_path, 2, keep_last=1)
    return counter.count


def half_written_then_dead(*args):
    if len(args) == 2 and isinstance(args[1], bytes):
        args[0].write_bytes(args[1][: len(args[1]) // 2])
    elif len(args) == 2 and callable(args[1]):  # it writes the file itself
        args[1](args[0])
        os.truncate(args[0], args[0].stat().st_size // 2)
    os._exit(9)


def test_killed_at_every_operation_of_a_save(tmp_path, monkeypatch):
    total = operations_of_a_save(tmp_path / "count", monkeypatch)
    assert total > 15
    for number in range(1, total + 1):
        run = tmp_path / str(number)
        save(run, 1)
        child = os.fork()  # a real process that really ends there: no clean-up runs
        if child == 0:
            with monkeypatch.context() as patch:
                Counter(number, half_written_then_dead).install(patch)
                save(run, 2, keep_last=1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        log = Lines()
        assert checkpoint.newest_verified(run, log) is not None
        assert log.lines == []  # nothing half under a final name
        save(run, 3, keep_last=1)
        assert names(run) == ["step_00000003"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_at_every_operation_removes_the_half_and_keeps_the_old(tmp_path, monkeypatch, code):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    for number in range(1, 16):
        run = tmp_path / str(number)
        save(run, 1)
        with monkeypatch.context() as patch:
            Counter(number, fail).install(patch)
            with pytest.raises(checkpoint.SaveError, match=r"could not save step 2 .*the disk is full"):
                save(run, 2)
        assert names(run) == ["step_00000001"]
        assert checkpoint.newest_verified(run, print) is not None


def test_a_really_full_file_system(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(mount)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small tmpfs needs root")
    try:
        whole = os.statvfs(mount)
        if whole.f_blocks * whole.f_frsize > 2**20:
            pytest.skip("this system gives a tmpfs whatever size it likes")
        with pytest.raises(checkpoint.SaveError, match="the disk is full"):
            for step in range(1, 20):
                save(mount, step, keep_last=20)
        assert checkpoint.newest_verified(mount, print) is not None
        assert not [name for name in names(mount) if name.endswith(".tmp")]
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)  # whoever may still look at it


# ---- folders of users


def known(monkeypatch):
    monkeypatch.setitem(load.LOADERS, "uniresxx", lambda folder, placement: folder)


def test_load_segmenter_takes_run_and_plain_folders(tmp_path, monkeypatch):
    known(monkeypatch)
    save(tmp_path / "run", 1)
    newest = save(tmp_path / "run", 2)
    checkpoint.save_pretrained(tmp_path / "plain", Tiny())
    assert sorted(p.name for p in (tmp_path / "plain").glob("[!.]*")) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert load.load_segmenter(tmp_path / "run") == newest
    assert load.load_segmenter(newest) == newest
    assert load.load_segmenter(tmp_path / "plain") == tmp_path / "plain"
    flip(newest / "model.safetensors")
    with pytest.warns(UserWarning, match="step_00000002 is damaged"):
        assert load.load_segmenter(tmp_path / "run").name == "step_00000001"
    with pytest.raises(InputError, match="is damaged"):
        load.load_segmenter(newest)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({}, "has neither config.json nor a checkpoints folder"),
        ({"config.json": "{"}, "config.json is not readable JSON"),
        ({"config.json": "[1]"}, "holds a list, not a JSON object"),
        ({"config.json": "\x80"}, "config.json is not readable JSON"),
        ({"config.json": '{"model_type": "llava"}'}, "has model_type 'llava'; known: "),
        ({"config.json": '{"model_type": ["uniresxx"]}'}, "has model_type \\['uniresxx'\\]"),
        ({"config.json": "{}"}, "has model_type None"),
        ({"config.json": '{"model_type": "uniresxx"}'}, "model.safetensors is missing"),
        ({"pytorch_model.bin": "x"}, "is not a checkpoint"),
    ],
)
def test_folders_of_another_kind_get_one_line(tmp_path, monkeypatch, files, line):
    known(monkeypatch)
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=line) as error:
        load.load_segmenter(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_folders_and_files_get_one_line(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load.load_segmenter(tmp_path / "nothing")
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="is a file: give a run folder"):
        load.load_segmenter(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t.pop("head.weight"), "1 missing: head.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (
            lambda t: t.update({"words.weight": torch.zeros(6, 3)}),
            r"1 of another shape: words.weight \(6, 3\) instead of \(5, 3\)",
        ),
        (lambda t: t.update({f"x{i}": torch.zeros(1) for i in range(9)}), "9 unexpected: x0, x1, x2, …"),
    ],
)
def test_weights_load_strictly(tmp_path, change, line):
    tensors = dict(Tiny().state_dict())
    change(tensors)
    write_tensors(tmp_path / "model.safetensors", tensors)
    model = Tiny()
    before = model.words.weight.clone()
    with pytest.raises(InputError, match=line) as error:
        load_weights(model, tmp_path)
    assert "\n" not in str(error.value)
    assert torch.equal(before, model.words.weight)


@pytest.mark.parametrize("elements", [1, 16, 10**9])
def test_weights_that_are_read_in_pieces_are_the_same(tmp_path, monkeypatch, elements):
    model, other = (nn.Sequential(Tiny(), nn.Linear(3, 4), nn.LayerNorm(7)) for _ in range(2))
    tensors = dict(model.state_dict())
    write_tensors(tmp_path / "model.safetensors", tensors)
    monkeypatch.setattr(tensor_files, "PIECE", elements)
    load_weights(other, tmp_path)
    assert all(torch.equal(value, tensors[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{}      "])
def test_files_that_are_not_safetensors_get_one_line(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"not a readable safetensors|does not fit") as error:
        load_weights(Tiny(), tmp_path)
    assert "\n" not in str(error.value)


# ---- what is kept, and what a save costs


@pytest.mark.parametrize("best", [9, 1])
def test_keep_last_keeps_as_many_as_it_says(tmp_path, monkeypatch, best):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # many saves, none of which meets a power cut
    for keep_last in range(1, 9):
        run = tmp_path / str(keep_last)
        for step in range(1, 9):
            save(run, step, keep_last=keep_last)
            if step == best:
                checkpoint.mark_best(run, {"step": step, "metric": "mIoU", "value": 1.0})
            expected = {best} & set(range(1, 9)) | set(range(max(1, step - keep_last + 1), step + 1))
            assert {int(name[5:]) for name in names(run) if name.startswith("step_")} == expected


SAVE_ALONE = """
import resource, sys, torch
from pathlib import Path
from uniresxx.checkpoints.folders import save, save_pretrained
from uniresxx.checkpoints.saveable import Snapshot

class Config:
    def to_dict(self):
        return {"model_type": "uniresxx"}

run = Path(sys.argv[1])
block = 25_000_000
weights = {f"layer_{i}": torch.zeros(block // 4).fill_(i) for i in range(8)}
save(run / "warm", 1, Snapshot(Config(), None, {"a": torch.ones(3)}), {"b": torch.ones(3)}, {}, {})
save_pretrained(run / "warm_plain", Snapshot(Config(), None, {"a": torch.ones(3), "b": torch.ones(3)}), 10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = Snapshot(Config(), None, weights)
save(run, 1, model, {"exp_avg": weights["layer_0"]}, {}, {})
save_pretrained(run / "plain", model, 60_000_000)
extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(extra / (8 * block))
"""


def test_a_save_needs_little_memory_beside_the_weights(tmp_path):
    command = [sys.executable, "-c", SAVE_ALONE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.5, "memory beside the weights, as a part of their 200 MB"
    shutil.rmtree(tmp_path)


# ---- folders that hold what somebody else wrote


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "config.json",
     "tokenizer.json", "adapter_model.safetensors", "pytorch_model.bin", "README.md"],
)  # fmt: skip
@pytest.mark.parametrize("shard", [None, 40])
def test_a_save_leaves_a_folder_of_somebody_else_as_it_is(tmp_path, name, shard):
    (tmp_path / name).write_bytes(b"theirs")
    with pytest.raises(InputError, match=f"{name} was not written by uniresxx .*name another folder"):
        checkpoint.save_pretrained(tmp_path, Tiny(), shard, "a card")
    assert contents(tmp_path) == {name: b"theirs"}


def test_a_save_replaces_what_an_earlier_one_wrote_and_nothing_else(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"mine")
    for shard in (40, None, 70, None):
        written = checkpoint.save_pretrained(tmp_path, Tiny(), shard)
        found = contents(tmp_path)
        assert set(found) == {*written, "notes.txt", MARKER} and found["notes.txt"] == b"mine"
        load_weights(Tiny(), tmp_path)


def test_a_file_that_was_changed_since_is_the_users(tmp_path):
    checkpoint.save_pretrained(tmp_path, Tiny(), card="a card")
    (tmp_path / "README.md").write_bytes(b"my own words")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"README\.md was not written by uniresxx or was changed since"):
        checkpoint.save_pretrained(tmp_path, Tiny(), card="a card")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"model.safetensors": "x"}}', "{}"])
def test_a_broken_list_of_our_files_makes_nothing_ours(tmp_path, text):
    checkpoint.save_pretrained(tmp_path, Tiny())
    (tmp_path / MARKER).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="was not written by uniresxx"):
        checkpoint.save_pretrained(tmp_path, Tiny())
    assert contents(tmp_path) == before


def test_a_list_of_our_files_cannot_name_files_elsewhere(tmp_path):
    victim, folder = tmp_path / "model.safetensors", tmp_path / "out"
    victim.write_bytes(b"theirs")
    checkpoint.save_pretrained(folder, Tiny(), 40)
    listed = json.loads((folder / MARKER).read_text())
    listed["files"] |= {name: [publish.sha256_of(victim)] for name in ("../model.safetensors", str(victim))}
    (folder / MARKER).write_text(json.dumps(listed))
    publish.publish(folder, {"a.json": b"{}"}, lambda name: True)
    assert victim.read_bytes() == b"theirs"


def test_killed_at_every_operation_of_a_plain_save(tmp_path, monkeypatch):
    """The old model, the new one, or a folder that is refused; the same save again always ends well."""
    number, code = 0, 9
    while code == 9:
        number += 1
        folder = tmp_path / str(number)
        checkpoint.save_pretrained(folder, Tiny(), 40)
        child = os.fork()
        if child == 0:
            with monkeypatch.context() as patch:
                counter = Counter(number, half_written_then_dead)
                counter.install(patch)
                for owner, name in ((publish, "write_file"), (os, "replace"), (os, "unlink")):
                    patch.setattr(owner, name, counter.wrap(getattr(owner, name)))
                checkpoint.save_pretrained(folder, Tiny(), None)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if (folder / "config.json").exists():
            load_weights(Tiny(), folder)
        written = checkpoint.save_pretrained(folder, Tiny(), None)
        assert (
            set(contents(folder)) - {MARKER} == set(written)
            if code == 0
            else set(written) <= set(contents(folder))
        )
        assert not (folder / ".uniresxx-writing").exists()
    assert number > 15


def test_a_second_writer_is_refused_with_the_process_of_the_first(tmp_path):
    with (
        lock_file(tmp_path / ".uniresxx-writing" / "lock", "write"),
        pytest.raises(InputError, match=f"process {os.getpid()} .* works there"),
    ):
        checkpoint.save_pretrained(tmp_path, Tiny())
