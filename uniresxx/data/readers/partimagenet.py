"""PartImageNet and PartImageNet++: masks of parts on photos of ImageNet, without a link to an object.

PartImageNet: one COCO-like json per split, categories such as `Quadruped Head` and `Car Tier` (a tire), ids from 0,
polygons of 2 or 4 numbers among the others. PartImageNet++: `json/<wnid>.json` per class of ImageNet, and
`including/<wnid>.txt` with lines `inner:outer`, which say what part lies in which. `file_name` has no folder: the
photo lies in the folder of its class, the name's start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uniresxx.data.readers.collector import Collector, Photo
from uniresxx.data.readers.fields import shown
from uniresxx.data.readers.files import load_json, note_opened
from uniresxx.data.readers.folders import PhotoFinder, data_file, data_folders
from uniresxx.data.readers.instances import NOT_STATED, Instances
from uniresxx.data.readers.part_names import category_noun, part_noun
from uniresxx.data.readers.part_objects import PartImage, PartObject, records_of_parts, united, whole_parts
from uniresxx.errors import InputError, NotThereError
from uniresxx.types import RLE, ImageRecord

FOLDERS, SPLITS = ("partimagenet",), ("train", "val", "test")
PLUS_FOLDERS = ("partimagenetpp", "partimagenet++")
IMAGENET_FOLDERS = ("imagenet/train", "imagenet", "ILSVRC/Data/CLS-LOC/train", "images")
LICENCE = "masks: research only (PartImageNet)"
PLUS_LICENCE = "masks MIT (PartImageNet++)"
_WNID = re.compile(r"n\d{8}")


def read_partimagenet(root: Path, split: str) -> list[ImageRecord]:
    """Phrases of one split, ids `partimagenet/<split>/<photo>:<category>:<part>`.

    The set kept photos that show one object (its paper), so "foot of the quadruped" means all masks of that part.
    Raises InputError naming file, record and field.
    """
    path = data_file(
        root, FOLDERS, (f"annotations/{split}.json", f"{split}.json", f"partimagenet_{split}.json")
    )
    collector = Collector(str(path), root, f"partimagenet/{split}", LICENCE)
    below = [f"{folder.relative_to(root)}" for folder in data_folders(root, FOLDERS)]
    own = [name for item in below for name in (f"{item}/images/{split}", f"{item}/images", f"{item}/{split}")]
    finder = PhotoFinder(root, (*own, *IMAGENET_FOLDERS))
    return records_of_parts(
        collector, _images(Instances.load(path), finder, collector, None, one_object=True)
    )


def read_partimagenet_plus(root: Path, split: str) -> list[ImageRecord]:
    """Phrases of all classes, ids `partimagenetpp/train/<photo>:<class>:<part>`; there is no other split.

    A photo may show several objects of its class: where a part has several masks, "all wheels of the cars" means
    them all. `inside` in the source of an expression is the part that its part lies in. Classes are named by
    `category_name.json`. Raises InputError naming file, record and field.
    """
    folders = data_folders(root, PLUS_FOLDERS)
    paths = [path for folder in folders for path in sorted((folder / "json").glob("n*.json"))]
    if split != "train" or not paths:
        raise NotThereError(
            f"{root}: holds no {PLUS_FOLDERS[0]}/json/<class>.json, or {split!r} is not train"
        )
    names = _class_names(folders)
    collector = Collector(str(paths[0].parent), root, f"partimagenetpp/{split}", PLUS_LICENCE)
    below = [f"{folder.relative_to(root)}" for folder in folders]
    finder = PhotoFinder(root, (*(f"{item}/images" for item in below), *below, *IMAGENET_FOLDERS))

    def images() -> Iterator[PartImage]:
        for path in paths:
            if path.stem not in names:
                collector.leave_out(f"{path}: category_name.json has no name for its class")
                continue
            inside = _including(path.parent.parent / "including" / f"{path.stem}.txt")
            noun = (names[path.stem], inside)
            yield from _images(Instances.load(path), finder, collector, noun, one_object=False)

    return records_of_parts(collector, images())


def _images(
    instances: Instances,
    finder: PhotoFinder,
    report: Collector,
    noun: tuple[str, Mapping[str, str]] | None,
    one_object: bool,
) -> Iterator[PartImage]:
    """The photos of a file; `noun` is (class, part -> the part it lies in) where categories are parts alone."""
    for image_id, rows in instances.rows_of_image.items():
        who = f"{instances.path}: image {image_id}"
        file_name, height, width = instances.image(image_id, who)
        wnid = _WNID.match(Path(file_name).name)
        if wnid and "/" not in file_name:
            file_name = f"{wnid.group()}/{file_name}"
        photo = Photo(Path(file_name).stem, finder.path(file_name, who), (height, width), NOT_STATED)
        named: list[tuple[str, str, RLE | None]] = []
        for row in rows:
            name = f"{instances.path}: ann {shown(row['id'])}"
            category_and_part = _names_of(instances.category(row, name), noun)
            named.append((*category_and_part, report.drawn(row, photo.size, name)))
        inside = {} if noun is None else noun[1]
        objects: list[PartObject] = []
        for category, found in whole_parts(named).items():
            objects += _objects(category, found, photo, inside, one_object)
        yield PartImage(photo, tuple(objects))


def _names_of(category: str, noun: tuple[str, Mapping[str, str]] | None) -> tuple[str, str]:
    """(category, part): `Quadruped Head` is the head of a quadruped; a name of PartImageNet++ is a part's."""
    if noun is not None:
        return noun[0], part_noun(category)
    first, _, rest = category.partition(" ")
    return category_noun(first), part_noun(rest or first)


def _objects(
    category: str, pieces: list[tuple[str, RLE]], photo: Photo, inside: Mapping[str, str], one_object: bool
) -> Iterator[PartObject]:
    """All masks as those of one object, or the first masks of each part as one, the second ones as another, …"""
    seen: dict[str, int] = {}
    layers: dict[int, list[tuple[str, RLE]]] = {}
    for part, rle in pieces:
        seen[part] = seen.get(part, -1) + 1
        layers.setdefault(0 if one_object else seen[part], []).append((part, rle))
    lying = {part: inside[part] for part in seen if part in inside}
    for found in layers.values():
        yield PartObject(category, None, united(found, photo.size), {"inside": lying} if lying else {})


def _class_names(folders: list[Path]) -> dict[str, str]:
    """wnid -> noun of `category_name.json`: text, a list of synonyms, or an object with `name` or `category`."""
    found: dict[str, str] = {}
    for folder in folders:
        path = folder / "category_name.json"
        content = load_json(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: must hold an object of class names, not {shown(content)}")
        for wnid, value in content.items():
            value = value.get("name", value.get("category")) if isinstance(value, dict) else value
            value = value[0] if isinstance(value, list) and value else value
            if not isinstance(value, str):
                raise InputError(f"{path}: {shown(wnid)} must have a name, not {shown(value)}")
            found[wnid] = category_noun(value.partition(",")[0])
    return found


def _including(path: Path) -> dict[str, str]:
    """Part -> the part it lies in; empty where there is no such file. InputError for a line of another form."""
    if not path.is_file():
        return {}
    note_opened(path)
    found: dict[str, str] = {}
    lines: list[Any] = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        inner, colon, outer = line.partition(":")
        if line.strip() and not (colon and inner.strip() and outer.strip()):
            raise InputError(f"{path}: line {number} must be inner:outer, not {shown(line)}")
        if colon:
            found[part_noun(inner)] = part_noun(outer)
    return found
