"""From answers, one by one in any order, to integer counters.

An answer is judged when it is read and not kept. The outcomes of an image wait until all its expressions are
answered. Sums remain, and one row of int64 per image and granularity, for intervals and tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.beside import NOTHING, Beside, PartOf
from uniresxx.scoring.intervals import bootstrap
from uniresxx.scoring.metrics import (
    ABSENT,
    ANSWER_COUNTS,
    LENGTHS,
    ROW,
    SIZES,
    Counts,
    Outcome,
    Scores,
    Tally,
)
from uniresxx.scoring.more import MORE_KEYS, More
from uniresxx.scoring.protocols import Protocol
from uniresxx.scoring.rejection import FLAG, Rejection
from uniresxx.scoring.trivial import ALWAYS_REJECT, TRIVIAL_NAMES, all_objects, never_reject
from uniresxx.types import Expression, Granularity, ImageRecord

MODEL = "model"


@dataclass(slots=True)
class Scored:
    """The result of scoring. Shapes: I images, G granularities, K counters (metrics.ROW)."""

    images_IGK: np.ndarray  # int64, the model's counters per image
    twins_I2: np.ndarray  # int64: complete twin groups per image, answered ones
    expressions: int  # that the protocol counts
    repeated: int = 0  # expressions that padding counted again
    missing: list[str] = field(default_factory=list)  # of these, the ones without an answer
    tallies: dict[str, Tally] = field(
        default_factory=lambda: {name: Tally() for name in (MODEL, *TRIVIAL_NAMES)}
    )
    more: More | None = None  # where the protocol has these numbers


@dataclass(slots=True)
class _Image:
    """One image some of whose expressions were answered."""

    number: int
    record: ImageRecord
    waiting: dict[str, tuple[int, Expression]]  # number within the image
    parts: Mapping[str, PartOf]
    answered: list[Expression] = field(default_factory=list)
    outcomes: dict[str, list[Outcome]] = field(
        default_factory=lambda: {name: [] for name in (MODEL, *TRIVIAL_NAMES)}
    )


def tally_answers(
    answers: Iterable[tuple[str, Prediction]],
    records: Sequence[ImageRecord],
    protocol: Protocol,
    padded_world_size: int | None = None,
    beside: Beside = NOTHING,
) -> Scored:
    """Judge every answer the protocol counts, beside the trivial answers to the same expressions.

    Args:
        answers: (expression id, answer), each id at most once, in any order; ids that do not count are skipped.
        padded_world_size: expressions that a sampler padded to so many processes repeats count again.
        beside: what is known of the expressions besides their truth.
    """
    again = Counter(protocol.padded(records, padded_world_size)) if padded_world_size else Counter()
    home = {e.expression_id: k for k, record in enumerate(records) for e in protocol.counted(record)}
    more = More(beside) if protocol.has_more else None
    scored = Scored(
        images_IGK=np.zeros((len(records), len(Granularity), len(ROW)), dtype=np.int64),
        twins_I2=np.zeros((len(records), 2), dtype=np.int64),
        expressions=len(home),
        more=more,
    )
    open_images: dict[int, _Image] = {}
    for name, prediction in answers:
        number = home.pop(name, None)
        if number is None:
            continue
        if number not in open_images:
            record = records[number]
            counted = enumerate(protocol.counted(record))
            waiting = {e.expression_id: (place, _with_checked_truth(e)) for place, e in counted}
            parts = beside.parts(record) if more else {}
            open_images[number] = _Image(number, record, waiting, parts)
        image = open_images[number]
        place, expression = image.waiting.pop(name)
        image.answered.append(expression)
        if more is not None:
            more.add((number, place), expression, prediction, image.parts.get(name))
        scored.repeated += again[name]
        for answer, given in ((MODEL, prediction), ("never_reject", never_reject(prediction))):
            image.outcomes[answer] += [_judge(protocol, expression, given)] * (1 + again[name])
        if not image.waiting:
            _close(open_images.pop(number), scored, protocol, again)
    for image in open_images.values():
        _close(image, scored, protocol, again)
    scored.missing = list(home)
    return scored


def _with_checked_truth(expression: Expression) -> Expression:
    """The expression with its truth checked once, so that `judge` need not."""
    if expression.rle is None or isinstance(expression.rle, masks.CheckedRLE):
        return expression
    return replace(expression, rle=masks.validate(expression.rle))


def _judge(protocol: Protocol, expression: Expression, given: Prediction) -> Outcome:
    pixels = 0 if expression.rle is None else masks.area(expression.rle)
    return replace(protocol.judge(expression, given), pixels=pixels, words=len(expression.text.split()))


def _close(image: _Image, scored: Scored, protocol: Protocol, again: Mapping[str, int]) -> None:
    """Add an image's outcomes to the sums, with the trivial answers to the same expressions."""
    everything = Prediction(rejected=False, rle=all_objects(image.record), text=None)
    for answer, given in {"all_objects": everything, "always_reject": ALWAYS_REJECT}.items():
        for expression in image.answered:
            outcome = protocol.judge(expression, given)
            image.outcomes[answer] += [outcome] * (1 + again.get(expression.expression_id, 0))
    for answer, outcomes in image.outcomes.items():
        tally = Tally.of_image(outcomes)
        scored.tallies[answer] = scored.tallies[answer].merge(tally)
        if answer == MODEL:
            rows = [tally.part("by_granularity", g.value).row[: len(ROW)] for g in Granularity]
            scored.images_IGK[image.number] = rows
            scored.twins_I2[image.number] = tally.twins, tally.twins_answered


def entry_of(
    scored: Scored,
    benchmark: str,
    protocol: Protocol,
    rejection: Rejection = FLAG,
    padded_world_size: int | None = None,
) -> dict[str, Any]:
    """One entry of metrics.json: scores in percent with the numbers behind them, null where not defined."""
    model, name, split = scored.tallies[MODEL], *benchmark.partition("/")[::2]
    granularities = {"by_granularity": [g.value for g in Granularity]}
    levels = sorted(key for kind, key in model.counts if kind == "by_level")
    parts = {**granularities, "by_level": levels, "by_size": [*SIZES], "by_length": [*LENGTHS]}
    if "N-acc" not in protocol.undefined and any(kind == "by_absent" for kind, _ in model.counts):
        parts["by_absent"] = [*ABSENT]
    counts = {kind: {key: model.part(kind, key) for key in keys} for kind, keys in parts.items()}
    partial = {"scored": scored.expressions - len(scored.missing), "expressions": scored.expressions}
    return {
        "benchmark": name,
        "split": split,
        "protocol": protocol.name,
        "rejection": rejection.describe(),
        "decoding": None,  # unknown where only a predictions file is given
        "template": None,
        "checkpoint": None,
        "n_expressions": model.overall["n"],
        "n_images": len(scored.images_IGK),
        "partial": partial if scored.missing else None,
        "padded_world_size": padded_world_size,
        "padded_expressions": scored.repeated,
        "by_absent": None,  # where it is not known
        **_scores(model, parts, protocol),
        **(scored.more.entry() if scored.more else dict.fromkeys(MORE_KEYS)),
        "twin_groups": model.twins,
        **{name: model.overall[name] for name in ANSWER_COUNTS},
        "intervals": bootstrap(scored.images_IGK, scored.twins_I2, protocol.undefined),
        "proposal_recall": None,
        "counts": {
            "overall": model.overall.sizes(),
            **{kind: {key: c.sizes() for key, c in found.items()} for kind, found in counts.items()},
        },
        "trivial": {key: _scores(scored.tallies[key], granularities, protocol) for key in TRIVIAL_NAMES},
    }


def parts_scored(entry: Mapping[str, Any]) -> list[str]:
    """The part of the benchmark that an entry of metrics.json scores, in words; empty for the whole."""
    parts = []
    if partial := entry.get("partial"):
        parts.append(f"{partial['scored']:,} of {partial['expressions']:,} expressions")
    if entry.get("limit"):
        parts.append(f"the first {entry['limit']:,} pictures")
    return parts


def _scores(tally: Tally, parts: Mapping[str, Sequence[str]], protocol: Protocol) -> dict[str, Any]:
    """The scores overall and of the parts, null for those that the protocol does not define."""

    def defined(counts: Counts) -> Scores:
        return {key: None if key in protocol.undefined else value for key, value in counts.scores().items()}

    return {
        "overall": defined(tally.overall),
        **{kind: {key: defined(tally.part(kind, key)) for key in keys} for kind, keys in parts.items()},
        "twin_score": tally.twin_score,
    }
