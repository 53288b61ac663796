"""Numbers beside the scores: of wrong parts, of instances, and against a second truth. They read an answer as
`strict` does, so entries of other protocols have none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from uniresxx.prediction import Prediction
from uniresxx.scoring.beside import Beside, PartOf
from uniresxx.scoring.instances import AveragePrecision, InstanceCounts, pairs_of
from uniresxx.scoring.metrics import THRESHOLDS, Counts
from uniresxx.scoring.protocols import STRICT
from uniresxx.scoring.wrong_parts import count_part, part_scores
from uniresxx.types import Expression, Granularity

MORE_KEYS = ("xIoU", "instances", "second_truth")
TRUTH_KEYS = ("mIoU", "cIoU", *(f"Pr@{x}" for x in THRESHOLDS))


@dataclass(slots=True)
class More:
    """The sums behind the numbers. Answers come one by one, in any order, and are not kept."""

    beside: Beside
    parts: Counter[str] = field(default_factory=Counter)
    counts: InstanceCounts = field(default_factory=InstanceCounts)
    precision: AveragePrecision = field(default_factory=AveragePrecision)
    compared: int = 0  # expressions whose true instances are known
    unknown: int = 0  # those whose are not
    listed: int = 0  # answers that list instances
    own: Counts = field(default_factory=Counts)
    other: Counts = field(default_factory=Counts)

    def add(
        self, place: tuple[int, int], expression: Expression, given: Prediction, part_of: PartOf | None
    ) -> None:
        """Count one answer.

        Args:
            place: number of the image, and of the expression within it.
            part_of: what the part belongs to, where that is known.
        """
        if part_of is not None and expression.granularity is Granularity.PART and expression.rle is not None:
            self.parts.update(count_part(expression.rle, part_of, given))
        pairs = pairs_of(expression, given)
        self.listed += bool(given.instances)
        if pairs is None:
            self.unknown += 1
        else:
            self.compared += 1
            self.counts.add(pairs)
            self.precision.add(place, pairs)
        second = self.beside.truths.get(expression.expression_id)
        if second is not None:
            self.own.add(STRICT.judge(expression, given))
            self.other.add(STRICT.judge(replace(expression, rle=second), given))

    def entry(self) -> dict[str, Any]:
        """The keys MORE_KEYS of an entry of metrics.json, null where nothing is known."""
        return {
            "xIoU": part_scores(self.parts),
            "instances": self._instances(),
            "second_truth": self._second_truth(),
        }

    def _instances(self) -> dict[str, Any] | None:
        if not self.compared:
            return None
        average = self.precision.scores()
        return {
            **self.counts.scores(),
            **(average if self.listed else dict.fromkeys(average)),
            "n": self.compared,
            "n_unknown": self.unknown,
            "n_listed": self.listed,
        }

    def _second_truth(self) -> dict[str, Any] | None:
        if not self.own["n"]:
            return None
        own, other = self.own.scores(), self.other.scores()
        pairs = {key: (own[key], other[key]) for key in TRUTH_KEYS}
        return {
            "of": self.beside.truths_of,
            "n": self.own["n"],
            "own": {key: own[key] for key in TRUTH_KEYS},
            "other": {key: other[key] for key in TRUTH_KEYS},
            "difference": {key: None if a is None or b is None else b - a for key, (a, b) in pairs.items()},
        }
