"""The functions that the YAML files of this folder name. lmms-eval loads this file by its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from eval.suites.tasks import BENCHMARKS, METRICS, documents, judge, photo, score_of

SPLITS = {
    task.replace("+", "plus"): benchmark for task, benchmark in BENCHMARKS.items()
}  # "+" is no split name

giou, ciou, miou = score_of("gIoU"), score_of("cIoU"), score_of("mIoU")
pr_50, pr_70, pr_90 = score_of("Pr@0.5"), score_of("Pr@0.7"), score_of("Pr@0.9")
n_acc, t_acc = score_of("N-acc"), score_of("T-acc")
miou_part, miou_object, miou_multi = score_of("mIoU_part"), score_of("mIoU_object"), score_of("mIoU_multi")


def process_docs(dataset: Any) -> Any:
    """The questions of the benchmark that the split is named after, in place of the harness's own rows."""
    return type(dataset).from_list(documents(SPLITS[str(dataset.split)]))


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The photo."""
    return [Image.fromarray(photo(doc))]


def doc_to_text(doc: Mapping[str, Any], kwargs: Mapping[str, str] | None = None) -> str:
    """The expression, between the words that a model needs (`lmms_eval_specific_kwargs`)."""
    words = kwargs or {}
    return f"{words.get('pre_prompt', '')}{doc['text']}{words.get('post_prompt', '')}"


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """The id of the expression; its true mask stays in the data."""
    return str(doc["expression_id"])


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The counters of an answer under every metric, and the keys of its line of predictions.jsonl.

    The harness aggregates the metrics that a task names. The other keys stand in the file of --log_samples, which
    `python -m eval score` reads as a predictions file.
    """
    line, judged = judge(doc, results[0])
    return {**line, **dict.fromkeys(METRICS, judged)}
