"""Writing a store: in pieces beside it, put together at the end, in place by one rename.

`OUT.partial` holds a manifest (what is prepared from what, and the finished splits) and one file per record
batch, each followed by its sha256, and the shards where photos are packed. The same preparation continues
there; another one is refused with a diff. A split whose files are not there is noted and left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from uniresxx.data.store import read as form
from uniresxx.data.store.read import INDEX, META, RECORDS, ROWS_PER_BATCH, SCHEMA, Store, shards
from uniresxx.errors import InputError, NotThereError
from uniresxx.files import sync_to_disk, write_atomic
from uniresxx.types import Granularity, ImageRecord

MANIFEST, PARTIAL = "manifest.json", ".partial"
Progress = Callable[[str, int, int], None]  # (what, done, of)
# a split is read only when its rows are needed: its records, and notes for the metadata
Load = Callable[[], tuple[Sequence[ImageRecord], Mapping[str, Any]]]


def _silent(what: str, done: int, of: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Preparation:
    """What a store is made of."""

    name: str
    splits: Mapping[str, Load]
    image_root: Path | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)  # JSON: what must be the same to continue
    about: Mapping[str, Any] = field(default_factory=dict)  # JSON, goes into the metadata
    shard_bytes: int | None = (
        None  # of the tar shards that photos are packed into; None: they stay where they are
    )

    def identity(self) -> dict[str, Any]:
        """What a store or a partial one is compared with before it is continued."""
        return {
            "version": form.VERSION,
            "name": self.name,
            "splits": ", ".join(self.splits),
            "rows_per_batch": ROWS_PER_BATCH,
            "photos": "not packed" if self.shard_bytes is None else f"in shards of {self.shard_bytes} bytes",
            **self.inputs,
        }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two preparations, one phrase per key."""
    keys = sorted({*then, *now})
    missing = "nothing"
    return [
        f"{key}: {then.get(key, missing)} then, {now.get(key, missing)} now"
        for key in keys
        if then.get(key) != now.get(key)
    ]


def write_store(
    out: Path,
    work: Preparation,
    fresh: bool = False,
    progress: Progress = _silent,
    images: Path | None = None,
) -> Store:
    """Make the store `out`, or continue to; returns it opened. A finished store of the same input is kept.

    Splits that a reader finds not to be there are left out and told in the metadata (`missing`). Raises
    InputError: none is there; `out` or its partial folder is of another input (with the diff), or is no
    store; a photo to be packed is not there; and what the readers raise. OSError: the disk. `fresh` starts
    over.
    """
    partial = out.parent / f"{out.name}{PARTIAL}"
    if not fresh and form.is_store(out):
        _refuse_other(out, Store.open(out).meta["inputs"], work)
        _clean(out)
        return Store.open(out, images)
    if out.exists() and not form.is_store(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: is there and is no store; name a folder that is not there yet")
    done = _begin(partial, work, fresh)
    for split, load in work.splits.items():
        if split not in done["splits"]:
            done["splits"][split] = _write_split(partial, work, split, load, progress)
            _write_json(partial / MANIFEST, done)
    ordered = {split: done["splits"][split] for split in work.splits}
    missing = {split: entry["missing"] for split, entry in ordered.items() if "missing" in entry}
    if missing and len(missing) == len(ordered):
        shutil.rmtree(partial)
        raise NotThereError(next(iter(missing.values())))
    there = {split: entry for split, entry in ordered.items() if split not in missing}
    packed = _pack(partial, work, there, progress)
    about = ({"missing": missing} if missing else {}) | ({} if packed is None else {"photos": packed})
    _assemble(partial, work, there, progress, about)
    _put(partial, out)
    return Store.open(out, images)


def is_output(folder: Path) -> bool:
    """Whether a folder is what write_store makes: a whole store or a partial one."""
    whole = form.is_store(folder) and (folder / RECORDS).is_file()
    return whole or (folder.name.endswith(PARTIAL) and (folder / MANIFEST).is_file())


def _refuse_other(path: Path, then: Mapping[str, Any], work: Preparation) -> None:
    diff = differences(then, work.identity())
    if diff:
        some = "; ".join(diff[:5]) + (f"; and {len(diff) - 5} more" if len(diff) > 5 else "")
        raise InputError(f"{path}: was prepared from another input ({some}); --fresh starts over")


def _begin(partial: Path, work: Preparation, fresh: bool) -> dict[str, Any]:
    """The manifest of the partial folder, made where there is none; InputError for one of another input."""
    if fresh and partial.exists():
        shutil.rmtree(partial)
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{partial}: is a file; the store is written there first") from None
    path = partial / MANIFEST
    if not any(item.suffix == ".chunk" for item in partial.iterdir()):  # nothing that could be continued
        _write_json(path, {"inputs": work.identity(), "splits": {}})
    elif not path.is_file():
        raise InputError(f"{partial}: holds pieces of a store but no {MANIFEST}; --fresh starts over")
    try:
        done = json.loads(path.read_bytes())
        then, splits = done["inputs"], done["splits"]
        assert isinstance(then, dict) and isinstance(splits, dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise InputError(f"{path}: is damaged; --fresh starts over") from None
    _refuse_other(partial, then, work)
    return done


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False).encode())


def _chunk_path(partial: Path, work: Preparation, split: str, number: int) -> Path:
    return partial / f"{list(work.splits).index(split):04d}-{number:07d}.chunk"


def _write_split(
    partial: Path, work: Preparation, split: str, load: Load, progress: Progress
) -> dict[str, Any]:
    """Write the batches of a split that are not there yet; returns its entry of the manifest."""
    try:
        records, notes = load()
    except NotThereError as error:
        return {"missing": str(error)}
    for number, start in enumerate(range(0, len(records), ROWS_PER_BATCH)):
        path = _chunk_path(partial, work, split, number)
        if not path.is_file():  # written atomically: there means whole
            some = records[start : start + ROWS_PER_BATCH]
            write_atomic(path, _chunk_of([form.row_of(item, split, work.image_root) for item in some]))
        progress(split, min(start + ROWS_PER_BATCH, len(records)), len(records))
    return {"rows": len(records), "counts": counts_of(records), "notes": dict(notes)}


def counts_of(records: Sequence[ImageRecord]) -> dict[str, int]:
    """Images, expressions (in all and by granularity) and dialogues."""
    kinds = Counter(item.granularity for record in records for item in record.expressions)
    return {
        "images": len(records),
        "expressions": kinds.total(),
        **{str(kind): kinds[kind] for kind in Granularity},
        "dialogues": sum(len(record.dialogues) for record in records),
    }


def _chunk_of(rows: list[dict[str, Any]]) -> bytes:
    """A record batch message and its sha256."""
    try:
        batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    except UnicodeEncodeError as error:
        bad = next(row["image_id"] for row in rows if not _is_text(row))
        raise InputError(f"image {bad}: holds text that is no Unicode ({error.reason})") from None
    message = batch.serialize().to_pybytes()
    return message + hashlib.sha256(message).digest()


def _is_text(row: Mapping[str, Any]) -> bool:
    """Whether every text of a row can be written as UTF-8 (JSON files may hold halves of characters)."""
    try:
        pa.RecordBatch.from_pylist([row], schema=SCHEMA)
    except UnicodeEncodeError:
        return False
    return True


def _chunks(partial: Path, work: Preparation, splits: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    """Every record batch in order; InputError for one that is not as it was written."""
    for split, entry in splits.items():
        for number in range(-(-entry["rows"] // ROWS_PER_BATCH)):
            path = _chunk_path(partial, work, split, number)
            content = path.read_bytes() if path.is_file() else b""
            message, digest = content[:-32], content[-32:]
            if hashlib.sha256(message).digest() != digest:
                raise InputError(f"{path}: is missing or damaged; --fresh starts over")
            yield pa.ipc.read_record_batch(pa.ipc.read_message(message), SCHEMA)


def _pack(
    partial: Path, work: Preparation, splits: Mapping[str, Any], progress: Progress
) -> dict[str, Any] | None:
    """Pack the photos of all rows, where that is wanted; returns what the metadata says of them."""
    if work.shard_bytes is None:
        return None
    batches = (batch.select(["path", "inside"]) for batch in _chunks(partial, work, splits))
    rows = (row for batch in batches for row in batch.to_pylist())
    count = sum(entry["rows"] for entry in splits.values())
    return shards.pack_photos(partial, rows, count, work.image_root, work.shard_bytes, progress)


def _assemble(
    partial: Path,
    work: Preparation,
    ordered: Mapping[str, Any],
    progress: Progress,
    about: Mapping[str, Any],
) -> None:
    """Put the pieces together: records, index, metadata. Leaves the pieces where they are."""
    entries, content = [], hashlib.sha256()
    total = sum(entry["rows"] for entry in ordered.values())
    with pa.OSFile(str(partial / RECORDS), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        done = 0
        for batch in _chunks(partial, work, ordered):
            message = batch.serialize()
            writer.write_batch(batch)
            entries.append((sink.tell() - message.size, message.size, batch.num_rows, zlib.crc32(message)))
            content.update(b"".join(batch.column("digest").to_pylist()))
            done += batch.num_rows
            progress("putting together", done, total)
    sync_to_disk(partial / RECORDS)
    # a format with no entry would leave an empty file, which cannot be mapped
    packed = b"".join(form.INDEX_ENTRY.pack(*item) for item in entries) or bytes(form.INDEX_ENTRY.size)
    write_atomic(partial / INDEX, packed)
    meta = _meta(partial, work, ordered, content.hexdigest(), about)
    write_atomic(partial / META, json.dumps(meta, indent=1).encode())


def _meta(
    partial: Path,
    work: Preparation,
    splits: Mapping[str, Any],
    fingerprint: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    start = first_batch = 0
    for split, entry in splits.items():
        entries[split] = {"start": start, "first_batch": first_batch, **entry}
        start += entry["rows"]
        first_batch += -(-entry["rows"] // ROWS_PER_BATCH)
    root = work.image_root
    files = (RECORDS, INDEX, shards.INDEX) if "photos" in about else (RECORDS, INDEX)
    meta = {
        "format": form.FORMAT,
        "version": form.VERSION,
        "name": work.name,
        "fingerprint": fingerprint,
        "rows": start,
        "rows_per_batch": ROWS_PER_BATCH,
        # seen from the store, so that both can move together
        "image_root": None
        if root is None
        else os.path.relpath(os.path.realpath(root), os.path.realpath(partial)),
        "splits": entries,
        "files": {name: _file_entry(partial / name) for name in files},
        "inputs": work.identity(),
        **work.about,
        **about,
    }
    return {**meta, "checksum": form.meta_checksum(meta)}


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _put(partial: Path, out: Path) -> None:
    """The finished folder in its place; what was there (an old store) goes last."""
    old = out.parent / f"{out.name}.old"
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    sync_to_disk(out.parent)
    _clean(out)
    if old.exists():
        shutil.rmtree(old)


def _clean(out: Path) -> None:
    """Remove the pieces of a finished store."""
    for path in [*out.glob("*.chunk"), out / MANIFEST]:
        path.unlink(missing_ok=True)
