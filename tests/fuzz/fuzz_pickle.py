"""Pickles: InputError in one line, or plain data that the unpickler without restrictions reads alike."""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

from uniresxx.data.readers.pickles import plain_data
from uniresxx.errors import InputError


def check(data: bytes) -> None:
    """Raise anything but InputError where a pickle is misread."""
    try:
        value = plain_data(data, "x.p")
    except InputError as error:
        assert str(error).startswith("x.p: ") and str(error).isprintable() and len(str(error)) < 1000
        return
    text = json.dumps(value, default=bytes.hex)
    assert len(text) < 2**22 + 100 * len(data)
    try:
        expected = pickle._Unpickler(io.BytesIO(data), encoding="utf-8").load()
    except (UnicodeDecodeError, AttributeError, TypeError):
        return  # a Python-2 string in latin-1; a tuple, a list for us, that the data adds to
    assert json.dumps(expected, default=bytes.hex) == text


def seeds() -> list[bytes]:
    """Records in every protocol, Python-2 strings, and things that are refused."""
    records: Any = [
        {"ref_id": 1, "sent": "é", "box": [0.5, -1], "none": None, "yes": True, "raw": b"\xff"}
    ] * 2
    found = [pickle.dumps(records, protocol) for protocol in range(6)]
    return [
        *found,
        b"(dp0\nS'sent'\np1\nS'caf\\xc3\\xa9'\np2\ns.",
        b"cos\nsystem\n(S'exit'\ntR.",
        b"(lp0\ng0\na.",
    ]


if __name__ == "__main__":
    from _fuzz import run

    run(__file__)
