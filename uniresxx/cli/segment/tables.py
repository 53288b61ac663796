"""Tables of `uniresxx segment`: photos with sentences (--table), sentences with categories (--labels)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError
from uniresxx.imaging.inputs import checked

PHOTO_KEYS = ("photo", "image", "file", "file_name", "filename", "path", "image_path")
TEXT_KEYS = ("sentence", "sentences", "text", "expression", "phrase", "prompt", "query", "caption")
ID_KEYS = ("id", "sent_id", "expression_id")
_SHOWN = 3  # problems, or sentences, named in an error


@dataclass(frozen=True, slots=True)
class Category:
    """What a sentence counts as in annotation files."""

    name: str
    number: int


def read_table(path: Path) -> Iterator[tuple[str, str, str | None]]:
    """Photo, sentence and id (None where there is none) of each row.

    A relative path of a photo starts at the table's folder, or, where it is not there, at the current one.

    Raises:
        InputError: the file cannot be read, a column is missing, or rows lack a value (the first are named).
    """
    from uniresxx.data.own.values import id_of, texts_of

    rows = _records(path)
    photo_key, text_key = (_key(path, rows, keys, what) for keys, what in _NEEDED)
    id_key = _found(rows, ID_KEYS)
    problems: list[str] = []
    found: list[tuple[str, str, str | None]] = []
    for number, row in enumerate(rows, 1):
        photo = row.get(photo_key)
        texts = texts_of(row.get(text_key))
        if not isinstance(photo, str) or not photo.strip():
            problems.append(f"row {number} has no {photo_key}")
        elif not texts:
            problems.append(f"row {number} has no {text_key}")
        else:
            row_id = id_of(row.get(id_key)) if id_key else ""
            found += [(_beside(path, photo.strip()), text, row_id or None) for text in texts]
    _refuse(path, problems)
    return iter(found)


_NEEDED = ((PHOTO_KEYS, "the photo"), (TEXT_KEYS, "the sentence"))


def read_labels(path: Path, texts: Iterable[str]) -> dict[str, Category]:
    """The category of each of these texts, by a CSV with columns sentence, category and category_id.

    Without a column `category` the sentence itself is the category's name.

    Raises:
        InputError: the file cannot be read, a column is missing, a category has two ids or an id two categories, or
            a text has no category (the first are named).
    """
    rows = _records(path)
    text_key = _key(path, rows, TEXT_KEYS, "the sentence")
    number_key = _key(path, rows, ("category_id", "id", "class_id", "label_id"), "the category's id")
    name_key = _found(rows, ("category", "label", "class", "name"))
    known: dict[str, Category] = {}
    problems: list[str] = []
    for number, row in enumerate(rows, 1):
        try:
            text = str(checked(str(row.get(text_key) or "")))
            name = str(row.get(name_key) or "").strip() if name_key else ""
            known[text] = Category(name or text, int(str(row.get(number_key))))
        except ValueError:
            problems.append(f"row {number} has no {text_key}, or its {number_key} is no whole number")
    _refuse(path, problems)
    _check_ids(path, known.values())
    missing = [text for text in texts if text not in known]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        named = ", ".join(map(repr, missing[:_SHOWN]))
        raise InputError(f"{path}: no category for {named}{more}: add a row for each")
    return known


def _check_ids(path: Path, categories: Iterable[Category]) -> None:
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for one in categories:
        if names.setdefault(one.number, one.name) != one.name:
            raise InputError(f"{path}: id {one.number} is given to {names[one.number]!r} and {one.name!r}")
        if numbers.setdefault(one.name, one.number) != one.number:
            raise InputError(f"{path}: {one.name!r} has the ids {numbers[one.name]} and {one.number}")


def _records(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a CSV or JSON lines file by column name in lower case."""
    from uniresxx.data.own.sentence_files import read_csv, read_json_lines
    from uniresxx.data.own.text_files import read_text
    from uniresxx.data.own.values import lowered

    if not path.is_file():
        raise InputError(f"{path}: is not a file; name a CSV or JSON lines file")
    if not read_text(path).lstrip().startswith("{"):
        return [row for row in read_csv(path) if any(row.values())]
    records = read_json_lines(path)
    _refuse(path, [one if isinstance(one, str) else "" for one in records if not isinstance(one, Mapping)])
    return [lowered(one) for one in records]


def _found(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str | None:
    """The first of these columns that the rows have."""
    columns = {key for row in rows for key in row}
    return next((key for key in keys if key in columns), None)


def _key(path: Path, rows: Sequence[Mapping[str, Any]], keys: Sequence[str], what: str) -> str:
    if not rows:
        raise InputError(f"{path}: has no rows")
    found = _found(rows, keys)
    if found is None:
        columns = ", ".join(sorted({key for row in rows for key in row if key})) or "none"
        raise InputError(
            f"{path}: no column for {what}: call it {' or '.join(keys[:2])} (columns: {columns})"
        )
    return found


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        named = "; ".join(problem or "a line is no object" for problem in problems[:_SHOWN])
        raise InputError(f"{path}: {named}{more}")


def _beside(table: Path, photo: str) -> str:
    beside = table.parent / photo
    return str(beside) if beside.exists() else photo
