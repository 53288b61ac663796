"""From a predictions file to an entry of metrics.json, and the file itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError
from uniresxx.evaluation.files import IMAGES, PREDICTIONS, read_about
from uniresxx.evaluation.regions import image_summary
from uniresxx.files import folder_turn, versions, write_json
from uniresxx.scoring.predictions import Problems, sizes_of, stream_predictions
from uniresxx.scoring.protocols import STRICT, protocol_of
from uniresxx.scoring.rejection import FLAG, Rejection
from uniresxx.scoring.tally import Scored, entry_of, tally_answers
from uniresxx.types import ImageRecord


def score_file(
    path: Path,
    records: Sequence[ImageRecord],
    benchmark: str,
    protocol: str = STRICT.name,
    *,
    rejection: Rejection = FLAG,
    allow_partial: bool = False,
    padded_world_size: int | None = None,
) -> dict[str, Any]:
    """Score a predictions.jsonl or a folder of PNGs against a benchmark. The answers are read one by one.

    Args:
        path: the answers; only read.
        records: the benchmark's images with their truth.
        benchmark: NAME/SPLIT, for the entry.
        protocol: how an answer is judged.
        rejection: what counts as rejected.
        allow_partial: score what fits; `partial` then says how much, `problems` what was left out.
        padded_world_size: count again what a sampler padded to so many processes repeats.

    Returns:
        One entry of metrics.json.

    Raises:
        InputError: lists what does not fit the benchmark.
    """
    judged_by = protocol_of(protocol)
    judged_by.check(benchmark)
    scored, problems = tally_file(path, records, protocol, rejection, padded_world_size)
    if problems and not allow_partial:
        raise InputError(f"{path}: {problems}; `python -m eval score … --allow-partial` scores the rest")
    if len(scored.missing) == scored.expressions:
        raise InputError(f"{path}: no expression of {benchmark} is answered: {problems}")
    entry = entry_of(scored, benchmark, judged_by, rejection, padded_world_size) | {"versions": versions()}
    if problems:
        entry["problems"] = str(problems)
    if judged_by.draws_truth:
        drawn = [e.polygons is not None for r in records for e in judged_by.counted(r) if e.rle is not None]
        entry["truth"] = {"polygons": sum(drawn), "masks": len(drawn) - sum(drawn)}
    about = read_about(path.parent) if path.name == PREDICTIONS else None
    if about is not None:
        entry["decoding"], entry["template"] = about["decoding"], about["decoding"]["template"]
        entry["checkpoint"] = about["checkpoint"]
        if computed_on := about.get("notes", {}).get("computed_on"):
            entry["computed_on"] = computed_on
        if (images := path.parent / IMAGES).exists():
            entry |= image_summary(images, {r.image_id for r in records})
    return entry


def tally_file(
    path: Path,
    records: Sequence[ImageRecord],
    protocol: str = STRICT.name,
    rejection: Rejection = FLAG,
    padded_world_size: int | None = None,
) -> tuple[Scored, Problems]:
    """The counters of everything that fits in a predictions.jsonl or a folder of PNGs, and what does not."""
    problems = Problems()
    answers = stream_predictions(path, sizes_of(records), problems, rejection.apply)
    scored = tally_answers(answers, records, protocol_of(protocol), padded_world_size)
    problems.add_missing(scored.missing, scored.expressions)
    return scored, problems


def write_metrics(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put entries into a metrics.json; returns all. Several processes may do so at the same time.

    An entry replaces one with the same benchmark, split, protocol, rule of rejection, padding, number of images
    and predictions file, whole or partial alike. It also replaces those that another checkpoint got from the same
    predictions file, whose answers are gone. Everything else stays.
    """
    with folder_turn(path.parent):
        kept = read_metrics(path) if path.exists() else []
        asked, checkpoints = (
            [_question(e) for e in entries],
            {_answers(e): e.get("checkpoint") for e in entries},
        )
        merged = [
            e for e in kept
            if _question(e) not in asked and checkpoints.get(_answers(e), e.get("checkpoint")) == e.get("checkpoint")
        ] + [dict(e) for e in entries]  # fmt: skip
        write_json(path, merged)
    return merged


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Entries of a metrics.json; InputError where it is something else."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a metrics file ({error}); use another --out") from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "benchmark" in e for e in entries):
        raise InputError(f"{path} is not a list of benchmark scores; use another --out")
    return entries


def _answers(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """The predictions file of an entry, with its benchmark."""
    return entry["benchmark"], entry.get("split"), entry.get("predictions")


def _question(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an entry answers; of two entries with equal ones the later replaces the earlier."""
    keys = ("benchmark", "split", "protocol", "padded_world_size", "limit", "predictions")
    rejection = entry.get("rejection") or FLAG.describe()  # older entries have none
    return (*(entry.get(key) for key in keys), rejection, entry.get("partial") is None)
