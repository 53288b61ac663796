"""`python -m tools.readme_pictures CHECKPOINT`: draws docs/images/overlay.png, the first picture of the README.

A row is a drawn scene of scenes_easy/val; in it a part, an object, several objects and something that is not there
are asked. The scenes are the first in their order on which all four answers are right (IoU of at least LEAST_IOU; the
absent thing rejected), with different objects in each row: the picture shows what the model can do, not how often.
Prints the scenes and sentences. Exit codes: 0 written; 1 too few scenes are answered right; 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from uniresxx.data.catalog import load_benchmark
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic
from uniresxx.imaging import masks
from uniresxx.imaging.legend import Line, draw_lines
from uniresxx.imaging.marking import PALETTE
from uniresxx.imaging.panel import tile
from uniresxx.imaging.sheets import in_columns, stacked
from uniresxx.prediction import Prediction
from uniresxx.predictor import Predictor
from uniresxx.scoring.protocols.base import areas
from uniresxx.types import Expression, Granularity, ImageRecord

TARGET = Path(__file__).resolve().parents[1] / "docs/images/overlay.png"
BENCHMARK, ROWS, LEAST_IOU = "scenes_easy/val", 2, 0.8
TILE, GAP, LETTERS = (262, 262), 18, 16  # pixels; a scene of 128 pixels is shown at twice its size
HEADINGS = {
    Granularity.PART: "a part",
    Granularity.OBJECT: "an object",
    Granularity.MULTI: "several objects",
    Granularity.NONE: "not there",
}

Answered = tuple[Expression, Prediction]


def is_right(expression: Expression, answer: Prediction) -> bool:
    """Whether an answer may be shown: rejected where nothing is meant, else a mask close to the true one."""
    found = None if answer.rejected else answer.rle
    if expression.rle is None or found is None:
        return expression.rle is None and found is None
    return masks.area(found) > 0 and areas(expression.rle, found).iou >= LEAST_IOU


def row_of(record: ImageRecord, answers: Sequence[Prediction]) -> list[Answered] | None:
    """An expression of each kind that was answered right, None where a kind has none."""
    row: list[Answered] = []
    for kind in HEADINGS:
        pairs = zip(record.expressions, answers, strict=True)
        right = [pair for pair in pairs if pair[0].granularity == kind and is_right(*pair)]
        if not right:
            return None
        row.append(right[0])
    return row


def rows_of(
    predictor: Predictor, records: Iterator[ImageRecord]
) -> Iterator[tuple[ImageRecord, list[Answered]]]:
    """The first scenes whose answers are right, with other objects in each."""
    seen: set[str] = set()
    for record in records:
        predictor.set_image(photo_of(record))
        row = row_of(record, predictor.segment([item.text for item in record.expressions]))
        if row is not None and (name := row[1][0].text.split()[-1]) not in seen:
            seen.add(name)
            yield record, row


def drawn(rows: Sequence[tuple[ImageRecord, list[Answered]]]) -> Image.Image:
    """Headings, then a row of cards per scene."""
    cards = [draw_lines([Line(heading)], TILE[1], LETTERS + 4) for heading in HEADINGS.values()]
    for record, row in rows:
        for colour, (expression, answer) in zip(PALETTE, row, strict=False):
            mask = None if answer.rejected else answer.mask
            tail = "not there" if mask is None else f"IoU {areas(expression.rle, answer.rle).iou:.2f}"
            line = draw_lines([Line(expression.text, tail)], TILE[1], LETTERS)
            cards.append(stacked([tile(photo_of(record), mask, colour, TILE), line]))
    return in_columns(cards, len(HEADINGS), GAP, margin=GAP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.readme_pictures", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "checkpoint", help="run or from_pretrained folder of a model that was trained on scenes"
    )
    parser.add_argument("--out", type=Path, default=TARGET, help="a PNG file (default: the README's)")
    words = parser.parse_args(arguments)
    try:
        predictor = Predictor.from_pretrained(words.checkpoint, device="cpu")
        found = rows_of(predictor, iter(load_benchmark(BENCHMARK, None)))
        rows = [row for _, row in zip(range(ROWS), found, strict=False)]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if len(rows) < ROWS:
        print(f"{BENCHMARK}: {len(rows)} scenes are answered right, {ROWS} are needed", file=sys.stderr)
        return 1
    write_atomic(words.out, png_bytes(drawn(rows)))
    for record, row in rows:
        print(f"{record.image_id}: {'; '.join(expression.text for expression, _ in row)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
