"""Checkpoints: folders that appear whole or not at all, are checked before use, and load strictly.

A run folder holds `checkpoints/step_00000123/`. A save writes into `step_00000123.tmp`, flushes each file to
the disk, writes `manifest.json` (size and sha256 of every file) last, and renames the folder once. Whatever
stops a save, what lies under a final name was complete; the manifest finds what the disk did to it later.
Everything is safetensors and JSON; no pickle is written or read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from uniresxx.errors import InputError
from uniresxx.files import sync_to_disk, write_atomic

if TYPE_CHECKING:
    import torch


FORMAT = 1  # of checkpoint folders; raised when a reader of the old one would misread the new one
CHECKPOINTS, MANIFEST, CONFIG, WEIGHTS, TOKENIZER = (
    "checkpoints", "manifest.json", "config.json", "model.safetensors", "tokenizer.json",
)  # fmt: skip
INDEX = (
    "model.safetensors.index.json"  # names the shards, where there are several (the layout of transformers)
)
HUB = "hub:"  # before the id of a hub repository, so that a misspelt folder is never looked for there
CARD, OPTIMIZER, STATE, RECIPE, BEST = (
    "README.md",
    "optimizer.safetensors",
    "state.json",
    "recipe.json",
    "best.json",
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STEP = re.compile(r"step_(\d{8,})")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_SHOWN = 3  # keys named in an error

Log = Callable[[str], None]
Files = Mapping[str, Callable[[], bytes]]


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are untouched. Programs exit with 1."""


class _Config(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


class _Tokenizer(Protocol):
    def to_json(self) -> str: ...


class Saveable(Protocol):
    """What a model needs to be saved: config (with `model_type`), weights, tokenizer (or None)."""

    @property
    def config(self) -> _Config: ...
    @property
    def tokenizer(self) -> _Tokenizer | None: ...
    def state_dict(self) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Snapshot:
    """A model as it was at one moment, gathered from wherever its weights lie."""

    config: _Config
    tokenizer: _Tokenizer | None
    weights: Mapping[str, torch.Tensor]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights."""
        return dict(self.weights)


class Loadable(Protocol):
    """What `load_weights` needs of a model."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...
    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], strict: bool = True) -> Any: ...


def to_json(value: Any) -> bytes:
    """Readable JSON; NaN and infinity are refused."""
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file (on the CPU; shared storage is written once per name)."""
    from safetensors.torch import save as serialize

    # A clone each: safetensors refuses tensors that share memory, as tied embeddings do.
    return serialize({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()})


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU that later training steps do not touch."""
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU; InputError where it is missing or not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: give a complete checkpoint folder") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({_line(error)})") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError where it is missing or something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: give a complete checkpoint folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({_line(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def pretrained_files(model: Saveable, shard_bytes: int | None = None) -> dict[str, Callable[[], bytes]]:
    """The files of the `from_pretrained` form, each made when it is written; the index of shards comes last.

    `shard_bytes`: the most that one file of weights holds, unless a single tensor is larger; None: one file.
    """
    files: dict[str, Callable[[], bytes]] = {CONFIG: lambda: to_json(model.config.to_dict())}
    tokenizer = model.tokenizer
    if tokenizer is not None:
        files[TOKENIZER] = lambda: tokenizer.to_json().encode()
    shards = [] if shard_bytes is None else _shards(model.state_dict(), shard_bytes)
    if len(shards) < 2:
        return files | {WEIGHTS: lambda: tensor_bytes(model.state_dict())}
    weight_map: dict[str, str] = {}

    def of(names: list[str]) -> Callable[[], bytes]:
        return lambda: tensor_bytes({name: model.state_dict()[name] for name in names})

    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        files[file] = of(names)
    total = sum(value.nbytes for value in model.state_dict().values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return files | {INDEX: lambda: to_json(index)}


def _shards(tensors: Mapping[str, torch.Tensor], limit: int) -> list[list[str]]:
    """Names in their order, cut where a file would grow over `limit` bytes."""
    shards: list[list[str]] = []
    size = limit
    for name, value in tensors.items():
        if size + value.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += value.nbytes
    return shards


def save_pretrained(folder: Path, model: Saveable, shard_bytes: int | None = None) -> list[str]:
    """Write a plain `from_pretrained` folder; returns the names written.

    Everything is written beside what lies there and then moved into place, so a full disk leaves what was; the
    weights of one save are never mixed with those of another.
    """
    files = pretrained_files(model, shard_bytes)
    temporary = folder / ".writing"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, make in files.items():
            _write(temporary / name, make())
        _remove_other_weights(folder, keep={WEIGHTS} & set(files))
        for name in files:  # the index of shards comes last: without it they are nothing
            os.replace(temporary / name, folder / name)
        sync_to_disk(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return list(files)


def _remove_other_weights(folder: Path, keep: set[str]) -> None:
    old = [path for path in folder.glob("model-*.safetensors") if _SHARD.fullmatch(path.name)]
    for path in (folder / INDEX, folder / WEIGHTS, *old):
        if path.name not in keep:
            path.unlink(missing_ok=True)


def weight_files(folder: Path) -> dict[str, list[str] | None]:
    """Files of weights of a folder -> the tensors that its index says are inside (None: there is no index).

    Raises InputError where they are missing, not all there, or there twice.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"{folder / WEIGHTS} is missing: give a complete checkpoint folder")
        return {WEIGHTS: None}
    if (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has both {WEIGHTS} and {INDEX}: remove the one that is not meant")
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise InputError(f"{index} is not an index of weights: save the model again")
    files: dict[str, list[str] | None] = {}
    for name in sorted(set(listed.values())):
        if not _SHARD.fullmatch(name) or not (folder / name).is_file():
            raise InputError(f"{folder} lacks {name[:80]!r}, which {INDEX} names: copy all shards")
        files[name] = [tensor for tensor, file in listed.items() if file == name]
    if not files:
        raise InputError(f"{index} names no weights: save the model again")
    return files


def checkpoint_identity(folder: Path) -> str:
    """`<folder name>:<hash of config and weights>` of a resolved checkpoint folder."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder / CONFIG} is missing: give a complete checkpoint folder")
    names = (CONFIG, *weight_files(folder))  # one file, or all shards
    return f"{folder.resolve().name}:{_sha256_of(*(folder / name for name in names))[:16]}"


def export(source: Path, out: Path) -> list[str]:
    """Copy the `from_pretrained` files of a folder to `out`, verified; returns their names.

    Raises InputError where one is missing, holds no model of this project or is `out` itself, and OSError where
    the disk refuses or gives back something else than was written.
    """
    weights = list(weight_files(source))
    index = [INDEX] if weights != [WEIGHTS] else []
    tokenizer = [TOKENIZER] if (source / TOKENIZER).exists() else []
    names = [*weights, *index, *tokenizer, CONFIG]  # the config completes it
    if not (source / CONFIG).is_file():
        raise InputError(f"{source / CONFIG} is missing: give a complete checkpoint folder")
    if out.resolve() == source.resolve():
        raise InputError(f"{out} is the checkpoint itself: name another folder")
    out.mkdir(parents=True, exist_ok=True)
    _remove_other_weights(out, keep={WEIGHTS} & set(names))
    for name in names:
        temporary = out / f".writing-{name}"
        try:
            shutil.copyfile(source / name, temporary)
            sync_to_disk(temporary)
            if _sha256_of(temporary) != _sha256_of(source / name):
                raise OSError(errno.EIO, "the copy differs from the checkpoint", str(out / name))
            os.replace(temporary, out / name)
        finally:
            temporary.unlink(missing_ok=True)
    sync_to_disk(out)
    return names


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / CHECKPOINTS / f"step_{step:08d}"


def save(
    run: Path,
    step: int,
    model: Saveable,
    optimizer: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    recipe: Mapping[str, Any],
    keep_last: int = 2,
    world_size: int = 1,
    best: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of `step` (updates done) and remove all but the newest `keep_last` and the best.

    `best` is marked (see `mark_best`) as soon as the new folder is in place.
    Nothing older is removed before the new one is in place under its final name and on the disk. A verified
    checkpoint of the same step is kept as it is. Raises SaveError where the disk is full or refuses; the
    half-written folder is removed then.
    """
    files = pretrained_files(model) | {
        OPTIMIZER: lambda: tensor_bytes(optimizer),
        STATE: lambda: to_json(dict(state)),
        RECIPE: lambda: to_json(dict(recipe)),
    }
    folder = step_folder(run, step)
    try:
        _write_folder(folder, step, files, world_size)
        if best is not None:
            mark_best(run, best)
    except OSError as error:
        reason = "the disk is full" if error.errno in DISK_FULL else _line(error)
        raise SaveError(
            f"could not save step {step} under {folder.parent}: {reason}; earlier checkpoints are intact, "
            "make room and run the same command to continue"
        ) from error
    _prune(run, folder, keep_last)
    return folder


def _write_folder(folder: Path, step: int, files: Files, world_size: int) -> None:
    """The transaction: everything into a temporary folder, flushed, then one rename."""
    if folder.exists() and damage(folder) is None:
        return
    temporary = folder.with_name(folder.name + ".tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        temporary.mkdir()
        entries = {}
        for name, make in files.items():
            data = make()
            _write(temporary / name, data)
            entries[name] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "step": step,
            "world_size": world_size,
            "files": entries,
        }
        manifest["digest"] = _digest(manifest)
        _write(temporary / MANIFEST, to_json(manifest))
        sync_to_disk(temporary)
        if folder.exists():  # damaged, as checked above: it must not stand in the way
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        sync_to_disk(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk."""
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _digest(manifest: Mapping[str, Any]) -> str:
    """Checksum of a manifest without its own `digest`."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete temporary folders of saves that were killed."""
    for path in folder.glob("step_*.tmp"):
        shutil.rmtree(path)


def _prune(run: Path, newest: Path, keep_last: int) -> None:
    """Delete older checkpoints beyond `keep_last`; newer steps, left behind by a walk back, stay."""
    best = _best_step(run)
    older = [path for path in _steps(run) if _step_of(path) < _step_of(newest)]
    kept = max(keep_last, 1) - 1
    for path in older[: len(older) - kept]:
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


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, in words; None where every byte is as it was written.

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
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if _sha256_of(path) != entry["sha256"]:
            return f"{name} has a wrong checksum"
    return None


def _sha256_of(*paths: Path) -> str:
    """Of the files' contents, one behind the other."""
    total = sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def newest_verified(run: Path, say: Log) -> Path | None:
    """The newest undamaged checkpoint of a run (None: there is none); says a line for each damaged one."""
    for folder in reversed(_steps(run)):
        reason = damage(folder)
        if reason is None:
            return folder
        say(f"checkpoint {folder} is damaged ({reason}): trying the one before")
    return None


def mark_best(run: Path, best: Mapping[str, Any]) -> None:
    """Name the checkpoint `best["step"]` the best by `metric` with `value`; it is kept and preferred from now on."""
    marked = {name: best[name] for name in ("step", "metric", "value")}
    write_atomic(run / CHECKPOINTS / BEST, to_json(marked))


def _best_step(run: Path) -> int | None:
    try:
        step = read_json(run / CHECKPOINTS / BEST).get("step")
    except InputError:
        return None
    return step if isinstance(step, int) else None


def resolve(path: Path, say: Log) -> Path:
    """The folder with the weights: of a run the best, else the newest verified one; else the folder itself.

    Raises InputError where there is nothing to load.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give a run folder or a folder with {CONFIG} and {WEIGHTS}")
    if not path.is_dir():
        raise InputError(f"{path} is a file: give a run folder or a folder with {CONFIG} and {WEIGHTS}")
    if (path / CONFIG).exists():
        reason = damage(path) if (path / MANIFEST).exists() else None
        if reason is not None:
            raise InputError(f"checkpoint {path} is damaged ({reason}): use another one of the run")
        return path
    if not (path / CHECKPOINTS).is_dir():
        raise InputError(f"{path} is no checkpoint: it has neither {CONFIG} nor a {CHECKPOINTS} folder")
    best = _best_step(path)
    if best is not None:
        folder = step_folder(path, best)
        reason = damage(folder)
        if reason is None:
            return folder
        say(f"the best checkpoint {folder} is damaged ({reason}): taking the newest")
    newest = newest_verified(path, say)
    if newest is None:
        raise InputError(f"{path} has no undamaged checkpoint: train it first, or use another run")
    return newest


def load_weights(model: Loadable, folder: Path) -> None:
    """Fill `model` from the safetensors of `folder`, whole or sharded; every key must match, in name and shape.

    Raises InputError that names the first few missing, unexpected or differently shaped keys; the model is as
    before then. Shards are read one after another.
    """
    files, wanted = weight_files(folder), model.state_dict()
    given: dict[str, tuple[int, ...]] = {}
    for name, listed in files.items():
        shapes = _shapes(folder / name)
        if listed is not None and set(listed) != set(shapes):
            raise InputError(f"{folder / name} does not hold what {INDEX} says: copy all files of one save")
        given |= shapes
    wrong = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{key} {given[key]} instead of {tuple(wanted[key].shape)}"
            for key in sorted(wanted.keys() & given.keys())
            if given[key] != wanted[key].shape
        ],
    }
    problems = [f"{len(keys)} {what}: {_few(keys)}" for what, keys in wrong.items() if keys]
    if problems:
        at = folder / (WEIGHTS if WEIGHTS in files else INDEX)
        raise InputError(f"{at} does not fit its {CONFIG}: {'; '.join(problems)}")
    for name in files:
        model.load_state_dict(read_tensors(folder / name), strict=False)  # checked above, in name and shape


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({_line(error)})") from None


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")


def _line(error: BaseException) -> str:
    """An exception as one short line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((text or type(error).__name__).split())[:200]


def named_folder(path: str | os.PathLike[str]) -> Path:
    """The folder itself, or for `hub:OWNER/NAME[@REVISION]` the downloaded one; only so is anything downloaded."""
    source = os.fspath(path)
    if not source.startswith(HUB):
        return Path(source)
    from mllm.loading import folder_of

    try:
        return folder_of(source.removeprefix(HUB))
    except ValueError as error:
        raise InputError(str(error)) from error
