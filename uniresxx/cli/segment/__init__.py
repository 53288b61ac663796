"""`uniresxx segment PHOTO|FOLDER… "expression" ["expression" …] [--checkpoint NAMED] [--out DIR]`

Photos come first: files, folders (all photos below them), patterns such as "photos/*.jpg", and `-` for a list of
photos on standard input. All other words are expressions, and each photo is asked every expression. What looks
like a path is never asked; put `-e` before it to ask it. `--table FILE` is a CSV or JSON lines file with one
photo and one sentence in each row, instead of photos and expressions.

Written to OUT per photo NAME.jpg:
  NAME.overlay.png            the photo with the masks and a legend
  NAME.mask_01_a_phrase.png   one per expression that is there: 0 outside, 255 inside, at the photo's size
  NAME.json                   texts, rejected, score, p_absent, COCO RLE, and the names of these pictures
With another --format, OUT gets the annotation files of that format, and answers/NAME.json.

A photo has one entry, however often it is named: more expressions for it are added to the entry. The same command
again skips what is done, so it continues after a stop. Where the photo or the model changed, results of the same
expressions are replaced. Other results, and files of your own, never are: the new ones are called NAME_2.

Exit codes: 0 done; 1 the disk is full or cannot be written; 2 wrong input (the other photos are still done);
75 stopped by a signal (the same command continues).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from uniresxx.cli import OneLineParser, add_placement_options, parser_for
from uniresxx.errors import InputError

FORMATS = ("json", "coco", "cvat", "fiftyone", "labelstudio", "supervision", "voc-png", "yolo")
EXPORT_OPTIONS = ("labels", "tolerance", "min_area", "holes", "overlap")  # of annotation files alone


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_for("uniresxx segment", __doc__)
    made.add_argument("words", nargs="*", metavar="PHOTO… EXPRESSION…", help="photos, then expressions")
    made.add_argument(
        "-e", "--expression", action="append", default=[],
        help="an expression, also one that looks like a path",
    )  # fmt: skip
    made.add_argument(
        "--table", type=Path, metavar="FILE",
        help="CSV or JSON lines with columns photo, sentence and, if you like, id; paths are relative to the file",
    )  # fmt: skip
    made.add_argument(
        "--checkpoint", metavar="NAMED",
        help="run or from_pretrained folder, hub:OWNER/NAME, or FAMILY:DIR_OR_HUB_ID of a public model (default: the "
        "small model that comes with uniresxx)",
    )  # fmt: skip
    made.add_argument(
        "--out", type=Path, default=Path("runs/segment"), metavar="DIR",
        help="folder for the results (default: runs/segment)",
    )  # fmt: skip
    made.add_argument(
        "--threshold", type=_share, metavar="T",
        help="leave out masks whose score (predicted IoU, 0 to 1) is below T (default: none)",
    )  # fmt: skip
    made.add_argument(
        "--format", choices=FORMATS, default="json", help="what is written to OUT (default: json)"
    )
    _add_export_options(made)
    add_placement_options(made)
    return made


def _add_export_options(made: OneLineParser) -> None:
    made.add_argument(
        "--labels", type=Path, metavar="FILE",
        help="CSV with columns sentence, category and category_id, for annotation files (default: each sentence "
        "is a category)",
    )  # fmt: skip
    made.add_argument(
        "--tolerance", type=float, metavar="PIXELS", help="annotation files: polygons instead of exact masks"
    )
    made.add_argument(
        "--min-area", type=int, metavar="PIXELS", help="annotation files: leave out smaller regions"
    )
    made.add_argument(
        "--holes", choices=("keep", "fill"), help="annotation files: holes in masks (default: keep)"
    )
    made.add_argument(
        "--overlap", choices=("keep", "score", "order"),
        help="annotation files: which category keeps a pixel that several share (default: keep, all of them)",
    )  # fmt: skip


def _share(text: str) -> float:
    """A number from 0 to 1 of the command line."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return number


def main(argv: Sequence[str]) -> int:
    """Check the command line and do the job; returns the exit code."""
    options = parser().parse_intermixed_args(argv)
    given = [name for name in EXPORT_OPTIONS if getattr(options, name) is not None]
    if options.format == "json" and given:
        raise InputError(
            f"--{given[0].replace('_', '-')} is for annotation files: add --format, one of {', '.join(FORMATS[1:])}"
        )
    from uniresxx.cli.segment.job import job_of  # loads numpy, which a wrong option must not wait for
    from uniresxx.cli.segment.work import do

    return do(job_of(options))
