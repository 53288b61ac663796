"""`uniresxx segment PHOTO… "expression" ["expression" …] --checkpoint DIR --out DIR`

Photos come first: leading arguments that are existing files or end in .jpg, .jpeg, .png or .webp. All others
are expressions. One that looks like a path is refused; put it behind `-e` to ask it. Each photo is asked every
expression.

Written to OUT per photo NAME.jpg:
  NAME.overlay.png            the photo with coloured masks and a legend
  NAME.mask_01_a_phrase.png   one per expression that is there: 0 outside, 255 inside, at the photo's size
  NAME.json                   texts, rejected, score, p_absent, COCO RLE; written last, so it means "complete"
The same photo and expressions again replace their earlier results: masks that the new JSON does not name are removed.
Results of other expressions or of another photo, and files of your own, are never replaced: the new results get
another NAME (NAME_2).

Exit codes: 0 done; 1 the disk is full or cannot be written; 2 wrong input (the other photos are still done).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uniresxx.cli import add_placement_options, parser_for, placement_words
from uniresxx.errors import InputError
from uniresxx.files import folder_turn, png_bytes, safe_name, to_json, write_atomic
from uniresxx.imaging.inputs import checked
from uniresxx.imaging.overlay import draw_overlay, one_line
from uniresxx.predictor import Predictor, layers_of, mask_of
from uniresxx.types import Prediction

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
OTHER_PHOTO_SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".tif", ".tiff")
FORMAT = 1  # of the JSON


@dataclass(frozen=True, slots=True)
class Job:
    """A checked command line."""

    photos: tuple[str, ...]
    expressions: tuple[str, ...]
    checkpoint: str
    out: Path
    placement: Mapping[str, Any] = field(default_factory=dict)  # options of Predictor.from_pretrained


def looks_like_photo(word: str) -> bool:
    """Whether a leading word is a photo: an existing file, or a name with the suffix of a photo."""
    return word.lower().endswith(PHOTO_SUFFIXES) or os.path.isfile(word)


def looks_like_path(word: str) -> bool:
    """Whether a word was meant as a photo or a folder, so that it is not asked as an expression."""
    if looks_like_photo(word) or word.lower().endswith(OTHER_PHOTO_SUFFIXES) or os.path.isdir(word):
        return True
    if not {"/", os.sep} & set(word):
        return False
    rooted = word.startswith(("/", "./", "../", "~/"))
    return rooted or not re.search(r"\s", word) or bool(re.fullmatch(r"\.[A-Za-z]\w{0,4}", Path(word).suffix))


def parse(argv: Sequence[str]) -> Job:
    """Command line to job; InputError says what is missing."""
    parser = parser_for("uniresxx segment", __doc__)
    parser.add_argument("words", nargs="*", metavar="PHOTO… EXPRESSION…", help="photos, then expressions")
    parser.add_argument(
        "-e",
        "--expression",
        action="append",
        default=[],
        help="an expression, also one that looks like a path",
    )
    parser.add_argument(
        "--checkpoint", required=True, help="run or from_pretrained folder, or hub:OWNER/NAME"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    add_placement_options(parser)
    options = parser.parse_intermixed_args(argv)
    words: list[str] = options.words
    first = next((at for at, word in enumerate(words) if not looks_like_photo(word)), len(words))
    photos, expressions = words[:first], words[first:]
    for word in expressions:
        if looks_like_path(word):
            what = "is a folder" if os.path.isdir(word) else "looks like a path"
            raise InputError(
                f"{one_line(word)!r} {what}, not an expression: name photos ({', '.join(PHOTO_SUFFIXES)}) first; "
                "to ask it as an expression, put -e before it"
            )
    expressions += options.expression
    if not photos:
        wrong = f": {one_line(words[0])!r} is not a file" if words else ""
        raise InputError(f"no photo{wrong}; name existing photos first, then the expressions")
    if not expressions:
        raise InputError("no expression: after the photos, say what to segment")
    plain = tuple(str(checked(text)) for text in expressions)
    return Job(tuple(photos), plain, options.checkpoint, options.out, placement_words(options))


def name_for(job: Job, photo: str, taken: Collection[str]) -> str:
    """A name for the results of a photo: from its file name, made safe.

    A name is passed over if it is among the lower-case names `taken`, or if its results would replace one of the
    photos, other results, or a file that this command did not write.
    """
    sources = {Path(path).resolve() for path in job.photos}
    stem = safe_name(Path(photo).stem, "photo")
    names = (stem if number == 1 else f"{stem}_{number}" for number in count(1))
    return next(name for name in names if name.lower() not in taken and _is_free(job, name, photo, sources))


def _is_free(job: Job, name: str, photo: str, sources: set[Path]) -> bool:
    """Whether results of this name replace nothing but earlier results of the same photo and expressions."""
    if any(source.parent == job.out.resolve() and _is_result(source.name, name) for source in sources):
        return False
    earlier = earlier_results(job, name, photo)
    targets = {f"{name}.json", _overlay_name(name)}
    targets |= {_mask_name(name, number, text) for number, text in enumerate(job.expressions, start=1)}
    return not any(os.path.lexists(job.out / target) for target in targets - earlier)


def _overlay_name(name: str) -> str:
    return f"{name}.overlay.png"


def _mask_name(name: str, number: int, text: str) -> str:
    return f"{name}.mask_{number:02d}_{safe_name(text)[:40]}.png"


def _is_result(file: str, name: str) -> bool:
    """Whether a file name is one that results of this name may have."""
    file, name = file.lower(), name.lower()
    return file in (_overlay_name(name), f"{name}.json") or file.startswith(f"{name}.mask_")


def earlier_results(job: Job, name: str, photo: str) -> set[str]:
    """Names of the files that an earlier call wrote for this photo and these expressions."""
    path = job.out / f"{name}.json"
    try:
        record = json.loads(path.read_bytes())
        source, entries = record.get("source", record["photo"]), record["expressions"]
        files = [record["overlay"], *(entry["mask_png"] for entry in entries)]
        texts = [entry["text"] for entry in entries]
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return set()
    if not isinstance(source, str) or _absolute(source) != _absolute(photo) or texts != [*job.expressions]:
        return set()
    named = {file for file in files if isinstance(file, str) and Path(file).name == file}
    return {path.name} | {file for file in named if _is_result(file, name)}


def _absolute(photo: str) -> str:
    """What tells photos apart: the full path, as text that JSON can hold."""
    return os.path.realpath(photo).encode("utf-8", "replace").decode()


def write_results(
    job: Job, photo_name: str, name: str, photo: np.ndarray, found: Sequence[Prediction], rule: str
) -> list[str]:
    """Write masks, overlay and JSON of one photo, then remove what only its earlier JSON named.

    Returns the file names. Raises OSError where the disk refuses.
    """
    entries: list[dict[str, Any]] = []
    pictures: dict[str, bytes] = {}
    for number, (text, prediction) in enumerate(zip(job.expressions, found, strict=True), start=1):
        mask, mask_file = mask_of(prediction), None
        if mask is not None and not prediction.rejected:
            mask_file = _mask_name(name, number, text)
            pictures[mask_file] = png_bytes(Image.fromarray(mask.astype(np.uint8) * 255))
        entries.append(_entry(text, prediction, mask_file))
    overlay = _overlay_name(name)
    pictures[overlay] = png_bytes(draw_overlay(photo, layers_of(job.expressions, found)))
    height, width = photo.shape[:2]
    record = {
        "format": FORMAT,
        "photo": photo_name.encode("utf-8", "replace").decode(),
        "source": _absolute(photo_name),
        "width": width,
        "height": height,
        "checkpoint": job.checkpoint.encode("utf-8", "replace").decode(),
        "decision_rule": rule,
        "overlay": overlay,
        "expressions": entries,
    }
    earlier = earlier_results(job, name, photo_name)
    for file, data in pictures.items():  # all are ready: little time passes until the JSON names them
        write_atomic(job.out / file, data)
    write_atomic(job.out / f"{name}.json", to_json(record))
    written = [*pictures, f"{name}.json"]
    for file in earlier - set(written):
        (job.out / file).unlink(missing_ok=True)
    return written


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
    """Do the job. A photo that cannot be used is reported on stderr; the others are still done."""
    job = parse(argv)
    predictor = Predictor.from_pretrained(job.checkpoint, **job.placement)
    _prepare(job.out)
    code = 0
    taken: set[str] = set()
    for photo_name in job.photos:
        try:
            photo = predictor.set_image(photo_name)
        except InputError as error:
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            code = 2
            continue
        found = predictor.segment(job.expressions)
        rule = predictor.decoding.rule or predictor.segmenter.decision_rule
        with folder_turn(job.out):  # another call may choose names, too
            name = name_for(job, photo_name, taken)
            taken.add(name.lower())
            files = write_results(job, photo_name, name, photo, found, rule)
        print(f"{one_line(photo_name)} ({photo.shape[1]} x {photo.shape[0]})")
        for text, prediction in zip(job.expressions, found, strict=True):
            print(f"  {describe(text, prediction)}")
        print(f"  wrote {len(files)} files: {job.out / name}.*", flush=True)
    return code
