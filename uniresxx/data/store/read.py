"""The store: images with everything said about them, in one memory-mapped Arrow file that opens at once.

A store is a folder: `records.arrow` (Arrow IPC, one row per image and split), `index.bin` (where each record
batch lies and its CRC-32) and `meta.json` (format version, name, fingerprint, counts, guard report).
Opening reads `meta.json` and maps the others; rows are parsed when they are asked for, and a batch is checked
against its CRC before Arrow sees it. Photos stay where they are: rows hold paths below an image root. Or the
store has them in tar shards (`shards.py`), found by one entry of `photos.bin` per row; the rows and their
fingerprint are the same.
"""

from __future__ import annotations

import hashlib
import json
import os.path
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from uniresxx.data.store import shards
from uniresxx.errors import InputError
from uniresxx.types import RLE, Dialogue, Expression, Granularity, ImageRecord, PhotoInside, Phrase, Turn

FORMAT, VERSION = "uniresxx-store", 2
META, RECORDS, INDEX = "meta.json", "records.arrow", "index.bin"
ROWS_PER_BATCH = 256  # our choice: about 2 MB of RefCOCO, checked and parsed at one go
INDEX_ENTRY = struct.Struct("<QQII")  # offset, length, rows, CRC-32 of a record batch message

_TEXT = pa.string()
_PHRASE = pa.struct([("text", _TEXT), ("granularity", _TEXT), ("counts", _TEXT)])
_TURN = pa.struct([("question", _TEXT), ("say", _TEXT), ("phrases", pa.list_(_PHRASE))])
_INSIDE = pa.struct(
    [
        ("kind", _TEXT),
        ("file", _TEXT),  # as a photo's path: below the image root, or absolute
        ("key", _TEXT),
        ("name", _TEXT),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("crc", pa.int64()),
    ]
)
_EXPRESSION = pa.struct(
    [
        ("expression_id", _TEXT),
        ("text", _TEXT),
        ("granularity", _TEXT),
        ("counts", _TEXT),  # COCO run lengths at (height, width); null where there is no target
        ("area", pa.int64()),
        ("level", pa.int64()),
        ("twin", _TEXT),
        ("source", _TEXT),  # JSON; null where empty
    ]
)
SCHEMA = pa.schema(
    [
        ("split", _TEXT),
        ("image_id", _TEXT),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("path", _TEXT),  # below the image root, or absolute where the photo lies elsewhere
        ("inside", _INSIDE),  # the photo's place in another file; null where it is a file itself
        ("licence", _TEXT),
        ("source", _TEXT),
        ("expressions", pa.list_(_EXPRESSION)),
        ("dialogues", pa.list_(pa.struct([("dialogue_id", _TEXT), ("turns", pa.list_(_TURN))]))),
        ("boxes", pa.list_(pa.struct([("kind", _TEXT), ("xyxy", pa.list_(pa.float32()))]))),
        ("pixels", pa.large_binary()),  # drawn pictures only: uint8 (height, width, 3)
        ("dense", pa.large_binary()),
        ("digest", pa.binary(32)),  # sha256 of the row's canonical content
    ]
)


def row_of(record: ImageRecord, split: str, image_root: Path | None) -> dict[str, Any]:
    """A record as a row of SCHEMA; InputError naming what cannot be stored.

    `source` must be JSON data; a tuple in it comes back as a list, only `left_out` as the tuple it was.
    """
    size, who = [record.height, record.width], f"image {record.image_id}"
    source = dict(record.source)
    licence = source.pop("licence") if isinstance(source.get("licence"), str) else None
    row: dict[str, Any] = {
        "split": split,
        "image_id": record.image_id,
        "height": record.height,
        "width": record.width,
        "path": None if record.path is None else _below(record.path, image_root),
        "inside": _inside_row(record.inside, image_root),
        "licence": licence,
        "source": _json_of(source, who),
        "expressions": [_expression_row(item, size) for item in record.expressions],
        "dialogues": [_dialogue_row(item, size) for item in record.dialogues],
        "boxes": [
            {"kind": kind, "xyxy": np.asarray(boxes, dtype=np.float32).ravel().tolist()}
            for kind, boxes in sorted(record.boxes.items())
        ],
        "pixels": _bytes_of(record.pixels, size, f"{who}: pixels"),
        "dense": _bytes_of(record.dense, size, f"{who}: dense"),
    }
    row["digest"] = row_digest(row)
    return row


def _below(path: str, image_root: Path | None) -> str:
    """The path below the image root with `/`, absolute where it lies elsewhere."""
    place = Path(path).absolute()
    root = None if image_root is None else image_root.absolute()
    return place.relative_to(root).as_posix() if root and place.is_relative_to(root) else str(place)


def _inside_row(inside: PhotoInside | None, image_root: Path | None) -> dict[str, Any] | None:
    return None if inside is None else {**asdict(inside), "file": _below(inside.file, image_root)}


def _expression_row(item: Expression, size: list[int]) -> dict[str, Any]:
    return {
        "expression_id": item.expression_id,
        "text": item.text,
        "granularity": str(item.granularity),
        "counts": _counts_of(item.rle, size, item.expression_id),
        "area": item.area,
        "level": item.level,
        "twin": item.twin,
        "source": _json_of(item.source, item.expression_id),
    }


def _dialogue_row(item: Dialogue, size: list[int]) -> dict[str, Any]:
    turns = [
        {
            "question": turn.question,
            "say": turn.answer,
            "phrases": [
                {
                    "text": phrase.text,
                    "granularity": str(phrase.granularity),
                    "counts": _counts_of(phrase.rle, size, item.dialogue_id),
                }
                for phrase in turn.phrases
            ],
        }
        for turn in item.turns
    ]
    return {"dialogue_id": item.dialogue_id, "turns": turns}


def _counts_of(rle: RLE | None, size: list[int], who: str) -> str | None:
    if rle is not None and list(rle["size"]) != size:
        raise InputError(f"{who}: its mask is {rle['size']} (height, width), its photo {size}")
    return None if rle is None else rle["counts"]


def _json_of(source: Mapping[str, Any], who: str) -> str | None:
    try:
        return json.dumps(source, default=_plain, sort_keys=True) if source else None
    except TypeError as error:
        raise InputError(f"{who}: source must be JSON data ({error})") from None


def _plain(value: Any) -> Any:
    """numpy numbers as Python ones; the rest is no JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} in it is not")


def _bytes_of(array_yx3: np.ndarray | None, size: list[int], who: str) -> bytes | None:
    if array_yx3 is None:
        return None
    if array_yx3.dtype != np.uint8 or list(array_yx3.shape) != [*size, 3]:
        raise InputError(f"{who} must be uint8 {(*size, 3)}, not {array_yx3.dtype} {array_yx3.shape}")
    return array_yx3.tobytes()


def row_digest(row: Mapping[str, Any]) -> bytes:
    """sha256 over the canonical JSON of a row (keys sorted, bytes by their sha256, no digest)."""
    content = {key: value for key, value in row.items() if key != "digest"}
    text = json.dumps(
        content,
        sort_keys=True,
        separators=(",", ":"),
        default=lambda value: hashlib.sha256(value).hexdigest(),
    )
    return hashlib.sha256(text.encode()).digest()


def record_of(row: Mapping[str, Any], image_root: Path | None) -> ImageRecord:
    """The record of a row; relative paths get `image_root` before them."""
    height, width, path, inside = row["height"], row["width"], row["path"], row["inside"]
    size = [height, width]
    if path is not None and image_root is not None:
        path = str(image_root / path)
    if inside is not None and image_root is not None:
        inside = {**inside, "file": str(image_root / inside["file"])}
    licence = {} if row["licence"] is None else {"licence": row["licence"]}
    return ImageRecord(
        row["image_id"],
        height,
        width,
        tuple(_expression_of(item, size) for item in row["expressions"]),
        path=path,
        pixels=_array_of(row["pixels"], size),
        dialogues=tuple(_dialogue_of(item, size) for item in row["dialogues"]),
        boxes={
            item["kind"]: np.array(item["xyxy"], dtype=np.float32).reshape(-1, 4) for item in row["boxes"]
        },
        dense=_array_of(row["dense"], size),
        source={**_source_of(row["source"]), **licence},
        inside=None if inside is None else PhotoInside(**inside),
    )


def _expression_of(item: Mapping[str, Any], size: list[int]) -> Expression:
    return Expression(
        item["expression_id"],
        item["text"],
        Granularity(item["granularity"]),
        _rle_of(item["counts"], size),
        area=item["area"],
        level=item["level"],
        twin=item["twin"],
        source=_source_of(item["source"]),
    )


def _dialogue_of(item: Mapping[str, Any], size: list[int]) -> Dialogue:
    turns = [
        Turn(
            turn["question"],
            tuple(
                Phrase(phrase["text"], _rle_of(phrase["counts"], size), Granularity(phrase["granularity"]))
                for phrase in turn["phrases"]
            ),
            turn["say"],
        )
        for turn in item["turns"]
    ]
    return Dialogue(item["dialogue_id"], tuple(turns))


def _rle_of(counts: str | None, size: list[int]) -> RLE | None:
    return None if counts is None else RLE(size=list(size), counts=counts)


def _source_of(text: str | None) -> dict[str, Any]:
    source = {} if text is None else json.loads(text)
    if "left_out" in source:
        source["left_out"] = tuple(source["left_out"])
    return source


def _array_of(data: bytes | None, size: list[int]) -> np.ndarray | None:
    return None if data is None else np.frombuffer(data, dtype=np.uint8).reshape(*size, 3).copy()


def meta_checksum(meta: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of the metadata without its own checksum."""
    content = {key: value for key, value in meta.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_store(path: Path) -> bool:
    """Whether a path is a store's folder (whole or not)."""
    return (path / META).is_file()


def store_named(name: str) -> tuple[Path, str | None] | None:
    """STORE or STORE/SPLIT as (folder, split or None); None where the name is no path of a store."""
    path = Path(name)
    if is_store(path):
        return path, None
    return (path.parent, path.name) if is_store(path.parent) and path.name else None


def _read_meta(path: Path) -> dict[str, Any]:
    """Checked metadata of a store; InputError names what is wrong with it."""
    if not is_store(path):
        raise InputError(f"{path}: is no store (no {META}); `uniresxx data prepare` makes one")
    try:
        meta = json.loads((path / META).read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{path}: {META} is damaged; prepare the store again") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{path}: {META} is not of a store of this program")
    if meta.get("version") != VERSION:
        raise InputError(
            f"{path}: is of store format {meta.get('version')!r}, this program reads {VERSION}; "
            "prepare the store again, or use the version of the program that made it"
        )
    if meta.get("checksum") != meta_checksum(meta):
        raise InputError(f"{path}: {META} does not match its checksum; prepare the store again")
    for name, told in meta["files"].items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != told["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes instead of {told['bytes']}"
            raise InputError(f"{path}: {name} {found}; copy the whole store again, or prepare it again")
    return meta


class Store:
    """A prepared data set, read only. Any number of processes may open it; it pickles as its path."""

    def __init__(self, path: Path, images: Path | None = None) -> None:
        self.path, self._images = path, images
        self.meta = _read_meta(path)
        self._splits: dict[str, dict[str, Any]] = self.meta["splits"]
        self._starts = [item["start"] for item in self._splits.values()]
        root = self.meta["image_root"]
        self.image_root = images if images is not None or root is None else _photos_of(path, root)
        self._data = pa.memory_map(str(path / RECORDS)).read_buffer()
        self._index = pa.memory_map(str(path / INDEX)).read_buffer()
        packed = self.meta.get("photos")
        self.shards = None if packed is None else shards.Shards.open(path, packed, len(self))
        self._checked: set[int] = set()
        self._last: tuple[int, pa.RecordBatch] | None = None

    @classmethod
    def open(cls, path: Path, images: Path | None = None) -> Store:
        """Open a store without reading a row. `images` stands for the image root it was prepared from.

        Raises InputError: no store, another format version, damaged metadata, files cut short.
        """
        return cls(Path(path), images)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path, self._images)

    @property
    def name(self) -> str:
        """What was prepared: NAME or NAME/SPLIT."""
        return self.meta["name"]

    @property
    def fingerprint(self) -> str:
        """sha256 over the canonical content: equal for equal records, wherever the photos lie."""
        return self.meta["fingerprint"]

    @property
    def splits(self) -> list[str]:
        """Splits in the order of their rows."""
        return list(self._splits)

    def __len__(self) -> int:
        return int(self.meta["rows"])

    def __getitem__(self, index: int) -> ImageRecord:
        return self.record_of(index, self.row(index))

    def record_of(self, index: int, row: Mapping[str, Any]) -> ImageRecord:
        """The record of row `index` (its content is `row`), its photo in the shards where the store has any."""
        record = record_of(row, self.image_root)
        if self.shards is None or (record.path is None and record.inside is None):
            return record
        name = record.inside.name if record.inside is not None else Path(str(record.path)).name
        return replace(record, path=None, inside=self.shards.photo(index % len(self), name))

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))

    def rows(self, split: str | None = None) -> range:
        """Row numbers of a split, of all where None; InputError lists the splits."""
        if split is None:
            return range(len(self))
        if split not in self._splits:
            raise InputError(f"{self.path}: has no split {split!r}; it has {', '.join(self._splits)}")
        found = self._splits[split]
        return range(found["start"], found["start"] + found["rows"])

    def records(self, split: str | None = None) -> StoreRecords:
        """The records of a split, of all where None; parsed one by one as they are asked for."""
        return StoreRecords(self, self.rows(split))

    def batches(self) -> Iterator[tuple[int, range]]:
        """(number, rows) of every record batch; a batch never spans two splits."""
        step = self.meta["rows_per_batch"]
        for split in self._splits.values():
            stop = split["start"] + split["rows"]
            for number, start in enumerate(range(split["start"], stop, step), split["first_batch"]):
                yield number, range(start, min(start + step, stop))

    def place(self, index: int) -> tuple[int, int]:
        """(record batch, row in it) of a row; IndexError where there is no such row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        split = list(self._splits.values())[bisect_right(self._starts, index) - 1]
        batch, row = divmod(index - split["start"], self.meta["rows_per_batch"])
        return split["first_batch"] + batch, row

    def row(self, index: int) -> dict[str, Any]:
        """A row as it is stored; negative numbers count from the end. InputError where it is damaged."""
        number, row = self.place(index + len(self) if index < 0 else index)
        return self.batch(number).slice(row, 1).to_pylist()[0]

    def batch(self, number: int) -> pa.RecordBatch:
        """A record batch, zero-copy; InputError where its bytes are not those that were written."""
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        offset, length, rows, crc = INDEX_ENTRY.unpack_from(self._index, number * INDEX_ENTRY.size)
        damaged = f"{self.path}: {RECORDS} is damaged in record batch {number}; prepare the store again"
        if offset + length > len(self._data):
            raise InputError(damaged)
        message = self._data.slice(offset, length)
        if number not in self._checked and zlib.crc32(message) != crc:
            raise InputError(damaged)
        try:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(message), SCHEMA)
            if number not in self._checked:
                batch.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{damaged} ({' '.join(str(error).split())[:80]})") from None
        if batch.num_rows != rows:
            raise InputError(damaged)
        self._checked.add(number)
        self._last = (number, batch)
        return batch


class StoreRecords(Sequence[ImageRecord]):
    """Some rows of a store as a sequence of records that holds none of them."""

    def __init__(self, store: Store, rows: range) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> StoreRecords: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | StoreRecords:
        if isinstance(index, slice):
            return StoreRecords(self.store, self.rows[index])
        return self.store[self.rows[index]]


def _photos_of(path: Path, root: str) -> Path:
    """The image root that a store names relative to itself; nothing need be there."""
    return Path(os.path.normpath(os.path.join(os.path.realpath(path), root)))
