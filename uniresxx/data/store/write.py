"""Writing a store: in pieces beside it, put together at the end, in place by one rename.

`OUT.partial` holds a manifest (what is prepared from what, and the finished splits) and one file per record
batch, each followed by its sha256, and the shards where photos are packed. The same preparation continues
there; another one is refused with a diff. A split whose files are not there is noted and left out.
"""

from __future__ import annotations

import hashlib
import json
import os.path
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from uniresxx.data.readers.files import record_opened
from uniresxx.data.store import shards
from uniresxx.data.store.folder import FORMAT, INDEX, META, RECORDS, VERSION, is_store, meta_checksum
from uniresxx.data.store.output import (
    LOCK,
    MANIFEST,
    check_output,
    has_pieces,
    partial_of,
    put,
    remove_ours,
    remove_pieces,
)
from uniresxx.data.store.preparation import ROWS_PER_BATCH, Load, Preparation
from uniresxx.data.store.read import INDEX_ENTRY, Store, photo_places
from uniresxx.data.store.rows import SCHEMA, row_of
from uniresxx.errors import InputError, NotThereError
from uniresxx.files import lock_file, sync_to_disk, write_atomic
from uniresxx.types import Granularity, ImageRecord

STREAM_REPORT = 40  # batches, about 10,000 rows: how often a split of unknown length reports its progress
Progress = Callable[[str, int, int], None]  # (what, done, of)


def write_store(
    out: Path,
    work: Preparation,
    fresh: bool = False,
    progress: Progress = lambda *_: None,
) -> Store:
    """Make the store `out`, or continue to; returns it opened. A finished store of the same input is kept.

    Splits whose files are not there are left out and named in the metadata (`missing`).

    Args:
        out: the folder of the store. The work lies in OUT.partial until it is complete.
        work: what is prepared.
        fresh: start over; a finished store stays until the new one is complete.
        progress: called with (what, done, of).

    Raises:
        InputError: no split is there; `out` or OUT.partial was made from another input (with the diff), is not of
            this program, or another process writes it; a photo to be packed is missing; what the readers raise.
        OSError: the disk.
    """
    out = out.resolve() if out.is_symlink() else out
    if not fresh and is_store(out):
        return _finished(out, work)
    check_output(out)
    partial = partial_of(out)
    partial.mkdir(parents=True, exist_ok=True)
    with lock_file(partial / LOCK, f"prepare {out}"):
        try:
            _write(partial, work, fresh, progress)
        except BaseException:
            if not has_pieces(partial):  # nothing that could be continued
                remove_ours(partial)
            raise
        put(partial, out)
    return Store.open(out)


def _finished(out: Path, work: Preparation) -> Store:
    """The finished store; InputError where its input changed, or a split that was missing is there now."""
    store = Store.open(out)
    work.refuse_changes(out, store.meta["inputs"])
    for split in store.meta.get("missing", {}):
        try:
            work.splits[split]()
        except NotThereError:
            continue
        raise InputError(f"{out}: was prepared without {split}, which is there now; --fresh prepares it too")
    remove_pieces(out)
    return store


def _write(partial: Path, work: Preparation, fresh: bool, progress: Progress) -> None:
    """Make the store in its partial folder, all but the last step."""
    done = _begin(partial, work, fresh)
    for split, load in work.splits.items():
        if "rows" not in done["splits"].get(split, {}):
            done["splits"][split] = _write_split(partial, work, split, load, done, progress)
            _write_json(partial / MANIFEST, done)
    ordered = {split: done["splits"][split] for split in work.splits}
    missing = {split: entry["missing"] for split, entry in ordered.items() if "missing" in entry}
    if missing and len(missing) == len(ordered):
        raise NotThereError(next(iter(missing.values())))
    there = {split: entry for split, entry in ordered.items() if split not in missing}
    packed = _pack(partial, work, there, progress)
    about = ({"missing": missing} if missing else {}) | ({} if packed is None else {"photos": packed})
    _assemble(partial, work, there, progress, {"inputs": done["inputs"], **work.about, **about})


def _begin(partial: Path, work: Preparation, fresh: bool) -> dict[str, Any]:
    """The manifest of the partial folder, made where there is none; InputError for one of another input."""
    path = partial / MANIFEST
    if fresh:
        remove_ours(partial, but=LOCK)
    if not has_pieces(partial):
        _write_json(path, {"inputs": work.begin(), "splits": {}})
    elif not path.is_file():
        raise InputError(f"{partial}: holds pieces of a store but no {MANIFEST}; --fresh starts over")
    try:
        done = json.loads(path.read_bytes())
        then, splits = done["inputs"], done["splits"]
        assert isinstance(then, dict) and isinstance(splits, dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise InputError(f"{path}: is damaged; --fresh starts over") from None
    work.refuse_changes(partial, then)
    return done


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=1).encode())


def _chunk_path(partial: Path, work: Preparation, split: str, number: int) -> Path:
    return partial / f"{list(work.splits).index(split):04d}-{number:07d}.chunk"


def _write_split(
    partial: Path, work: Preparation, split: str, load: Load, done: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Write the batches of a split that are not there yet; returns its entry of the manifest `done`."""
    with record_opened() as opened:
        try:
            records, notes = load()
        except NotThereError as error:
            return {"missing": str(error)}
        total = len(records) if isinstance(records, Sized) else None
        counts, rows, number = counts_of([]), 0, 0
        for some in batched(records, ROWS_PER_BATCH):
            _note_files(partial, work, opened, done, first=number == 0)
            path = _chunk_path(partial, work, split, number)
            if not path.is_file():  # written atomically: there means whole
                write_atomic(path, _chunk_of([row_of(item, split, work.image_root) for item in some]))
            counts = {what: count + counts[what] for what, count in counts_of(some).items()}
            rows, number = rows + len(some), number + 1
            if total is not None or number % STREAM_REPORT == 0:
                progress(split, rows, rows if total is None else total)
        _note_files(partial, work, opened, done)
    return {"rows": rows, "counts": counts, "notes": dict(notes)}


def batched(records: Iterable[ImageRecord], size: int) -> Iterator[list[ImageRecord]]:
    """Lists of `size` records, the last one shorter."""
    items = iter(records)
    while some := list(islice(items, size)):
        yield some


def _note_files(
    partial: Path, work: Preparation, opened: Mapping[Path, str], done: dict[str, Any], first: bool = False
) -> None:
    """Note the files that a split was read from, before the next piece of it is written.

    A continued split is read from the same files. InputError where one changed.
    """
    before = len(done["inputs"])
    for name, state in work.states(opened).items():
        if done["inputs"].setdefault(name, state) != state:
            raise InputError(f"{name}: changed while the store was prepared; --fresh starts over")
    if first or len(done["inputs"]) > before:
        _write_json(partial / MANIFEST, done)


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
    entries, content, missing = [], hashlib.sha256(), 0
    root = work.image_root or Path()
    total = sum(entry["rows"] for entry in ordered.values())
    with pa.OSFile(str(partial / RECORDS), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        done = 0
        for batch in _chunks(partial, work, ordered):
            message = batch.serialize()
            writer.write_batch(batch)
            entries.append((sink.tell() - message.size, message.size, batch.num_rows, zlib.crc32(message)))
            content.update(b"".join(batch.column("digest").to_pylist()))
            missing += sum(not (root / place).exists() for place in photo_places(batch))
            done += batch.num_rows
            progress("putting together", done, total)
    sync_to_disk(partial / RECORDS)
    # a format with no entry would leave an empty file, which cannot be mapped
    packed = b"".join(INDEX_ENTRY.pack(*item) for item in entries) or bytes(INDEX_ENTRY.size)
    write_atomic(partial / INDEX, packed)
    about = {**about, "photos_missing": missing} if missing else about
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
        "format": FORMAT,
        "version": VERSION,
        "name": work.name,
        "fingerprint": fingerprint,
        "rows": start,
        "rows_per_batch": ROWS_PER_BATCH,
        # relative to the store, so that both can move together
        "image_root": None
        if root is None
        else os.path.relpath(os.path.realpath(root), os.path.realpath(partial)),
        "splits": entries,
        "files": {name: _file_entry(partial / name) for name in files},
        **about,
    }
    return {**meta, "checksum": meta_checksum(meta)}


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
