"""Open the parts of a mixture: prepared stores and native layouts, checked by the leak guard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniresxx.data.catalog import SCENES, find_store, load_benchmark
from uniresxx.data.guard import OWN_DATA, Guard, coco_id_of, held_out, is_training, stored_report
from uniresxx.data.mixture.mix import Mixture, OpenedPart
from uniresxx.data.mixture.parts import MixturePart
from uniresxx.data.store.read import Store, StoreRecords
from uniresxx.errors import InputError
from uniresxx.types import Granularity, ImageRecord


def open_mixture(
    parts: Sequence[MixturePart],
    expressions_per_image: int,
    seed: int,
    data: Path | None = None,
    images: Path | None = None,
    guard: str = "on",
    all_boxes: bool = False,
) -> Mixture:
    """Open every part of a mixture; a data set that several parts share is opened once.

    Args:
        parts: what to mix.
        expressions_per_image: how many expressions of an image a slot shows at most.
        seed: decides the order.
        data: root of the native layouts, and of stores that are named by a bare name.
        images: folder where the photographs of stores lie now.
        guard: mode of the leak guard: "on", "strict" or "published_data".
        all_boxes: see `OpenedPart`.

    Raises:
        InputError: no part, an unknown data set, a weight or granularity that is not allowed, the same data
            twice, a val or test split, no target at all, or records that the guard refuses.
    """
    held: frozenset[int] = frozenset()  # for stores; native layouts are read through a guard of their own
    if (
        data is not None
        and guard != "published_data"
        and any(find_store(_source_name(p), data) for p in parts)
    ):
        held = held_out(data).all()
    data_sets: dict[str, _DataSet] = {}
    opened: list[OpenedPart] = []
    for part in parts:
        granularities = _checked_granularities(part)
        name = _source_name(part)
        if name not in data_sets:
            data_sets[name] = _open(name, data, images, guard, held)
        found = data_sets[name]
        label = found.label + (f"[{'+'.join(granularities)}]" if granularities else "")
        if any(item.label == label for item in opened):
            raise InputError(f"{label} is twice in the mixture: give it once, with both weights added")
        opened.append(
            OpenedPart(
                label, found.records, expressions_per_image, part.weight, granularities,
                found.about, found.hint, all_boxes,
            )
        )  # fmt: skip
    if not opened:
        raise InputError("the mixture has no part")
    if set().union(*(item.shown for item in opened)) & {*Granularity} == {Granularity.NONE}:
        raise InputError(
            f"{', '.join(item.label for item in opened)}: no target: every expression means something that is not "
            "in its picture, and a model trained on that alone rejects everything; add data with targets"
        )
    return Mixture(tuple(opened), seed)


def _source_name(part: MixturePart) -> str:
    """NAME/SPLIT or STORE/SPLIT of a part; a split given in `source` wins over `split`."""
    store = find_store(part.source, None)
    return part.source if store is not None and store[1] is not None else f"{part.source}/{part.split}"


def _checked_granularities(part: MixturePart) -> tuple[Granularity, ...]:
    if not (0 < part.weight < float("inf")):
        raise InputError(f"{part.source}: weight {part.weight} must be above 0")
    if part.source.partition("/")[0] in SCENES:
        raise InputError(f"{part.source}: scenes are drawn without end; they cannot be part of a mixture")
    unknown = [item for item in part.granularities if item not in list(Granularity)]
    if unknown:
        raise InputError(
            f"{part.source}: unknown granularity {unknown[0]!r}; known: {', '.join(Granularity)}"
        )
    return tuple(Granularity(item) for item in part.granularities)


@dataclass(frozen=True)
class _DataSet:
    """An opened split: fields as in OpenedPart."""

    label: str
    records: Sequence[ImageRecord]
    about: Mapping[str, Any]
    hint: str


def _open(name: str, data: Path | None, images: Path | None, guard: str, held: frozenset[int]) -> _DataSet:
    store = find_store(name, data)
    if store is None:
        return _open_native(name, data, guard)
    return _open_store(name, store[0], store[1], images, guard, held)


def _open_store(
    name: str, path: Path, split: str | None, images: Path | None, guard: str, held: frozenset[int]
) -> _DataSet:
    store = Store.open(path, images)
    split = split or store.splits[0]
    records = store.records(split)
    report = stored_report(store.meta)
    _refuse_measured_split(name, split, guard)
    if guard == "strict" and (
        report["mode"] in ("none", "published_data", OWN_DATA) or report.get("not_found")
    ):
        raise InputError(
            f"{path}: was not prepared with a guard that knew every benchmark; --data.guard on takes it"
        )
    label = f"{store.name.partition('/')[0]}/{split}"
    fingerprint = store.fingerprint
    if held:
        records, gone = without_held(records, held)
        if gone["images"]:
            fingerprint += f" without {gone['images']} held-out images"
            report["removed"] = {**report["removed"], f"{label}, again in training": gone}
    hint = "photographs of a store are found with --data.images DIR"
    about: dict[str, Any] = {"fingerprint": fingerprint, "guard": report}
    if "own" in store.meta:
        about["licence"] = store.meta["own"]["licence"]
    return _DataSet(label, records, about, hint)


def without_held(records: StoreRecords, held: frozenset[int]) -> tuple[StoreRecords, dict[str, int]]:
    """The records of a store without those of held-out photos, and what was removed; whole rows are not parsed.

    The store may be older than a list of held-out photos, or have been prepared without the guard.
    """
    columns, kept = ["image_id", "path", "inside", "source"], []
    gone = {"images": 0, "expressions": 0, "without_coco_id": 0}
    for number, span in records.store.batches():
        if span.start not in records.rows:
            continue
        batch = records.store.batch(number)
        ends = batch.column("expressions").offsets.to_numpy()
        for place, cells in enumerate(batch.select(columns).to_pylist()):
            source = {} if cells["source"] is None else json.loads(cells["source"])
            inside = None if cells["inside"] is None else cells["inside"]["name"]
            image_id = coco_id_of(source, cells["path"] or inside, cells["image_id"])
            gone["without_coco_id"] += image_id is None
            if image_id in held:
                gone["images"] += 1
                gone["expressions"] += int(ends[place + 1] - ends[place])
            else:
                kept.append(span.start + place)
    return StoreRecords(records.store, kept), gone


def _open_native(name: str, data: Path | None, guard: str) -> _DataSet:
    split = name.partition("/")[2]
    records = load_benchmark(name, data)
    _refuse_measured_split(name, split, guard)
    leak_guard = Guard.of(guard, data)
    allowed, removed = leak_guard.apply(split, records)
    report = {**leak_guard.report(), "removed": {name: removed}}
    return _DataSet(name, allowed, {"guard": report}, f"photographs are looked for below --data {data}")


def _refuse_measured_split(name: str, split: str, guard: str) -> None:
    if guard != "published_data" and not is_training(split):
        raise InputError(
            f"{name}: is a split that models are measured on; --data.guard published_data trains on it all "
            "the same and says so in every result"
        )
