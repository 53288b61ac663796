"""What counts as rejected, as a named rule that is applied before any protocol judges an answer.

Every entry of metrics.json names the rule, its threshold and the split the threshold was tuned on. Where a rule
turns a rejection into an answer, the answer is `mask`, else `mask_if_forced`, else the empty mask. Where it rejects,
the masks stay for the protocols that use them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import sizes_of, stream_predictions
from uniresxx.scoring.problems import Problems
from uniresxx.scoring.protocols import has_target
from uniresxx.types import ImageRecord

Rule = Literal["flag", "no_seg", "empty_mask", "p_absent"]
RULES: tuple[Rule, ...] = get_args(Rule)
RULE_NAMES: dict[Rule, str] = {
    "flag": "the file's `rejected`",
    "no_seg": "no [SEG] in the generated text",
    "empty_mask": "the mask is null or has no pixel",
    "p_absent": "`p_absent` above the threshold",
}
CRITERION = "mean of N-acc and T-acc"


@dataclass(frozen=True, slots=True)
class Rejection:
    """One rule; `threshold` belongs to `p_absent` and `tuned_on` (NAME/SPLIT) to a tuned threshold."""

    rule: Rule = "flag"
    threshold: float | None = None
    tuned_on: str | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InputError(f"unknown rule {self.rule!r} for what is rejected; known: {', '.join(RULES)}")
        if (self.rule == "p_absent") != (self.threshold is not None):
            needed = "rule p_absent needs --threshold X, or --tune-on PREDICTIONS NAME/val (of `score` alone)"
            raise InputError(needed if self.threshold is None else f"rule {self.rule} takes no threshold")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise InputError(f"the threshold must be a finite number, not {self.threshold}")

    def apply(self, prediction: Prediction) -> Prediction:
        """The prediction with `rejected` decided by the rule. InputError where the rule needs a missing field."""
        rejected = self._decide(prediction)
        if rejected == prediction.rejected:
            return prediction
        if rejected:
            return replace(prediction, rejected=True)
        mask = prediction.rle if prediction.rle is not None else prediction.mask_if_forced
        return replace(prediction, rejected=False, rle=mask)

    def _decide(self, prediction: Prediction) -> bool:
        if self.rule == "no_seg":
            if prediction.text is None:
                raise InputError("rule no_seg needs `text`, which is null or missing")
            return "[SEG]" not in prediction.text
        if self.rule == "empty_mask":
            return prediction.rle is None or masks.area(prediction.rle) == 0
        if self.rule == "p_absent":
            return _p_absent(prediction) > (self.threshold or 0.0)
        return prediction.rejected

    def describe(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        return asdict(self)


FLAG = Rejection()


def _p_absent(prediction: Prediction) -> float:
    if prediction.p_absent is None:
        raise InputError("rule p_absent needs `p_absent`, which is null or missing")
    return prediction.p_absent


def check_is_val(benchmark: str) -> None:
    """InputError unless the split is `val`, or a RefCOCOm list of it (`val_part_only`, …)."""
    split = benchmark.partition("/")[2]
    if split != "val" and not split.startswith("val_"):
        raise InputError(
            f"--tune-on {benchmark}: a threshold is tuned on a split named val only, never on a test split"
        )


def tune(path: Path, records: Sequence[ImageRecord], benchmark: str) -> Rejection:
    """The `p_absent` rule with its threshold tuned on a predictions file of a val split.

    InputError: another split, a bad file, no expression with or none without a target.
    """
    check_is_val(benchmark)
    sizes, problems = sizes_of(records), Problems()
    targeted = {e.expression_id: has_target(e) for record in records for e in record.expressions}
    answers = stream_predictions(path, sizes, problems, Rejection("p_absent", 0.0).apply)
    pairs = [(_p_absent(prediction), targeted.pop(name)) for name, prediction in answers]
    problems.add_missing(targeted, len(sizes))
    if problems:
        raise InputError(f"{path}: {problems}")
    return Rejection("p_absent", best_threshold(pairs, benchmark), benchmark)


def best_threshold(pairs: Iterable[tuple[float, bool]], name: str = "val") -> float:
    """The threshold on `p_absent` with the best mean of N-acc and T-acc, from pairs (p_absent, has a target).

    Our choice: this mean (balanced accuracy) weighs both kinds equally, however many of each there are; gIoU would
    depend on the share of expressions without a target. Candidates lie midway between neighbouring values; of
    equally good ones the nearest to 0.5 is taken. Raises InputError where one kind is missing.
    """
    table = np.array(list(pairs), dtype=np.float64).reshape(-1, 2)
    order = np.argsort(table[:, 0], kind="stable")
    p, targeted = table[order, 0], table[order, 1] > 0
    n_target, n_none = int(targeted.sum()), int((~targeted).sum())
    if not n_target or not n_none:
        missing = "with" if not n_target else "without"
        raise InputError(f"{name} has no expression {missing} a target: no threshold can be tuned on it")
    last = np.flatnonzero(np.append(np.diff(p) > 0, True))  # of each value, its last place
    values = p[last]
    # below the smallest value everything is rejected, from the largest on nothing
    middle = (values[:-1] + values[1:]) / 2
    middle = np.where(middle < values[1:], middle, values[:-1])  # neighbours without a number between them
    cuts = np.concatenate(([values[0] - 1.0], middle, [values[-1]]))
    answered = np.concatenate(([0], np.cumsum(targeted)[last]))
    wrongly = np.concatenate(([0], np.cumsum(~targeted)[last]))
    gain = answered * n_none - wrongly * n_target  # T-acc + N-acc - 1 in whole numbers
    best = np.flatnonzero(gain == gain.max())
    return float(cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]])
