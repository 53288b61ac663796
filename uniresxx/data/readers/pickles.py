"""Plain data from pickles that come from elsewhere: lists, dicts, text, bytes and numbers, and nothing else.

The referring-expression sets come as Python-2 pickles (`refs(unc).p`, protocol 0), CRIS's LMDB values are pickles
too. A pickle is a program, so Python's own unpickler (the one written in Python) runs here with the few opcodes
that plain data needs. It can look up no class or function. No opcode that is left reserves memory before its bytes
are there, copies what it was given, or hashes keys that a file can make collide: memory and time grow with the size
of the file, on every system.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from uniresxx.errors import InputError

DEEPEST = 200  # lists and dicts inside one another
MAX_MEMO = 2**32  # numbers of memo entries; what binary protocols can name
# a list may be named in many places: text that the data may unfold to, per byte of the file, and for any file
UNFOLDED_PER_BYTE, UNFOLDED_FREE = 16, 2**20
_BROKEN = (
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    UnicodeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT "
    "BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL INST"
)


def plain_data(data: bytes, name: str) -> Any:
    """The data of a pickle.

    Tuples become lists. Python-2 byte strings are read as UTF-8, or as latin-1 where they are not UTF-8.

    Args:
        data: the pickle.
        name: what errors call it.

    Raises:
        InputError: it names a class or a function, is damaged, holds more than plain data, a key that is no text,
            or a list in itself, or unfolds to far more than its size.
    """
    try:
        value = _PlainUnpickler(io.BytesIO(data)).load()
        if _unfolded(value, {}) > UNFOLDED_FREE + UNFOLDED_PER_BYTE * len(data):
            raise pickle.UnpicklingError("unfolds to far more than its size")
    except _GlobalError as error:
        raise InputError(f"{name}: {one_line(str(error))}") from None
    except (*_BROKEN, MemoryError) as error:
        raise InputError(
            f"{name}: is no readable pickle of plain records ({one_line(str(error)) or type(error).__name__}); "
            "download it again, or save the records as JSON"
        ) from None
    return value


def one_line(text: str) -> str:
    """One printable line of a message that a file may have shaped."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))[:240]


class _GlobalError(Exception):
    """The pickle names a class or a function."""


class _PlainUnpickler(pickle._Unpickler):
    """Python's unpickler with the opcodes of plain data."""

    stack: list[Any]
    memo: dict[int, Any]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    dispatch: ClassVar[dict[int, Any]] = {
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _OPCODES.split())
    }

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            raise pickle.UnpicklingError(f"opcode {error} is not one of plain data") from None

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise _GlobalError(
            f"holds the global {module_name}.{global_name}, which this program never loads from a pickle; "
            "save the records as JSON instead"
        )

    def _decode_string(self, value: bytes) -> str:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")

    def _put(self) -> None:
        number = int(self.readline()[:-1])
        if not 0 <= number < MAX_MEMO:
            raise pickle.UnpicklingError("the number of a memo entry is out of range")
        self.memo[number] = self.stack[-1]

    def _fill(self, target: dict[str, Any], items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise _bad_key(key)
            target[key] = value

    def _dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._fill(self.stack[-1], items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        if not isinstance(key, str):
            raise _bad_key(key)
        self.stack[-1][key] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._fill(self.stack[-1], items)

    def _list_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise pickle.UnpicklingError("a tuple has too few values")
        self.stack[-count:] = [self.stack[-count:]]

    dispatch |= {
        pickle.PUT[0]: _put,
        pickle.DICT[0]: _dict,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        # tuples as lists
        pickle.TUPLE[0]: pickle._Unpickler.dispatch[pickle.LIST[0]],
        pickle.EMPTY_TUPLE[0]: pickle._Unpickler.dispatch[pickle.EMPTY_LIST[0]],
        pickle.TUPLE1[0]: lambda self: self._list_of(1),
        pickle.TUPLE2[0]: lambda self: self._list_of(2),
        pickle.TUPLE3[0]: lambda self: self._list_of(3),
    }


def _bad_key(key: Any) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"a key is {type(key).__name__}, not text")


def _unfolded(value: Any, found: dict[int, int], depth: int = 0) -> int:
    """About how many characters the data has as JSON; every list and dict is walked once, `found` remembers it."""
    if not isinstance(value, list | dict) or not value:
        return len(value) if isinstance(value, str | bytes) else 8
    if depth > DEEPEST:
        raise pickle.UnpicklingError("lists inside one another too deep, or inside themselves")
    if id(value) not in found:
        size = 2
        for item in value if isinstance(value, list) else (*value, *value.values()):
            size += len(item) if type(item) is str else _unfolded(item, found, depth + 1)
        found[id(value)] = size
    return found[id(value)]
