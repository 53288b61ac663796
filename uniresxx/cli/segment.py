"""`uniresxx segment PHOTO… "expression" ["expression" …] --checkpoint DIR --out DIR`

Photos come first: leading arguments that are existing files or end in .jpg, .jpeg, .png or .webp. All others
are expressions; one that could be taken for a photo goes behind `-e`. Each photo is asked every expression.

Written to OUT per photo NAME.jpg:
  NAME.overlay.png            the photo with coloured masks and a legend
  NAME.mask_01_a_phrase.png   one per expression that is there: 0 outside, 255 inside, at the photo's size
  NAME.json                   texts, rejected, score, p_absent, COCO RLE; written last, so it means "complete"
Files of an earlier run with the same names are replaced, each as a whole.

Exit codes: 0 done; 1 the disk is full or cannot be written; 2 wrong input (the other photos are still done).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uniresxx.cli import OneLineParser, exit_code
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, safe_name, write_atomic
from uniresxx.imaging.inputs import checked
from uniresxx.imaging.overlay import draw_overlay, one_line
from uniresxx.predictor import Predictor, layers_of, mask_of
from uniresxx.types import Prediction

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMAT = 1  # of the JSON


@dataclass(frozen=True, slots=True)
class Job:
    """A checked command line."""

    photos: tuple[str, ...]
    expressions: tuple[str, ...]
    checkpoint: str
    out: Path


def looks_like_photo(word: str) -> bool:
    """The rule of the command line: an existing file, or a name with the suffix of a photo."""
    return word.lower().endswith(PHOTO_SUFFIXES) or os.path.isfile(word)


def parse(argv: Sequence[str]) -> Job:
    """Command line to job; InputError says what is missing."""
    lines = (__doc__ or "").split("\n", 2)
    parser = OneLineParser(
        prog="uniresxx segment",
        usage=lines[0].strip("`"),
        description=lines[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="PHOTO… EXPRESSION…", help="photos, then expressions")
    parser.add_argument("-e", "--expression", action="append", default=[], help="an expression, always")
    parser.add_argument(
        "--checkpoint", required=True, help="run or from_pretrained folder, or hub:OWNER/NAME"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    options = parser.parse_intermixed_args(argv)
    words: list[str] = options.words
    count = next((at for at, word in enumerate(words) if not looks_like_photo(word)), len(words))
    photos, expressions = words[:count], [*words[count:], *options.expression]
    if not photos:
        first = f": {one_line(words[0])!r} is no file" if words else ""
        raise InputError(f"no photo{first}; name existing photos first, then the expressions")
    if not expressions:
        raise InputError(
            "no expression: say what to segment behind the photos; one that is also a file goes behind -e"
        )
    plain = tuple(str(checked(text)) for text in expressions)
    return Job(tuple(photos), plain, options.checkpoint, options.out)


def names_for(photos: Sequence[str], out: Path) -> list[str]:
    """A name per photo: from its file name, made safe, different from each other on any file system.

    A name whose results would overwrite one of the photos is left out.
    """
    sources = {Path(photo).resolve() for photo in photos}
    taken: set[str] = set()
    names = []
    for photo in photos:
        stem, number = safe_name(Path(photo).stem, "photo"), 1
        name = stem
        while name.lower() in taken or any(_is_result_of(name, source, out) for source in sources):
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def _is_result_of(name: str, source: Path, out: Path) -> bool:
    """Would a result of this name be written over this photo?"""
    if source.parent != out.resolve():
        return False
    file, stem = source.name.lower(), name.lower()
    return file in (f"{stem}.overlay.png", f"{stem}.json") or file.startswith(f"{stem}.mask_")


def write_results(
    job: Job, photo_name: str, name: str, photo: np.ndarray, found: Sequence[Prediction], rule: str
) -> list[str]:
    """Write masks, overlay and JSON of one photo; returns the file names. OSError where the disk refuses."""
    entries: list[dict[str, Any]] = []
    files: list[str] = []
    for number, (text, prediction) in enumerate(zip(job.expressions, found, strict=True), start=1):
        mask, mask_file = mask_of(prediction), None
        if mask is not None and not prediction.rejected:
            mask_file = f"{name}.mask_{number:02d}_{safe_name(text)[:40]}.png"
            write_atomic(job.out / mask_file, png_bytes(Image.fromarray(mask.astype(np.uint8) * 255)))
            files.append(mask_file)
        entries.append(_entry(text, prediction, mask_file))
    overlay = f"{name}.overlay.png"
    write_atomic(job.out / overlay, png_bytes(draw_overlay(photo, layers_of(job.expressions, found))))
    height, width = photo.shape[:2]
    record = {
        "format": FORMAT,
        "photo": photo_name.encode("utf-8", "replace").decode(),
        "width": width,
        "height": height,
        "checkpoint": job.checkpoint.encode("utf-8", "replace").decode(),
        "decision_rule": rule,
        "overlay": overlay,
        "expressions": entries,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(job.out / f"{name}.json", text.encode())
    return [*files, overlay, f"{name}.json"]


def _number(value: float | None) -> float | None:
    """JSON knows no NaN and no numpy."""
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


def _entry(text: str, prediction: Prediction, mask_file: str | None) -> dict[str, Any]:
    """One expression of the JSON."""
    entry: dict[str, Any] = {
        "text": text,
        "rejected": bool(prediction.rejected),
        "score": _number(prediction.score),
        "p_absent": _number(prediction.p_absent),
        "mask": None if prediction.rejected else prediction.mask,
        "mask_png": mask_file,
        "answer": prediction.text,
    }
    if len(prediction.segments) > 1:
        entry["segments"] = [
            {"phrase": part.phrase, "mask": part.mask, "score": _number(part.score)}
            for part in prediction.segments
        ]
    return entry


def describe(text: str, prediction: Prediction) -> str:
    """What stdout says of one expression."""
    if prediction.rejected:
        sure = "" if prediction.p_absent is None else f" (absent with probability {prediction.p_absent:.2f})"
        return f"{one_line(text)}: not there{sure}"
    mask = mask_of(prediction)
    score = "" if prediction.score is None else f", score {prediction.score:.2f}"
    return f"{one_line(text)}: {0 if mask is None else int(mask.sum())} pixels{score}"


def _prepare(out: Path) -> None:
    """Make the folder for the results before any work is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out {out}: a file is in the way; name a folder") from None
    if not os.access(out, os.W_OK):
        raise InputError(f"--out {out}: the folder cannot be written; name another")


def main(argv: Sequence[str]) -> int:
    """Do the job. A photo that cannot be used is reported on stderr and does not cost the others theirs."""
    job = parse(argv)
    predictor = Predictor.from_pretrained(job.checkpoint)
    _prepare(job.out)
    code = 0
    for photo_name, name in zip(job.photos, names_for(job.photos, job.out), strict=True):
        try:
            photo = predictor.set_image(photo_name)
        except InputError as error:
            print(f"uniresxx segment: {one_line(str(error))}", file=sys.stderr)
            code = 2
            continue
        found = predictor.segment(job.expressions)
        rule = predictor.decoding.rule or predictor.segmenter.decision_rule
        files = write_results(job, photo_name, name, photo, found, rule)
        print(f"{one_line(photo_name)} ({photo.shape[1]} x {photo.shape[0]})")
        for text, prediction in zip(job.expressions, found, strict=True):
            print(f"  {describe(text, prediction)}")
        print(f"  wrote {len(files)} files: {job.out / name}.*", flush=True)
    return code


def run(argv: list[str]) -> int:
    """`main` with the documented errors turned into one line on stderr and an exit code."""
    return exit_code("uniresxx segment", lambda: main(argv))
