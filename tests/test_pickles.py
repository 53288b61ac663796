"""Pickles from elsewhere: bombs, loops, calls and damage are one line, and take little memory and time."""

from __future__ import annotations

import json
import pickle
import tracemalloc

import pytest

from uniresxx.data.readers import files
from uniresxx.data.readers.files import load_json, load_pickle
from uniresxx.data.readers.pickles import plain_data
from uniresxx.errors import InputError

GIGANTIC = (2**40).to_bytes(8, "little")


def _long(number):
    data = number.to_bytes(16, "little")
    return b"\x8a\x10" + data


def nested(depth):
    """A list that unfolds to 2 ** depth words."""
    value = "ha"
    for _ in range(depth):
        value = [value, value]
    return value


def line_of(work):
    with pytest.raises(InputError) as caught:
        work()
    text = str(caught.value)
    assert text.isprintable() and len(text) < 600, text
    return text


BOMBS = {
    "frame of 2^40 bytes": b"\x80\x04\x95" + GIGANTIC + b"].",
    "text of 2^40 bytes": b"\x80\x04\x8d" + GIGANTIC + b"x.",
    "bytes of 2^40 bytes": b"\x80\x04\x8e" + GIGANTIC + b"x.",
    "byte array of 2^40 bytes": b"\x80\x05\x96" + GIGANTIC + b"x.",
    "number of 2^31 bytes": b"\x80\x02\x8b" + b"\xff\xff\xff\x7f" + b"x.",
    "memo place 2^31": b"]r\xff\xff\xff\x7f.",
    "a million lists in one another": b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    "2^40 words in 40 lists": pickle.dumps(nested(40), 2),
    "the same with a Python-2 string": pickle.dumps([nested(40), 1], 2)[:-1] + b"U\x01\xe9a.",
    "a list in itself": b"(lp0\ng0\na.",
    "a number of a million digits": b"I" + b"9" * 10**6 + b"\n.",
    "a number too long to print": pickle.dumps(10**20000, 2),
    "a set": pickle.dumps({1, 2}, 4),
    "an object outside": b"Pname\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a call of a number": b"K\x01)R.",
    "nothing": b"",
    "a dict whose keys collide": b"}("
    + b"".join(_long(n * (2**61 - 1)) + b"N" for n in range(20_000))
    + b"u.",
    "one number as key": b"}K\x01K\x02s.",
    "memo numbers that collide": b"]" + b"".join(b"p%d\n" % (n * (2**61 - 1)) for n in range(20_000)) + b".",
    "a list doubled by itself": b"](" + b"h\x00" * 9 + b"e.",
    "a list as a dict": b"](X\x01\x00\x00\x00aK\x01u.",
    "a tuple of more values than there are": b"N\x86.",
    "another copy of the last value": b"]2a.",
}
HARMLESS = ("frame of 2^40 bytes", "memo place 2^31")  # what follows is plain data: []


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_is_one_line_and_takes_memory_by_its_size_only(what):
    tracemalloc.start()
    try:
        if what in HARMLESS:
            assert plain_data(BOMBS[what], "x.p") == []
        else:
            assert line_of(lambda: plain_data(BOMBS[what], "x.p")).startswith("x.p: ")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20 + 100 * len(BOMBS[what])


def test_what_comes_back():
    value = {"a": [1, -(2**70), 0.1, None, True, "é\ud800"], "raw": [b"\xff\0", b""], "same": b"\xff\0"}
    assert plain_data(pickle.dumps(value, 5), "x") == value
    assert plain_data(pickle.dumps((1, (), (2, {"3": (4, 5, 6, 7)})), 2), "x") == [
        1,
        [],
        [2, {"3": [4, 5, 6, 7]}],
    ]
    assert plain_data(pickle.dumps(((1,), (2, 3), (4, 5, 6)), 0), "x") == [[1], [2, 3], [4, 5, 6]]
    assert plain_data(b"\x80\x02]U\x02\xc3\xa9a.", "x") == ["é"]
    assert plain_data(b"\x80\x02]U\x02\xe9 a.", "x") == ["é "]
    assert repr(plain_data(pickle.dumps([float("nan"), float("-inf"), -0.0]), "x")) == "[nan, -inf, -0.0]"


def test_one_list_in_several_places_is_plain_data():
    tokens = ["the", "man"]
    for protocol in range(6):
        assert plain_data(pickle.dumps([{"tokens": tokens}] * 3, protocol), "x") == [{"tokens": tokens}] * 3


# ---- JSON


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("[" * 10**6, "JSON"),
        ('{"a":' * 10**6, "JSON"),
        ("[" * 10**5 + "]" * 10**5, "JSON"),
        ('[{"id": 1, "iscrowd": 0, "id": 2}]', "'id' more than once"),
        ("9" * 10**5, "JSON"),
        ("\xff", "JSON"),
        ("", "JSON"),
        ('["\n"]', "JSON"),
    ],
)
def test_damaged_json_is_one_line(tmp_path, content, word):
    path = tmp_path / "a.json"
    path.write_text(content, encoding="latin-1")
    assert word in line_of(lambda: load_json(path))


def test_a_repeated_key_is_found_quickly(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{" + ",".join(f'"{n}":0' for n in range(200_000)) + ',"7":1}')
    assert "'7' more than once" in line_of(lambda: load_json(path))


def test_sizes_are_capped_before_reading(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as stream:
        stream.truncate(files.MAX_JSON_BYTES + 1)  # a hole: takes no disk
    assert "cap" in line_of(lambda: load_json(path))
    assert "cap" in line_of(lambda: load_pickle(path))
    path.write_text(json.dumps([1]))
    assert load_json(path, max_bytes=3) == [1]
