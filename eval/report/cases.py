"""Judged answers, and which of them a report shows: the best, median and worst, and the wrong decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uniresxx.scoring.protocols import Protocol
from uniresxx.types import Expression, Granularity, ImageRecord, Prediction

PER_GROUP = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One answered expression with what its protocol says of it."""

    record: ImageRecord
    expression: Expression
    prediction: Prediction
    iou: float  # as the protocol counts it; a right rejection is 1
    targeted: bool
    rejected: bool

    @property
    def name(self) -> str:
        """The expression's id."""
        return self.expression.expression_id

    @property
    def decision(self) -> str:
        """One of DECISIONS."""
        if self.targeted:
            return "false reject" if self.rejected else "answered"
        return "rightly rejected" if self.rejected else "false accept"


DECISIONS = ("answered", "false reject", "false accept", "rightly rejected")


def judge_all(
    records: Sequence[ImageRecord], predictions: Mapping[str, Prediction], protocol: Protocol
) -> list[Case]:
    """Every counted and answered expression of the records, judged; in their order."""
    cases = []
    for record in records:
        for expression in protocol.counted(record):
            prediction = predictions.get(expression.expression_id)
            if prediction is not None:
                outcome = protocol.judge(expression, prediction)
                cases.append(
                    Case(record, expression, prediction, outcome.iou, outcome.targeted, outcome.rejected)
                )
    return cases


def choose_cases(cases: Sequence[Case], per_group: int = PER_GROUP) -> dict[str, dict[str, list[Case]]]:
    """Cases by granularity and group ("best", "median", "worst", "false reject", "false accept", …).

    Groups hold different pictures where there are enough; the choice depends on the numbers alone.
    """
    pools: dict[Granularity, list[Case]] = {g: [] for g in Granularity}
    for case in cases:
        pools[case.expression.granularity].append(case)
    return {g.value: groups for g, pool in pools.items() if (groups := _groups(pool, per_group))}


def _groups(pool: Sequence[Case], count: int) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    answered = sorted(
        (c for c in pool if c.decision == "answered"),
        key=lambda c: (-c.iou, c.name),
    )
    middle = len(answered) // 2
    by_distance = sorted(range(len(answered)), key=lambda k: (abs(k - middle), k))
    taken: set[str] = set()
    found["best"] = _distinct(answered, count, taken)
    found["worst"] = _distinct(answered[::-1], count, taken)
    found["median"] = _distinct([answered[k] for k in by_distance], count, taken)
    found["false reject"] = _distinct(_surest(pool, "false reject"), count, taken)
    found["false accept"] = _distinct(_surest(pool, "false accept"), count, taken)
    found["rightly rejected"] = _distinct(_surest(pool, "rightly rejected"), count, taken)
    order = ("best", "median", "worst", "false reject", "false accept", "rightly rejected")
    return {name: found[name] for name in order if found[name]}


def _surest(pool: Sequence[Case], decision: str) -> list[Case]:
    """Cases of one kind of decision, the ones the model was surest about first."""
    chosen = [c for c in pool if c.decision == decision]
    sign = 1 if decision == "false accept" else -1

    def doubt(case: Case) -> float:
        p_absent = case.prediction.p_absent
        return sign * (0.5 if p_absent is None else p_absent)

    return sorted(chosen, key=lambda c: (doubt(c), c.name))


def _distinct(ordered: Sequence[Case], count: int, taken: set[str]) -> list[Case]:
    """The first `count` not taken yet, of different pictures where possible; marks them taken."""
    free = [c for c in ordered if c.name not in taken]
    pictures: set[str] = set()
    first = []
    for case in free:
        if case.record.image_id not in pictures:
            pictures.add(case.record.image_id)
            first.append(case)
    names = {c.name for c in first}
    chosen = (first + [c for c in free if c.name not in names])[:count]
    taken.update(c.name for c in chosen)
    return chosen
