"""`python -m data_engine review`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_engine.review import (
    corrected,
    counts_of,
    export_sample,
    lines_of,
    precision_by_level,
    read_verdicts,
)
from data_engine.steps.base import digest
from uniresxx.cli import OneLineParser, PageFormatter
from uniresxx.data.guard import OWN_DATA
from uniresxx.data.store.preparation import Preparation
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import write_store
from uniresxx.errors import InputError
from uniresxx.evaluation.files import PREDICTIONS
from uniresxx.types import ImageRecord

REVIEW = """a sample of a store for people to correct, and what their verdicts say of the store

  review export STORE --out DIR    DIR/predictions.jsonl for the correction page: python -m chat_demo --review
                                   DIR/predictions.jsonl --out PAGE. Without the page: DIR/sample.jsonl and a picture
                                   of each expression; fill in `verdict` in each line: "accept", "fix" (with a better
                                   `text` or `mask`), or "reject"
  review read PAGE|DIR --store STORE
                                   the precision by granularity with its 95 % interval; --out NEW writes a store
                                   without what was rejected and with what was fixed

Exit codes: 0 done; 1 the disk failed; 2 wrong input."""


def parser() -> OneLineParser:
    """The parser of the command."""
    made = OneLineParser(
        prog="python -m data_engine review", description=REVIEW, formatter_class=PageFormatter
    )
    made.add_argument("action", choices=("export", "read"))
    made.add_argument("place", type=Path, metavar="STORE|PAGE|DIR")
    made.add_argument("--store", type=Path, metavar="STORE", help="read: the store that the sample is of")
    made.add_argument(
        "--out", type=Path, metavar="DIR|STORE", help="export: the sample; read: a corrected store"
    )
    made.add_argument(
        "--per-level", type=int, default=50, metavar="N", help="export: of each granularity (default: 50)"
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="export: another sample")
    return made


def main(argv: Sequence[str]) -> int:
    """Export or read a sample; returns the exit code."""
    words = parser().parse_args(argv)
    if words.action == "export":
        return _export(words)
    if words.store is None:
        raise InputError("review read needs --store, the store that the sample is of")
    store = Store.open(words.store)
    verdicts = read_verdicts(words.place, store)
    print("\n".join(lines_of(precision_by_level(verdicts, store), counts_of(store))))
    if words.out is not None:
        made = _corrected_store(store, verdicts, words.out)
        print(f"{made.path}: {sum(counts_of(made).values())} expressions")
    return 0


def _export(words: argparse.Namespace) -> int:
    if words.out is None or words.per_level < 1:
        raise InputError("review export needs --out DIR, and --per-level must be 1 or more")
    count = export_sample(Store.open(words.place), words.out, words.per_level, words.seed)
    print(f"{words.out}: {count} expressions; to review them:")
    print(f"python -m chat_demo --review {words.out / PREDICTIONS} --out {words.out / 'page'}")
    return 0


def _corrected_store(store: Store, verdicts: Mapping[str, Mapping[str, Any]], out: Path) -> Store:
    """The store without what was rejected, in another folder."""
    if out.resolve() == store.path.resolve():
        raise InputError(f"--out {out}: is the store itself; name another folder")

    def load() -> tuple[Iterable[ImageRecord], Mapping[str, Any]]:
        return corrected(verdicts, store), {}

    work = Preparation(
        store.name,
        {"train": load},
        image_root=store.image_root,
        inputs={"store": store.fingerprint, "verdicts": digest(verdicts)},
        about={"guard": {"mode": OWN_DATA}, "reviewed": len(verdicts)},
    )
    return write_store(out, work)
