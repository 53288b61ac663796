"""`python -m eval compare`: two predictions of the same benchmark, paired by picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from eval.score import load_records, print_table, with_truth
from uniresxx.data.catalog import benchmark_name
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import tally_file
from uniresxx.scoring.intervals import CONFIDENCE, PERMUTATIONS, RESAMPLES, SEED, compare_pairs
from uniresxx.scoring.protocols import protocol_of
from uniresxx.scoring.rejection import FLAG, Rejection
from uniresxx.types import ImageRecord


def compare(
    a: Path,
    b: Path,
    benchmark: str,
    *,
    data: Path | None = None,
    protocol: str = "strict",
    limit: int | None = None,
    rejection: Rejection = FLAG,
) -> dict[str, dict[str, Any]]:
    """Print and return what `intervals.compare_pairs` finds.

    Raises InputError for bad or incomplete files: a paired test needs both answers to every expression.
    """
    judged_by = protocol_of(protocol)
    name = benchmark_name(benchmark, data)
    judged_by.check(name)
    for path in (a, b):
        if not path.exists():
            raise InputError(f"{path} is not a file: give a predictions.jsonl or a folder of PNGs")
    records = with_truth(load_records(benchmark, data, limit), protocol, data)
    found = compare_pairs(*(_rows(path, records, protocol, rejection) for path in (a, b)))
    rows = [_row(key, values) for key, values in found.items() if key not in judged_by.undefined]
    header = ["score", "A", "B", "A - B", f"{100 * CONFIDENCE:.0f} % interval", "p"]
    console = Console()
    print_table(console, header, rows, f"{name}, protocol {protocol}, {len(records)} pictures")
    for line in (
        f"A {a}",
        f"B {b}",
        f"p: share of {PERMUTATIONS} random swaps of whole pictures with a difference as large; "
        f"interval: {RESAMPLES} paired bootstrap resamples; seed {SEED}",
        f"{len(rows)} scores are tested at once: take a difference for real where p is below {0.05 / len(rows):.2g}",
    ):
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
    return found


def _rows(path: Path, records: Sequence[ImageRecord], protocol: str, rejection: Rejection) -> np.ndarray:
    """Counters per picture, int64 (pictures, counters)."""
    scored, problems = tally_file(path, records, protocol, rejection)
    if problems:
        raise InputError(f"{path}: {problems}")
    return np.asarray(scored.images_IGK.sum(axis=1))


def _row(key: str, values: dict[str, Any]) -> list[str]:
    """A row of the table: one score; dashes where it is not defined."""
    if values["difference"] is None:
        return [key, *["–"] * 5]
    limits = "–" if values["interval"] is None else "{:+.1f} to {:+.1f}".format(*values["interval"])
    a, b, difference = (values[name] for name in ("a", "b", "difference"))
    return [key, f"{a:.1f}", f"{b:.1f}", f"{difference:+.1f}", limits, f"{values['p']:.4f}"]
