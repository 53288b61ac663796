"""`uniresxx data inspect`: what is in a data set or a store, beside what is published of it."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from uniresxx.data.catalog import SCENES, load_benchmark, splits_of
from uniresxx.data.contact_sheet import Sheet
from uniresxx.data.published_counts import PublishedCount, published_of
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic
from uniresxx.types import Expression, Granularity, ImageRecord

# what we count -> the field of published_counts.py it is held beside
COMPARED = {"images": "images", "refs": "refs", "expressions": "sentences"}


def summary(records: Iterable[ImageRecord]) -> dict[str, Any]:
    """What `inspect` prints of one split; looks at each record once and keeps none.

    Counts per granularity (and per level where expressions have one, shares in percent), the median share of
    the photo that a target covers in percent, the median number of words, how much was left out, and how many
    photos are missing. `refs` are object records by their native ids, where the data set has such.
    """
    totals, kinds, levels = Counter[str](), Counter[Granularity](), Counter[int]()
    shares: dict[Granularity, list[float]] = {
        kind: [] for kind in Granularity if kind is not Granularity.NONE
    }
    words: list[int] = []
    refs: set[tuple[str, str, str]] = set()
    for record in records:
        totals["images"] += 1
        totals["left out"] += len(record.source.get("left_out", ()))
        totals["photos missing"] += _is_missing(record)
        for expression in record.expressions:
            kinds[expression.granularity] += 1
            words.append(len(expression.text.split()))
            if expression.level is not None:
                levels[expression.level] += 1
            if expression.granularity in shares:
                shares[expression.granularity].append(100 * expression.area / (record.height * record.width))
            ref = _ref_of(record, expression)
            if ref is not None:
                refs.add(ref)
    return {
        "images": totals["images"],
        **({"refs": len(refs)} if refs else {}),
        "expressions": len(words),
        **{str(kind): kinds[kind] for kind in Granularity},
        **{
            f"level {level}, %": round(100 * count / levels.total(), 1)
            for level, count in sorted(levels.items())
        },
        **{f"{kind}, median % of photo": round(statistics.median(s), 2) for kind, s in shares.items() if s},
        "words, median": statistics.median(words) if words else None,
        "left out": totals["left out"],
        "photos missing": totals["photos missing"],
    }


def _ref_of(record: ImageRecord, expression: Expression) -> tuple[str, str, str] | None:
    for key in ("ref_id", "segment_id"):
        if expression.source.get(key) is not None:
            dataset = expression.expression_id.partition("/")[0]
            return dataset, record.image_id, str(expression.source[key])
    return None


def _is_missing(record: ImageRecord) -> bool:
    place = record.inside.file if record.inside is not None else record.path
    return place is not None and not Path(place).exists()


def beside(
    counts: Mapping[str, Any], told: PublishedCount, removed: Mapping[str, int]
) -> tuple[dict[str, str], list[str]]:
    """(what is published by the name of what we count, what differs); `removed` is what the guard took away.

    Photos and expressions that the guard removed count as found. Refs are compared only where it removed none:
    it does not count them.
    """
    shown, differ = {}, []
    for name, source in COMPARED.items():
        number = getattr(told, source)
        if number is None or name not in counts:
            continue
        recalled = source in told.recalled
        said = f"{number:,} (recalled)" if recalled else f"{number:,}"
        gone = removed.get(name, 0)
        shown[name] = f"published {said}" + (f", removed by the guard {gone:,}" if gone else "")
        if name == "refs" and removed.get("images"):
            continue
        if counts[name] + gone != number:
            found = f"{counts[name]:,}" + (f" (and {gone:,} removed)" if gone else "")
            field = f"{source}, recalled" if recalled else source
            differ.append(f"{name} {found}, published {number:,} ({field})")
    if told.only_objects and "expressions" in shown:
        shown["object"] = shown["expressions"]
    return shown, differ


def print_split(
    name: str, records: Iterable[ImageRecord], told: PublishedCount | None, removed: Mapping[str, int]
) -> None:
    """Print the summary of a split beside what is published; a difference is one line on stderr."""
    counts = summary(records)
    shown, differ = ({}, list[str]()) if told is None else beside(counts, told, removed)
    print(name)
    for key, value in counts.items():
        print(f"  {key:<26}{value!s:<12}{shown.get(key, '')}".rstrip())
    if told is not None and told.note:
        print(f"  {'note on the published':<26}{told.note}")
    if differ:
        left = f"; {counts['left out']} were left out" if counts["left out"] else ""
        print(f"warning: {name}: {'; '.join(differ)}{left}", file=sys.stderr)


def print_licences(licences: Counter[str]) -> None:
    """Print how many images are under which licence."""
    if licences:
        print("licences")
    for licence, count in sorted(licences.items(), key=lambda item: (-item[1], item[0])):
        print(f"  {count} images: {licence}")


def passing(
    records: Iterable[ImageRecord], licences: Counter[str], sheet: Sheet | None
) -> Iterator[ImageRecord]:
    """The records one by one, while their licences and what the sheet may show of them are noted."""
    for record in records:
        licences[str(record.source.get("licence", "not stated"))] += 1
        if sheet is not None:
            sheet.add([record])
        yield record


def inspect(name: str, data: Path | None, sheet_path: Path | None = None) -> int:
    """Print the summary of a split, or of every split of a data set that is there; InputError if none is.

    Drawn scenes have more to say (shares, templates, twins): their own report, of `val` where none is named.
    """
    dataset, _, split = name.partition("/")
    sheet, licences = None if sheet_path is None else Sheet(), Counter[str]()
    if dataset in SCENES:
        from uniresxx.data.scenes.inspect import report

        print(report(dataset, split or "val"))
        if sheet is not None and sheet_path is not None:
            sheet.add(load_benchmark(f"{dataset}/{split or 'val'}", data))
            save_sheet(sheet, f"{dataset}/{split or 'val'}", sheet_path)
        return 0
    splits = [split] if split else splits_of(dataset, data)
    missing: list[str] = []
    for item in splits:
        try:
            records = load_benchmark(f"{dataset}/{item}", data)
        except InputError as error:
            missing.append(f"{dataset}/{item}: {error}")
            continue
        told = published_of(dataset, item)
        print_split(f"{dataset}/{item}", passing(records, licences, sheet), told, {})
    if len(missing) == len(splits):
        raise InputError(missing[0] if missing else f"{name}: no split found")
    print_licences(licences)
    for line in missing:
        print(f"not read: {line}", file=sys.stderr)
    if sheet is not None and sheet_path is not None:
        save_sheet(sheet, name, sheet_path)
    return 0


def inspect_store(path: Path, split: str | None, images: Path | None, sheet_path: Path | None = None) -> int:
    """Print what a store says of itself, and the summary of one or all of its splits."""
    from uniresxx.cli._data_store import lines_of_store
    from uniresxx.data.store.read import Store

    store, licences = Store.open(path, images), Counter[str]()
    sheet = None if sheet_path is None else Sheet()
    chosen = store.splits if split is None else [split]
    for item in chosen:
        store.rows(item)  # a wrong name is told before anything is printed
    print("\n".join(lines_of_store(store)))
    dataset = store.name.partition("/")[0]
    for item in chosen:
        records, notes = store.records(item), store.meta["splits"][item].get("notes", {})
        told = published_of(dataset, item)
        print_split(f"{path}/{item}", passing(records, licences, sheet), told, notes)
    print_licences(licences)
    if sheet is not None and sheet_path is not None:
        save_sheet(sheet, store.name if split is None else f"{dataset}/{split}", sheet_path)
    return 0


def save_sheet(sheet: Sheet, title: str, path: Path) -> None:
    """Draw the sheet and write it as PNG; OSError where it cannot be written."""
    write_atomic(path, png_bytes(sheet.draw(title)))
    print(f"{path}: the contact sheet")
