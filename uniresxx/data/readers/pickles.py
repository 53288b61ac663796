"""Annotation files from elsewhere: pickles that may hold data only, and JSON.

The referring-expression sets come as Python-2 pickles (`refs(unc).p`, protocol 0). A pickle is a program, so
none is parsed here: a child process with a cap on its memory and time does it (`pickle_child.py`), may build
lists, dicts, text and numbers and nothing else, and answers in JSON. Tuples come back as lists, keys of dicts
as text. Where the system cannot cap memory (macOS, Windows) the child parses with Python's own unpickler,
which is slower and takes no more than the file's size allows; a time limit holds everywhere.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from uniresxx.data.readers import pickle_child as child
from uniresxx.errors import InputError

MAX_PICKLE_BYTES = 256 * 2**20  # refs(umd).p has about 20 MB
MAX_JSON_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Limits:
    """What parsing one pickle of `size` bytes may take; plain records take 10 bytes of memory per byte."""

    memory: int = 16 * 2**20  # and 24 times the size
    seconds: int = 20  # of processor time, and one more per 2 MiB; ten times that by the clock
    answer: int = 2**20  # and 16 times the size

    def of(self, size: int) -> tuple[int, int, int]:
        """(bytes of memory, seconds, bytes of the answer)."""
        return self.memory + 24 * size, self.seconds + (size >> 21), self.answer + 16 * size


LIMITS = Limits()


class PickleChild:
    """A process that parses pickles, one after another, for as long as the `with` lasts.

    It is started at the first pickle, and again after one that ended it. Threads may share it.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> PickleChild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def load(self, data: bytes, name: str) -> Any:
        """Plain data of a pickle; InputError that starts with `name`: holds a global (named), damaged, a bomb.

        OSError where no process can be started.
        """
        with self._lock:
            try:
                answer = self._ask(data, name)
            except BaseException:
                self._end()  # half an answer may be left in the pipe
                raise
        return _value_of(*answer, name)

    def _ask(self, data: bytes, name: str) -> tuple[int, bytes, list[bytes]]:
        memory, seconds, longest = self.limits.of(len(data))
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(10 * seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(child.REQUEST.pack(len(data), memory, seconds, longest))
            process.stdin.write(data)
            process.stdin.flush()
            return self._answer(longest)
        except (BrokenPipeError, EOFError):
            raise InputError(
                f"{name}: the process that parses this pickle gave no answer ({_end_of(process, seconds)}); "
                "download it again, or save the records as JSON"
            ) from None
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        # -I -S: no variables, no site-packages, no current folder
        command = [sys.executable, "-I", "-S", child.__file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return self._process

    def _answer(self, longest: int) -> tuple[int, bytes, list[bytes]]:
        """(status, text, byte strings); EOFError where the child ended, or says more than it may."""
        status, size, count = child.ANSWER.unpack(self._read(child.ANSWER.size))
        left = longest - size
        if left < 0 or count > longest:
            raise EOFError
        text, blobs = self._read(size), []
        for _ in range(count):
            (size,) = child.LENGTH.unpack(self._read(child.LENGTH.size))
            left -= size
            if left < 0:
                raise EOFError
            blobs.append(self._read(size))
        return status, text, blobs

    def _read(self, size: int) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise EOFError
        return data

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _end_of(process: subprocess.Popen[bytes], seconds: int) -> str:
    """How a child ended that gave no answer."""
    try:
        code = process.wait(1)
    except subprocess.TimeoutExpired:
        return "its answer makes no sense"
    if -code in (signal.SIGKILL, getattr(signal, "SIGXCPU", None)):
        return f"it took longer than {seconds} s, or was killed"
    return f"it ended with code {code}"


def _value_of(status: int, text: bytes, blobs: list[bytes], name: str) -> Any:
    """The data in an answer. InputError: what the child found wrong, or an answer that makes no sense."""

    def with_bytes(item: dict[str, Any]) -> Any:
        place = item.get(child.BYTES_KEY)
        return blobs[place] if isinstance(place, int) and len(item) == 1 else item

    try:
        content = json.loads(text, object_hook=with_bytes if blobs else None)
    except (ValueError, IndexError, RecursionError) as error:
        raise InputError(f"{name}: is no readable pickle ({_reason(error)}); download it again") from None
    if status == child.GOOD:
        return content
    reason = _line(str(content))
    if status == child.REFUSED:
        raise InputError(f"{name}: {reason}")
    raise InputError(
        f"{name}: is no readable pickle of plain records ({reason}); download it again, or save the records as JSON"
    )


def load_pickle(path: Path, max_bytes: int = MAX_PICKLE_BYTES, limits: Limits = LIMITS) -> Any:
    """Plain data of a pickle. Python-2 byte strings are read as UTF-8, as latin-1 where they are not UTF-8.

    Raises InputError naming the file: missing, over `max_bytes`, holds a global (named), damaged, takes more
    memory, time or text than `limits`. OSError where no process can be started.
    """
    data = _read(path, max_bytes)
    with PickleChild(limits) as parser:
        return parser.load(data, str(path))


def load_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Content of a JSON file; InputError naming the file: missing, over `max_bytes`, no JSON, a key twice."""
    try:
        return json.loads(_read(path, max_bytes), object_pairs_hook=_without_repeats)
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: is no readable JSON ({_reason(error)}); download it again") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; InputError where a key comes twice, because nobody can tell which value is meant."""
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"an object holds the key {_line(repr(twice))} more than once; correct the file")
    return content


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
    return _line(str(error)) or type(error).__name__


def _line(text: str) -> str:
    """One printable line of what a file made somebody say."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))[:240]


def _read(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
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
