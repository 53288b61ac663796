"""Checkpoints of a run: folders that appear whole or not at all, and are checked before use.

A run folder holds `checkpoints/step_00000123/`. A save writes into `step_00000123.tmp`, flushes each file to
the disk, writes `manifest.json` (size and sha256 of every file) last, and renames the folder once. Whatever
stops a save, a folder with a final name is complete; the manifest finds what the disk did to it later.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from uniresxx.checkpoints.publish import Content, publish, sha256_of, write_file
from uniresxx.checkpoints.saveable import Saveable
from uniresxx.checkpoints.shards import (
    OPTIMIZER,
    Files,
    OneProcess,
    Processes,
    checkpoint_files,
    index_of,
    shards_of,
    write_shards,
)
from uniresxx.checkpoints.tensors import (
    CONFIG,
    INDEX,
    SHARD,
    TOKENIZER,
    WEIGHTS,
    AnyTensor,
    one_line,
    read_json,
    weight_files,
    write_tensors,
)
from uniresxx.errors import InputError
from uniresxx.files import sync_to_disk, to_json, write_atomic

FORMAT = 1  # of checkpoint folders; raised when a reader of the old one would misread the new one
CHECKPOINTS, MANIFEST, CARD = "checkpoints", "manifest.json", "README.md"
STATE, RECIPE, BEST = "state.json", "recipe.json", "best.json"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STEP = re.compile(r"step_(\d{8,})")
_LEFTOVER = re.compile(r"step_\d{8,}(\.old)?\.tmp")

Log = Callable[[str], None]
Entries = dict[str, dict[str, Any]]  # file name -> its size and checksum, in a manifest


class SaveError(RuntimeError):
    """A checkpoint could not be written; earlier ones are untouched. Programs exit with 1."""


def pretrained_files(model: Saveable, shard_bytes: int | None = None) -> dict[str, Content]:
    """Contents of the `from_pretrained` form by file name; the config, which completes it, comes last.

    `shard_bytes`: the most that one file of weights holds, unless a single tensor is larger; None: one file.
    """
    shards = shards_of(model.state_dict(), shard_bytes or sys.maxsize, "model")
    return {name: partial(_write, tensors) for name, tensors in shards.items()} | _about_model(model, shards)


def _write(tensors: Mapping[str, AnyTensor], path: Path) -> None:
    write_tensors(path, tensors)


def _about_model(model: Saveable, shards: Files) -> dict[str, Content]:
    """What a `from_pretrained` folder holds beside the weights."""
    index = {INDEX: index_of(shards)} if len(shards) > 1 else {}
    tokenizer = {} if model.tokenizer is None else {TOKENIZER: model.tokenizer.to_json().encode()}
    return {**index, **tokenizer, CONFIG: to_json(model.config.to_dict())}


def save_pretrained(
    folder: Path, model: Saveable, shard_bytes: int | None = None, card: str | None = None
) -> list[str]:
    """Write a plain `from_pretrained` folder; returns the names of the files.

    Args:
        folder: must not be a run, whose checkpoints the weights would hide.
        model: what is saved.
        shard_bytes: as of `pretrained_files`.
        card: the text of README.md; None: none is written.

    Raises:
        InputError: the folder holds files of these names, or weights, that this program did not write there.
        OSError: the disk is full or refuses; the folder is as it was.
    """
    about = {} if card is None else {CARD: card.encode()}
    return publish_model(folder, about | pretrained_files(model, shard_bytes))


def copied_files(source: Path) -> dict[str, Content]:
    """The `from_pretrained` files of a folder as contents that copy them and compare the copy's checksum."""
    weights = list(weight_files(source))
    index = [INDEX] if weights != [WEIGHTS] else []
    tokenizer = [TOKENIZER] if (source / TOKENIZER).exists() else []
    if not (source / CONFIG).is_file():
        raise InputError(f"{source / CONFIG} is missing: give a complete checkpoint folder")

    def copy(path: Path) -> None:
        shutil.copyfile(source / path.name, path)
        sync_to_disk(path)
        if sha256_of(path) != sha256_of(source / path.name):
            raise OSError(errno.EIO, "the copy differs from the checkpoint", str(path))

    return dict.fromkeys([*weights, *index, *tokenizer, CONFIG], copy)


def publish_model(folder: Path, files: Mapping[str, Content]) -> list[str]:
    """Write whole weights and what belongs to them; weights that an earlier call wrote there are replaced."""
    if (folder / CHECKPOINTS).is_dir():
        raise InputError(
            f"{folder} is a run folder, whose checkpoints a copy would hide: name another folder"
        )
    if (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is a checkpoint of a run: name another folder")
    return publish(folder, files, lambda name: name in (WEIGHTS, INDEX) or bool(SHARD.fullmatch(name)))


def checkpoint_identity(folder: Path) -> str:
    """`<folder name>:<hash of config and weights>` of a resolved checkpoint folder."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder / CONFIG} is missing: give a complete checkpoint folder")
    names = (CONFIG, *weight_files(folder))  # one file, or all shards
    return f"{folder.resolve().name}:{sha256_of(*(folder / name for name in names))[:16]}"


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / CHECKPOINTS / f"step_{step:08d}"


def save(
    run: Path,
    step: int,
    model: Saveable,
    optimizer: Mapping[str, AnyTensor],
    state: Mapping[str, Any],
    recipe: Mapping[str, Any],
    keep_last: int = 2,
    processes: Processes | None = None,
    best: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of a step and remove all but the newest `keep_last` and the best.

    Nothing older is removed before the new folder has its final name and is on the disk. An undamaged checkpoint
    of the same step stays as it is. All processes of a job call it, and each writes its share of the tensors.

    Args:
        run: the run folder.
        step: updates done.
        model: config, weights and tokenizer.
        optimizer: its tensors by name.
        state: what the loop needs to continue.
        recipe: the resolved recipe.
        keep_last: how many of the newest checkpoints stay, this one included; at least 1.
        processes: those of the job; None: this one alone.
        best: what `mark_best` gets once the new folder is in place.

    Raises:
        SaveError: the disk is full or refuses; the half-written folder is removed.
    """
    processes = processes or OneProcess()
    shards = checkpoint_files(model.state_dict(), optimizer, processes.world_size)
    weights = {name: tensors for name, tensors in shards.items() if name == WEIGHTS or SHARD.fullmatch(name)}
    folder = step_folder(run, step)
    temporary = folder.with_name(folder.name + ".tmp")

    def complete(written: list[Entries]) -> None:
        texts = _about_model(model, weights) | {STATE: to_json(dict(state)), RECIPE: to_json(dict(recipe))}
        entries = {name: entry for found in written for name, entry in found.items()}
        entries |= _write_files(temporary, texts)
        about = {"format": FORMAT, "step": step, "world_size": processes.world_size, "files": entries}
        _rename(temporary, folder, about)

    try:
        if processes.on_rank0(lambda: _start(temporary, folder)):
            written = processes.on_all_ranks(lambda: _write_mine(temporary, shards, processes))
            everything = processes.gather(written)
            processes.on_rank0(lambda: complete(everything))
        if best is not None:
            processes.on_rank0(lambda: mark_best(run, best))
    except BaseException as error:
        if processes.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        reason = "the disk is full" if error.errno in DISK_FULL else one_line(error)
        raise SaveError(
            f"could not save step {step} under {folder.parent}: {reason}; earlier checkpoints are intact, "
            "make room and run the same command to continue"
        ) from error
    processes.on_rank0(lambda: _prune(run, folder, keep_last))
    return folder


def _start(temporary: Path, folder: Path) -> bool:
    """Make the temporary folder; False where an undamaged checkpoint of the step is there already."""
    if folder.exists() and damage(folder) is None:
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    temporary.mkdir()
    return True


def _write_mine(temporary: Path, shards: Files, processes: Processes) -> Entries:
    """Write this process's files of tensors."""
    names = write_shards(temporary, shards, processes, write_file)
    return {name: _entry(temporary / name) for name in names}


def _write_files(temporary: Path, files: Mapping[str, Content]) -> Entries:
    for name, content in files.items():
        write_file(temporary / name, content)
    return {name: _entry(temporary / name) for name in files}


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _rename(temporary: Path, folder: Path, about: Mapping[str, Any]) -> None:
    """Complete the temporary folder by its manifest, and give it its final name."""
    write_file(temporary / MANIFEST, to_json({**about, "digest": _digest(about)}))
    sync_to_disk(temporary)
    if folder.exists():  # damaged, as `_start` found
        shutil.rmtree(folder)
    os.rename(temporary, folder)
    sync_to_disk(folder.parent)


def _digest(manifest: Mapping[str, Any]) -> str:
    """Checksum of a manifest without its own `digest`."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete temporary folders of saves that were killed."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path)


def _prune(run: Path, newest: Path, keep_last: int) -> None:
    """Delete older checkpoints beyond `keep_last`; newer steps, which a resume from an older one leaves, stay."""
    best = best_step(run)
    older = [path for path in _steps(run) if _step_of(path) < _step_of(newest)]
    kept = max(keep_last, 1) - 1
    for path in older[: max(0, len(older) - kept)]:
        if _step_of(path) != best:
            doomed = path.with_name(path.name + ".old.tmp")  # never half a folder under a final name
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def _step_of(folder: Path) -> int:
    match = _STEP.fullmatch(folder.name)
    assert match, folder
    return int(match[1])


def _steps(run: Path) -> list[Path]:
    """Checkpoint folders of a run by step, damaged ones included, temporary ones not."""
    folder = run / CHECKPOINTS
    found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=_step_of)


def damage(folder: Path, *, to_answer: bool = False) -> str | None:
    """What is wrong with a checkpoint folder, in words; None where every byte is as it was written.

    `to_answer`: only of the files that a model needs to answer; those of the optimizer are not opened.

    Raises InputError for a checkpoint of a newer format: it is not damaged, this version cannot read it.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except InputError as error:
        return str(error)
    found = manifest.get("format")
    if isinstance(found, int) and found > FORMAT and manifest.get("digest") == _digest(manifest):
        raise InputError(
            f"{folder} has checkpoint format {found}; this version reads up to {FORMAT}: update uniresxx"
        )
    if found != FORMAT or manifest.get("digest") != _digest(manifest):
        return f"{MANIFEST} does not match its own checksum"
    match = _STEP.fullmatch(folder.name)
    if match and int(match[1]) != manifest["step"]:
        return f"its manifest is of step {manifest['step']}"
    for name, entry in manifest["files"].items():
        if to_answer and name.startswith(OPTIMIZER):
            continue
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if sha256_of(path) != entry["sha256"]:
            return f"{name} has a wrong checksum"
    return None


def newest_verified(run: Path, log: Log, *, to_answer: bool = False) -> Path | None:
    """The newest undamaged checkpoint of a run (None: there is none); `log` gets a line for each damaged one.

    `to_answer` as in `damage`.
    """
    for folder in reversed(_steps(run)):
        reason = damage(folder, to_answer=to_answer)
        if reason is None:
            return folder
        log(f"checkpoint {folder} is damaged ({reason}): trying the previous one")
    return None


def mark_best(run: Path, best: Mapping[str, Any]) -> None:
    """Mark the checkpoint `best["step"]` as the best by `metric` with `value`: it stays, and is loaded first."""
    marked = {name: best[name] for name in ("step", "metric", "value")}
    write_atomic(run / CHECKPOINTS / BEST, to_json(marked))


def best_step(run: Path) -> int | None:
    try:
        step = read_json(run / CHECKPOINTS / BEST).get("step")
    except InputError:
        return None
    return step if isinstance(step, int) else None
