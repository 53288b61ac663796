"""Shared by all benchmarks: options, arms that take turns, the machine, a row of results.

A benchmark is a module with `main(argv=None) -> int`. Without options it takes at most 10 minutes on 2 cores;
the last line it prints is one JSON object with its headline keys.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from uniresxx.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "numpy", "pyarrow")
T = TypeVar("T")


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """The options every benchmark has; `about` is its docstring."""
    options = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--record", action="store_true", help=f"add a row to benchmarks/results/{name}.csv")
    options.add_argument("--small", action="store_true", help="tiny sizes: shows that it runs, no figures")
    return options


def interleaved(arms: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """What each arm returned, `repeats` times; the arms take turns, so that drift meets all of them."""
    found: dict[str, list[T]] = {name: [] for name in arms}
    for turn in range(repeats):
        for name in list(arms)[:: -1 if turn % 2 else 1]:
            found[name].append(arms[name]())
    return found


def median_of(values: Sequence[float]) -> float:
    """The median; of an even number of values the mean of the two in the middle."""
    return float(statistics.median(values))


def machine() -> dict[str, str]:
    """Hardware, versions, commit and date of a measurement; "" for what is not there."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _commit() -> str:
    """Short commit, with + where tracked files differ from it; "" outside a clone."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _gpu() -> str:
    """Names of the GPUs a benchmark could use; torch is not loaded to find that out."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ""
    return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def record(
    name: str, headline: Mapping[str, float | None], details: Mapping[str, Any], folder: Path = RESULTS
) -> Path:
    """Add a row to `<folder>/<name>.csv`: machine, headline keys, details as JSON; returns the path.

    Columns that older rows lack stay empty there, so a benchmark may gain keys.
    """
    path = folder / f"{name}.csv"
    rows: list[dict[str, str]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    values = {key: json.dumps(value) for key, value in headline.items()}
    rows.append({**machine(), **values, "details": json.dumps(details, sort_keys=True)})
    columns = list(dict.fromkeys(key for row in (rows[-1], *rows) for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue().encode())
    return path


def finish(
    name: str,
    headline: Mapping[str, float | None],
    details: Mapping[str, Any],
    record: bool,
    folder: Path = RESULTS,
) -> None:
    """Print the details, write a row where `record`, and print the headline keys as the last line (JSON).

    None (null) is a key that could not be measured here.
    """
    for key, value in headline.items():
        assert value is None or math.isfinite(value), f"{name}: {key} is {value}"
    for key, value in details.items():
        print(f"{key}: {value}")
    if record:
        print(f"recorded in {_record(name, headline, details, folder)}")
    print(json.dumps(dict(headline)), flush=True)


_record = record  # `finish` has a switch of that name
