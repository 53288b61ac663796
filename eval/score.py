"""`python -m eval score`: scores of any model's predictions; and the tables that all commands print."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from eval import more, talk
from uniresxx.data.beside import beside_of
from uniresxx.data.catalog import benchmark_name, find_store, open_benchmark
from uniresxx.data.polygons import with_polygons
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import read_metrics, score_file, write_metrics
from uniresxx.scoring.metrics import SCORE_KEYS
from uniresxx.scoring.protocols import protocol_of
from uniresxx.scoring.rejection import CRITERION, FLAG, RULE_NAMES, Rejection, Rule, check_is_val, tune
from uniresxx.scoring.trivial import TRIVIAL_NAMES
from uniresxx.types import ImageRecord

TERMINAL_KEYS = tuple(key for key in SCORE_KEYS if key not in ("Pr@0.6", "Pr@0.8"))  # fits 80 columns
SCENES_NOTE = "scenes are drawn pictures: these numbers say nothing about photographs"


def score(
    predictions: Path,
    benchmark: str,
    out: Path,
    *,
    data: Path | None = None,
    protocol: str = "strict",
    limit: int | None = None,
    rejection: Rejection = FLAG,
    allow_partial: bool = False,
    padded_world_size: int | None = None,
) -> list[dict[str, Any]]:
    """Score a predictions.jsonl or a folder of PNGs, add the entry to OUT/metrics.json and print its tables.

    The arguments are those of `run` and of `score_file`. Raises InputError for files that do not fit.
    """
    name = benchmark_name(benchmark, data)
    protocol_of(protocol).check(name)
    if not predictions.exists():
        raise InputError(f"{predictions} is not a file: give a predictions file or a folder of PNGs")
    metrics = out / "metrics.json"
    if metrics.exists():
        read_metrics(metrics)  # refuse another file of this name before the work, not after it
    records = with_truth(load_records(benchmark, data, limit), protocol, data)
    entry = score_file(
        predictions,
        records,
        name,
        protocol,
        rejection=rejection,
        allow_partial=allow_partial,
        padded_world_size=padded_world_size,
        beside=beside_of(records, name, data),
    )
    entry |= origin(predictions, out, data, limit, benchmark)
    write_metrics(metrics, [entry])
    print_entry(entry)
    return [entry]


def rejection_of(
    rule: Rule,
    threshold: float | None = None,
    tune_on: Sequence[str] | None = None,
    data: Path | None = None,
) -> Rejection:
    """The rule of rejection that the command line names; `tune_on` is (predictions, NAME/val).

    Raises InputError where the options contradict each other.
    """
    if tune_on is None:
        return Rejection(rule, threshold)
    if rule != "p_absent" or threshold is not None:
        raise InputError("--tune-on goes with --rejected p_absent, and without --threshold")
    path, benchmark = tune_on
    name = benchmark_name(benchmark, data)
    check_is_val(name)
    return tune(Path(path), load_records(benchmark, data), name)


def load_records(
    benchmark: str, data: Path | None, limit: int | None = None, images: Path | None = None
) -> Sequence[ImageRecord]:
    """Records of NAME/SPLIT or STORE/SPLIT, the first `limit` images.

    `images` is where the photographs of a store lie now. Raises InputError for unknown names and missing files.
    """
    records = open_benchmark(benchmark, data, images)
    if not any(record.expressions for record in records):
        raise InputError(f"{benchmark} holds no expression: check --data {data}")
    return records if limit is None else records[:limit]


def with_truth(records: Sequence[ImageRecord], protocol: str, data: Path | None) -> Sequence[ImageRecord]:
    """The records, with the polygons of their truth where the protocol draws the truth itself."""
    return with_polygons(records, data) if protocol_of(protocol).draws_truth else records


def origin(
    predictions: Path, out: Path, data: Path | None, limit: int | None, benchmark: str | None = None
) -> dict[str, Any]:
    """Where the predictions, records and photographs of an entry lie, for the report."""
    store = None if benchmark is None else find_store(benchmark, data)
    place = None if store is None else "/".join([str(store[0].resolve()), *filter(None, store[1:])])
    return {
        "store": place,
        "predictions": os.path.relpath(predictions.resolve(), out.resolve()),
        "data": str(data.resolve()) if data else None,
        "limit": limit,
    }


def number(value: float | None) -> str:
    """A percentage for a table; a dash where it is not defined."""
    return "–" if value is None else f"{value:.1f}"


def overview_rows(entry: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the model and the trivial answers, by what they are asked to find."""
    header = ["answer", "mIoU part", "object", "multi", "N-acc", "T-acc", "gIoU", "cIoU", "twin"]
    answers = {"this model": entry, **{name.replace("_", " "): t for name, t in entry["trivial"].items()}}
    rows = []
    for name, scores in answers.items():
        whole, parts = scores["overall"], scores["by_granularity"]
        values = [parts[g]["mIoU"] for g in ("part", "object", "multi")]
        values += [whole[key] for key in ("N-acc", "T-acc", "gIoU", "cIoU")] + [scores["twin_score"]]
        rows.append([name, *map(number, values)])
    sizes, groups = entry["counts"], entry["twin_groups"]
    behind = [sizes["by_granularity"][g]["n_target"] for g in ("part", "object", "multi")]
    whole = sizes["overall"]
    behind += [whole["n_none"], whole["n_target"], whole["n"], whole["n"], groups]
    return header, [*rows, ["N behind it", *map(str, behind)]]


def _part_rows(entry: Mapping[str, Any], prefixes: Mapping[str, str]) -> list[list[str]]:
    """A row for each part of the benchmark that holds an expression; `prefixes` by the kind of part."""
    return [
        [prefix + name, str(size), *(number(scores[k]) for k in TERMINAL_KEYS)]
        for kind, prefix in prefixes.items()
        for name, scores in entry.get(kind, {}).items()
        if (size := entry["counts"][kind][name]["n"])
    ]


def _interval_rows(entry: Mapping[str, Any]) -> list[list[str]]:
    """Lower and upper limits of the intervals of the scores overall; no row where the entry has none."""
    found = entry.get("intervals")
    if not found:
        return []
    limits = [found["overall"][key] or (None, None) for key in TERMINAL_KEYS]
    return [
        [f"  95 % {name}", "", *(number(limit[k]) for limit in limits)]
        for k, name in enumerate(("from", "to"))
    ]


def notes(entry: Mapping[str, Any]) -> list[str]:
    """Lines that belong under the tables of one benchmark."""
    lines = [f"protocol {entry['protocol']}, {_rejected_by(entry)}, no answer {entry['no_answer']}"]
    lines.append(decoded_by(entry))
    if cut_off := entry.get("truncated"):  # entries of earlier versions have no such count
        lines.append(f"truncated: {cut_off} answers had not ended when the limit of their tokens was reached")
    if entry.get("partial"):
        lines.append("PARTIAL: {scored} of {expressions} expressions scored".format(**entry["partial"]))
    if without := entry.get("unanswered"):
        lines.append(
            f"unanswered: {without['expressions']} expressions of {without['photos']} photographs that could not be "
            f"read, first {without['first'][0]}"
        )
    if entry.get("problems"):
        lines.append(f"left out: {entry['problems']}")
    lines += [f"assumed: {text}" for text in entry.get("assumed") or ()]
    if entry.get("padded_world_size"):
        again = entry.get("padded_expressions")
        none = " (this protocol pads nothing here)" if again == 0 else ""
        lines.append(
            f"padded as for {entry['padded_world_size']} processes: {again} expressions count again{none}"
        )
    if how := entry.get("intervals"):
        lines.append(
            f"95 % intervals: {how['resamples']} bootstrap resamples of {how.get('images', 'the')} pictures, "
            f"seed {how['seed']}"
        )
    lines += [f"{name.replace('_', ' ')}: {what}" for name, what in TRIVIAL_NAMES.items()]
    if truth := entry.get("truth"):
        lines.append(
            "truth at 480 x 480: {polygons} drawn from polygons, {masks} resized from masks".format(**truth)
        )
    if entry.get("proposal_recall"):
        recall = ", ".join(f"{stream} {number(value)}" for stream, value in entry["proposal_recall"].items())
        each = entry.get("proposal_seconds_per_image")
        cost = "" if each is None else f"; {1000 * each:.1f} ms per picture"
        lines.append(f"proposal recall at box IoU 0.5: {recall}{cost}")
    trained = [item["data"] for item in entry.get("training_data") or () if unguarded(item)]
    if trained:
        lines.append(f"published_data: trained without the leak guard on {', '.join(trained)}")
    if entry["benchmark"].startswith("scenes"):
        lines.append(SCENES_NOTE)
    return lines


def decoded_by(entry: Mapping[str, Any]) -> str:
    """How the answers were generated, in words: mode, template, thresholds."""
    decoding = entry.get("decoding")
    if not decoding:
        return "decoding: not known, as for every file that `eval run` did not write"
    mode = "forced, [SEG] was given and nothing was rejected" if mode_of(entry) == "forced" else "generate"
    limits = decoding.get("thresholds") or {}
    thresholds = ", ".join(f"{name} {value:g}" for name, value in limits.items() if value is not None)
    return f'decoding {mode}; template "{entry.get("template")}"; thresholds: {thresholds or "not known"}'


def mode_of(entry: Mapping[str, Any]) -> str:
    """Generate, forced, or a dash where it is not known."""
    decoding = entry.get("decoding")
    return "–" if not decoding else str(decoding.get("mode", "generate"))


def unguarded(item: Mapping[str, Any]) -> bool:
    """Whether a data set of a run was read without the leak guard."""
    return item.get("guard", {}).get("mode") in ("published_data", "none")


def _rejected_by(entry: Mapping[str, Any]) -> str:
    """What counted as rejected: the rule of the scoring, or that of the decoding where the flag counts."""
    rejection = entry.get("rejection") or FLAG.describe()
    if rejection["rule"] == "flag":
        return f"rejected = {(entry.get('decoding') or {}).get('rule', 'as given in the file')}"
    text = f"rejected = {rejection['rule']}: {RULE_NAMES[rejection['rule']]}"
    if rejection["threshold"] is not None:
        text += f" {rejection['threshold']:.6g}"
    if rejection["tuned_on"]:
        text += f" (best {CRITERION} on {rejection['tuned_on']})"
    return text


def print_entry(entry: Mapping[str, Any], console: Console | None = None) -> None:
    """The tables of one benchmark on the terminal."""
    console = console or Console()
    title = f"{entry['benchmark']}/{entry['split']}: {entry['n_expressions']} expressions"
    print_table(console, *overview_rows(entry), title)
    n, scores = entry["counts"]["overall"]["n"], entry["overall"]
    overall = ["overall", str(n), *(number(scores[k]) for k in TERMINAL_KEYS)]
    asked_for = _part_rows(entry, {"by_granularity": "", "by_level": "level "})
    print_table(console, ["asked for", "N", *TERMINAL_KEYS], [overall, *_interval_rows(entry), *asked_for])
    if rows := _part_rows(entry, {"by_size": "", "by_length": "words "}):
        print_table(console, ["size, length", "N", *TERMINAL_KEYS], rows)
    if rows := more.more_rows(entry):
        print_table(console, more.HEADER, rows)
    if rows := talk.talk_rows(entry):
        print_table(console, talk.HEADER, rows)
    for line in notes(entry):
        console.print(line, style="dim", highlight=False, markup=False)


def print_table(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None
) -> None:
    """Print one table; rows that start with a blank or with `N ` are dim."""
    table = Table(
        *header, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        table.add_row(*row, style="dim" if row[0].startswith(("N ", " ")) else None)
    console.print(table)
