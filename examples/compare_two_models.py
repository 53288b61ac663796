r"""Two models on the same photos and sentences: how far their masks agree, and where they do not, as pictures.

python -m examples.compare_two_models runs/demo runs/mine \
    --photos a.jpg b.jpg --sentences "the red house" "the door" --out compared

For scores against a truth, use `python -m eval run` for each and `python -m eval compare`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from uniresxx import InputError, Prediction, Predictor
from uniresxx.imaging.overlay import draw_overlay
from uniresxx.predictor import layers_of

SAME = 0.9  # IoU of two masks that show the same thing


def agreement(one: Prediction, other: Prediction) -> float:
    """IoU of two answers; two that say "not there" agree."""
    if one.mask is None or other.mask is None:
        return float(one.mask is None and other.mask is None)
    union = (one.mask | other.mask).sum()
    return float((one.mask & other.mask).sum() / union) if union else 1.0


def side_by_side(photo: np.ndarray, sentence: str, answers: Sequence[Prediction]) -> Image.Image:
    """The photo with one answer on the left and the other on the right."""
    panels = [draw_overlay(photo, layers_of([sentence], [answer])) for answer in answers]
    sheet = Image.new(
        "RGB", (sum(panel.width for panel in panels), max(panel.height for panel in panels)), "white"
    )
    for place, panel in enumerate(panels):
        sheet.paste(panel, (sum(before.width for before in panels[:place]), 0))
    return sheet


def compare(
    models: Sequence[Predictor], photos: Sequence[str], sentences: Sequence[str], out: Path
) -> list[tuple[str, str, float]]:
    """Photo, sentence and IoU of every pair of answers; a picture of each pair that does not agree."""
    rows = []
    for number, path in enumerate(photos, 1):
        photo, _ = (model.set_image(path) for model in models)
        answers = zip(*(model.segment(sentences) for model in models), strict=True)
        for place, (sentence, pair) in enumerate(zip(sentences, answers, strict=True), 1):
            rows.append((path, sentence, agreement(*pair)))
            if rows[-1][2] < SAME:
                side_by_side(photo, sentence, pair).save(out / f"photo{number:04d}_sentence{place:02d}.png")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Write agreement.csv and the pictures, and print how many answers agree."""
    parser = argparse.ArgumentParser("python -m examples.compare_two_models", description=__doc__)
    parser.add_argument("checkpoints", nargs=2, metavar="CHECKPOINT")
    parser.add_argument("--photos", nargs="+", required=True)
    parser.add_argument("--sentences", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        models = [Predictor.from_pretrained(path) for path in options.checkpoints]
        options.out.mkdir(parents=True, exist_ok=True)
        rows = compare(models, options.photos, options.sentences, options.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with (options.out / "agreement.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("photo", "sentence", "iou"), *rows])
    same = sum(iou >= SAME for _, _, iou in rows)
    print(
        f"{same} of {len(rows)} answers agree (IoU {SAME} or more); the others are pictures in {options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
