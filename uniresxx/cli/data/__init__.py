"""`uniresxx data COMMAND`: look into data sets, make stores of them and check these

commands:
  inspect NAME[/SPLIT]|STORE[/SPLIT]   counts beside the published ones, licences, a contact sheet
  dump NAME/SPLIT|STORE[/SPLIT]        one JSON line per expression
  prepare NAME[/SPLIT] --out STORE     make a memory-mapped store
  prepare own --photos DIR …           the same of your own photos and annotations
  verify STORE                         check every photo and mask of a store
  propose STORE                        region proposals beside the records, and their recall
  export-scenes SPLIT --out DIR        drawn scenes as PNG files, with their sentences as JSON

NAME is a data set below --data DIR, the root of the native layouts (DIR/refcoco, DIR/grefcoco, DIR/refcocom,
DIR/images/train2014), or LAYOUT:FOLDER below it (refer:, cris:, jsonl:); scenes are drawn and need none. STORE is
the folder of a store. Training and evaluation read annotations with the same readers.
`uniresxx data COMMAND --help` lists the options.

Exit codes: 0 done; 1 the disk failed, or verify found something wrong; 2 wrong input; 75 prepare was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from shutil import get_terminal_size

from uniresxx.cli import OneLineParser, PageFormatter, did_you_mean, wrapped
from uniresxx.errors import InputError

COMMANDS = ("inspect", "dump", "prepare", "verify", "propose", "export-scenes")
DEFAULT_SHARD_MB, MAX_SHARD_MB = 1000, 1_000_000


def main(argv: Sequence[str]) -> int:
    """Run a data command; returns the exit code. Errors are raised, `uniresxx.cli.main` prints them."""
    if argv and argv[0] in ("-h", "--help", "help"):
        print(wrapped(__doc__ or "", get_terminal_size().columns))
        return 0
    if not argv or argv[0] not in COMMANDS:
        wrong = f"unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}" if argv else "no command"
        raise InputError(f"{wrong}; known: {', '.join(COMMANDS)}; see `uniresxx data --help`")
    return import_module(f"uniresxx.cli.data.{argv[0].replace('-', '_')}").main(argv[1:])


def parser_of(command: str, description: str) -> OneLineParser:
    """The parser of a data command."""
    return OneLineParser(
        prog=f"uniresxx data {command}",
        description=description,
        formatter_class=PageFormatter,
    )


def add_data_folder(parser: OneLineParser) -> None:
    """Add --data DIR, and its former name --root."""
    parser.add_argument("--data", type=Path, default=None, metavar="DIR", help="root of the native layouts")
    parser.add_argument("--root", type=Path, default=None, dest="data", help=argparse.SUPPRESS)


def add_store_options(parser: OneLineParser) -> None:
    """Add --out, --pack-images, --shard-mb and --fresh: how a store is written."""
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    parser.add_argument(
        "--pack-images",
        action="store_true",
        help="copy the photos into the store, as tar shards with an index",
    )
    parser.add_argument(
        "--shard-mb",
        type=int,
        default=DEFAULT_SHARD_MB,
        metavar="MB",
        help=f"size of a shard (default: {DEFAULT_SHARD_MB})",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start over; a finished store stays until the new one is complete",
    )


def shard_bytes(words: argparse.Namespace) -> int | None:
    """The size of a shard, None where photos are not packed; InputError where --shard-mb is out of range."""
    if not 1 <= words.shard_mb <= MAX_SHARD_MB:
        raise InputError(f"--shard-mb {words.shard_mb} must be 1 to {MAX_SHARD_MB}")
    return words.shard_mb * 10**6 if words.pack_images else None


def add_photo_folder(parser: OneLineParser) -> None:
    """Add --images DIR."""
    parser.add_argument(
        "--images", type=Path, default=None, metavar="DIR", help="where the photos of the store lie now"
    )
