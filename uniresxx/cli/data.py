"""`uniresxx data inspect|dump|prepare|verify …`: look into data sets, and make stores of them

inspect NAME|NAME/SPLIT|STORE   counts per split beside the published ones (a difference is a warning):
                                images, expressions by granularity, sizes of targets, words, what was left
                                out, licences; --sheet PNG draws photos of every granularity with their masks
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from uniresxx.cli import OneLineParser, exit_code
from uniresxx.data.catalog import load_benchmark
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command line of inspect and dump to (action, name, data, images, sheet); InputError says what is wrong."""
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
    parser.add_argument(
        "--sheet", type=Path, default=None, metavar="PNG", help="inspect: write a contact sheet there"
    )
    words = parser.parse_args(argv)
    if words.sheet is not None and words.action != "inspect":
        raise InputError(f"--sheet is of inspect, not of {words.action}")
    if words.sheet is not None and (not words.sheet.parent.is_dir() or words.sheet.is_dir()):
        raise InputError(f"{words.sheet}: --sheet must name a PNG file in a folder that is there")
    return words


def lines_of(records: Sequence[ImageRecord]) -> Iterator[dict[str, Any]]:
    """JSON-ready line of every expression, image by image."""
    for record in records:
        for expression in record.expressions:
            yield {
                "expression_id": expression.expression_id,
                "image": record.path or (record.inside.name if record.inside else record.image_id),
                "granularity": str(expression.granularity),
                "text": expression.text,
                "no_target": expression.rle is None,
                "area": expression.area,
                "rle": expression.rle,
            }


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
        from uniresxx.cli import _data_store as _store

        return _store.prepare(argv[1:]) if argv[0] == "prepare" else _store.verify(argv[1:])
    words = parse(argv)
    found = _store_named(words.name)
    if found is None:
        if words.action == "inspect":
            from uniresxx.cli._data_inspect import inspect

            return inspect(words.name, words.data, words.sheet)
        return dump(load_benchmark(words.name, words.data))
    path, split = found
    if words.action == "inspect":
        from uniresxx.cli._data_inspect import inspect_store

        return inspect_store(path, split, words.images, words.sheet)
    from uniresxx.data.store.read import Store

    return dump(Store.open(path, words.images).records(split))


def _store_named(name: str) -> tuple[Path, str | None] | None:
    """STORE or STORE/SPLIT as (folder, split or None); None for the name of a data set."""
    if not any((path / "meta.json").is_file() for path in (Path(name), Path(name).parent)):
        return None  # without the cost of Arrow
    from uniresxx.data.store.read import store_named

    return store_named(name)
