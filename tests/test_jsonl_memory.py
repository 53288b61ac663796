"""JSON lines are read as a stream: memory does not grow with their number."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from uniresxx.data.catalog import stream_benchmark
from uniresxx.data.guard import Guard
from uniresxx.data.store.preparation import Preparation
from uniresxx.data.store.write import write_store
from uniresxx.imaging import masks

PREPARE = """
import json, resource, sys, time
from uniresxx.cli import main
code = main(["data", "prepare", "mres32m/train", "--data", sys.argv[1], "--out", sys.argv[1] + "/store"])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"code": code, "peak_kb": peak, "cpu_s": time.process_time()}))
"""


def write_lines(root: Path, rows: int, size: tuple[int, int]) -> None:
    """`rows` lines, 30 of each photo; blobs of about a hundred runs."""
    rng = np.random.default_rng(0)
    codes = []
    for _ in range(32):
        mask = np.zeros(size, dtype=bool)
        y, x = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        for column in range(size[1] // 4):
            mask[y + int(rng.integers(0, 4)) : y + size[0] // 3, x + column] = True
        codes.append(masks.encode(mask)["counts"])
    (root / "mres32m").mkdir(parents=True)
    with (root / "mres32m" / "train.jsonl").open("w") as stream:
        for row in range(rows):
            line = {"image": f"a/{row // 30}.jpg", "height": size[0], "width": size[1], "granularity": "part",
                    "text": f"wheel of the red car {row}",
                    "segmentation": {"size": list(size), "counts": codes[row % 32]}}  # fmt: skip
            stream.write(json.dumps(line) + "\n")


def peak_of(root: Path, rows: int) -> int:
    """Bytes that Python held at most while a store of so many rows was made."""
    write_lines(root, rows, (24, 32))
    guard = Guard.of("on", root)

    removed: Counter[str] = Counter()

    def load():
        return guard.passing("train", stream_benchmark("mres32m/train", root), removed), removed

    tracemalloc.start()
    store = write_store(root / "store", Preparation("mres32m/train", {"train": load}, root))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(record.expressions) for record in store) == rows
    return peak


def test_memory_does_not_grow_with_the_number_of_lines(tmp_path):
    # fewer lines do not fill the buffers: 8,000 take 13.1 MB, 20,000 14.5 and 40,000 14.7
    small, large = peak_of(tmp_path / "a", 20_000), peak_of(tmp_path / "b", 40_000)
    assert large < 1.05 * small


@pytest.mark.slow
def test_a_million_lines_are_prepared_in_flat_memory(tmp_path):
    found = {}
    for rows in (50_000, 1_000_000):
        root = tmp_path / str(rows)
        write_lines(root, rows, (480, 640))
        command = [sys.executable, "-c", PREPARE, str(root)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[rows] = json.loads(done.stdout.splitlines()[-1])
        print(rows, found[rows], f"{rows / found[rows]['cpu_s']:.0f} rows per CPU second")
    assert found[1_000_000]["peak_kb"] < found[50_000]["peak_kb"] + 64 * 1024
