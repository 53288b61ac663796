"""`python -m eval run`: a checkpoint answers benchmarks; predictions first, then scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval.score import load_records, origin, print_entry, with_truth
from uniresxx.checkpoints.folders import checkpoint_identity
from uniresxx.data.catalog import benchmark_name, find_store
from uniresxx.errors import InputError, MissingPhotoError
from uniresxx.evaluation.dialogues import evaluate_dialogues
from uniresxx.evaluation.files import read_about
from uniresxx.evaluation.metrics_file import read_metrics, score_file, write_metrics
from uniresxx.evaluation.run import evaluate
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
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    device_map: str | None = None,
    quantization: str | None = None,
) -> list[dict[str, Any]]:
    """Answer and score every benchmark into OUT/NAME/SPLIT/predictions.jsonl and OUT/metrics.json.

    The same command continues where it stopped.

    Args:
        checkpoint: run folder, `from_pretrained` folder or hub:OWNER/NAME.
        benchmarks: each NAME/SPLIT, or the path of a prepared store.
        data: root of the native layouts.
        images: where the photographs of a prepared store lie now.
        rule: how the model decides that nothing is there; its own rule where None.
        limit: only the first images of each benchmark.
        fresh: remove earlier evaluations of these benchmarks first.
        device: where the model computes, as in `load_segmenter`, like the next four.
        dtype: of its weights.
        attention: of its language model.
        device_map: "auto" for a model larger than one GPU.
        quantization: of its language model.

    Returns:
        The entries of metrics.json.

    Raises:
        InputError: wrong names or folders; OUT holds the evaluation of another checkpoint or rule, or files of
            another origin; another process evaluates the same benchmark into OUT.
    """
    names = {benchmark: benchmark_name(benchmark, data) for benchmark in dict.fromkeys(benchmarks)}
    for name in names.values():
        protocol_of(protocol).check(name)
    if len(set(names.values())) < len(names):
        raise InputError(f"{', '.join(names)}: two of them are the same benchmark; name it once")
    metrics = out / "metrics.json"
    if metrics.exists():
        read_metrics(metrics)  # refuse another file of this name before the work, not after it
    from uniresxx.checkpoints.resolve import resolve
    from uniresxx.model.placement import computed_on, placement_of  # imports torch
    from uniresxx.segmenters.load import load_segmenter

    placement_of(device, dtype, attention, device_map, quantization)  # refuse wrong values before the work
    console = Console(stderr=True)
    # Resolved once: a run that still trains may save a newer checkpoint and remove this one.
    folder = resolve(checkpoint, lambda line: console.print(line, markup=False, highlight=False))
    identity = checkpoint_identity(folder)
    loaded = {
        benchmark: with_truth(load_records(benchmark, data, limit, images), protocol, data)
        for benchmark in names
    }
    segmenter = load_segmenter(
        folder,
        device=device,
        dtype=dtype,
        attention=attention,
        device_map=device_map,
        quantization=quantization,
    )
    decoding = Decoding(rule=rule, template=segmenter.question_template)
    notes = {"computed_on": computed_on(segmenter)}
    entries = []
    for place, (benchmark, records) in enumerate(loaded.items()):
        name = names[benchmark]
        replaced = [*names.values()][place:] if fresh else []
        _refuse_mixing(out, identity, rule or segmenter.decision_rule, replaced)
        try:
            entry = _answer_and_score(
                segmenter, records, name, out / name, decoding, protocol, console,
                checkpoint=identity, batch_images=batch_images, fresh=fresh, notes=notes,
            )  # fmt: skip
        except MissingPhotoError as error:
            remedy = f"photographs of {benchmark} must lie below --data {data}"
            if find_store(benchmark, data) is not None:
                remedy = f"name the folder of the photographs of {benchmark} with --images DIR"
            raise InputError(f"{error} ({remedy})") from None
        entry |= origin(out / name / "predictions.jsonl", out, data, limit, benchmark)
        entry["training_data"] = trained_on(folder)
        write_metrics(metrics, [entry])
        entries.append(entry)
    for entry in entries:
        print_entry(entry)
    Console().print(f"metrics: {metrics}", highlight=False, markup=False, soft_wrap=True)
    return entries


def _answer_and_score(
    segmenter: Segmenter,
    records: Sequence[ImageRecord],
    benchmark: str,
    folder: Path,
    decoding: Decoding,
    protocol: str,
    console: Console,
    *,
    checkpoint: str,
    batch_images: int,
    fresh: bool,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Evaluate one benchmark and its conversations behind a progress bar; returns its entry of metrics.json."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(benchmark, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        path = evaluate(
            segmenter, records, benchmark, decoding, folder, checkpoint=checkpoint, batch_images=batch_images,
            fresh=fresh, progress=show, notes=notes,
        )  # fmt: skip
        bar.update(task, description=f"{benchmark} conversations", completed=0)
        dialogues = evaluate_dialogues(
            segmenter, records, decoding, folder, batch_images=batch_images, progress=show
        )
        bar.update(task, description=f"{benchmark} scoring")
        entry = score_file(path, records, benchmark, protocol)
    return entry if dialogues is None else entry | {"dialogues": dialogues}


def trained_on(folder: Path) -> list[dict[str, Any]] | None:
    """The data sets a checkpoint was trained on, with the leak guard's mode; None where it does not say."""
    from uniresxx.checkpoints.folders import RECIPE
    from uniresxx.checkpoints.tensors import read_json

    about = read_json(folder / RECIPE) if (folder / RECIPE).is_file() else {}
    return about.get("training_data")


def _refuse_mixing(out: Path, identity: str, rule: DecisionRule, replaced: Sequence[str]) -> None:
    """InputError where OUT holds answers of another checkpoint or rule, so that metrics.json never mixes them.

    `rule` is the one in force, the model's own where none was asked for; `replaced` are the benchmarks that
    --fresh evaluates again.
    """
    for path in sorted(out.glob("*/*/evaluation.json")):
        if path.parent.relative_to(out).as_posix() in replaced:
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
