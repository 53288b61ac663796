"""YOLO segmentation: a text file per photo, and a data.yaml with the names and the folders of the splits.

A line is a class and either four numbers (a box) or a polygon, in fractions of the photo's sides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from uniresxx.data.own.annotations import Annotation, AnnotationFile, PhotoName
from uniresxx.data.own.files import files_below, name_parts
from uniresxx.data.own.shapes import polygons
from uniresxx.data.own.text_files import lines_of, read_text
from uniresxx.data.own.values import number_of, text_of
from uniresxx.errors import InputError

KIND = "YOLO"
YAML = (".yaml", ".yml")
NO_SPLITS = frozenset({"path", "names", "nc", "download", "roboflow", "kpt_shape", "flip_idx", "license"})
BOX_NUMBERS = 4
CLASSES = ("classes.txt", "obj.names")


def load_yaml(path: Path) -> Any:
    """The content of a YAML file. InputError where it cannot be read."""
    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is no readable YAML ({' '.join(str(error).split())[:120]})") from None


def is_yolo(content: Any) -> bool:
    """Whether the content of a YAML file is that of a data.yaml."""
    return isinstance(content, dict) and isinstance(content.get("names"), list | dict)


def read_yolo(path: Path, content: Mapping[str, Any]) -> list[AnnotationFile]:
    """The labels of every split of a data.yaml; of all label files below it where it names no split.

    A split whose folder is not there is noted. Raises InputError where none is.
    """
    names, below = _names(content["names"]), content.get("path")
    files: list[AnnotationFile] = []
    for split, value in content.items():
        places = value if isinstance(value, list) else [value]
        for place in (item for item in places if isinstance(item, str) and str(split) not in NO_SPLITS):
            labels = _labels(path.parent, below if isinstance(below, str) else "", place)
            if labels is None:
                note = f"{path}: {split} names {place!r}, and no folder of photos or labels is there"
                files.append(AnnotationFile(KIND, path, {}, (), str(split), (note,)))
            else:
                files.append(_file(path, labels, names, str(split)))
    if files and all(item.notes for item in files):
        raise InputError(files[0].notes[0])
    if not files:
        labels = [(item, _photo_of(item)) for item in label_files(path.parent)]
        files.append(_file(path, labels, names, None))
    return files


def read_label_files(labels: Sequence[Path]) -> AnnotationFile:
    """The labels in some text files; names come from a classes.txt beside or above them, where there is one."""
    first = labels[0]
    folders = (first.parent, *list(first.parents)[1:3])
    classes = next(
        (folder / name for folder in folders for name in CLASSES if (folder / name).is_file()), None
    )
    names = {} if classes is None else dict(enumerate(line.strip() for line in lines_of(read_text(classes))))
    return _file(first, [(item, _photo_of(item)) for item in labels], names, None)


def label_files(folder: Path) -> list[Path]:
    """The label files below a folder: text files that hold nothing but numbers."""
    return [path for path in files_below(folder) if path.suffix.lower() == ".txt" and is_label_file(path)]


def is_label_file(path: Path) -> bool:
    """Whether a text file begins with a line of five numbers or more."""
    try:
        first = next(filter(None, (line.split() for line in lines_of(read_text(path)))), [])
    except InputError:
        return False
    return len(first) > BOX_NUMBERS and all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", word) for word in first)


def _names(value: Any) -> dict[int, str]:
    if isinstance(value, Mapping):
        return {int(key): text_of(name) for key, name in value.items() if str(key).isdecimal()}
    return {index: text_of(name) for index, name in enumerate(value)} if isinstance(value, list) else {}


def _photo_of(label: Path) -> PhotoName:
    """The photo of a label file: of its name, in the folder `images` beside its folder `labels`."""
    parts = [*label.parts[:-1], label.stem]
    places = [place for place, part in enumerate(parts[:-1]) if part == "labels"]
    if places:
        parts[places[-1]] = "images"
    return PhotoName("/".join(parts), label.parent, without_suffix=True)


def _labels(root: Path, below: str, place: str) -> list[tuple[Path, PhotoName]] | None:
    """The label files of a folder of photos (or of a text file that lists them) as data.yaml names it.

    It may have been written on another computer: its first folders are left out until it is there. None where it
    never is.
    """
    parts, more = name_parts(place), name_parts(below)
    starts = [(*more, *parts), *(parts[start:] for start in range(len(parts)))]
    for start in starts:
        if start and start[-1].endswith(".txt") and os.path.isfile(root.joinpath(*start)):
            return _listed(root.joinpath(*start))
        folder, labels = root.joinpath(*start), root.joinpath(*_beside_images(start))
        if os.path.isdir(labels):
            return [
                (
                    item,
                    PhotoName(
                        (folder / item.relative_to(labels)).with_suffix("").as_posix(), item.parent, True
                    ),
                )
                for item in files_below(labels)
                if item.suffix.lower() == ".txt" and item.name not in CLASSES
            ]
    if any(os.path.isdir(root.joinpath(*start)) for start in starts if start):
        return []  # photos without anything on them
    return None


def _listed(path: Path) -> list[tuple[Path, PhotoName]]:
    """The label files of the photos that a text file lists."""
    found = []
    for line in filter(str.strip, lines_of(read_text(path))):
        label = path.parent.joinpath(*_beside_images(name_parts(line))).with_suffix(".txt")
        found.append((label, PhotoName(line.strip(), path.parent)))
    return found


def _beside_images(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The folders with the last `images` called `labels`; the same where there is none."""
    places = [place for place, part in enumerate(parts) if part == "images"]
    return (*parts[: places[-1]], "labels", *parts[places[-1] + 1 :]) if places else parts


def _file(
    path: Path, labels: Sequence[tuple[Path, PhotoName]], names: Mapping[int, str], split: str | None
) -> AnnotationFile:
    there = [(label, photo) for label, photo in labels if os.path.isfile(label)]
    annotations = [item for label, photo in there for item in _annotations(label, photo, names)]
    return AnnotationFile(KIND, path, {str(label): photo for label, photo in labels}, annotations, split)


def _annotations(label: Path, photo: PhotoName, names: Mapping[int, str]) -> Iterator[Annotation]:
    for number, line in enumerate(lines_of(read_text(label)), 1):
        words = line.split()
        if not words:
            continue
        who, native_id = f"{label}: line {number}", f"{label.stem}:{number}"
        try:
            first, *numbers = (number_of(word) for word in words)
            if not first.is_integer():
                raise InputError(f"the class {words[0]} is no whole number")
        except InputError as error:
            yield Annotation(who, photo, native_id=native_id, problem=str(error))
            continue
        box = len(numbers) == BOX_NUMBERS
        yield Annotation(
            who, photo, None if box else polygons([numbers], per_unit=1.0), box and min(numbers[2:]) > 0,
            in_shares=True, category=names.get(int(first), ""), native_id=native_id,
        )  # fmt: skip
