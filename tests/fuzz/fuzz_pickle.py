"""Pickles, in the child process and with the unpickler of systems that cannot cap memory."""

from __future__ import annotations

import json
import pickle
from functools import cache

from uniresxx.data.readers import pickle_child
from uniresxx.data.readers.pickles import PickleChild
from uniresxx.errors import InputError


@cache
def parser() -> PickleChild:
    """One child for all cases; it ends with this process."""
    return PickleChild()


def check(data: bytes) -> None:
    """Raise anything but InputError where a pickle is misread, or where the two unpicklers disagree."""
    head, text, *_ = pickle_child.answer(data, 2**20, fast=False)
    status, size, _ = pickle_child.ANSWER.unpack(head)
    assert len(text) == size
    try:
        value = parser().load(data, "x.p")
    except InputError as error:
        assert str(error).startswith("x.p: ") and str(error).isprintable() and len(str(error)) < 1000
        return
    if status == pickle_child.GOOD and b"bytes" not in text:
        assert repr(json.loads(text)) == repr(value)


def seeds() -> list[bytes]:
    """Records in every protocol, Python-2 strings, and things that are refused."""
    records = [{"ref_id": 1, "sent": "é", "box": [0.5, -1], "none": None, "yes": True, "raw": b"\xff"}] * 2
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
