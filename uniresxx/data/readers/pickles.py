"""Annotation files from elsewhere: pickles that may hold data only, and JSON.

The referring-expression sets come as Python-2 pickles (`refs(unc).p`, protocol 0). A pickle is a program;
ours may build lists, dicts, text and numbers and nothing else: every global is refused before it is looked
up.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from uniresxx.errors import InputError

MAX_PICKLE_BYTES = 256 * 2**20  # refs(umd).p has about 20 MB
MAX_JSON_BYTES = 2 * 2**30
_BROKEN = (
    AssertionError,
    struct.error,
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
)


# The opcodes of Python 2's protocol 0 for plain data, memo places of at most seven digits: what the release
# files are made of. The fast unpickler sets aside memory for the highest memo place that a file names, true
# or not, so anything else goes to the slow one, which keeps its memo in a dict.
_PLAIN_TEXT = re.compile(rb"(?:[(ld]|[ase]|[pg]\d{1,7}\n|[ILFSV][^\n]*\n|[tN)\]}u])*+\.", re.DOTALL)


def _refuse(module_name: str, global_name: str) -> NoReturn:
    raise InputError(
        f"holds the global {module_name}.{global_name}, which this program never loads from a pickle; "
        "save the records as JSON instead"
    )


class DataUnpickler(pickle.Unpickler):
    """An unpickler without globals: it can build plain data, but name no class or function."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        """Refuse, naming the global."""
        _refuse(module_name, global_name)


class SlowDataUnpickler(pickle._Unpickler):
    """The same in Python: its memory is bounded by the file's size.

    Two opcodes that plain data never needs are unknown to it: byte arrays, whose memory is taken before their
    bytes are there, and whole numbers of more than 255 bytes, which Python refuses to print.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in (pickle.BYTEARRAY8[0], pickle.LONG4[0])
    }

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        """Refuse, naming the global."""
        _refuse(module_name, global_name)


def _unpickle(data: bytes, encoding: str) -> Any:
    unpickler = DataUnpickler if _PLAIN_TEXT.fullmatch(data) else SlowDataUnpickler
    return unpickler(io.BytesIO(data), encoding=encoding).load()


def load_pickle(path: Path, max_bytes: int = MAX_PICKLE_BYTES) -> Any:
    """Plain data of a pickle. Python-2 byte strings are read as UTF-8, as latin-1 where they are not UTF-8.

    Raises InputError naming the file: missing, over `max_bytes`, holds a global (named), damaged.
    """
    return unpickle(_read(path, max_bytes), str(path))


def unpickle(data: bytes, name: str) -> Any:
    """As `load_pickle`, from bytes; `name` is what an error calls them."""
    try:
        try:
            return _unpickle(data, "ASCII")
        except UnicodeDecodeError:
            return _as_text(_unpickle(data, "bytes"), {})
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except _BROKEN as error:
        raise InputError(f"{name}: is no readable pickle ({_reason(error)}); download it again") from None


def load_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Content of a JSON file; InputError naming the file where it is missing, over `max_bytes` or no JSON."""
    try:
        return json.loads(_read(path, max_bytes))
    except InputError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: is no readable JSON ({_reason(error)}); download it again") from None


def load_records(path: Path) -> list[dict[str, Any]]:
    """A list of records (dicts with text keys) from a `.json` file or else a pickle; InputError otherwise."""
    content = load_json(path) if path.suffix == ".json" else load_pickle(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: must hold a list of records, not {type(content).__name__}")
    for index, record in enumerate(content):
        if not isinstance(record, dict):
            raise InputError(f"{path}: record {index} must be a dict, not {type(record).__name__}")
    return content


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]


def _read(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    size = path.stat().st_size
    if size > max_bytes:
        raise InputError(f"{path}: {size} bytes are over the cap of {max_bytes} for an annotation file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _as_text(value: Any, done: dict[int, Any]) -> Any:
    """The same plain data with every byte string decoded; `done` holds the containers met before by id.

    A pickle may name one list many times, inside itself even: each is walked once.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if not isinstance(value, list | tuple | dict):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {_as_text(key, done): _as_text(item, done) for key, item in value.items()}
        else:
            done[id(value)] = type(value)(_as_text(item, done) for item in value)
    return done[id(value)]
