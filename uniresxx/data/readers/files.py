"""Annotation files: JSON and pickles of records, with a note of which files were opened.

A prepared store is compared with the files that it was made from (`record_opened`). Photos and mask files are too
many to be noted one by one.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from uniresxx.data.readers.pickles import one_line, plain_data
from uniresxx.errors import InputError

MAX_PICKLE_BYTES = 64 * 2**20  # refs(umd).p has 20 MB; parsing takes at most 82 bytes of memory per byte
MAX_JSON_BYTES = 2 * 2**30
MAX_LINE_BYTES = 16 * 2**20
MISSING = "nothing"
_opened: ContextVar[dict[Path, str] | None] = ContextVar("opened", default=None)


@contextmanager
def record_opened() -> Iterator[dict[Path, str]]:
    """The annotation files that are opened inside the `with`, and the state of each (`state_of`)."""
    files: dict[Path, str] = {}
    token = _opened.set(files)
    try:
        yield files
    finally:
        _opened.reset(token)


def note_opened(path: Path) -> None:
    """Note an annotation file about to be read; InputError where it changed since it was last opened."""
    files = _opened.get()
    if files is not None:
        state = state_of(path)
        if files.setdefault(path, state) != state:
            raise InputError(f"{path}: changed while it was read; give the same command again")


def state_of(path: Path) -> str:
    """Size and time of a file, "nothing" where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return MISSING
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(status.st_mtime))
    return f"{status.st_size} bytes of {stamp}.{status.st_mtime_ns % 10**9:09d}"


def load_pickle(path: Path, max_bytes: int = MAX_PICKLE_BYTES) -> Any:
    """Plain data of a pickle file; InputError where it cannot be read, is over `max_bytes`, or as `plain_data`."""
    return plain_data(read_bytes(path, max_bytes), str(path))


def load_json(path: Path, max_bytes: int = MAX_JSON_BYTES, fallback: str | None = None) -> Any:
    """Content of a JSON file; InputError: it cannot be read, is over `max_bytes`, no JSON, or has a key twice.

    `fallback` is the encoding of files that are no UTF-8.
    """
    data = read_bytes(path, max_bytes)
    try:
        return parse_json(data if fallback is None or _is_utf8(data) else data.decode(fallback))
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        reason = one_line(str(error)) or type(error).__name__
        raise InputError(f"{path}: is no readable JSON ({reason}); download it again") from None


def parse_json(data: bytes | str) -> Any:
    """JSON as Python data; ValueError where it is none, InputError where an object has a key twice."""
    return json.loads(data, object_pairs_hook=_without_repeats)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; InputError where a key comes twice, because nobody can tell which value is meant."""
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"an object holds the key {one_line(repr(twice))} more than once; correct the file")
    return content


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name for errors, object) of every line of a JSONL file that is not blank; one line is in memory at a time.

    InputError naming file and line: it cannot be read, is over MAX_LINE_BYTES, no JSON object, or has a key twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    note_opened(path)
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            who = f"{path}: line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise InputError(f"{who}: is over the cap of {MAX_LINE_BYTES} bytes")
            if line.isspace():
                continue
            try:
                row = parse_json(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{who}: is no readable JSON ({one_line(str(error))})") from None
            if not isinstance(row, dict):
                raise InputError(f"{who}: must be an object, not {type(row).__name__}")
            yield who, row


def load_records(path: Path) -> list[dict[str, Any]]:
    """A list of records (dicts with text keys) from a `.json` file or else a pickle; InputError otherwise."""
    content = load_json(path) if path.suffix == ".json" else load_pickle(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: must hold a list of records, not {type(content).__name__}")
    for index, record in enumerate(content):
        if not isinstance(record, dict):
            raise InputError(f"{path}: record {index} must be a dict, not {type(record).__name__}")
    return content


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of an annotation file; InputError where it cannot be read or is over `max_bytes`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    note_opened(path)
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > max_bytes:
                raise InputError(
                    f"{path}: {size} bytes are over the cap of {max_bytes} for an annotation file"
                )
            return stream.read(size)  # no more, if it grows meanwhile
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
