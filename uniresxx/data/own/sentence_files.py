"""Sentences files: CSV, JSON lines or JSON, of rows that name photo and masks, or of refs as gRefCOCO has them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniresxx.data.own.annotations import PhotoName, Reference, SentenceFile, SentenceRow
from uniresxx.data.own.text_files import lines_of, read_text
from uniresxx.data.own.values import id_of, is_filled, lowered, names_part, text_of, texts_of
from uniresxx.errors import InputError

SEPARATORS = (",", ";", "\t", "|")
PHOTO_KEYS = ("photo", "image", "file", "file_name")
MASK_KEYS = ("mask", "masks")
TEXT_KEYS = ("sentence", "sentences", "text", "caption", "expression")
COLUMNS = frozenset((*PHOTO_KEYS, *MASK_KEYS, *TEXT_KEYS, "split", "parent", "part"))
NO_TARGET = ((), ("-1",))


def is_sentence_list(content: Any) -> bool:
    """Whether the content of a JSON file is a list of rows or refs."""
    if not isinstance(content, list) or not content or not all(isinstance(row, Mapping) for row in content):
        return False
    keys = set().union(*(lowered(row) for row in content))
    return "image_id" in keys or "ann_id" in keys or bool(keys & {*PHOTO_KEYS})


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV by column name in lower case; the separator is the one that gives the most known columns.

    A row with more cells than there are columns has the rest under "". Raises InputError.
    """
    text = read_text(path)
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep="):  # a spreadsheet's note of its separator
        text = rest
    tables = [_table(path, text, separator) for separator in SEPARATORS]
    return max(tables, key=_known_columns)


def _table(path: Path, text: str, separator: str) -> list[dict[str, str]]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise InputError(f"{path}: is no readable CSV ({error})") from None
    rows = [row for row in rows if any(map(str.strip, row))]
    if not rows:
        raise InputError(f"{path}: is empty")
    names = [name.strip().lower() for name in rows[0]]
    table = []
    for row in rows[1:]:
        cells = dict(zip(names, row, strict=False))
        extra = separator.join(row[len(names) :]).strip()
        table.append({**dict.fromkeys(names, ""), **cells, **({"": extra} if extra else {})})
    return table or [dict.fromkeys(names, "")]


def _known_columns(table: Sequence[Mapping[str, str]]) -> int:
    return len(COLUMNS & table[0].keys()) + len({"filename", "region_shape_attributes"} & table[0].keys())


def read_json_lines(path: Path) -> list[Any]:
    """The records of a JSON lines file; a line that is none is kept as its error, as text."""
    records: list[Any] = []
    for number, line in enumerate(lines_of(read_text(path)), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                records.append(f"line {number} is no JSON ({error})")
    return records


def sentence_file(path: Path, records: Sequence[Any]) -> SentenceFile:
    """Rows and refs of a sentences file; a record that cannot be read carries its problem.

    Raises InputError where no record names a photo or an image.
    """
    rows: list[SentenceRow] = []
    refs: list[Reference] = []
    keys: set[str] = set()
    for index, record in enumerate(records, 1):
        who = f"{path}: row {index}"
        if not isinstance(record, Mapping):
            rows.append(
                SentenceRow(who, None, (), problem=record if isinstance(record, str) else "is no object")
            )
            continue
        fields = lowered(record)
        keys |= fields.keys()
        if fields.get(""):
            rows.append(
                SentenceRow(who, _photo(path, fields), (), problem=f"has a cell too many: {fields['']}")
            )
        elif "ann_id" in fields or "image_id" in fields:
            refs.append(_reference(who, path, fields))
        else:
            rows.append(_row(who, path, fields))
    if not refs and not keys & {*PHOTO_KEYS}:
        raise InputError(
            f"{path}: no column names a photo ({', '.join(PHOTO_KEYS)}); it has {', '.join(sorted(keys))}"
        )
    without_masks = rows and not refs and not keys & {*MASK_KEYS} and keys & {*TEXT_KEYS}
    notes = (f"{path}: has no column mask, so every row is read as no target",) if without_masks else ()
    return SentenceFile(path, rows, refs, notes)


def _photo(path: Path, fields: Mapping[str, Any]) -> PhotoName | None:
    named = next(
        (fields[key] for key in PHOTO_KEYS if isinstance(fields.get(key), str) and fields[key].strip()), None
    )
    return None if named is None else PhotoName(named, path.parent)


def _texts(fields: Mapping[str, Any]) -> tuple[str, ...]:
    return next((found for key in TEXT_KEYS if (found := texts_of(fields.get(key)))), ())


def _row(who: str, path: Path, fields: Mapping[str, Any]) -> SentenceRow:
    photo = _photo(path, fields)
    try:
        named: Any = next((fields[key] for key in MASK_KEYS if is_filled(fields.get(key))), [])
        listed = named if isinstance(named, list) else [named]
        if not all(isinstance(item, str | None) for item in listed):
            raise InputError("mask must be a file name or a list of these")
        masks = tuple(item.strip() for item in listed if item and item.strip())
        return SentenceRow(
            who, photo, _texts(fields), masks, text_of(fields.get("split")), names_part(fields)
        )
    except InputError as error:
        return SentenceRow(who, photo, (), problem=str(error))


def _reference(who: str, path: Path, fields: Mapping[str, Any]) -> Reference:
    photo, image_id = _photo(path, fields), id_of(fields.get("image_id"))
    try:
        value = fields.get("ann_id", [])
        listed = value if isinstance(value, list | tuple) else [] if value is None else [value]
        ids = tuple(dict.fromkeys(map(id_of, listed)))
        ids = () if ids in NO_TARGET else ids
        if "" in ids or "-1" in ids:
            raise InputError("ann_id must hold ids, or be [] or [-1] for no target")
        if not ids and fields.get("no_target") is False:
            raise InputError("names no annotation, and no_target is false")
        split = text_of(fields.get("split"))
        return Reference(who, image_id, photo, ids, _texts(fields), split, names_part(fields))
    except InputError as error:
        return Reference(who, image_id, photo, (), (), problem=str(error))
