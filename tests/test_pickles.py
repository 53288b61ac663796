"""Pickles are parsed by a child process that has little memory and time: bombs, loops and crashes are one line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from uniresxx.data.readers import pickle_child, pickles
from uniresxx.data.readers.pickles import Limits, PickleChild, load_json, load_pickle
from uniresxx.errors import InputError

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a cap on memory")
GIGANTIC = (2**40).to_bytes(8, "little")


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
}


@linux
@pytest.mark.parametrize("what", BOMBS)
def test_bombs_are_one_line_and_the_child_serves_on(what):
    with PickleChild() as parser:
        assert parser.load(pickle.dumps(["before"]), "x.p") == ["before"]
        assert line_of(lambda: parser.load(BOMBS[what], "x.p")).startswith("x.p: ")
        assert parser.load(pickle.dumps(["after"]), "x.p") == ["after"]


@pytest.mark.parametrize("what", BOMBS)
def test_where_no_memory_can_be_capped_the_slow_one_needs_none(what):
    (head, *_) = pickle_child.answer(BOMBS[what], 10**6, fast=False)
    status, _, _ = pickle_child.ANSWER.unpack(head)
    assert status != pickle_child.GOOD or what in ("frame of 2^40 bytes", "memo place 2^31")


@linux
def test_a_long_run_ends_by_its_processor_time():
    limits = Limits(memory=2**32, seconds=1, answer=2**40)
    with PickleChild(limits) as parser:
        said = line_of(lambda: parser.load(pickle.dumps(nested(40), 2), "slow.p"))
    assert said.startswith("slow.p: ") and "longer than 1 s" in said and "JSON" in said


SCRIPTS = {
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "exits": "raise SystemExit(3)",
    "promises too much": "import sys, struct, time; sys.stdout.buffer.write(struct.pack('>BQQ', 0, 2**60, 0));"
    " sys.stdout.buffer.flush(); time.sleep(60)",
    "promises too many": "import sys, struct; sys.stdout.buffer.write(struct.pack('>BQQ', 0, 0, 2**60))",
    "stops in the middle": "import sys, struct; sys.stdout.buffer.write(struct.pack('>BQQ', 0, 9, 0) + b'[')",
    "talks nonsense": "import sys, struct; sys.stdout.buffer.write(struct.pack('>BQQ', 0, 2, 0) + b'{]')",
    "names bytes it never sent": "import sys, struct; sys.stdout.buffer.write(struct.pack('>BQQ', 0, 15, 1)"
    " + b'{\"\\\\u0000bytes\":7}'[:15] + bytes(8))",
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_a_child_that_misbehaves_is_one_line(tmp_path, monkeypatch, what):
    script = tmp_path / "child.py"
    script.write_text(SCRIPTS[what])
    monkeypatch.setattr(pickle_child, "__file__", str(script))
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([{"a": 1}] * 1000))
    assert line_of(lambda: load_pickle(path)).startswith(f"{path}: ")


def test_what_comes_back():
    value = {"a": [1, -(2**70), 0.1, None, True, "é\ud800"], "raw": [b"\xff\0", b""], "same": b"\xff\0"}
    with PickleChild() as parser:
        assert parser.load(pickle.dumps(value, 5), "x") == value
        assert parser.load(pickle.dumps((1, (2, {3: 4})), 2), "x") == [1, [2, {"3": 4}]]
        assert parser.load(b"\x80\x02]U\x02\xc3\xa9a.", "x") == ["é"]
        assert parser.load(b"\x80\x02]U\x02\xe9 a.", "x") == ["é "]
        assert (
            repr(parser.load(pickle.dumps([float("nan"), float("-inf"), -0.0]), "x")) == "[nan, -inf, -0.0]"
        )


def test_no_pickle_is_parsed_in_this_process(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("parsed here")

    (tmp_path / "a.p").write_bytes(pickle.dumps([{"a": 1}], 0))
    for name in ("DataUnpickler", "SlowDataUnpickler"):
        monkeypatch.setattr(pickle_child, name, fail)
    assert load_pickle(tmp_path / "a.p") == [{"a": 1}]


def _load_in_worker(path):
    return load_pickle(path)


def test_it_works_in_threads_and_daemonic_workers(tmp_path):
    path = tmp_path / "a.p"
    path.write_bytes(pickle.dumps([{"n": list(range(1000))}], 0))
    expected = load_pickle(path)
    with PickleChild() as parser, ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(parser.load, pickle.dumps([n]), "x") for n in range(50)]
        assert [job.result() for job in jobs] == [[n] for n in range(50)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load_pickle, [path] * 4)) == [expected] * 4
    workers = get_context("fork").Pool(2)  # its workers are daemons: they may not have multiprocessing
    assert workers.map(_load_in_worker, [path] * 2) == [expected] * 2
    workers.close()  # not `with`: it ends workers by a signal, which a handler that they inherited may swallow
    workers.join()


def test_the_child_loads_nothing_heavy_and_ends_with_its_parent():
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, '')\nrunpy.run_path({pickle_child.__file__!r})\n"
        "print('|'.join(sys.modules))"
    )
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"numpy", "torch", "uniresxx", "pyarrow", "multiprocessing"} & set(told.stdout.split("|"))
    done = subprocess.run(
        [sys.executable, "-I", "-S", pickle_child.__file__],
        stdin=subprocess.DEVNULL,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0


@linux
def test_children_are_gone_after_use(tmp_path):
    (tmp_path / "a.p").write_bytes(pickle.dumps([1], 0))
    load_pickle(tmp_path / "a.p")
    with PickleChild() as parser:
        parser.load(pickle.dumps(1), "x")
        number = parser._process.pid
        assert os.path.exists(f"/proc/{number}")
    assert not os.path.exists(f"/proc/{number}")


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
def test_json_that_is_none_is_one_line(tmp_path, content, word):
    path = tmp_path / "a.json"
    path.write_text(content, encoding="latin-1")
    assert word in line_of(lambda: load_json(path))


def test_a_repeated_key_is_found_soon(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{" + ",".join(f'"{n}":0' for n in range(200_000)) + ',"7":1}')
    assert "'7' more than once" in line_of(lambda: load_json(path))


def test_sizes_are_capped_before_reading(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as stream:
        stream.truncate(pickles.MAX_JSON_BYTES + 1)  # a hole: takes no disk
    assert "cap" in line_of(lambda: load_json(path))
    assert "cap" in line_of(lambda: load_pickle(path))
    path.write_text(json.dumps([1]))
    assert load_json(path, max_bytes=3) == [1]
