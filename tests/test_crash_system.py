"""The crash test in short (system) and in full (slow; its result is in docs/results.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def crash_test(*options):
    """The JSON object of the last line; the program must have found nothing."""
    run = subprocess.run(
        [sys.executable, "-m", "tools.crash_test", *options],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["failures"] == 0 and all(count for name, count in found.items() if name != "failures")
    return found


@pytest.mark.system
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("options", [(), ("--async",)])
def test_a_sample_of_faults(options):
    crash_test("--every", "16", "--random", "2", *options)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_operation_and_twenty_random_kills():
    found = crash_test()
    assert found["killed at an operation"] > 50 and found["killed at a random moment"] == 20
