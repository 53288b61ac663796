"""`python -m data_engine vocabulary`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from data_engine.vocabulary import SHIPPED, load_vocabulary
from uniresxx.cli import OneLineParser, PageFormatter
from uniresxx.data.catalog import stream_benchmark
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord

VOCABULARY = """a part vocabulary beside the hierarchy of a set with parts that you have

Lists the parts that the other set has and the vocabulary lacks, and the other way round, for categories of both:

  vocabulary coco --against paco/train --data DIR              PACO-LVIS
  vocabulary coco --against partimagenetpp/train --data DIR    PartImageNet++

Exit codes: 0 done; 2 wrong input."""


def parser() -> OneLineParser:
    """The parser of the command."""
    made = OneLineParser(
        prog="python -m data_engine vocabulary", description=VOCABULARY, formatter_class=PageFormatter
    )
    made.add_argument("name", metavar="VOCABULARY", help=f"{', '.join(SHIPPED)}, or a JSON file")
    made.add_argument("--against", required=True, metavar="NAME/SPLIT|STORE", help="a set with parts")
    made.add_argument("--data", type=Path, metavar="DIR", help="root of the native layouts")
    return made


def main(argv: Sequence[str]) -> int:
    """Print the comparison; returns the exit code."""
    words = parser().parse_args(argv)
    vocabulary = load_vocabulary(words.name)
    named = pairs_of(stream_benchmark(words.against, words.data))
    if not named:
        raise InputError(f"{words.against}: says of no part to which category it belongs")
    shared = {category for category, _ in named} & vocabulary.categories.keys()
    if not shared:
        raise InputError(f"{words.against}: has no category of {words.name}")
    found = vocabulary.comparison(named)
    ours = sum(len(vocabulary.parts_of(category)) for category in shared)
    print(f"{len(shared)} categories of both, with {ours} parts in {words.name}")
    print(f"{len(found['lacking'])} parts only in {words.against}:", *found["lacking"], sep="\n  ")
    print(f"{len(found['more'])} parts only in {words.name}:", *found["more"], sep="\n  ")
    return 0


def pairs_of(records: Iterable[ImageRecord]) -> set[tuple[str, str]]:
    """Category and part of every expression about a part."""
    sources = (item.source for record in records for item in record.expressions)
    return {
        (source["category"], source["part"]) for source in sources if {"category", "part"} <= source.keys()
    }
