"""`uniresxx data dump`: one JSON line per expression."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from uniresxx.cli import OneLineParser
from uniresxx.cli.data import add_data_folder, add_photo_folder, parser_of
from uniresxx.data.catalog import stream_benchmark
from uniresxx.data.store.folder import store_named
from uniresxx.types import ImageRecord

DUMP = """print one JSON line per expression: expression_id, image, granularity, text, no_target, area, rle

Exit codes: 0 done; 2 wrong input."""


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_of("dump", DUMP)
    made.add_argument("name", metavar="NAME/SPLIT|STORE[/SPLIT]")
    add_data_folder(made)
    add_photo_folder(made)
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command line to (name, data, images)."""
    return parser().parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """`uniresxx data dump NAME/SPLIT|STORE[/SPLIT]`; returns the exit code."""
    words = parse(argv)
    found = store_named(words.name)
    if found is None:
        records: Iterable[ImageRecord] = stream_benchmark(words.name, words.data)
    else:
        from uniresxx.data.store.read import Store

        records = Store.open(found[0], words.images).records(found[1])
    for line in lines_of(records):
        print(json.dumps(line, ensure_ascii=False))
    return 0


def lines_of(records: Iterable[ImageRecord]) -> Iterator[dict[str, Any]]:
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
