"""`uniresxx data verify`: check every photo and mask of a store."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from uniresxx.cli.data import add_photo_folder, parser_of
from uniresxx.cli.data.progress import show_progress
from uniresxx.data.store.read import Store
from uniresxx.data.store.verify import check_store

FRAMES = {"raw": "raw (as stored)", "upright": "upright (orientation applied)"}
VERIFY = """check every photo (is there, decodes, has its size) and every mask of a store, and list what is wrong

Photos with an EXIF orientation are counted, with the frame that width and height of the annotations tell.

Exit codes: 0 all well; 1 something is wrong; 2 no store."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command line to (store, images)."""
    parser = parser_of("verify", VERIFY)
    parser.add_argument("store", type=Path, metavar="STORE")
    add_photo_folder(parser)
    return parser.parse_args(argv)


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
        read = " and ".join(
            f"{count} in the {FRAMES[frame]} frame" for frame, count in sorted(frames.items())
        )
        print(f"EXIF: {frames.total()} photos have an orientation; they and their masks are read {read}")
    print(f"{store.path}: {len(store)} rows checked, {wrong or 'nothing'} wrong")
    return 1 if wrong else 0
