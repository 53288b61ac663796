"""`python -m eval compare`: two models' answers to the same benchmarks, paired by picture."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from eval.report.differences import Comparison, write_page
from eval.report.runs import Case, home_of, judge_all, store_of
from eval.score import load_records, print_table, with_truth
from uniresxx.data.catalog import benchmark_name
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import read_metrics
from uniresxx.scoring.intervals import CONFIDENCE, PERMUTATIONS, RESAMPLES, SEED, compare_pairs
from uniresxx.scoring.predictions import sizes_of, stream_predictions
from uniresxx.scoring.problems import Problems
from uniresxx.scoring.protocols import STRICT, protocol_of
from uniresxx.scoring.rejection import FLAG, Rejection
from uniresxx.scoring.tally import tally_answers
from uniresxx.types import ImageRecord

HEADER = ("score", "A", "B", "A - B", f"{100 * CONFIDENCE:.0f} % interval", "p")
METHOD = (
    f"p: share of {PERMUTATIONS} random swaps of whole pictures with a difference as large; "
    f"interval: {RESAMPLES} paired bootstrap resamples; seed {SEED}"
)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two answers to one benchmark, and how they are judged."""

    paths: tuple[Path, Path]
    rejections: tuple[Rejection, Rejection]
    benchmark: str  # NAME/SPLIT, or the path of a store
    title: str
    data: Path | None
    limit: int | None
    protocol: str


def compare(
    a: Path,
    b: Path,
    benchmark: str | None = None,
    *,
    data: Path | None = None,
    protocol: str | None = None,
    limit: int | None = None,
    rejection: Rejection | None = None,
    out: Path | None = None,
    show: bool = False,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Print what `intervals.compare_pairs` finds; of run folders also write the page of differences.

    Args:
        a: a run or evaluation folder, or a predictions file or folder of PNGs.
        b: of the same kind.
        benchmark: what the files answer; of run folders, the one that is compared (None: all that both hold).
        data: root of the data; of run folders, where it is not where it was scored.
        protocol: how answers are judged; None: `strict`, of run folders that of their entries.
        limit: only the first images.
        rejection: what counts as rejected; None: the flag, of run folders the rule of their entries.
        out: folder of the page; None: A/compare of run folders, and no page of files.
        show: open the page in a browser.

    Returns:
        What was found, by benchmark and score.

    Raises:
        InputError: bad or incomplete files, because a paired test needs both answers to every expression; nothing
            that both folders hold; `out` holds a page of another origin.
    """
    homes = [home_of(path) for path in (a, b)]
    if homes[0] is not None and homes[1] is not None:
        pairs = _shared(homes[0], homes[1], benchmark, data, protocol, limit, rejection)
        out = out or a / "compare"
    else:
        pairs = [_of_files(a, b, benchmark, data, protocol or STRICT.name, limit, rejection or FLAG)]
    if show and out is None:
        raise InputError("--open needs a page: give --out DIR, or two run folders")
    console, found, comparisons = Console(), {}, []
    for pair in pairs:
        found[pair.title], comparison = _compare(pair, console, a, b)
        comparisons.append(comparison)
    if out is not None:
        page = write_page(out, comparisons, str(a), str(b))
        console.print(f"page: {page}", highlight=False, markup=False, soft_wrap=True)
        if show:
            webbrowser.open(page.resolve().as_uri())
    return found


def _of_files(
    a: Path,
    b: Path,
    benchmark: str | None,
    data: Path | None,
    protocol: str,
    limit: int | None,
    rejection: Rejection,
) -> _Pair:
    for path in (a, b):
        if not path.exists():
            raise InputError(
                f"{path} is not a file: give a predictions file, a folder of PNGs or a run folder"
            )
    if benchmark is None:
        raise InputError("--benchmark NAME/SPLIT is needed, unless both are folders that hold a metrics.json")
    title = benchmark_name(benchmark, data)
    return _Pair((a, b), (rejection, rejection), benchmark, title, data, limit, protocol)


def _shared(
    a: Path,
    b: Path,
    benchmark: str | None,
    data: Path | None,
    protocol: str | None,
    limit: int | None,
    rejection: Rejection | None,
) -> list[_Pair]:
    """What the metrics.json of both folders hold: the same benchmark, judged alike, from the first entry of each."""
    wanted = None if benchmark is None else benchmark_name(benchmark, data)
    first, second = (_entries(home, protocol, rejection) for home in (a, b))
    pairs: dict[tuple[Any, ...], _Pair] = {}
    for key, entry in first.items():
        other, title = second.get(key), f"{entry['benchmark']}/{entry['split']}"
        if other is None or wanted not in (None, title):
            continue
        root = data or (Path(entry["data"]) if entry.get("data") else None)
        pairs[key] = _Pair(
            (a / entry["predictions"], b / other["predictions"]),
            (rejection or _rejection_of(entry), rejection or _rejection_of(other)),
            benchmark=store_of(entry, data) or title,
            title=title,
            data=root,
            limit=limit or entry.get("limit"),
            protocol=protocol or entry["protocol"],
        )
    if not pairs:
        held = [", ".join(sorted({key[0] for key in found})) or "nothing" for found in (first, second)]
        raise InputError(
            f"{a} and {b} share no {wanted or 'benchmark'} that is judged alike and whole: the first holds "
            f"{held[0]}, the second {held[1]}; run `python -m eval run` for both"
        )
    return list(pairs.values())


def _rejection_of(entry: Mapping[str, Any]) -> Rejection:
    return Rejection(**(entry.get("rejection") or {}))


def _entries(
    home: Path, protocol: str | None, rejection: Rejection | None
) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Whole entries whose answers are there, by benchmark, limit, protocol and rule of rejection."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for entry in read_metrics(home / "metrics.json"):
        predictions = entry.get("predictions")
        if entry.get("partial") or not predictions or not (home / predictions).exists():
            continue
        judged = protocol or entry["protocol"], (rejection or _rejection_of(entry)).rule
        key = (f"{entry['benchmark']}/{entry['split']}", entry.get("limit"), *judged)
        found.setdefault(key, entry)
    return found


def _compare(pair: _Pair, console: Console, a: Path, b: Path) -> tuple[dict[str, dict[str, Any]], Comparison]:
    judged_by = protocol_of(pair.protocol)
    judged_by.check(pair.title)
    records = with_truth(load_records(pair.benchmark, pair.data, pair.limit), pair.protocol, pair.data)
    (rows_a, cases_a), (rows_b, cases_b) = (_answers(k, records, pair, console) for k in (0, 1))
    found = compare_pairs(rows_a, rows_b)
    rows = [_row(key, values) for key, values in found.items() if key not in judged_by.undefined]
    title = f"{pair.title}, protocol {pair.protocol}, {len(records)} pictures"
    print_table(console, HEADER, rows, title)
    below = f"{0.05 / len(rows):.2g}"
    tested = f"{len(rows)} scores are tested at once: take a difference for real where p is below {below}"
    for line in (f"A {a}", f"B {b}", METHOD, tested):
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
    return found, Comparison(title, cases_a, cases_b, HEADER, rows, (METHOD, tested))


def _answers(
    k: int, records: Sequence[ImageRecord], pair: _Pair, console: Console
) -> tuple[np.ndarray, list[Case]]:
    """Of A (0) or B (1): counters per picture, int64 (pictures, counters), and every judged answer."""
    path, problems, judged_by = pair.paths[k], Problems(), protocol_of(pair.protocol)
    answers = dict(stream_predictions(path, sizes_of(records), problems, pair.rejections[k].apply))
    scored = tally_answers(answers.items(), records, judged_by)
    problems.add_missing(scored.missing, scored.expressions)
    if problems:
        raise InputError(f"{path}: {problems}")
    for text in problems.assumptions():
        console.print(
            f"{'AB'[k]} assumed: {text}", style="dim", highlight=False, markup=False, soft_wrap=True
        )
    return np.asarray(scored.images_IGK.sum(axis=1)), judge_all(records, answers, judged_by)


def _row(key: str, values: dict[str, Any]) -> list[str]:
    """A row of the table: one score; dashes where it is not defined."""
    if values["difference"] is None:
        return [key, *["–"] * 5]
    limits = "–" if values["interval"] is None else "{:+.1f} to {:+.1f}".format(*values["interval"])
    a, b, difference = (values[name] for name in ("a", "b", "difference"))
    return [key, f"{a:.1f}", f"{b:.1f}", f"{difference:+.1f}", limits, f"{values['p']:.4f}"]
