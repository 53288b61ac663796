"""Files of an export: written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from uniresxx.annotations.records import AnnotatedImage, Export, Photo, rounded
from uniresxx.errors import InputError
from uniresxx.files import write_atomic, write_json
from uniresxx.imaging import masks

PROVENANCE = "provenance.json"


def write_compact(path: Path, value: Any) -> Path:
    """Write JSON on one line: run lengths are lists of many numbers."""
    write_text(path, json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text."""
    write_atomic(path, text.encode())
    return path


def xml_text(text: str) -> str:
    """The text without the control characters that XML cannot hold."""
    return "".join(letter if letter.isprintable() or letter in "\t\n" else " " for letter in text)


class PhotoFiles:
    """The files of a format that has one per photo; makes their folders."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix
        self._photos: dict[str, str] = {}

    def path(self, photo: Photo) -> Path:
        """The file of a photo; InputError where another photo has it."""
        path = self.folder / f"{photo.stem}{self.suffix}"
        other = self._photos.setdefault(str(path).lower(), photo.name)
        if other != photo.name:
            raise InputError(
                f"{photo.name} and {other} would share the file {path.name}; rename one of the photos"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def earlier_files(out: Path) -> set[Path]:
    """The files of the export that lies in `out`, as its provenance.json lists them; none where there is no list."""
    try:
        listed = json.loads((out / PROVENANCE).read_bytes())["files"]
        names = [PurePosixPath(name) for name in listed]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return set()
    return {out / name for name in names if not name.is_absolute() and ".." not in name.parts}


def write_provenance(
    out: Path,
    files: Sequence[Path],
    images: Sequence[AnnotatedImage],
    names: Sequence[str],
    numbers: Mapping[str, int],
    left: Sequence[Mapping[int, int]],
    export: Export,
) -> Path:
    """Write provenance.json: the model, the options, and every answer, those that gave no mask too.

    Args:
        out: the folder.
        files: all others of the export.
        images: as they were given.
        names: their names in the files.
        numbers: of the categories.
        left: for each photo, how many pixels are left of each mask, by its place.
        export: model, options and classes.
    """
    photos = [
        {
            "name": name,
            "source": image.path,
            "answers": [
                {
                    "sentence": mask.sentence,
                    "category": mask.category,
                    "category_id": numbers[mask.category],
                    "score": rounded(mask.score),
                    "p_absent": rounded(mask.p_absent),
                    "pixels": 0 if mask.rle is None else masks.area(mask.rle),
                    "pixels_written": pixels.get(place, 0),
                    **({} if mask.author == "model" else {"author": mask.author}),
                }
                for place, mask in enumerate(image.masks)
            ],
        }
        for image, name, pixels in zip(images, names, left, strict=True)
    ]
    listed = [path.relative_to(out).as_posix() for path in files]
    write_json(out / PROVENANCE, export.describe() | {"files": listed, "photos": photos})
    return out / PROVENANCE
