"""`uniresxx data inspect`: what is in a data set or a store, beside what is published of it."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from uniresxx.cli import OneLineParser
from uniresxx.cli.data import add_data_folder, add_photo_folder, parser_of
from uniresxx.cli.data.counts import beside, summary
from uniresxx.data.catalog import SCENES, load_benchmark, splits_of, stream_benchmark
from uniresxx.data.contact_sheet import Sheet, check_sheet_path, save_sheet
from uniresxx.data.published_counts import PublishedCount, published_of
from uniresxx.data.store.folder import store_named
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord

INSPECT = """print what a data set or a store holds beside the published counts (a difference is a warning)

Images, expressions by granularity, sizes of targets, words, what was left out, licences. --sheet draws photos of
every granularity with their masks.

Exit codes: 0 done; 1 the sheet could not be written; 2 wrong input."""


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_of("inspect", INSPECT)
    made.add_argument("name", metavar="NAME[/SPLIT]|STORE[/SPLIT]")
    add_data_folder(made)
    add_photo_folder(made)
    made.add_argument("--sheet", type=Path, default=None, metavar="PNG", help="write a contact sheet there")
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command line to (name, data, images, sheet)."""
    words = parser().parse_args(argv)
    if words.sheet is not None:
        check_sheet_path(words.sheet)
    return words


def main(argv: Sequence[str]) -> int:
    """`uniresxx data inspect NAME[/SPLIT]|STORE[/SPLIT]`; returns the exit code."""
    words = parse(argv)
    sheet, licences = Sheet() if words.sheet is not None else None, Counter[str]()
    found = store_named(words.name)
    if found is not None:
        title = _store(found[0], found[1], words.images, sheet, licences)
    elif words.name.partition("/")[0] in SCENES:
        title = _scenes(words.name, sheet)
    else:
        title = _data_set(words.name, words.data, sheet, licences)
    if sheet is not None:
        save_sheet(sheet, title, words.sheet)
        print(f"{words.sheet}: the contact sheet")
    return 0


def _store(
    path: Path, split: str | None, images: Path | None, sheet: Sheet | None, licences: Counter[str]
) -> str:
    """Print a store's own report and the summary of one or all of its splits; returns the title of the sheet."""
    from uniresxx.cli.data.prepare import lines_of_store
    from uniresxx.data.store.read import Store

    store = Store.open(path, images)
    chosen = store.splits if split is None else [split]
    for item in chosen:
        store.rows(item)  # a wrong name is refused before anything is printed
    print("\n".join(lines_of_store(store)))
    dataset = store.name.partition("/")[0]
    for item in chosen:
        records, notes = store.records(item), store.meta["splits"][item].get("notes", {})
        known = None if "own" in store.meta else published_of(dataset, item)  # whatever its name
        print_split(
            f"{path}/{item}", passing(records, licences, sheet), known, notes, "own" not in store.meta
        )
    print_licences(licences)
    return store.name if split is None else f"{dataset}/{split}"


def _scenes(name: str, sheet: Sheet | None) -> str:
    """Print the report of drawn scenes (shares, templates, twins), of `val` where no split is named."""
    from uniresxx.data.scenes.inspect import report

    dataset, _, split = name.partition("/")
    split = split or "val"
    print(report(dataset, split))
    if sheet is not None:
        sheet.add(load_benchmark(f"{dataset}/{split}", None))
    return f"{dataset}/{split}"


def _data_set(name: str, data: Path | None, sheet: Sheet | None, licences: Counter[str]) -> str:
    """Print the summary of a split, or of every split that is there; InputError where none is."""
    dataset, _, split = name.partition("/")
    splits = [split] if split else splits_of(dataset, data)
    missing: list[str] = []
    for item in splits:
        try:
            records = stream_benchmark(f"{dataset}/{item}", data)
        except InputError as error:
            missing.append(f"{dataset}/{item}: {error}")
            continue
        print_split(f"{dataset}/{item}", passing(records, licences, sheet), published_of(dataset, item), {})
    if len(missing) == len(splits):
        raise InputError(missing[0] if missing else f"{name}: no split found")
    print_licences(licences)
    for line in missing:
        print(f"not read: {line}", file=sys.stderr)
    return name


def print_split(
    name: str,
    records: Iterable[ImageRecord],
    known: PublishedCount | None,
    removed: Mapping[str, int],
    left_out: bool = True,
) -> None:
    """Print the summary of a split beside what is published; a difference is one line on stderr.

    `left_out`: whether the records say what was left out of them; own data says it of the whole store.
    """
    counts = summary(records)
    if not left_out:
        del counts["left out"]
    shown, differ = ({}, list[str]()) if known is None else beside(counts, known, removed)
    print(name)
    width = max(26, *(len(key) + 1 for key in counts))
    for key, value in counts.items():
        print(f"  {key:<{width}}{value!s:<12}{shown.get(key, '')}".rstrip())
    if known is not None and known.note:
        print(f"  {'note on the published':<26}{known.note}")
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
