"""Which image each slot of a training run shows: data sets mixed by the expressions they yield.

Everything is a pure function of (seed, slot): the state of the data is one integer, any slot is found at once,
and any number of processes sees the same order. N images of a part, P parts. Needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.data.catalog import SCENES, find_store, load_benchmark
from uniresxx.data.guard import Guard, is_training, stored_report
from uniresxx.data.mixture.counts import KINDS, kinds_of
from uniresxx.errors import InputError
from uniresxx.imaging.boxes import boxes_of_masks
from uniresxx.types import Granularity, ImageRecord

TOTAL = 1_000_000  # slot shares are whole numbers out of this
REPLACEMENT = 2  # stream of random numbers for the samples that stand in for bad ones


@dataclass(frozen=True)
class MixturePart:
    """One data set of a mixture. `weight` is its share of the expressions seen, beside the other weights."""

    source: str  # NAME of a data set, or a prepared store: its folder, or its name below DIR or DIR/stores
    split: str = "train"
    weight: float = 1.0
    granularities: tuple[str, ...] = ()  # only expressions of these (and no conversations); (): everything


# Our choice, of the proportions for all granularities (part 30, object 30, multi and none 25, semantic 5,
# reasoning 3, dialogue 7; none at most a tenth of all) those whose data sets have readers.
REFCOCO_FAMILY = (
    MixturePart("refcoco", weight=10.0),
    MixturePart("refcoco+", weight=10.0),
    MixturePart("refcocog_umd", weight=10.0),
    MixturePart("grefcoco", weight=19.5, granularities=("multi",)),
    MixturePart("grefcoco", weight=5.5, granularities=("none",)),
)
MIXTURES: Mapping[str, tuple[MixturePart, ...]] = {"refcoco_family": REFCOCO_FAMILY}


def mixture_named(name: str) -> tuple[MixturePart, ...]:
    """The parts of a named mixture; InputError lists the names."""
    if name not in MIXTURES:
        raise InputError(f"--data.mixture {name!r}: unknown; known: {', '.join(MIXTURES)}")
    return MIXTURES[name]


@dataclass(frozen=True, slots=True)
class Draw:
    """Record number `row` of part number `part`."""

    part: int
    row: int


@dataclass(frozen=True)
class Pool:
    """One part, opened: its records, and the rows among them that have an expression to ask for."""

    label: str
    weight: float
    records: Sequence[ImageRecord]
    rows_N: np.ndarray  # int64
    per_slot: float  # expressions that a slot of this part shows on average over an epoch
    kinds: tuple[Granularity, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)  # JSON: fingerprint, guard
    hint: str = ""  # what to set where its photographs are not found
    all_boxes: bool = False  # records bring the boxes of all their masks, for boxes that are learned

    @classmethod
    def of(
        cls,
        label: str,
        records: Sequence[ImageRecord],
        expressions_per_image: int,
        weight: float = 1.0,
        kinds: Sequence[Granularity] = (),
        about: Mapping[str, Any] | None = None,
        hint: str = "",
        all_boxes: bool = False,
    ) -> Pool:
        """Count what the records yield. InputError where none of them has such an expression."""
        counts_N4 = kinds_of(records)
        columns = [KINDS.index(kind) for kind in kinds] or list(range(len(KINDS)))
        counts_N = counts_N4[:, columns].sum(axis=1)
        rows_N = np.flatnonzero(counts_N)
        if not rows_N.size:
            raise InputError(f"{label}: holds no expression{' of ' + ', '.join(kinds) if kinds else ''}")
        shown = np.minimum(counts_N[rows_N], expressions_per_image).mean()
        return cls(label, weight, records, rows_N, float(shown), tuple(kinds), about or {}, hint, all_boxes)

    def record(self, row: int) -> ImageRecord:
        """A record with the expressions of this part; InputError where its store is damaged there.

        With `all_boxes` truth boxes stay those of all expressions: a picture asked only for groups shows objects.
        """
        record = self.records[row]
        if not self.kinds:
            return record
        kept = tuple(item for item in record.expressions if item.granularity in self.kinds)
        boxes = boxes_of_masks(record) if self.all_boxes else record.boxes
        return replace(record, expressions=kept, dialogues=(), boxes=boxes)


@dataclass(frozen=True)
class Selection:
    """Slot -> (part, its how-manieth): whole shares out of their sum, spread as evenly as they divide.

    The slots before k are split part by part: of what the parts before left, a part takes its share and the
    rest is rounded down. So the count of a part among the first k slots is its share of k to within P slots,
    and the shares are exact in every stretch of as many slots as they sum to.
    """

    shares_P: tuple[int, ...]

    def __len__(self) -> int:
        return sys.maxsize

    def before(self, slot: int) -> list[int]:
        """Slots of each part before `slot`."""
        counts, left, whole = [], slot, sum(self.shares_P)
        for share in self.shares_P:
            rest = left * (whole - share) // whole
            counts.append(left - rest)
            left, whole = rest, max(whole - share, 1)
        return counts

    def __getitem__(self, slot: int) -> tuple[int, int]:
        earlier, later = self.before(slot), self.before(slot + 1)
        part = next(i for i, count in enumerate(earlier) if later[i] != count)
        return part, earlier[part]


@dataclass(frozen=True)
class Mixture:
    """Pools drawn from without end: by weight, each in a new order every epoch."""

    pools: tuple[Pool, ...]
    seed: int

    @cached_property
    def selection(self) -> Selection:
        """Shares of slots: a part's share of the expressions over what one of its slots yields."""
        per_part = np.array([pool.weight / pool.per_slot for pool in self.pools])
        shares = np.maximum(np.rint(per_part / per_part.sum() * TOTAL), 1)
        return Selection(tuple(int(share) for share in shares))

    @cached_property
    def _order(self) -> Any:
        """slot -> Draw, as a grain.MapDataset."""
        grain = _grain()
        parts = []
        for number, pool in enumerate(self.pools):
            # grain adds the epoch to the seed: parts of neighbouring seeds would follow one another's order
            seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
            rows = grain.MapDataset.range(len(pool.rows_N)).shuffle(seed=seed).repeat()
            parts.append(rows.map(partial(Draw, number)))
        # grain's own `mix` rounds the weights (0.7 to 0.3 becomes 233 to 100)
        return grain.MapDataset.select_from_datasets(parts, self.selection)

    def draw(self, slot: int, attempt: int = 0) -> Draw:
        """What slot shows. Attempts above 0 stand in for samples that could not be prepared: of the same part,
        from a stream of their own, so that no other slot moves."""
        if attempt:
            part, _ = self.selection[slot]
            rng = np.random.default_rng((self.seed, slot, REPLACEMENT, attempt))
            place = int(rng.integers(len(self.pools[part].rows_N)))
        else:
            found: Draw = self._order[slot]
            part, place = found.part, found.row
        return Draw(part, int(self.pools[part].rows_N[place]))

    def __call__(self, slot: int, attempt: int = 0) -> ImageRecord:
        """The record of a slot."""
        draw = self.draw(slot, attempt)
        return self.pools[draw.part].record(draw.row)

    def name(self, slot: int, attempt: int = 0) -> str:
        """What to call the record of a slot where it cannot be read."""
        draw = self.draw(slot, attempt)
        return f"{self.pools[draw.part].label} row {draw.row}"

    def label(self, slot: int) -> str:
        """The part of a slot."""
        return self.pools[self.selection[slot][0]].label

    def hint(self, slot: int) -> str:
        """What to set where the photographs of a slot's part are not found."""
        return self.pools[self.selection[slot][0]].hint

    @property
    def wanted(self) -> dict[str, float]:
        """Share of the expressions of each part, adding up to 1."""
        whole = sum(pool.weight for pool in self.pools)
        return {pool.label: pool.weight / whole for pool in self.pools}

    def drawn(self, start: int, stop: int) -> dict[str, int]:
        """Images that each part gives to the slots from `start` to before `stop`."""
        first, last = self.selection.before(start), self.selection.before(stop)
        return {pool.label: last[i] - first[i] for i, pool in enumerate(self.pools)}


def _grain() -> Any:
    """The library; it warns on import that it found no JAX, which nothing here uses."""
    try:
        from absl import logging

        before = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        import grain

        logging.set_verbosity(before)
    except ImportError as error:
        raise InputError(
            f"training on data sets needs grain ({error}): pip install 'grain>=0.2.18,<0.3'"
        ) from None
    return grain


def open_mixture(
    parts: Sequence[MixturePart],
    expressions_per_image: int,
    seed: int,
    data: Path | None = None,
    images: Path | None = None,
    guard: str = "on",
    all_boxes: bool = False,
) -> Mixture:
    """Open every part: stores are mapped, native layouts read, and the leak guard looks at both.

    `data` is the root of native layouts and of stores called by name, `images` where the photographs of stores
    lie now, `all_boxes` as in Pool. Raises InputError: what is not there, weights and granularities that mean
    nothing, a split that measures, and what `guard` refuses.
    """
    opened: dict[str, _Opened] = {}
    pools: list[Pool] = []
    for part in parts:
        kinds = _checked_kinds(part)
        name = source_name(part)
        if name not in opened:
            opened[name] = _open(name, data, images, guard)
        found = opened[name]
        label = found.label + (f"[{'+'.join(kinds)}]" if kinds else "")
        if any(pool.label == label for pool in pools):
            raise InputError(f"{label} is twice in the mixture: give it once, with both weights")
        pools.append(
            Pool.of(
                label, found.records, expressions_per_image, part.weight, kinds,
                found.about, found.hint, all_boxes,
            )
        )  # fmt: skip
    if not pools:
        raise InputError("the mixture has no part")
    return Mixture(tuple(pools), seed)


def source_name(part: MixturePart) -> str:
    """NAME/SPLIT or STORE/SPLIT of a part; the split in `source` is taken where it names a store's."""
    given = find_store(part.source, None)
    return part.source if given is not None and given[1] is not None else f"{part.source}/{part.split}"


def _checked_kinds(part: MixturePart) -> tuple[Granularity, ...]:
    if not (0 < part.weight < float("inf")):
        raise InputError(f"{part.source}: weight {part.weight} must be above 0")
    if part.source.partition("/")[0] in SCENES:
        raise InputError(f"{part.source}: scenes are drawn without end; they cannot be part of a mixture")
    unknown = [kind for kind in part.granularities if kind not in list(Granularity)]
    if unknown:
        raise InputError(
            f"{part.source}: unknown granularity {unknown[0]!r}; known: {', '.join(Granularity)}"
        )
    return tuple(Granularity(kind) for kind in part.granularities)


@dataclass(frozen=True)
class _Opened:
    label: str
    records: Sequence[ImageRecord]
    about: Mapping[str, Any]
    hint: str


def _open(name: str, data: Path | None, images: Path | None, guard: str) -> _Opened:
    found = find_store(name, data)
    if found is None:
        return _open_native(name, data, guard)
    from uniresxx.data.store.read import Store

    path, split = found
    store = Store.open(path, images)
    label = f"{store.name.partition('/')[0]}/{split or store.splits[0]}"
    records = store.records(split or store.splits[0])
    report = stored_report(store.meta)
    _refuse_measured(name, split or store.splits[0], guard)
    if guard == "strict" and (report["mode"] in ("none", "published_data") or report.get("not_found")):
        raise InputError(
            f"{path}: was not prepared with a guard that knew every benchmark; --data.guard on takes it"
        )
    hint = "photographs of a store are found with --data.images DIR"
    return _Opened(label, records, {"fingerprint": store.fingerprint, "guard": report}, hint)


def _open_native(name: str, data: Path | None, guard: str) -> _Opened:
    split = name.partition("/")[2]
    records = load_benchmark(name, data)
    _refuse_measured(name, split, guard)
    way = Guard.of(guard, data)
    kept, removed = way.apply(split, records)
    report = {**way.report(), "removed": {name: removed}}
    return _Opened(name, kept, {"guard": report}, f"photographs are looked for below --data {data}")


def _refuse_measured(name: str, split: str, guard: str) -> None:
    if guard != "published_data" and not is_training(split):
        raise InputError(
            f"{name}: is a split that measures; --data.guard published_data trains on it and says so in every result"
        )
