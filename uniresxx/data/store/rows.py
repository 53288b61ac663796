"""Records as rows of the store's Arrow file, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from uniresxx.errors import InputError
from uniresxx.types import RLE, Dialogue, Expression, Granularity, ImageRecord, PhotoInside, Phrase, Turn

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
        ("instances", pa.list_(_TEXT)),  # run lengths of each referent alone; null where unknown
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
        "instances": None
        if item.instances is None
        else [_counts_of(rle, size, item.expression_id) for rle in item.instances],
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
        instances=None
        if item["instances"] is None
        else tuple(RLE(size=list(size), counts=counts) for counts in item["instances"]),
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
