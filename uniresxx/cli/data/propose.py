"""`uniresxx data propose`: region proposals of a store's photos, and how many of its targets they find."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from uniresxx.cli import OneLineParser
from uniresxx.cli.data import add_photo_folder, parser_of
from uniresxx.cli.data.progress import show_progress
from uniresxx.data.store.read import Store

PROPOSE = """propose regions on every photo of a store, keep them beside its records, and print their recall

They are written to STORE/proposals-PROPOSER.jsonl with what proposed them; the recall is that of the boxes of the
store's object and part expressions at IoU 0.5. `learned` needs a run, `owlv2` the folder of OWLv2 (--checkpoint).

Exit codes: 0 done; 1 the disk failed; 2 wrong input."""


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_of("propose", PROPOSE)
    made.add_argument("store", type=Path, metavar="STORE")
    made.add_argument("--proposer", choices=("learned", "owlv2", "classical", "grid"), default="classical")
    made.add_argument("--checkpoint", default=None, metavar="NAMED", help="for learned and owlv2")
    add_photo_folder(made)
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command line to (store, proposer, checkpoint, images)."""
    return parser().parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """`uniresxx data propose STORE`; returns the exit code."""
    words = parse(argv)
    store = Store.open(words.store, words.images)
    from uniresxx.evaluation.propose import proposer_named, write_proposals  # imports scipy

    proposer, identity = proposer_named(words.proposer, words.checkpoint)
    path, recall = write_proposals(store, proposer, identity, show_progress)
    shown = ", ".join(
        f"{kind} {'-' if share is None else f'{share:.1f} %'}" for kind, share in recall.items()
    )
    print(f"{path}: {len(store)} photos, recall at IoU 0.5: {shown}")
    return 0
