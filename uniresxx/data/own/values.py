"""Values of annotation records as tools write them: ids, numbers, sentences, attributes. Keys in any case."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from uniresxx.data.readers.fields import shown
from uniresxx.errors import InputError

TEXT_KEYS = ("caption", "text", "sentence", "description", "expression")
PART_KEYS = ("part", "parent")
ATTRIBUTE_KEYS = ("attributes", "region_attributes")


def lowered(record: Mapping[Any, Any]) -> dict[str, Any]:
    """The record with keys in lower case, without blanks at their ends; of two equal keys the first counts."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        found.setdefault(str(key).strip().lower(), value)
    return found


def is_filled(value: Any) -> bool:
    """Whether a field says anything: not missing, false, empty or blank."""
    return bool(value.strip()) if isinstance(value, str) else value not in (None, False, [], {}, ())


def text_of(value: Any) -> str:
    """Text or a number as text without blanks at its ends, "" for everything else.

    InputError where it holds half a character (JSON can), which no file or tokenizer takes.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{shown(text)} holds half a character") from None
    return text


def id_of(value: Any) -> str:
    """An id as text: 12, 12.0 and "12" are the same; "" where there is none."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else text_of(value)


def texts_of(value: Any) -> tuple[str, ...]:
    """Sentences of a field: a text, or a list of texts or of records with `sent`, `raw` or a text key; none blank."""
    if isinstance(value, list | tuple):
        return tuple(text for item in value for text in texts_of(item))
    if isinstance(value, Mapping):
        fields = lowered(value)
        return next(
            (found for key in ("sent", "raw", *TEXT_KEYS) if (found := texts_of(fields.get(key)))), ()
        )
    text = text_of(value) if isinstance(value, str) else ""
    return (text,) if text else ()


def attributes_of(value: Any) -> dict[str, Any]:
    """Attributes as a dict: an object, a list of name and value, or either as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    if isinstance(value, list):
        rows = [lowered(item) for item in value if isinstance(item, Mapping)]
        return {str(row.get("name", row.get("key"))).strip().lower(): row.get("value") for row in rows}
    return lowered(value) if isinstance(value, Mapping) else {}


def own_texts(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The sentences of an annotation: of its first text key that has any, on itself before its attributes."""
    fields = lowered(record)
    for place in (fields, *(attributes_of(fields.get(key)) for key in ATTRIBUTE_KEYS)):
        for key in TEXT_KEYS:
            if found := texts_of(place.get(key)):
                return found
    return ()


def names_part(record: Mapping[str, Any]) -> bool:
    """Whether a parent or a part is filled, on the record or in its attributes."""
    fields = lowered(record)
    places = (fields, *(attributes_of(fields.get(key)) for key in ATTRIBUTE_KEYS))
    return any(is_filled(place.get(key)) for place in places for key in PART_KEYS)


def number_of(value: Any) -> float:
    """A finite number, also written as text; InputError otherwise."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{shown(value)} is no number")
    return number


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) of a record, numbers of any kind; None where it does not say them."""
    try:
        sides = round(number_of(height)), round(number_of(width))
    except InputError:
        return None
    return sides if min(sides) > 0 else None
