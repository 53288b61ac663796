"""The JSON values of a file, one by one: a value per line, one list, or values over several lines; also gzip.

A file with one value per line is read line by line and nothing is kept. Of the other forms the text is in memory
once, the values one at a time.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError
from uniresxx.scoring.problems import Problems

Value = tuple[str, Any]  # where it stands, and the value
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
# what is no JSON, by its first bytes
_OTHER_FORMS = {
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1": "a parquet file: write one JSON line per expression",
    b"\x80\x02": "a pickle, which is never opened: write one JSON line per expression",
    b"\x80\x03": "a pickle, which is never opened: write one JSON line per expression",
    b"\x80\x04": "a pickle, which is never opened: write one JSON line per expression",
    b"\x80\x05": "a pickle, which is never opened: write one JSON line per expression",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
    b"\x89PNG": "a PNG: give the folder of PNG masks",
}


class _KeyTwiceError(ValueError):
    """An object holds a key twice, and nothing says which value counts."""


def _no_constants(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different; _KeyTwiceError names one that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _KeyTwiceError(f"the key {twice[:40]!r} is there twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constants, object_pairs_hook=_once)


def parse(text: bytes) -> Any:
    """One JSON value. NaN and Infinity, which Python would take, are errors as in JSON itself. ValueError."""
    try:
        return json.loads(text, parse_constant=_no_constants)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_values(path: Path, problems: Problems) -> Iterator[Value]:
    """(place, value) of every JSON value of a file; where the file is a list, of every element.

    Args:
        path: JSON, one value per line or not; may be compressed by gzip.
        problems: notes what is not JSON, and an object in which a key is there twice.

    Raises:
        InputError: the file cannot be read, or is of a known form that is not JSON.
    """
    try:
        with _opened(path) as file:
            if _by_lines(_line_with_text(file), _line_with_text(file)):
                file.seek(0)
                yield from _of_lines(file, problems)
            else:
                file.seek(0)
                yield from _of_text(file.read(), problems)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the gzip file is damaged ({error}); copy it again") from None
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path}: cannot be read ({why}); give a predictions.jsonl") from None


def _opened(path: Path) -> BufferedIOBase:
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] == _GZIP:
        return gzip.open(path, "rb")
    for mark, form in _OTHER_FORMS.items():
        if head.startswith(mark):
            raise InputError(f"{path} is {form}")
    return path.open("rb")


def _line_with_text(file: BufferedIOBase) -> bytes:
    """The next line that is not blank; empty at the end."""
    while line := file.readline():
        if line.removeprefix(_BOM).strip():
            return line
    return b""


def _by_lines(first: bytes, second: bytes) -> bool:
    """Whether a file has one value per line, judged by its first two lines with text."""
    text = first.removeprefix(_BOM).strip()
    if not text.startswith((b"[", b"{")):
        return True  # damaged lines are listed one by one
    if text.startswith(b"[") and not second:
        return False
    try:
        parse(text)
    except json.JSONDecodeError as error:
        return error.pos < len(error.doc.rstrip())  # false: the value goes on in the next line
    except ValueError:
        pass
    return True


def _of_lines(file: BufferedIOBase, problems: Problems) -> Iterator[Value]:
    for number, raw in enumerate(file, start=1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            value = _DECODER.decode(line.decode())
        except (ValueError, RecursionError) as error:
            cut = "" if raw.endswith(b"\n") else " (truncated last line)"
            _note(problems, place, error, cut)
            continue
        yield place, value


def _note(problems: Problems, place: str, error: Exception, otherwise: str = "") -> None:
    """Note a value that cannot be read; `otherwise` is said where the grammar of JSON alone is broken."""
    if isinstance(error, _KeyTwiceError):
        problems.add("keys twice", f"{place}: {error}")
        return
    why = "" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else f" ({error})"
    if isinstance(error, RecursionError):
        why = " (nested too deeply)"
    problems.add("not JSON", f"{place}: not JSON{why or otherwise}")


def _of_text(data: bytes, problems: Problems) -> Iterator[Value]:
    """The elements of one list, or values one after another over any number of lines."""
    try:
        text = data.removeprefix(_BOM).decode()
    except UnicodeDecodeError:
        problems.add("not JSON", "not JSON: not text in UTF-8")
        return
    at = _skipped(text, 0, " \t\r\n")
    listed = text[at] == "["
    at, number, between = _skipped(text, at + listed, " \t\r\n"), 0, " \t\r\n"
    if listed:
        between += ","
    while at < len(text) and not (listed and text[at] == "]"):
        number += 1
        place = f"answer {number}"
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            _note(problems, f"{place}, line {line}, and all that follows", error)
            return
        yield place, value
        at = _skipped(text, at, between)
    if listed and at >= len(text):
        problems.add("not JSON", f"the list does not end after answer {number}: the file is cut off")
    elif listed and text[at + 1 :].strip():
        problems.add("not JSON", f"something follows the list after answer {number}: it is not read")


def _skipped(text: str, at: int, what: str) -> int:
    while at < len(text) and text[at] in what:
        at += 1
    return at
