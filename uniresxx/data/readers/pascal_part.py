"""Pascal-Part: objects and parts on photos of VOC 2010, one MATLAB file per photo, or VLPart's converted json.

`Annotations_Part/<id>.mat` holds anno {imname, objects [{class, class_ind, mask, parts [{part_name, mask}]}]}. Names
of parts are codes (`lfuleg`, `rear` is the right ear, `wheel_2`). The json, `train.json` or `val.json`, has
categories such as `aeroplane:body` and links no part to an object. (After VLPart's pascal_part_mat2json.py.)
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from uniresxx.data.readers.collector import Collector, Photo
from uniresxx.data.readers.fields import shown
from uniresxx.data.readers.files import note_opened
from uniresxx.data.readers.folders import PhotoFinder, data_folders
from uniresxx.data.readers.instances import NOT_STATED, Instances
from uniresxx.data.readers.part_names import category_noun, part_noun, pascal_part_noun
from uniresxx.data.readers.part_objects import PartImage, PartObject, records_of_parts, united, whole_parts
from uniresxx.errors import BadAnnotationError, InputError, NotThereError
from uniresxx.imaging import masks
from uniresxx.types import RLE, ImageRecord

FOLDERS, SPLITS = ("pascal_part", "pascalpart"), ("train", "val")
LICENCE = "masks not stated (Pascal-Part)"
VOC = ("VOCdevkit/VOC2010", "VOC2010", "VOCdevkit/VOC2012")
MAX_MAT_BYTES = 16 * 2**20  # the files have about 10 kB


def read_pascal_part(root: Path, split: str) -> list[ImageRecord]:
    """Phrases of one split of VOC 2010, ids `pascal_part/<split>/<photo>:<class>[:<part>]`, as in `part_objects`.

    Which photos are in a split is read from `ImageSets/Main/<split>.txt` (or `ImageSets/Segmentation`). Where there
    are no MATLAB files but the converted `<split>.json`, that is read: parts alone, of all objects of a class
    together. Raises InputError naming file and field, and for a file that is no MATLAB file of this set.
    """
    folders = data_folders(root, FOLDERS)
    places = [
        base / name for base in (*folders, root) for name in ("Annotations_Part", "annotations_trainval")
    ]
    places += [place / "Annotations_Part" for place in places]
    mats = next((place for place in places if place.is_dir() and next(place.glob("*.mat"), None)), None)
    below = [f"{folder.relative_to(root)}/" for folder in folders]
    finder = PhotoFinder(root, [f"{base}{voc}/JPEGImages" for base in (*below, "") for voc in VOC])
    if mats is not None:
        path = _list_of(root, folders, split)
        collector = Collector(str(path), root, f"pascal_part/{split}", LICENCE)
        return records_of_parts(collector, _mat_images(path, mats, finder, collector))
    for folder in folders:
        if (folder / f"{split}.json").is_file():
            path = folder / f"{split}.json"
            collector = Collector(str(path), root, f"pascal_part/{split}", LICENCE)
            return records_of_parts(collector, _json_images(Instances.load(path), finder, collector))
    raise NotThereError(
        f"{root}: holds neither {FOLDERS[0]}/Annotations_Part/*.mat nor {FOLDERS[0]}/{split}.json"
    )


def _list_of(root: Path, folders: list[Path], split: str) -> Path:
    """The list of the photos of a split."""
    names = [f"{voc}/ImageSets/{kind}/{split}.txt" for kind in ("Main", "Segmentation") for voc in VOC]
    for base in (*folders, root):
        for name in names:
            if (base / name).is_file():
                return base / name
    raise NotThereError(f"{root}: holds no {names[0]}, which says what photos of Pascal-Part are in {split}")


def _mat_images(path: Path, mats: Path, finder: PhotoFinder, report: Collector) -> Iterator[PartImage]:
    note_opened(path)
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name = line.split()[0] if line.split() else ""
        if not name:
            continue
        if re.fullmatch(r"[\w-]{1,60}", name) is None:
            raise InputError(f"{path}: {shown(name)} is no photo's name")
        if not (mats / f"{name}.mat").is_file():
            report.count("photos of the split without a file of parts")
            continue
        image = None
        with report.leaving_out():
            image = _mat_image(mats / f"{name}.mat", name, finder)
        if image is not None:
            yield image


def _mat_image(path: Path, name: str, finder: PhotoFinder) -> PartImage:
    """The objects of one MATLAB file; BadAnnotationError: one of them can be no target, so none is used."""
    objects, size = [], None
    for index, item in enumerate(_objects_of(path)):
        who = f"{path}: object {index}"
        try:
            noun, mask_yx = category_noun(str(item.__dict__["class"])), np.asarray(item.mask)
            drawn = [(str(part.part_name), np.asarray(part.mask)) for part in np.atleast_1d(item.parts)]
        except (AttributeError, KeyError):
            raise BadAnnotationError(f"{who}: has no class, mask or parts") from None
        size = size or (int(mask_yx.shape[0]), int(mask_yx.shape[-1]))
        pieces = [
            (pascal_part_noun(code, who), _rle(part_yx, size, f"{who}: part {code}"))
            for code, part_yx in drawn
        ]
        seen = united([piece for piece in pieces if masks.area(piece[1])], size)
        objects.append(PartObject(noun, _rle(mask_yx, size, who), seen, {"object": index}))
    if size is None:
        raise BadAnnotationError(f"{path}: holds no object")
    return PartImage(Photo(name, finder.path(f"{name}.jpg", str(path)), size, NOT_STATED), tuple(objects))


def _rle(mask_yx: np.ndarray, size: tuple[int, int], who: str) -> RLE:
    if mask_yx.shape != size or mask_yx.dtype.kind not in "bui":
        raise BadAnnotationError(
            f"{who}: its mask must be {size} whole numbers, not {mask_yx.dtype} {mask_yx.shape}"
        )
    return masks.encode(mask_yx)


def _objects_of(path: Path) -> np.ndarray:
    """The objects in a MATLAB file; InputError where it is none. MATLAB files hold plain arrays, no code."""
    from scipy.io import loadmat  # slow to import, and nothing else needs it
    from scipy.io.matlab import MatReadError

    if path.stat().st_size > MAX_MAT_BYTES:
        raise InputError(f"{path}: is over the cap of {MAX_MAT_BYTES} bytes")
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False, variable_names=["anno"])
        objects = content["anno"].objects
    except (
        MatReadError,
        zlib.error,
        ValueError,
        TypeError,
        LookupError,
        OSError,
        AttributeError,
        MemoryError,
    ) as e:
        raise InputError(f"{path}: is no MATLAB file of Pascal-Part ({type(e).__name__})") from None
    return np.atleast_1d(objects)


def _json_images(instances: Instances, finder: PhotoFinder, report: Collector) -> Iterator[PartImage]:
    """The photos of a converted file. How many objects they show is not known: a class means all of them."""
    for image_id, rows in instances.rows_of_image.items():
        who = f"{instances.path}: image {image_id}"
        file_name, height, width = instances.image(image_id, who)
        photo = Photo(
            Path(file_name).stem, finder.path(Path(file_name).name, who), (height, width), NOT_STATED
        )
        named: list[tuple[str, str, RLE | None]] = []
        for row in rows:
            name = f"{instances.path}: ann {shown(row['id'])}"
            category, _, part = instances.category(row, name).partition(":")
            if part:
                named.append((category_noun(category), part_noun(part), report.drawn(row, photo.size, name)))
        objects = [
            PartObject(category, None, parts)
            for category, found in whole_parts(named).items()
            for parts in (
                united(found, photo.size),
                {},
            )  # the second, without parts, stands for further objects
        ]
        yield PartImage(photo, tuple(objects))
