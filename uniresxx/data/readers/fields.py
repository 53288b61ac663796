"""Typed access to the fields of annotation records; every error names the record and the field."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from uniresxx.errors import InputError
from uniresxx.imaging import masks

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxlong, _REPR.maxother = 2, 60, 60, 60


def shown(value: Any) -> str:
    """A value for an error: one short line, also of data that holds itself or one list a million times."""
    return _REPR.repr(value)


def need(record: Mapping[str, Any], name: str, who: str) -> Any:
    """A field of a record; InputError naming the field and the record."""
    if name not in record:
        raise InputError(f"{who}: has no field {name!r}")
    return record[name]


def whole(value: Any, name: str, who: str) -> int:
    """An int of a field (12, 12.0 or "12"); InputError otherwise."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{who}: {name} must be a whole number, not {shown(value)}")
    return value


def size_of(row: Mapping[str, Any], who: str) -> tuple[int, int]:
    """(height, width) of a row, both from 1 up and within the cap for photos; InputError otherwise."""
    height, width = (whole(need(row, side, who), side, who) for side in ("height", "width"))
    if height < 1 or width < 1 or height * width > masks.MAX_PIXELS:
        raise InputError(
            f"{who}: {shown(height)} x {shown(width)} (height x width) is no size of a photo of at most "
            f"{masks.MAX_PIXELS} pixels"
        )
    return height, width


def file_name_of(row: Mapping[str, Any], who: str, field_name: str = "file_name") -> str:
    """A field that names a file; InputError where it is no text or empty."""
    value = need(row, field_name, who)
    if not isinstance(value, str) or not value:
        raise InputError(f"{who}: {field_name} must be a file name, not {shown(value)}")
    return _unicode(value, who)


def _unicode(text: str, who: str) -> str:
    """The text; InputError where it holds half a character (JSON can), which no file or tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{who}: {shown(text)} holds half a character; correct the file") from None
    return text


def text_of(row: Mapping[str, Any], field_name: str, who: str) -> str:
    """A field that holds text, without blanks at its ends; InputError where it is no text."""
    value = need(row, field_name, who)
    if not isinstance(value, str):
        raise InputError(f"{who}: {field_name} must be text, not {shown(value)}")
    return _unicode(value, who).strip()


def list_of(row: Mapping[str, Any], field_name: str, who: str) -> list[Any]:
    """A field that holds a list; InputError otherwise."""
    value = need(row, field_name, who)
    if not isinstance(value, list):
        raise InputError(f"{who}: {field_name} must be a list, not {shown(value)}")
    return value


def photo_id(file_name: str) -> str:
    """The COCO image id in a file name, as in the other sets, or the bare name where there is none."""
    bare = PurePosixPath(file_name).stem
    number = re.search(r"(?:^|_)(\d{12})$", bare)
    return str(int(number.group(1))) if number else bare


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence: the text given to the model, and what the file says."""

    text: str
    raw: str
    native_id: str | None


def sentences(record: Mapping[str, Any], id_field: str, who: str) -> Iterator[Sentence]:
    """The sentences of a record, dicts or plain text.

    `text` is `sent` without blanks at its ends, otherwise as it came (HTML residue too) and never shortened (the
    collector cleans it, see `uniresxx.text`); where `sent` is blank, `raw` serves (our choice). A sentence that is
    blank in both comes with an empty text.
    """
    items = need(record, "sentences", who)
    if not isinstance(items, list):
        raise InputError(f"{who}: sentences must be a list, not {type(items).__name__}")
    for index, item in enumerate(items):
        if isinstance(item, str):
            yield Sentence(_unicode(item, f"{who}: sentence {index}").strip(), item, None)
            continue
        if not isinstance(item, dict):
            raise InputError(f"{who}: sentence {index} must be a dict or text, not {type(item).__name__}")
        sent = need(item, "sent", f"{who}: sentence {index}")
        raw = item.get("raw", sent)
        if not isinstance(sent, str) or not isinstance(raw, str):
            raise InputError(f"{who}: sentence {index}: sent and raw must be text")
        native = item.get(id_field)
        if native is not None and (not isinstance(native, int | str) or isinstance(native, bool)):
            raise InputError(f"{who}: sentence {index}: {id_field} must be a number, not {shown(native)}")
        _unicode(f"{sent}{raw}{native}", f"{who}: sentence {index}")
        yield Sentence(sent.strip() or raw.strip(), raw, None if native is None else str(native))
