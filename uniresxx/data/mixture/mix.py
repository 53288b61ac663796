"""Which record each slot of a training run shows: data sets mixed by the number of expressions they show.

A record without expressions, of captions or other plain answers, shows its conversations, which count instead.

A training run shows one image per slot; slots are numbered 0, 1, 2, … without end. The record of a slot is a
pure function of (seed, slot), so the state of the data is one integer, any slot is found at once, and any
number of processes sees the same order. Needs no torch.
Shapes: N records of a part, P parts, 5 kinds of what is asked (data_log.ASKED).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from uniresxx.data.mixture.counts import box_kinds, count_asked
from uniresxx.data.mixture.data_log import ASKED
from uniresxx.errors import InputError
from uniresxx.imaging.boxes import boxes_of_masks
from uniresxx.types import Granularity, ImageRecord

TOTAL_SHARES = 1_000_000  # shares of slots are whole numbers that add up to about this
LEVELS = (Granularity.OBJECT, Granularity.PART)  # of truth boxes
REPLACEMENT_STREAM = 2  # keeps the random numbers of replaced samples apart from all others


class Origin(NamedTuple):
    """Where the record of a slot comes from, for counts and messages."""

    data_set: str
    record: str  # a name by which a person finds the record
    hint: str  # which option to set where the photographs of the data set are not found; may be empty


@dataclass(frozen=True, slots=True)
class RecordIndex:
    """Record number `row` of part number `part`."""

    part: int
    row: int


@dataclass(frozen=True)
class OpenedPart:
    """One part of a mixture with its records opened and counted.

    Args:
        label: name of the part in logs and messages.
        records: all records of the data set.
        expressions_per_image: how many expressions (or conversations, without any) of an image a slot shows at most.
        weight: share of the expressions shown, relative to the other parts.
        granularities: show only expressions of these; empty: all.
        about: JSON that describes the data: fingerprint, report of the leak guard.
        hint: which option to set where a photograph is not found.
        all_boxes: give each record the boxes of all its masks, also of expressions that are not shown. A learned
            region proposer needs them: a picture asked only for groups still shows objects.

    Raises:
        InputError: no record has an expression of these granularities.
    """

    label: str
    records: Sequence[ImageRecord]
    expressions_per_image: int
    weight: float = 1.0
    granularities: tuple[Granularity, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    hint: str = ""
    all_boxes: bool = False

    def __post_init__(self) -> None:
        if not self.rows.size:
            wanted = f" of {', '.join(self.granularities)}" if self.granularities else ""
            raise InputError(f"{self.label}: holds no expression{wanted}")

    @cached_property
    def _all_counts(self) -> np.ndarray:
        """What each record is asked, int32 (N, 5)."""
        return count_asked(self.records)

    @cached_property
    def _counts(self) -> np.ndarray:
        """How many expressions (or conversations, without any) of this part each record has, int32."""
        columns = [ASKED.index(item) for item in self.granularities or ASKED]
        counts_N: np.ndarray = self._all_counts[:, columns].sum(axis=1, dtype=np.int32)
        return counts_N

    @cached_property
    def shown(self) -> set[str]:
        """What this part asks, of ASKED."""
        return {item for item in self.granularities or ASKED if self._all_counts[:, ASKED.index(item)].any()}

    @cached_property
    def box_levels(self) -> set[str]:
        """Levels ("object", "part") that the shown records have truth boxes of: their own, or those of masks."""
        with_masks = self._all_counts[self.rows].any(axis=0)
        found = {str(g) for g in LEVELS if with_masks[ASKED.index(g)]}
        return found if len(found) == len(LEVELS) else found | (box_kinds(self.records) & {*map(str, LEVELS)})

    @cached_property
    def rows(self) -> np.ndarray:
        """The records that have expressions of this part, int64."""
        return np.flatnonzero(self._counts)

    @cached_property
    def expressions_per_slot(self) -> float:
        """Mean number of expressions that a slot of this part shows."""
        return float(np.minimum(self._counts[self.rows], self.expressions_per_image).mean())

    def record(self, row: int) -> ImageRecord:
        """A record with the expressions of this part; InputError where its store is damaged there."""
        record = self.records[row]
        if not self.granularities:
            return record
        expressions = tuple(e for e in record.expressions if e.granularity in self.granularities)
        boxes = boxes_of_masks(record) if self.all_boxes else None
        return replace(record, expressions=expressions, dialogues=(), referent_boxes=boxes)


@dataclass(frozen=True)
class PartSchedule:
    """Slot -> (part, how many earlier slots show that part): exact shares, spread evenly.

    `shares_P` are whole numbers. The first k slots are divided part by part: each part takes its share of the
    slots that the parts before it left over, and the remainder is rounded down. So the count of a part among
    the first k slots differs from its exact share by less than P, and any stretch of sum(shares_P) slots has
    exactly those shares.
    """

    shares_P: tuple[int, ...]

    def __len__(self) -> int:
        return sys.maxsize

    def counts_before(self, slot: int) -> list[int]:
        """How many slots before `slot` show each part."""
        counts, slots, total = [], slot, sum(self.shares_P)
        for share in self.shares_P:
            remaining = slots * (total - share) // total
            counts.append(slots - remaining)
            slots, total = remaining, max(total - share, 1)
        return counts

    def __getitem__(self, slot: int) -> tuple[int, int]:
        earlier, later = self.counts_before(slot), self.counts_before(slot + 1)
        part = next(i for i, count in enumerate(earlier) if later[i] != count)
        return part, earlier[part]


@dataclass(frozen=True)
class Mixture:
    """Slot -> record: parts mixed by weight without end, each part in a new order every epoch."""

    parts: tuple[OpenedPart, ...]
    seed: int

    @cached_property
    def schedule(self) -> PartSchedule:
        """Which part each slot shows; a part that shows many expressions per slot gets fewer slots."""
        per_part = np.array([part.weight / part.expressions_per_slot for part in self.parts])
        shares = np.maximum(np.rint(per_part / per_part.sum() * TOTAL_SHARES), 1)
        return PartSchedule(tuple(int(share) for share in shares))

    @cached_property
    def _order(self) -> Any:
        """slot -> RecordIndex, as a grain.MapDataset."""
        grain = import_grain()
        orders = []
        for number, part in enumerate(self.parts):
            # grain adds the epoch to the seed: with neighbouring seeds, one part would repeat another's order
            seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
            rows = grain.MapDataset.range(len(part.rows)).shuffle(seed=seed).repeat()
            orders.append(rows.map(partial(RecordIndex, number)))
        # grain's own `mix` rounds the weights (0.7 to 0.3 becomes 233 to 100)
        return grain.MapDataset.select_from_datasets(orders, self.schedule)

    def index(self, slot: int, attempt: int = 0) -> RecordIndex:
        """Which record a slot shows.

        `attempt` n > 0 gives the n-th replacement of a sample that could not be prepared. It comes from the
        same part and from random numbers of its own, so that no other slot changes.
        """
        if attempt:
            part, _ = self.schedule[slot]
            rng = np.random.default_rng((self.seed, slot, REPLACEMENT_STREAM, attempt))
            place = int(rng.integers(len(self.parts[part].rows)))
        else:
            found: RecordIndex = self._order[slot]
            part, place = found.part, found.row
        return RecordIndex(part, int(self.parts[part].rows[place]))

    def __call__(self, slot: int, attempt: int = 0) -> ImageRecord:
        """The record of a slot."""
        index = self.index(slot, attempt)
        return self.parts[index.part].record(index.row)

    def origin(self, slot: int, attempt: int = 0) -> Origin:
        """Where the record of a slot comes from; never reads the record."""
        index = self.index(slot, attempt)
        part = self.parts[index.part]
        return Origin(part.label, f"{part.label} row {index.row}", part.hint)

    @property
    def box_levels(self) -> set[str]:
        """Levels ("object", "part") that any part has truth boxes of."""
        return set().union(*(part.box_levels for part in self.parts))

    @property
    def shares(self) -> dict[str, float]:
        """Share of the expressions that each part shall show, adding up to 1."""
        total = sum(part.weight for part in self.parts)
        return {part.label: part.weight / total for part in self.parts}


def import_grain() -> Any:
    """The grain library, without the warning on import that it found no JAX: nothing here uses JAX.

    Raises:
        InputError: grain is not installed.
    """
    try:
        from absl import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        import grain

        logging.set_verbosity(verbosity)
    except ImportError as error:
        raise InputError(
            f"training on data sets needs grain ({error}): pip install 'grain>=0.2.18,<0.3'"
        ) from None
    return grain
