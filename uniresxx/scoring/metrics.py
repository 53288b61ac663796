"""Counters that turn judged expressions into scores. Integers only, so any merge of parts equals the whole.

A protocol (`uniresxx.scoring.protocols`) judges one expression and gives an `Outcome`; nothing here knows masks or
models. IoU sums are kept in units of 2^-40 (error below 1e-12 per expression; a 64-bit integer holds 8
million expressions): adding is exact, hence independent of order, batches and ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from uniresxx.types import Granularity

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
SCORE_KEYS = ("gIoU", "cIoU", "mIoU", *(f"Pr@{x}" for x in THRESHOLDS), "N-acc", "T-acc")
TWIN_THRESHOLD = 0.5
TWIN_MEMBERS = frozenset((Granularity.PART, Granularity.OBJECT, Granularity.MULTI))
SIZES = {"small": 32**2, "medium": 96**2, "large": None}  # pixels of the truth below the number (COCO areas)
LENGTHS = {"1-2": 2, "3-5": 5, "6-10": 10, "11+": None}  # words up to the number
ROW = (
    *("n", "n_target", "intersection", "union", "iou_units", "iou_units_target"),
    *(f"above_{x}" for x in THRESHOLDS),
    *("target_answered", "none_rejected", "no_answer"),
)  # one `Counts` as a row of int64
_ONE = 1 << 40

Scores = dict[str, float | None]
Key = TypeVar("Key", int, str)


def size_name(pixels: int) -> str:
    """Key of SIZES for a truth mask; our choice: the edges 32^2 and 96^2 belong to the larger class (COCO's
    own ranges hold them twice)."""
    return next(name for name, edge in SIZES.items() if edge is None or pixels < edge)


def length_name(words: int) -> str:
    """Key of LENGTHS for an expression."""
    return next(name for name, edge in LENGTHS.items() if edge is None or words <= edge)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One expression, judged by a protocol. Areas are pixels of the photo."""

    granularity: Granularity
    targeted: bool
    rejected: bool
    iou: float  # what enters gIoU, 0..1
    intersection: int  # what enters the numerator of cIoU
    union: int  # what enters the denominator of cIoU
    above: tuple[bool, ...]  # per THRESHOLDS, whether it counts for Pr@X
    level: int | None = None
    twin: str | None = None
    no_answer: bool = False  # the model produced neither [SEG] nor [REJ]
    pixels: int | None = None  # of the truth; None: not counted by size
    words: int | None = None  # of the expression; None: not counted by length


@dataclass(slots=True)
class Counts:
    """Sums over judged expressions; Python integers, every field adds up under `merge`."""

    n: int = 0
    n_target: int = 0
    intersection: int = 0
    union: int = 0
    iou_units: int = 0
    iou_units_target: int = 0
    above: list[int] = field(default_factory=lambda: [0] * len(THRESHOLDS))
    target_answered: int = 0
    none_rejected: int = 0
    no_answer: int = 0

    @property
    def n_none(self) -> int:
        """Expressions without a target."""
        return self.n - self.n_target

    def add(self, outcome: Outcome) -> None:
        """Count one more expression."""
        units = round(outcome.iou * _ONE)
        self.n += 1
        self.iou_units += units
        self.intersection += outcome.intersection
        self.union += outcome.union
        self.no_answer += outcome.no_answer
        if outcome.targeted:
            self.n_target += 1
            self.iou_units_target += units
            self.target_answered += not outcome.rejected
            self.above = [a + b for a, b in zip(self.above, outcome.above, strict=True)]
        else:
            self.none_rejected += outcome.rejected

    def row(self) -> tuple[int, ...]:
        """The counters in the order of ROW."""
        first = (self.n, self.n_target, self.intersection, self.union, self.iou_units, self.iou_units_target)
        return (*first, *self.above, self.target_answered, self.none_rejected, self.no_answer)

    def merge(self, other: Counts) -> Counts:
        """The counts of both sets of expressions together."""
        return Counts(
            n=self.n + other.n,
            n_target=self.n_target + other.n_target,
            intersection=self.intersection + other.intersection,
            union=self.union + other.union,
            iou_units=self.iou_units + other.iou_units,
            iou_units_target=self.iou_units_target + other.iou_units_target,
            above=[a + b for a, b in zip(self.above, other.above, strict=True)],
            target_answered=self.target_answered + other.target_answered,
            none_rejected=self.none_rejected + other.none_rejected,
            no_answer=self.no_answer + other.no_answer,
        )

    def scores(self) -> Scores:
        """All scores in percent by SCORE_KEYS; None where there is nothing to divide by."""
        ratios = _ratios(dict(zip(ROW, self.row(), strict=True)))
        return {key: _percent(part, whole) for key, (part, whole) in ratios.items()}

    def sizes(self) -> dict[str, int]:
        """How many expressions stand behind the scores: all (gIoU, cIoU), targeted (mIoU, Pr, T-acc), none
        (N-acc)."""
        return {"n": self.n, "n_target": self.n_target, "n_none": self.n_none, "no_answer": self.no_answer}


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _ratios(of: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(part, whole) of every score, from counters by the names of ROW: numbers or arrays."""
    targets = of["n_target"]
    return {
        "gIoU": (of["iou_units"], of["n"] * _ONE),
        "cIoU": (of["intersection"], of["union"]),
        "mIoU": (of["iou_units_target"], targets * _ONE),
        **{f"Pr@{x}": (of[f"above_{x}"], targets) for x in THRESHOLDS},
        "N-acc": (of["none_rejected"], of["n"] - targets),
        "T-acc": (of["target_answered"], targets),
    }


def scores_of_rows(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Every score in percent of many sums at once: float64 (…, len(ROW)) to (…) per key, NaN where there is
    nothing to divide by."""
    ratios = _ratios({name: rows[..., k] for k, name in enumerate(ROW)})
    return {key: percent_of(part, whole) for key, (part, whole) in ratios.items()}


def percent_of(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """100 part / whole in float64, NaN where `whole` is 0."""
    return np.divide(100.0 * part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) != 0)


@dataclass(slots=True)
class Tally:
    """All counters of one benchmark: overall, by granularity, level, size and length, twins."""

    overall: Counts = field(default_factory=Counts)
    by_granularity: dict[Granularity, Counts] = field(
        default_factory=lambda: {g: Counts() for g in Granularity}
    )
    by_level: dict[int, Counts] = field(default_factory=dict)
    by_size: dict[str, Counts] = field(default_factory=dict)  # targets only
    by_length: dict[str, Counts] = field(default_factory=dict)
    twins: int = 0
    twins_answered: int = 0

    @classmethod
    def of_image(cls, outcomes: Iterable[Outcome]) -> Tally:
        """The counters of one picture; twins live inside one picture, so pass all its expressions at once."""
        tally = cls()
        groups: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in outcomes:
            tally.overall.add(outcome)
            tally.by_granularity[outcome.granularity].add(outcome)
            if outcome.level is not None:
                tally.by_level.setdefault(outcome.level, Counts()).add(outcome)
            if outcome.pixels is not None and outcome.targeted:
                tally.by_size.setdefault(size_name(outcome.pixels), Counts()).add(outcome)
            if outcome.words is not None:
                tally.by_length.setdefault(length_name(outcome.words), Counts()).add(outcome)
            if outcome.twin is not None and outcome.targeted:
                groups[outcome.twin].append(outcome)
        for members in groups.values():
            # A part, its object and the group it belongs to: an incomplete group says nothing.
            if {member.granularity for member in members} >= TWIN_MEMBERS:
                tally.twins += 1
                tally.twins_answered += all(m.iou > TWIN_THRESHOLD and not m.rejected for m in members)
        return tally

    def merge(self, other: Tally) -> Tally:
        """The counters of two disjoint sets of pictures together."""
        return Tally(
            overall=self.overall.merge(other.overall),
            by_granularity={g: self.by_granularity[g].merge(other.by_granularity[g]) for g in Granularity},
            by_level=_merged(self.by_level, other.by_level),
            by_size=_merged(self.by_size, other.by_size),
            by_length=_merged(self.by_length, other.by_length),
            twins=self.twins + other.twins,
            twins_answered=self.twins_answered + other.twins_answered,
        )

    @property
    def twin_score(self) -> float | None:
        """Percent of complete twin groups of which every member has IoU > 0.5."""
        return _percent(self.twins_answered, self.twins)


def _merged(one: Mapping[Key, Counts], other: Mapping[Key, Counts]) -> dict[Key, Counts]:
    """Counts by key of both; a key of one side only keeps its counts."""
    both = {key: counts.merge(other[key]) if key in other else counts for key, counts in one.items()}
    return both | {key: counts for key, counts in other.items() if key not in one}


@dataclass(slots=True)
class RecallCounts:
    """Truth boxes found by a proposal at box IoU >= 0.5, per stream ("object", "part")."""

    found: dict[str, int] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=dict)

    def add(self, found: Mapping[str, int], total: Mapping[str, int]) -> None:
        """Count one more picture."""
        for stream, count in total.items():
            self.total[stream] = self.total.get(stream, 0) + count
            self.found[stream] = self.found.get(stream, 0) + found.get(stream, 0)

    def scores(self) -> Scores:
        """Recall in percent per stream."""
        return {stream: _percent(self.found[stream], total) for stream, total in sorted(self.total.items())}
