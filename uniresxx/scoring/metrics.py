"""Counters that turn judged expressions into scores. Integers only, so any merge of parts equals the whole.

A protocol (`uniresxx.scoring.protocols`) judges one expression and returns an `Outcome`. IoU sums are kept in units
of 2^-40 (error below 1e-12 per expression; a 64-bit integer holds 8 million expressions), so adding is exact and does
not depend on order, batches or ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import add
from typing import Any

import numpy as np

from uniresxx.types import Granularity

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
SCORE_KEYS = ("gIoU", "cIoU", "mIoU", *(f"Pr@{x}" for x in THRESHOLDS), "N-acc", "T-acc")
TWIN_THRESHOLD = 0.5
TWIN_MEMBERS = frozenset((Granularity.PART, Granularity.OBJECT, Granularity.MULTI))
SIZES = {"small": 32**2, "medium": 96**2, "large": None}  # pixels of the truth below the number (COCO areas)
LENGTHS = {"1-2": 2, "3-5": 5, "6-10": 10, "11+": None}  # words up to the number
ABSENT = ("category", "attribute", "part", "relation")  # what of an expression without a target is not there
ROW = (
    *("n", "n_target", "intersection", "union", "iou_units", "iou_units_target"),
    *(f"above_{x}" for x in THRESHOLDS),
    *("target_answered", "none_rejected"),
)  # the counters behind the scores, as a row of int64
ANSWER_COUNTS = ("no_answer", "truncated", "empty")  # of answers that are not as they should be
COUNTERS = (*ROW, *ANSWER_COUNTS)
IOU_UNITS = 1 << 40  # units of an IoU of 1

Scores = dict[str, float | None]
Part = tuple[str, str]  # key of metrics.json and name: ("by_size", "small")
OVERALL: Part = ("overall", "")


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
    truncated: bool = False  # the answer had not ended when the limit of its tokens was reached
    empty: bool = False  # not rejected, and the mask has no pixel
    pixels: int | None = None  # of the truth; None: not counted by size
    words: int | None = None  # of the expression; None: not counted by length
    absent: str | None = None  # one of ABSENT; None: not known

    def row(self) -> list[int]:
        """What it adds to each counter, in the order of COUNTERS."""
        units, target = round(self.iou * IOU_UNITS), int(self.targeted)
        return [
            *(1, target, self.intersection, self.union, units, target * units),
            *(target * above for above in self.above),
            *(target * (not self.rejected), (1 - target) * self.rejected),
            *(int(self.no_answer), int(self.truncated), int(self.empty)),
        ]

    def parts(self) -> Iterator[Part]:
        """The parts of the benchmark that it belongs to."""
        yield OVERALL
        yield "by_granularity", self.granularity.value
        if self.level is not None:
            yield "by_level", str(self.level)
        if self.pixels is not None and self.targeted:
            yield "by_size", size_name(self.pixels)
        if self.words is not None:
            yield "by_length", length_name(self.words)
        if self.absent is not None and not self.targeted:
            yield "by_absent", self.absent


@dataclass(slots=True)
class Counts:
    """Sums over judged expressions, in the order of COUNTERS."""

    row: list[int] = field(default_factory=lambda: [0] * len(COUNTERS))

    def __getitem__(self, name: str) -> int:
        return self.row[COUNTERS.index(name)]

    def add(self, outcome: Outcome) -> None:
        """Count one more expression."""
        self.row = list(map(add, self.row, outcome.row()))

    def merge(self, other: Counts) -> Counts:
        """The counts of both sets of expressions together."""
        return Counts(list(map(add, self.row, other.row)))

    def scores(self) -> Scores:
        """All scores in percent by SCORE_KEYS; None where there is nothing to divide by."""
        ratios = _ratios(dict(zip(COUNTERS, self.row, strict=True)))
        return {key: percent(part, whole) for key, (part, whole) in ratios.items()}

    def sizes(self) -> dict[str, int]:
        """How many expressions stand behind the scores: all (gIoU, cIoU), targeted (mIoU, Pr, T-acc), none
        (N-acc); and ANSWER_COUNTS."""
        n, n_target = self["n"], self["n_target"]
        sizes = {"n": n, "n_target": n_target, "n_none": n - n_target}
        return sizes | {name: self[name] for name in ANSWER_COUNTS}


def percent(part: int, whole: int) -> float | None:
    """100 part / whole, None where `whole` is 0."""
    return 100 * part / whole if whole else None


def _ratios(of: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(part, whole) of every score, from counters by the names of ROW: numbers or arrays."""
    targets = of["n_target"]
    return {
        "gIoU": (of["iou_units"], of["n"] * IOU_UNITS),
        "cIoU": (of["intersection"], of["union"]),
        "mIoU": (of["iou_units_target"], targets * IOU_UNITS),
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
    """The counters of every part of a benchmark, and the twins."""

    counts: dict[Part, Counts] = field(default_factory=dict)
    twins: int = 0
    twins_answered: int = 0

    @classmethod
    def of_image(cls, outcomes: Iterable[Outcome]) -> Tally:
        """The counters of one image; twins live inside one image, so pass all its expressions at once."""
        tally = cls()
        groups: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in outcomes:
            one = Counts(outcome.row())
            for part in outcome.parts():
                tally.counts[part] = tally.part(*part).merge(one)
            if outcome.twin is not None and outcome.targeted:
                groups[outcome.twin].append(outcome)
        for members in groups.values():
            # A part, its object and the group it belongs to: an incomplete group says nothing.
            if {member.granularity for member in members} >= TWIN_MEMBERS:
                tally.twins += 1
                tally.twins_answered += all(m.iou > TWIN_THRESHOLD and not m.rejected for m in members)
        return tally

    def merge(self, other: Tally) -> Tally:
        """The counters of two disjoint sets of images together."""
        counts = {part: self.part(*part).merge(other.part(*part)) for part in {**self.counts, **other.counts}}
        return Tally(counts, self.twins + other.twins, self.twins_answered + other.twins_answered)

    def part(self, kind: str, name: str) -> Counts:
        """The counters of one part, zero where no expression belongs to it."""
        return self.counts.get((kind, name)) or Counts()

    @property
    def overall(self) -> Counts:
        """The counters of all expressions."""
        return self.part(*OVERALL)

    @property
    def twin_score(self) -> float | None:
        """Percent of complete twin groups of which every member has IoU > 0.5."""
        return percent(self.twins_answered, self.twins)
