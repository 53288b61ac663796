"""Evaluation during training: answers and scores the benchmarks of the recipe as `python -m eval run` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from train.recipe import EvalConfig
from uniresxx.data.catalog import benchmark_name, open_benchmark
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import score_file, write_metrics
from uniresxx.evaluation.ranks import ALONE, Processes
from uniresxx.evaluation.regions import RECALL_IOU
from uniresxx.evaluation.run import evaluate
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import Decoding, ImageRecord

SHOWN = ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc")  # of a log line; all scores are in metrics.json
METRICS = "metrics.json"


@dataclass(frozen=True)
class ValidationResult:
    """Scores of one validation. `value` is the recipe's metric, None where undefined; higher is better."""

    metric: str
    value: float | None
    scores: dict[str, Any] = field(default_factory=dict)  # by NAME/SPLIT
    lines: tuple[str, ...] = ()  # on the region proposals, for the terminal


def open_validation(
    config: EvalConfig, model: Segmenter, data: Path | None
) -> Callable[[int, Path, Processes], ValidationResult] | None:
    """A function (step, folder, ranks) -> ValidationResult; None where the recipe has no validation during training.

    Raises InputError for benchmarks that cannot be read, and for splits that must not choose a checkpoint.
    """
    if config.every is None:
        return None
    named: dict[str, Sequence[ImageRecord]] = {}
    for benchmark in config.benchmarks:
        name = benchmark_name(benchmark, data)
        split = name.partition("/")[2]
        if not split.startswith(("val", "train")):
            raise InputError(
                f"--eval.benchmarks {benchmark}: the best checkpoint is chosen on val or train, never on a test "
                "split; use python -m eval run for it, or --eval.every None"
            )
        named[name] = open_benchmark(benchmark, data)[: config.limit]
    return lambda step, folder, ranks: validate(config, model, named, step, folder, ranks)


def validate(
    config: EvalConfig,
    model: Segmenter,
    named: dict[str, Sequence[ImageRecord]],
    step: int,
    folder: Path,
    ranks: Processes = ALONE,
) -> ValidationResult:
    """Answer and score every benchmark into `folder`/NAME/SPLIT, all scores into `folder`/metrics.json.

    The processes share the batches and all get the result; a photo that cannot be read fails on all of them. The
    value is the mean of the metric over the benchmarks that define it.
    """
    entries = []
    for name, records in named.items():
        path = evaluate(
            model, records, name, Decoding(template=model.question_template), folder / name,
            checkpoint=f"step {step}", batch_images=config.batch_images, fresh=True, notes={"limit": config.limit},
            ranks=ranks,
        )  # fmt: skip
        entry = ranks.on_rank0(partial(score_file, path, records, name))
        entries.append(entry | {"limit": config.limit, "predictions": f"{name}/predictions.jsonl"})
    ranks.on_rank0(lambda: write_metrics(folder / METRICS, entries))
    values = [value for entry in entries if (value := value_of(entry, config.metric)) is not None]
    return ValidationResult(
        config.metric,
        fmean(values) if values else None,
        {name: _short(entry) for name, entry in zip(named, entries, strict=True)},
        tuple(line for entry in entries if (line := recall_line(entry)) is not None),
    )


def recall_line(entry: Mapping[str, Any]) -> str | None:
    """Proposal recall of each level, in one line; None where the model proposes no regions."""
    boxes = {level: count for level, count in (entry.get("proposal_boxes") or {}).items() if count}
    if not boxes:
        return None
    recalls = [
        f"{level} {entry['proposal_recall'][level]:.1f} % of {count}" for level, count in boxes.items()
    ]
    return f"{entry['benchmark']}/{entry['split']}: proposal recall at box IoU {RECALL_IOU}: {', '.join(recalls)}"


def value_of(entry: dict[str, Any], metric: str) -> float | None:
    """A score of an entry of metrics.json by its name, `mIoU` or `part/mIoU`."""
    granularity, _, key = metric.rpartition("/")
    found: float | None = (entry["by_granularity"][granularity] if granularity else entry["overall"])[key]
    return found


def _short(entry: dict[str, Any]) -> dict[str, Any]:
    """The scores of a log line: overall, and mIoU by granularity."""
    parts = {
        f"{name}/mIoU": scores["mIoU"] for name, scores in entry["by_granularity"].items() if name != "none"
    }
    return {key: entry["overall"][key] for key in SHOWN} | parts
