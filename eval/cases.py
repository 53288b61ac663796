"""Which answers a report shows: per granularity the best, median and worst, and the wrong decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uniresxx.protocols import STRICT
from uniresxx.types import Expression, Granularity, ImageRecord, Prediction

PER_GROUP = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One answered expression, as shown."""

    record: ImageRecord
    expression: Expression
    prediction: Prediction
    iou: float
    targeted: bool


def choose_cases(
    records: Sequence[ImageRecord], predictions: Mapping[str, Prediction], per_group: int = PER_GROUP
) -> dict[str, dict[str, list[Case]]]:
    """Cases by granularity and group ("best", "median", "worst", "false reject", "false accept", …).

    Groups hold different pictures where there are enough; the choice depends on the numbers alone.
    """
    pools: dict[Granularity, list[Case]] = {g: [] for g in Granularity}
    for record in records:
        for expression in record.expressions:
            prediction = predictions[expression.expression_id]
            outcome = STRICT.judge(expression, prediction)
            pools[expression.granularity].append(
                Case(record, expression, prediction, outcome.iou, outcome.targeted)
            )
    return {g.value: groups for g, pool in pools.items() if (groups := _groups(pool, per_group))}


def _groups(pool: Sequence[Case], count: int) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    answered = sorted(
        (c for c in pool if c.targeted and not c.prediction.rejected),
        key=lambda c: (-c.iou, c.expression.expression_id),
    )
    middle = len(answered) // 2
    by_distance = sorted(range(len(answered)), key=lambda k: (abs(k - middle), k))
    taken: set[str] = set()
    found["best"] = _distinct(answered, count, taken)
    found["worst"] = _distinct(answered[::-1], count, taken)
    found["median"] = _distinct([answered[k] for k in by_distance], count, taken)
    found["false reject"] = _distinct(_surest(pool, targeted=True, rejected=True), count, taken)
    found["false accept"] = _distinct(_surest(pool, targeted=False, rejected=False), count, taken)
    found["rightly rejected"] = _distinct(_surest(pool, targeted=False, rejected=True), count, taken)
    order = ("best", "median", "worst", "false reject", "false accept", "rightly rejected")
    return {name: found[name] for name in order if found[name]}


def _surest(pool: Sequence[Case], *, targeted: bool, rejected: bool) -> list[Case]:
    """Cases of one kind of decision, the ones the model was surest about first."""
    chosen = [c for c in pool if c.targeted == targeted and c.prediction.rejected == rejected]
    sign = -1 if rejected else 1

    def doubt(case: Case) -> float:
        p_absent = case.prediction.p_absent
        return sign * (0.5 if p_absent is None else p_absent)

    return sorted(chosen, key=lambda c: (doubt(c), c.expression.expression_id))


def _distinct(ordered: Sequence[Case], count: int, taken: set[str]) -> list[Case]:
    """The first `count` not taken yet, of different pictures where possible; marks them taken."""
    free = [c for c in ordered if c.expression.expression_id not in taken]
    pictures: set[str] = set()
    first = []
    for case in free:
        if case.record.image_id not in pictures:
            pictures.add(case.record.image_id)
            first.append(case)
    names = {c.expression.expression_id for c in first}
    chosen = (first + [c for c in free if c.expression.expression_id not in names])[:count]
    taken.update(c.expression.expression_id for c in chosen)
    return chosen
