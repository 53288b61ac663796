"""`uniresxx data inspect|dump|prepare|verify …`: look into data sets, and make stores of them

inspect NAME|NAME/SPLIT|STORE   counts per split: images, expressions by granularity, sizes of targets, words,
                                what was left out
dump NAME/SPLIT|STORE           one JSON line per expression: expression_id, image, granularity, text, no_target,
                                area, rle
prepare NAME --root DIR --out STORE    make a memory-mapped store; see `uniresxx data prepare NAME --help`
verify STORE                    check every photo and mask of a store; see `uniresxx data verify STORE --help`

DIR is the root of the native layouts (DIR/refcoco, DIR/grefcoco, DIR/refcocom, DIR/images/train2014); scenes
are drawn and need none. STORE is the folder of a store, or one split of it as STORE/SPLIT. All read the
annotations through the same doors as training and evaluation.

Exit codes: 0 done; 1 the output could not be written, or verify found something wrong; 2 wrong input; 75
prepare was stopped and continues with the same command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from uniresxx.cli import OneLineParser, exit_code
from uniresxx.data.benchmarks import SCENES, load_benchmark, splits_of
from uniresxx.errors import InputError
from uniresxx.types import Granularity, ImageRecord


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command line of inspect and dump to (action, name, data, images); InputError says what is wrong."""
    lines = (__doc__ or "").split("\n", 2)
    parser = OneLineParser(
        prog="uniresxx data",
        description=f"{lines[0]}\n{lines[2]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("inspect", "dump"))
    parser.add_argument("name", metavar="NAME[/SPLIT]|STORE[/SPLIT]")
    parser.add_argument("--data", type=Path, default=None, metavar="DIR", help="root of the native layouts")
    parser.add_argument(
        "--images", type=Path, default=None, metavar="DIR", help="where the photos of a store lie now"
    )
    return parser.parse_args(argv)


def lines_of(records: Sequence[ImageRecord]) -> Iterator[dict[str, Any]]:
    """JSON-ready line of every expression, image by image."""
    for record in records:
        for expression in record.expressions:
            yield {
                "expression_id": expression.expression_id,
                "image": record.path or record.image_id,
                "granularity": str(expression.granularity),
                "text": expression.text,
                "no_target": expression.rle is None,
                "area": expression.area,
                "rle": expression.rle,
            }


def summary(records: Sequence[ImageRecord]) -> dict[str, Any]:
    """What `inspect` prints of one split.

    Counts per granularity (and per level where expressions have one, shares in percent), the median share of
    the photo that a target covers in percent, the median number of words, how much was left out, and how many
    photos are missing.
    """
    pairs = [(record, expression) for record in records for expression in record.expressions]
    kinds = Counter(expression.granularity for _, expression in pairs)
    levels = Counter(expression.level for _, expression in pairs if expression.level is not None)
    shares = {
        kind: [100 * e.area / (r.height * r.width) for r, e in pairs if e.granularity is kind]
        for kind in Granularity
        if kind is not Granularity.NONE
    }
    paths = [record.path for record in records if record.path is not None]
    return {
        "images": len(records),
        "expressions": len(pairs),
        **{str(kind): kinds[kind] for kind in Granularity},
        **{
            f"level {level}, %": round(100 * count / levels.total(), 1)
            for level, count in sorted(levels.items())
        },
        **{f"{kind}, median % of photo": round(statistics.median(s), 2) for kind, s in shares.items() if s},
        "words, median": statistics.median([len(e.text.split()) for _, e in pairs]) if pairs else None,
        "left out": sum(len(item.source.get("left_out", ())) for item in records),
        "photos missing": sum(not Path(path).is_file() for path in paths),
    }


def print_summary(name: str, counts: dict[str, Any]) -> None:
    """Print the summary of one split."""
    print(name)
    for key, value in counts.items():
        print(f"  {key:<26}{value}")


def inspect(name: str, data: Path | None) -> int:
    """Print the summary of a split, or of every split of a data set that is there; InputError if none is.

    Drawn scenes have more to say (shares, templates, twins): their own report, of `val` where none is named.
    """
    dataset, _, split = name.partition("/")
    if dataset in SCENES:
        from uniresxx.data.scenes.inspect import report

        print(report(dataset, split or "val"))
        return 0
    names = [name] if split else [f"{dataset}/{item}" for item in splits_of(dataset, data)]
    missing: list[str] = []
    for item in names:
        try:
            counts = summary(load_benchmark(item, data))
        except InputError as error:
            missing.append(f"{item}: {error}")
            continue
        print_summary(item, counts)
    if len(missing) == len(names):
        raise InputError(missing[0] if missing else f"{name}: no split found")
    for line in missing:
        print(f"not read: {line}", file=sys.stderr)
    return 0


def inspect_store(path: Path, split: str | None, images: Path | None) -> int:
    """Print what a store says of itself, and the summary of one or all of its splits."""
    from uniresxx.cli._store import lines_of_store
    from uniresxx.data.store import Store

    store = Store.open(path, images)
    chosen = store.splits if split is None else [split]
    summaries = {item: summary(list(store.records(item))) for item in chosen}
    print("\n".join(lines_of_store(store)))
    for item, counts in summaries.items():
        print_summary(f"{path}/{item}", counts)
    return 0


def dump(records: Sequence[ImageRecord]) -> int:
    """Print one JSON line per expression."""
    for line in lines_of(records):
        print(json.dumps(line, ensure_ascii=False))
    return 0


def run(argv: Sequence[str]) -> int:
    """The command; returns the exit code and prints documented errors as one line on stderr."""
    return exit_code("uniresxx data", lambda: main(argv))


def main(argv: Sequence[str]) -> int:
    """The command with its errors raised; `uniresxx.cli.main` maps them."""
    if argv and argv[0] in ("prepare", "verify"):
        from uniresxx.cli import _store

        return _store.prepare(argv[1:]) if argv[0] == "prepare" else _store.verify(argv[1:])
    words = parse(argv)
    found = _store_named(words.name)
    if found is None:
        if words.action == "inspect":
            return inspect(words.name, words.data)
        return dump(load_benchmark(words.name, words.data))
    path, split = found
    if words.action == "inspect":
        return inspect_store(path, split, words.images)
    from uniresxx.data.store import Store

    return dump(Store.open(path, words.images).records(split))


def _store_named(name: str) -> tuple[Path, str | None] | None:
    """STORE or STORE/SPLIT as (folder, split or None); None for the name of a data set."""
    if not any((path / "meta.json").is_file() for path in (Path(name), Path(name).parent)):
        return None  # without the cost of Arrow
    from uniresxx.data.store import store_named

    return store_named(name)
