"""Which record each slot of a training run shows: data sets mixed by the number of expressions they show.

A training run shows one image per slot; slots are numbered 0, 1, 2, … without end. The record of a slot is a
pure function of (seed, slot), so the state of the data is one integer, any slot is found at once, and any
number of processes sees the same order. Needs no torch.
Shapes: N records of a part, P parts, 4 granularities.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from uniresxx.data.mixture.counts import GRANULARITIES, count_granularities
from uniresxx.errors import InputError
from uniresxx.imaging.boxes import boxes_of_masks
from uniresxx.types import Granularity, ImageRecord

TOTAL_SHARES = 1_000_000  # shares of slots are whole numbers that add up to about this
REPLACEMENT_STREAM = 2  # keeps the random numbers of replaced samples apart from all others


@dataclass(frozen=True, slots=True)
class RecordIndex:
    """Record number `row` of part number `part`."""

    part: int
    row: int


@dataclass(frozen=True)
class OpenedPart:
    """The records of one part of a mixture, and the rows among them that have expressions of this part."""

    label: str
    weight: float
    records: Sequence[ImageRecord]
    rows_N: np.ndarray  # int64
    expressions_per_slot: float  # mean number of expressions that a slot of this part shows
    granularities: tuple[Granularity, ...] = ()  # (): all
    about: Mapping[str, Any] = field(default_factory=dict)  # JSON: fingerprint, report of the leak guard
    hint: str = ""  # which option to set where its photographs are not found
    all_boxes: bool = False

    @classmethod
    def of(
        cls,
        label: str,
        records: Sequence[ImageRecord],
        expressions_per_image: int,
        weight: float = 1.0,
        granularities: Sequence[Granularity] = (),
        about: Mapping[str, Any] | None = None,
        hint: str = "",
        all_boxes: bool = False,
    ) -> OpenedPart:
        """Count the expressions of the records and select the rows that have some.

        Args:
            label: name of the part in logs and messages.
            records: all records of the data set.
            expressions_per_image: how many expressions of an image a slot shows at most.
            weight: share of the expressions shown, relative to the other parts.
            granularities: show only expressions of these; empty: all.
            about: JSON that describes the data: fingerprint, report of the leak guard.
            hint: which option to set where a photograph is not found.
            all_boxes: give each record the boxes of all its masks, also of expressions that are not shown.
                A learned region proposer needs them: a picture asked only for groups still shows objects.

        Raises:
            InputError: no record has an expression of these granularities.
        """
        counts_N4 = count_granularities(records)
        columns = [GRANULARITIES.index(item) for item in granularities] or list(range(len(GRANULARITIES)))
        counts_N = counts_N4[:, columns].sum(axis=1)
        rows_N = np.flatnonzero(counts_N)
        if not rows_N.size:
            wanted = f" of {', '.join(granularities)}" if granularities else ""
            raise InputError(f"{label}: holds no expression{wanted}")
        shown = float(np.minimum(counts_N[rows_N], expressions_per_image).mean())
        return cls(label, weight, records, rows_N, shown, tuple(granularities), about or {}, hint, all_boxes)

    def record(self, row: int) -> ImageRecord:
        """A record with the expressions of this part; InputError where its store is damaged there."""
        record = self.records[row]
        if not self.granularities:
            return record
        expressions = tuple(e for e in record.expressions if e.granularity in self.granularities)
        boxes = boxes_of_masks(record) if self.all_boxes else record.boxes
        return replace(record, expressions=expressions, dialogues=(), boxes=boxes)


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
            rows = grain.MapDataset.range(len(part.rows_N)).shuffle(seed=seed).repeat()
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
            place = int(rng.integers(len(self.parts[part].rows_N)))
        else:
            found: RecordIndex = self._order[slot]
            part, place = found.part, found.row
        return RecordIndex(part, int(self.parts[part].rows_N[place]))

    def __call__(self, slot: int, attempt: int = 0) -> ImageRecord:
        """The record of a slot."""
        index = self.index(slot, attempt)
        return self.parts[index.part].record(index.row)

    def record_name(self, slot: int, attempt: int = 0) -> str:
        """The name of a slot's record in messages."""
        index = self.index(slot, attempt)
        return f"{self.parts[index.part].label} row {index.row}"

    def label(self, slot: int) -> str:
        """The label of a slot's part."""
        return self.parts[self.schedule[slot][0]].label

    def hint(self, slot: int) -> str:
        """Which option to set where the photographs of a slot's part are not found."""
        return self.parts[self.schedule[slot][0]].hint

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
