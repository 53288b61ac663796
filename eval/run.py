"""`python -m eval run`: a checkpoint answers benchmarks; predictions first, then scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval.score import load_records, origin, print_entry
from uniresxx.checkpoints.folders import checkpoint_identity
from uniresxx.data.catalog import benchmark_name, find_store
from uniresxx.errors import InputError, MissingPhotoError
from uniresxx.evaluation.run import evaluate, evaluate_dialogues, read_about, score_file, write_metrics
from uniresxx.scoring.protocols import protocol_of
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import DecisionRule, Decoding, ImageRecord


def run(
    checkpoint: str | Path,
    benchmarks: Sequence[str],
    out: Path,
    *,
    data: Path | None = None,
    images: Path | None = None,
    rule: DecisionRule | None = None,
    protocol: str = "strict",
    limit: int | None = None,
    batch_images: int = 8,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Answer and score every benchmark; OUT/<name>/<split>/predictions.jsonl and OUT/metrics.json.

    The same command continues where it stopped. InputError for wrong names, folders, or an OUT that holds the
    evaluation of another checkpoint or another way of decoding.
    """
    names = {benchmark: benchmark_name(benchmark, data) for benchmark in dict.fromkeys(benchmarks)}
    for name in names.values():
        protocol_of(protocol).check(name)
    if len(set(names.values())) < len(names):
        raise InputError(f"{', '.join(names)}: two of them are the same benchmark; measure it once")
    # late: torch comes with the weights
    from uniresxx.segmenters.load import load_segmenter

    from uniresxx.checkpoints.folders import named_folder, resolve

    console = Console(stderr=True)
    # Once: a run that still trains may save, and thin out, between two looks.
    folder = resolve(
        named_folder(checkpoint), lambda line: console.print(line, markup=False, highlight=False)
    )
    identity = checkpoint_identity(folder)
    loaded = {benchmark: load_records(benchmark, data, limit, images) for benchmark in names}
    segmenter = load_segmenter(folder)
    _refuse_mixing(out, identity, rule or segmenter.decision_rule, anew=[*names.values()] if fresh else ())
    entries = []
    for benchmark, records in loaded.items():
        name = names[benchmark]
        try:
            entry = run_one(
                segmenter,
                records,
                name,
                out,
                identity=identity,
                rule=rule,
                protocol=protocol,
                batch_images=batch_images,
                fresh=fresh,
                console=console,
            )
        except MissingPhotoError as error:
            option = f"below --data {data}" if find_store(benchmark, data) is None else "with --images DIR"
            raise InputError(f"{error} (photographs of {benchmark} are looked for {option})") from None
        entry |= origin(out / name / "predictions.jsonl", out, data, limit, benchmark)
        entry["training_data"] = trained_on(folder)
        write_metrics(out / "metrics.json", [entry])
        entries.append(entry)
    for entry in entries:
        print_entry(entry)
    Console().print(f"metrics: {out / 'metrics.json'}", highlight=False, markup=False, soft_wrap=True)
    return entries


def run_one(
    segmenter: Segmenter,
    records: Sequence[ImageRecord],
    benchmark: str,
    out: Path,
    *,
    identity: str,
    rule: DecisionRule | None = None,
    protocol: str = "strict",
    batch_images: int = 8,
    fresh: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate one benchmark and its conversations with a progress bar; returns its entry of metrics.json."""
    folder = out / benchmark
    decoding = Decoding(rule=rule)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console or Console(stderr=True), transient=True) as bar:
        task = bar.add_task(benchmark, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        path = evaluate(
            segmenter, records, benchmark, decoding, folder, checkpoint=identity, batch_images=batch_images,
            fresh=fresh, progress=show,
        )  # fmt: skip
        bar.update(task, description=f"{benchmark} conversations", completed=0)
        dialogues = evaluate_dialogues(
            segmenter, records, decoding, folder, batch_images=batch_images, progress=show
        )
        bar.update(task, description=f"{benchmark} scoring")
        entry = score_file(path, records, benchmark, protocol)
    return entry if dialogues is None else entry | {"dialogues": dialogues}


def trained_on(folder: Path) -> list[dict[str, Any]] | None:
    """What a checkpoint learned from and what the leak guard did, by data set; None where it does not say."""
    from uniresxx.checkpoints.folders import RECIPE, read_json

    about = read_json(folder / RECIPE) if (folder / RECIPE).is_file() else {}
    return about.get("training_data")


def _refuse_mixing(out: Path, identity: str, rule: DecisionRule, anew: Sequence[str]) -> None:
    """One OUT, one checkpoint and one rule: metrics.json would otherwise mix numbers that look alike.

    `rule` is the one that decides, the model's own where none was asked for; `anew` are the benchmarks that
    start over.
    """
    for path in sorted(out.glob("*/*/evaluation.json")):
        if path.parent.relative_to(out).as_posix() in anew:
            continue
        about = read_about(path.parent) or {}
        if about.get("checkpoint") != identity:
            raise InputError(
                f"{path.parent} was answered by checkpoint {about.get('checkpoint')}, not {identity}: "
                "use --fresh with every benchmark of this folder, or another --out"
            )
        before = about.get("decoding", {}).get("rule")
        if before != rule:
            raise InputError(
                f"{path.parent} was answered with --rule {before}, not {rule}: use --rule {before} or another --out"
            )
