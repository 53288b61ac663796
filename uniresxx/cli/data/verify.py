"""`uniresxx data verify`: check every photo and mask of a store."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from uniresxx.cli import OneLineParser
from uniresxx.cli.data import add_photo_folder, parser_of
from uniresxx.cli.data.progress import show_progress
from uniresxx.data.store.read import Store
from uniresxx.data.store.verify import check_store

VERIFY = """check every photo (is there, decodes, has its size) and every mask of a store, and list what is wrong

Photos with an EXIF orientation are counted, with the frame that width and height of the annotations tell: upright
(orientation applied) or raw (as stored).

Exit codes: 0 all well; 1 something is wrong; 2 no store."""


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_of("verify", VERIFY)
    made.add_argument("store", type=Path, metavar="STORE")
    add_photo_folder(made)
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command line to (store, images)."""
    return parser().parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """`uniresxx data verify STORE`; returns the exit code."""
    words = parse(argv)
    store, wrong, frames = Store.open(words.store, words.images), 0, Counter[str]()
    for done, lines in check_store(store, frames=frames):
        for line in lines:
            print(line)
        wrong += len(lines)
        show_progress("verify", done, len(store))
    if frames:
        made = store.meta["own"]["annotated_in"] if "own" in store.meta else frames
        print(
            f"EXIF: photos with an orientation: {frames.total()}; annotated: {_in_frames(made)}; "
            f"shown and masked: {_in_frames(frames)}"
        )
    print(f"{store.path}: {len(store)} rows checked, {wrong or 'nothing'} wrong")
    return 1 if wrong else 0


def _in_frames(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in the {frame} frame" for frame, count in sorted(counts.items()))
