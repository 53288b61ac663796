"""The process that parses pickles; `pickles.PickleChild` starts it as a script and speaks to it over two pipes.

A pickle is a program. This process has nothing to lose: it gets bytes, not paths; may build lists, dicts, text
and numbers and look up no global; has a cap on memory and processor time for each pickle; and answers in JSON,
so that its caller trusts nothing of it. It imports the standard library only, to start in some 30 ms.

Request: REQUEST (bytes, memory, seconds, longest answer), then the pickle. Answer: ANSWER (status, bytes of
the text, number of byte strings), the text, then each byte string with its length before it. The text is JSON
in which a byte string is {BYTES_KEY: place}, or, where the status is not GOOD, what is wrong.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
from typing import Any, BinaryIO, ClassVar, NoReturn

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

REQUEST = struct.Struct(">QQQQ")
ANSWER = struct.Struct(">BQQ")
LENGTH = struct.Struct(">Q")
GOOD, REFUSED, BROKEN, TOO_BIG = range(4)
BYTES_KEY = "\0bytes"
DEEPEST = 200  # lists and dicts inside one another
# macOS takes a cap on memory and does not hold it
CAPS_MEMORY = resource is not None and sys.platform != "darwin"
_BROKEN = (
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    UnicodeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


class GlobalError(Exception):
    """The pickle names a class or a function."""


def _refuse(module_name: str, global_name: str) -> NoReturn:
    raise GlobalError(
        f"holds the global {module_name}.{global_name}, which this program never loads from a pickle; "
        "save the records as JSON instead"
    )


class DataUnpickler(pickle.Unpickler):
    """An unpickler without globals: it can build plain data, but name no class or function."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        """Refuse, naming the global."""
        _refuse(module_name, global_name)

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse: there is nothing outside the file."""
        raise pickle.UnpicklingError("names an object outside the file")


class SlowDataUnpickler(pickle._Unpickler):
    """The same in Python, for systems that cannot cap memory: it takes no more than the file's size allows.

    The one in C sets aside memory for the highest memo place a file names, true or not. Two opcodes that
    plain data never needs are unknown here: byte arrays, whose memory is taken before their bytes are there,
    and whole numbers of more than 255 bytes.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in (pickle.BYTEARRAY8[0], pickle.LONG4[0])
    }

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        """Refuse, naming the global."""
        _refuse(module_name, global_name)


def _load(data: bytes, encoding: str, fast: bool) -> Any:
    unpickler = DataUnpickler if fast else SlowDataUnpickler
    return unpickler(io.BytesIO(data), encoding=encoding).load()


def _as_text(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """The same plain data with every byte string decoded: UTF-8, or latin-1 where it is none.

    `done` holds the containers met before by id: a pickle may name one list many times, and each is walked
    once.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if not isinstance(value, list | tuple | dict):
        return value
    if depth > DEEPEST:
        raise RecursionError("lists inside one another too deep, or inside themselves")
    if id(value) not in done:
        done[id(value)] = (
            {_as_text(key, done): _as_text(item, done, depth + 1) for key, item in value.items()}
            if isinstance(value, dict)
            else [_as_text(item, done, depth + 1) for item in value]
        )
    return done[id(value)]


def _length(value: Any, done: dict[int, int], depth: int = 0) -> int:
    """About how many characters of JSON the data unfolds to, every list and dict walked once."""
    if isinstance(value, str | bytes):
        return 2 + len(value)
    if not isinstance(value, list | tuple | dict):
        return 8
    if depth > DEEPEST:
        raise RecursionError("lists inside one another too deep, or inside themselves")
    if id(value) not in done:
        items = (item for pair in value.items() for item in pair) if isinstance(value, dict) else value
        done[id(value)] = 2 + sum(_length(item, done, depth + 1) for item in items)
    return done[id(value)]


def as_json(data: bytes, longest: int, fast: bool) -> tuple[str, list[bytes]]:
    """The data of a pickle as JSON and its byte strings. Raises GlobalError, MemoryError, one of _BROKEN.

    Python-2 strings are read as ASCII or, where one of them is not, as UTF-8 or latin-1. `fast` leaves it to
    the cap on memory to end what unfolds to more than `longest` characters.
    """
    places: dict[int, int] = {}
    blobs: list[bytes] = []

    def place_of(value: Any) -> dict[str, int]:
        if not isinstance(value, bytes):
            raise TypeError(f"holds a {type(value).__name__}, which is no plain data")
        if id(value) not in places:
            places[id(value)] = len(blobs)
            blobs.append(value)
        return {BYTES_KEY: places[id(value)]}

    try:
        value = _load(data, "ASCII", fast)
    except UnicodeDecodeError:
        value = _as_text(_load(data, "bytes", fast), {})
    if not fast and _length(value, {}) > 4 * longest:
        raise MemoryError
    return json.dumps(value, default=place_of, separators=(",", ":")), blobs


def answer(data: bytes, longest: int, fast: bool = CAPS_MEMORY) -> list[bytes]:
    """The answer to a request, in pieces. Raises nothing that a pickle can cause."""
    try:
        text, blobs = as_json(data, longest, fast)
        if len(text) + sum(map(len, blobs)) > longest:
            return _wrong(TOO_BIG, f"unfolds to more than {longest} bytes")
    except GlobalError as error:
        return _wrong(REFUSED, str(error))
    except MemoryError:
        return _wrong(TOO_BIG, "needs more memory than any file of its size should")
    except _BROKEN as error:
        return _wrong(BROKEN, str(error) or type(error).__name__)
    pieces = [ANSWER.pack(GOOD, len(text), len(blobs)), text.encode("ascii")]
    for blob in blobs:
        pieces += [LENGTH.pack(len(blob)), blob]
    return pieces


def _wrong(status: int, reason: str) -> list[bytes]:
    text = json.dumps(reason[:400]).encode("ascii")
    return [ANSWER.pack(status, len(text), 0), text]


def _cap(memory: int, seconds: int) -> bool:
    """Let this process have so much more memory and processor time; whether memory is really capped.

    Only the soft limits move, so that the next pickle can have its own.
    """
    if resource is None:
        return False
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)
    return CAPS_MEMORY and _lower(resource.RLIMIT_AS, _address_space() + memory)


def _lower(which: int, value: int) -> bool:
    _, hard = resource.getrlimit(which)
    try:
        resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    except (ValueError, OSError):
        return False
    return True


def _address_space() -> int:
    """Bytes of address space taken already (programs and maps of the C library among them)."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 2**28


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more requests."""
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        size, memory, seconds, longest = REQUEST.unpack(head)
        data = requests.read(size)
        if len(data) != size:
            return
        fast = _cap(memory, seconds)
        for piece in answer(data, longest, fast):
            answers.write(piece)
        answers.flush()


if __name__ == "__main__":
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer)
