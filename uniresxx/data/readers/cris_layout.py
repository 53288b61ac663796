"""Any set in the layout of CRIS's lists, also with `mask_name` and `prompts` (medical sets, MedVLSM's lists).

`<folder>/anns/<split>.json` with `<folder>/masks` and `<folder>/images`, or CRIS's own `anns/<folder>/<split>.json`
with `masks/<folder>`. A mask is named by `mask_name` (with its ending) or `<segment_id>.png`. `prompts` holds texts
or lists of texts by name; `p0` is empty on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.data.readers import cris
from uniresxx.data.readers.collector import Collector, Photo, Target
from uniresxx.data.readers.fields import Sentence, file_name_of, photo_id, sentences, shown
from uniresxx.data.readers.files import load_records
from uniresxx.data.readers.folders import PhotoFinder, data_folders
from uniresxx.data.readers.instances import NOT_STATED
from uniresxx.errors import InputError, NotThereError
from uniresxx.imaging import decode as images
from uniresxx.types import RLE, Granularity, ImageRecord


def cris_layout_splits(root: Path, folder: str) -> list[str]:
    """Splits that have a list."""
    return sorted({path.stem for base, _ in _places(root, folder) for path in base.glob("*.json")})


def read_cris_layout(root: Path, split: str, folder: str) -> list[ImageRecord]:
    """Records of one split, ids `cris:<folder>/<split>/<segment_id>_<idx or prompt>`; all sentences and prompts.

    Every expression points at one object. A record whose mask covers no pixel, or that has no text, is left out and
    reported. Masks that are no PNG are grey pictures with blurred edges: above 127 is foreground. Raises InputError
    naming file, record and field.
    """
    if (
        re.fullmatch(r"[\w+.-]{1,80}", folder) is None
        or re.fullmatch(r"\w{1,60}", split) is None
        or ".." in folder
    ):
        raise InputError(f"{shown(f'cris:{folder}/{split}')}: must be cris:FOLDER/SPLIT")
    places = [item for item in _places(root, folder) if (item[0] / f"{split}.json").is_file()]
    if not places:
        raise NotThereError(
            f"{root}: holds neither {folder}/anns/{split}.json nor anns/{folder}/{split}.json"
        )
    base, masks_folder = places[0]
    path = base / f"{split}.json"
    own = f"{(base.parent / 'images').relative_to(root)}" if base.parent.is_relative_to(root) else "images"
    finder = PhotoFinder(
        root, (*cris.CRIS_PHOTO_FOLDERS, f"datasets/images/{folder}", f"images/{folder}", own)
    )
    collector = Collector(str(path), root, f"cris:{folder}/{split}", NOT_STATED)
    for index, record in enumerate(load_records(path)):
        who = f"{path}: record {index}"
        name, segment = file_name_of(record, who, "img_name"), cris.segment_of(record, who)
        photo_path = finder.path(name, who)
        with collector.leaving_out():
            rle = _mask(record, segment, masks_folder, photo_path, who)
            asked = list(_texts(record, segment, who))
            if not asked:
                collector.leave_out(f"{who}: has no text")
            photo = Photo(photo_id(name), photo_path, (rle["size"][0], rle["size"][1]))
            source = {"segment_id": segment, "cat": record.get("cat")}
            collector.add(who, photo, Target(Granularity.OBJECT, rle, source), asked)
    return collector.records()


def _places(root: Path, folder: str) -> list[tuple[Path, Path]]:
    """Folders of lists and of masks that are there."""
    found = [(place / "anns", place / "masks") for base in (root, root / "datasets", root / "data")
             for place in data_folders(base, (folder,))]  # fmt: skip
    for base in (root / "datasets", root):
        found += [(place, base / "masks" / place.name) for place in data_folders(base / "anns", (folder,))]
    return [item for item in found if item[0].is_dir()]


def _mask(record: Mapping[str, Any], segment: str, folder: Path, photo: Path, who: str) -> RLE:
    """The mask of a record; InputError: no file, or as `cris.checked_mask`."""
    name = file_name_of(record, who, "mask_name") if "mask_name" in record else f"{segment}.png"
    if Path(name).name != name or "\\" in name:
        raise InputError(f"{who}: mask_name {shown(name)} must be a file in {folder}")
    path = folder / name
    if not path.is_file():
        raise InputError(f"{who}: no mask {name} in {folder}")
    if path.suffix.lower() == ".png":
        mask_yx = images.read_mask(path)
    else:
        mask_yx = images.read_photo(path).mean(axis=2, dtype=np.float32) > 127
    return cris.checked_mask(mask_yx, images.photo_size(photo), str(path), photo.name, who)


def _texts(record: Mapping[str, Any], segment: str, who: str) -> Iterator[tuple[str, Sentence]]:
    """Id and text of every sentence and prompt that is not blank."""
    for place, item in enumerate(sentences(record, "idx", who) if "sentences" in record else ()):
        if item.text:
            yield f"{segment}_{place if item.native_id is None else item.native_id}", item
    prompts = record.get("prompts", {})
    if not isinstance(prompts, dict):
        raise InputError(f"{who}: prompts must be an object, not {shown(prompts)}")
    for name, value in prompts.items():
        texts = value if isinstance(value, list) else [value]
        items = list(sentences({"sentences": texts}, "idx", f"{who}: prompts {shown(name)}"))
        for place, item in enumerate(items):
            if item.text:
                yield f"{segment}_{name}" + (f"_{place}" if isinstance(value, list) else ""), item
