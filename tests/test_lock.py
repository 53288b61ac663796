"""Two processes never write into one folder: the second one says who is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from uniresxx.errors import InputError
from uniresxx.files import lock_file

ROOT = Path(__file__).resolve().parents[1]
WAITS = """
import sys
from pathlib import Path
from uniresxx.files import lock_file
with lock_file(Path(sys.argv[1]), "train into runs/a"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_the_second_process_names_the_first_and_gets_the_lock_after_it(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    command = [sys.executable, "-c", WAITS, str(lock)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with (
            pytest.raises(InputError, match=f"cannot evaluate into runs/a: process {other.pid} on "),
            lock_file(lock, "evaluate into runs/a"),
        ):
            pass
        other.kill()  # the lock ends with the process
    with lock_file(lock, "evaluate into runs/a"):
        assert f"process {os.getpid()} on " in lock.read_text()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(InputError, match=r"cannot train into file: .*file is a file; name a folder"),
        lock_file(tmp_path / "file" / ".lock", "train into file"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"
