"""`uniresxx data prepare own`: a store of anybody's own photos and annotations."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniresxx.cli import OneLineParser
from uniresxx.cli.data import add_store_options, parser_of, shard_bytes
from uniresxx.data.guard import OWN_DATA
from uniresxx.data.own.given import look
from uniresxx.data.own.records import OwnData, read_own
from uniresxx.data.readers.files import record_opened
from uniresxx.data.store.preparation import Preparation
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord

NAME = "own"
PREPARE_OWN = """make a store of your own photos and annotations

Annotations: COCO JSON (one file, or one per split), labelme, Label Studio JSON, YOLO segmentation (data.yaml), VIA.
Sentences: a CSV or JSON lines file with photo, mask, sentence and, where you like, split, parent and part; refs as
gRefCOCO has them; else the annotations' own texts; else their names. Without both options, what lies in the
photos' folder is read. docs/own_data.md has examples.
What cannot be used is counted by reason and listed, and the rest is kept.

Exit codes: 0 done; 1 the disk failed; 2 wrong input; 75 stopped."""


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_of("prepare own", PREPARE_OWN)
    made.add_argument(
        "--photos", type=Path, required=True, metavar="DIR", help="the photos lie there or below"
    )
    for option, what in (
        ("--annotations", "annotation files"),
        ("--sentences", "sentences, or splits of photos"),
    ):
        made.add_argument(
            option, type=Path, nargs="+", action="extend", default=[], metavar="FILE", help=what
        )
    made.add_argument("--name", required=True, help="what reports, cards and stores call the data")
    made.add_argument("--licence", required=True, metavar="TEXT", help="of photos and annotations")
    made.add_argument(
        "--frame",
        choices=("raw", "upright"),
        help="in which annotations of photos with an EXIF orientation were made (default: as their sizes tell)",
    )
    made.add_argument("--strict", action="store_true", help="stop where anything would be left out")
    add_store_options(made)
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command line to (photos, annotations, sentences, name, licence, frame, strict) and the store's options."""
    words = parser().parse_args(argv)
    shard_bytes(words)
    if not re.fullmatch(r"[^\W_][\w .+-]{0,99}", words.name):
        raise InputError(
            f"--name {words.name!r} must be letters, digits, blanks and . _ + - only, at most 100"
        )
    if not words.licence.strip():
        raise InputError("--licence is empty: say under which terms you have the data, or 'own'")
    return words


def preparation(words: argparse.Namespace) -> Preparation:
    """What will be written; says what is given, what was found and what is left out. InputError as `read_own`."""
    with record_opened() as opened:
        given = look(words.photos, words.annotations, words.sentences)
        _say(given.lines())
        own = read_own(given, words.photos, words.name, words.licence, words.frame)
    _say([own.photo_line(), *filter(None, [own.frames.line()]), *own.left_out.lines()])
    left_out = own.left_out.counts()
    if words.strict and left_out:
        counts = ", ".join(f"{reason} {count}" for reason, count in left_out.items())
        raise InputError(f"--strict: {counts} would be left out; mend them, or leave out --strict")
    if not own.has_target():
        _say(
            [
                "warning: no target: every expression is of something that is not there; this cannot train a model"
            ]
        )
    return Preparation(
        words.name,
        {split: _loader(records) for split, records in own.records.items()},
        image_root=words.photos,
        inputs={"licence": words.licence, "content": _digest(own)},
        files={path.absolute(): state for path, state in opened.items()},
        about={"guard": {"mode": OWN_DATA}, "own": _about(own, words.licence)},
    )


def _loader(records: list[ImageRecord]) -> Callable[[], tuple[Sequence[ImageRecord], Mapping[str, Any]]]:
    return lambda: (records, {})


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _about(own: OwnData, licence: str) -> dict[str, Any]:
    """What the store's metadata says of its source."""
    found, missing = len(own.photos.found), len(own.photos.missing)
    return {
        "licence": licence,
        "photos": {"found": found, "asked": found + missing},
        "annotated_in": dict(Counter(own.frames.photos.values())),
        "left_out": own.left_out.about(),
    }


def _digest(own: OwnData) -> str:
    """sha256 of everything that is asked: it changes with photos, masks and sentences, wherever these lie."""
    content = hashlib.sha256()
    for split, records in own.records.items():
        for record in records:
            for item in record.expressions:
                counts = None if item.rle is None else item.rle["counts"]
                words = [split, record.image_id, item.expression_id, item.text, str(item.granularity), counts]
                content.update(json.dumps(words).encode())
    return content.hexdigest()
