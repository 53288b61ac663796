"""Sets with one label per pixel: ADE20K (SceneParse, ADEChallengeData2016) and COCO-Stuff.

A label map does not say how many things of a class a photo shows, so "all cars" means every pixel of the class;
stuff is one region ("the sky"). Class names are read from the files that come with the sets. (Folders as in LISA's
data loader.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from uniresxx.data.readers.collector import Collector, Photo, Target
from uniresxx.data.readers.fields import Sentence, photo_id, shown
from uniresxx.data.readers.files import note_opened
from uniresxx.data.readers.folders import COCO_FOLDERS, PhotoFinder, data_folders
from uniresxx.data.readers.instances import NOT_STATED
from uniresxx.data.readers.part_names import category_noun, plural
from uniresxx.errors import InputError, NotThereError
from uniresxx.imaging import decode as images
from uniresxx.imaging import masks
from uniresxx.types import Granularity, ImageRecord

ADE_FOLDERS = ("ade20k", "ADEChallengeData2016")
ADE_SPLITS = {"train": "training", "val": "validation"}
ADE_LICENCE = "BSD 3-Clause (ADE20K annotations)"
STUFF_FOLDERS = ("cocostuff", "coco_stuff", "stuffthingmaps")
STUFF_SPLITS = {"train": "train2017", "val": "val2017"}
STUFF_LICENCE = "labels CC BY 4.0 (COCO-Stuff)"
FIRST_STUFF = 91  # labels 0 to 90 are COCO's things, in the order of their ids from 1 to 91
UNLABELLED = 255
Classes = Mapping[int, tuple[str, bool]]  # label -> (noun, whether it is stuff)


def read_ade20k(root: Path, split: str) -> Iterator[ImageRecord]:
    """Records of one split, ids `ade20k/<split>/<photo>:<class>`, one by one.

    `annotations/<training|validation>/*.png` holds 0 for other and the number of one of 150 classes; their names, and
    which are stuff, are in `objectInfo150.txt`. Of several names, the first is used. Raises InputError naming the
    file.
    """
    folder, maps = _maps(root, ADE_FOLDERS, "annotations", ADE_SPLITS, split)
    path = _names_file(folder, ("objectInfo150.txt",))
    finder = PhotoFinder(root, (f"{folder.relative_to(root)}/images/{ADE_SPLITS[split]}",))
    collector = Collector(str(maps), root, f"ade20k/{split}", ADE_LICENCE)
    return collector.streamed(_steps(collector, maps, finder, _ade_classes(path), 0))


def read_cocostuff(root: Path, split: str) -> Iterator[ImageRecord]:
    """Records of one split, ids `cocostuff/<split>/<image_id>:<class>`, one by one.

    `<train2017|val2017>/*.png` holds labels 0 to 181, 255 for none; `labels.txt` of the release (or LISA's
    `cocostuff_classes.txt`) has their names. Classes with `-` in their name (wall-brick, water-other) are left out
    and counted, as LISA does: no phrase says what they mean. Raises InputError naming the file.
    """
    folder, maps = _maps(root, STUFF_FOLDERS, "", STUFF_SPLITS, split)
    path = _names_file(folder, ("labels.txt", "cocostuff_classes.txt"))
    collector = Collector(str(maps), root, f"cocostuff/{split}", STUFF_LICENCE)
    finder = PhotoFinder(root, [f"{name}/{STUFF_SPLITS[split]}".lstrip("/") for name in COCO_FOLDERS])
    return collector.streamed(_steps(collector, maps, finder, _stuff_classes(path), UNLABELLED))


def _maps(
    root: Path, folders: tuple[str, ...], kind: str, splits: Mapping[str, str], split: str
) -> tuple[Path, Path]:
    """The set's folder and that of the label maps of a split."""
    if split in splits:
        for folder in data_folders(root, folders):
            for place in (folder / kind / splits[split], folder / folders[-1] / kind / splits[split]):
                if place.is_dir():
                    return place.parents[1] if kind else place.parent, place
    known = ", ".join(f"{split} ({folders[0]}/{kind}/{name})" for split, name in splits.items())
    raise NotThereError(f"{root}: has no label maps of {split!r}; known splits: {known.replace('//', '/')}")


def _names_file(folder: Path, names: tuple[str, ...]) -> Path:
    """The file with the names of the classes, in the set's folder or the one above it."""
    for base in (folder, folder.parent):
        for name in names:
            if (base / name).is_file():
                return base / name
    raise NotThereError(f"{folder}: holds no {' or '.join(names)}, which has the names of the classes")


def _steps(
    collector: Collector, maps: Path, finder: PhotoFinder, classes: Classes, unlabelled: int
) -> Iterator[None]:
    """Add the classes of each label map, one photo a step."""
    for path in sorted(maps.glob("*.png")):
        labels_yx = images.read_labels(path)
        size = (int(labels_yx.shape[0]), int(labels_yx.shape[1]))
        photo = Photo(photo_id(path.name), finder.path(f"{path.stem}.jpg", str(path)), size, NOT_STATED)
        for label in np.unique(labels_yx).tolist():
            if label == unlabelled:
                continue
            if label not in classes:
                raise InputError(
                    f"{path}: holds the label {label}, which has no name; is it a map of this set?"
                )
            name, stuff = classes[label]
            if "-" in name:
                collector.count("regions of classes with `-` in their name")
                continue
            rle = masks.encode(labels_yx == label)
            text = f"the {name}" if stuff else f"all {plural(name)}"
            target = Target(
                Granularity.OBJECT if stuff else Granularity.MULTI, rle, {"category": name, "label": label}
            )
            native = f"{photo.image_id}:{name}".replace(" ", "_")
            collector.add(str(path), photo, target, [(native, Sentence(text, text, None))])
        yield


def _ade_classes(path: Path) -> Classes:
    """Classes of objectInfo150.txt: tabs between number, three shares, 1 for stuff, and names with commas."""
    found = {}
    for number, line in _lines(path):
        cells = [cell.strip() for cell in line.split("\t")]
        if number == 1 and not cells[0].isdecimal():
            continue
        if len(cells) < 6 or not cells[0].isdecimal() or cells[4] not in ("0", "1"):
            raise InputError(
                f"{path}: line {number} must be number, ratio, train, val, stuff, names: {shown(line)}"
            )
        found[int(cells[0])] = (category_noun(cells[5].replace(";", ",").partition(",")[0]), cells[4] == "1")
    return found


def _stuff_classes(path: Path) -> Classes:
    """Classes of `1: person` or `person` lines; the first line, `0: unlabeled`, is no class."""
    found = {}
    for number, line in _lines(path):
        name = line.partition(":")[2] if ":" in line else line
        found[number - 2] = (category_noun(name), number - 2 >= FIRST_STUFF)
    if found.pop(-1, ("", False))[0] != "unlabeled":
        raise InputError(f"{path}: its first line must be the class unlabeled")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    note_opened(path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())
