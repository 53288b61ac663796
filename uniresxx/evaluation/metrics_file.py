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
from uniresxx.scoring.beside import NOTHING, Beside
from uniresxx.scoring.predictions import sizes_of, stream_predictions
from uniresxx.scoring.problems import Problems
from uniresxx.scoring.protocols import STRICT, Protocol, protocol_of
from uniresxx.scoring.rejection import FLAG, Rejection
from uniresxx.scoring.tally import MODEL, Scored, entry_of, tally_answers
from uniresxx.types import ImageRecord

_SHOWN_PHOTOS = 20


def score_file(
    path: Path,
    records: Sequence[ImageRecord],
    benchmark: str,
    protocol: str = STRICT.name,
    *,
    rejection: Rejection = FLAG,
    allow_partial: bool = False,
    padded_world_size: int | None = None,
    beside: Beside = NOTHING,
) -> dict[str, Any]:
    """Score a predictions.jsonl or a folder of PNGs against a benchmark. The answers are read one by one.

    Args:
        path: the answers, in one of the forms that `stream_predictions` reads; only read.
        records: the benchmark's images with their truth.
        benchmark: NAME/SPLIT, for the entry.
        protocol: how an answer is judged.
        rejection: what counts as rejected.
        allow_partial: score what fits; `partial` then says how much, `problems` what was left out.
        padded_world_size: count again what a sampler padded to so many processes repeats.
        beside: what the benchmark knows of its expressions besides their truth.

    Returns:
        One entry of metrics.json. Its `assumed` says what the file itself left open.

    Raises:
        InputError: lists what does not fit the benchmark.
    """
    judged_by = protocol_of(protocol)
    judged_by.check(benchmark)
    scored, problems = tally_file(path, records, protocol, rejection, padded_world_size, beside)
    if problems and not allow_partial:
        raise InputError(f"{path}: {problems}; `python -m eval score … --allow-partial` scores the rest")
    if len(scored.missing) == scored.expressions:
        why = problems if problems else next(iter(problems.unanswered.values()), "it is empty")
        raise InputError(f"{path}: no expression of {benchmark} is answered: {why}")
    entry = entry_of(scored, benchmark, judged_by, rejection, padded_world_size) | {"versions": versions()}
    if problems:
        entry["problems"] = str(problems)
    if problems.unanswered:
        entry["unanswered"] = _unanswered(problems.unanswered)
    if assumed := [*problems.assumptions(), *_empty_answers(scored, judged_by, rejection)]:
        entry["assumed"] = assumed
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
    beside: Beside = NOTHING,
) -> tuple[Scored, Problems]:
    """The counters of everything that fits in a predictions.jsonl or a folder of PNGs, and what does not."""
    problems = Problems()
    answers = stream_predictions(path, sizes_of(records), problems, rejection.apply)
    scored = tally_answers(answers, records, protocol_of(protocol), padded_world_size, beside)
    problems.add_missing(scored.missing, scored.expressions)
    return scored, problems


def _unanswered(reasons: Mapping[str, str]) -> dict[str, Any]:
    """How many expressions the model could not be asked about, and the first reasons."""
    photos = list(dict.fromkeys(reasons.values()))
    return {"expressions": len(reasons), "photos": len(photos), "first": photos[:_SHOWN_PHOTOS]}


def _empty_answers(scored: Scored, protocol: Protocol, rejection: Rejection) -> list[str]:
    """Where nothing is rejected but masks are empty: that they count as answers, in a sentence."""
    overall = scored.tallies[MODEL].overall
    rejected = overall["none_rejected"] + overall["n_target"] - overall["target_answered"]
    if "N-acc" in protocol.undefined or rejection != FLAG or rejected or not overall["empty"]:
        return []
    return [
        "masks without a pixel count as answers, and nothing is rejected: use --rejected empty_mask if an empty "
        f"mask means that nothing is there (answers: {overall['empty']:,})"
    ]


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
    whole = entry.get("partial") is None or "unanswered" in entry  # the same command may answer the rest
    return (*(entry.get(key) for key in keys), rejection, whole)
