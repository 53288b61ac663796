"""`uniresxx data export-scenes`: drawn scenes as PNG files, with their sentences as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from uniresxx.cli import OneLineParser
from uniresxx.cli.data import parser_of
from uniresxx.data.scenes.presets import check_split, preset_of
from uniresxx.data.scenes.record import scene_record
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic, write_json
from uniresxx.types import ImageRecord

FORMAT = 1  # of the JSON
SENTENCES = "sentences.json"
MOST = 10_000
EXPORT = """write drawn scenes as DIR/01.png, DIR/02.png, … and their sentences as DIR/sentences.json

sentences.json lists for each picture its expressions: text, granularity (part, object, multi, none), area and the
true mask as COCO RLE (null where nothing is meant). Files of these names in DIR are replaced.

Exit codes: 0 done; 1 the disk failed; 2 wrong input."""


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_of("export-scenes", EXPORT)
    made.add_argument(
        "name", metavar="SPLIT", help="scenes/SPLIT or scenes_easy/SPLIT, such as scenes_easy/test"
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    made.add_argument("--count", type=int, default=4, metavar="N", help="how many pictures (default: 4)")
    made.add_argument(
        "--first",
        type=int,
        default=0,
        metavar="N",
        help="number of the first scene of the split (default: 0)",
    )
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command line to (preset, split, out, count, first)."""
    words = parser().parse_args(argv)
    words.preset, _, words.split = words.name.partition("/")
    check_split(preset_of(words.preset), words.split)
    if not 1 <= words.count <= MOST:
        raise InputError(f"--count {words.count} must be 1 to {MOST}")
    if words.first < 0:
        raise InputError(f"--first {words.first} must be 0 or more")
    return words


def main(argv: Sequence[str]) -> int:
    """`uniresxx data export-scenes SPLIT --out DIR`; returns the exit code."""
    words = parse(argv)
    try:
        words.out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out {words.out}: a file is in the way; name a folder") from None
    digits = max(2, len(str(words.count)))
    pictures = []
    for number in range(words.count):
        record = scene_record(words.preset, words.split, words.first + number)
        name = f"{number + 1:0{digits}d}.png"
        assert record.pixels is not None
        write_atomic(words.out / name, png_bytes(Image.fromarray(record.pixels)))
        pictures.append(described(record, name))
    write_json(words.out / SENTENCES, {"format": FORMAT, "split": words.name, "pictures": pictures})
    sentences = sum(len(picture["expressions"]) for picture in pictures)
    print(
        f"wrote {words.count} pictures and {sentences} sentences: {words.out}/*.png, {words.out / SENTENCES}"
    )
    return 0


def described(record: ImageRecord, name: str) -> dict[str, Any]:
    """The JSON of one picture."""
    return {
        "picture": name,
        "image_id": record.image_id,
        "height": record.height,
        "width": record.width,
        "expressions": [
            {
                "expression_id": expression.expression_id,
                "text": expression.text,
                "granularity": expression.granularity.value,
                "area": expression.area,
                "mask": expression.rle,
            }
            for expression in record.expressions
        ],
    }
