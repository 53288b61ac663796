"""A folder of photos and some sentences to a COCO file.

python -m examples.folder_to_coco photos "the red house" "the door of the red house" --checkpoint runs/demo --out coco
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from uniresxx import InputError, Predictor
from uniresxx.annotations import AnnotatedImage, AnnotatedMask, Options, provenance_of, write
from uniresxx.imaging.formats import SUFFIXES


def annotate(predictor: Predictor, photo: Path, sentences: Sequence[str]) -> AnnotatedImage:
    """A photo with the model's answer to every sentence; each sentence is a category of its own."""
    height, width = predictor.set_image(photo).shape[:2]
    answers = zip(sentences, predictor.segment(sentences), strict=True)
    return AnnotatedImage(str(photo), height, width, tuple(AnnotatedMask.of(*answer) for answer in answers))


def main(argv: Sequence[str] | None = None) -> int:
    """Ask every sentence of every photo and write one file."""
    parser = argparse.ArgumentParser("python -m examples.folder_to_coco", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="0: exact masks; else polygons, in pixels"
    )
    options = parser.parse_args(argv)
    photos = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    try:
        predictor = Predictor.from_pretrained(options.checkpoint)
        images = [annotate(predictor, photo, options.sentences) for photo in photos]
        made_by = provenance_of(options.checkpoint)
        files = write("coco", images, options.out, provenance=made_by, options=Options(options.tolerance))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    there = sum(mask.rle is not None for image in images for mask in image.masks)
    print(f"{len(images)} photos, {there} masks: {files[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
