"""Sets of questions that need reasoning: ReasonSeg, MMR and InstructPart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from uniresxx.data.readers.collector import Collector, Photo, Target
from uniresxx.data.readers.fields import (
    Sentence,
    file_name_of,
    list_of,
    photo_id,
    shown,
    size_of,
    text_of,
)
from uniresxx.data.readers.files import load_json, load_records
from uniresxx.data.readers.folders import COCO_FOLDERS, PhotoFinder, data_file, data_folders
from uniresxx.data.readers.instances import NOT_STATED
from uniresxx.errors import BadAnnotationError, InputError, NotThereError
from uniresxx.imaging import decode as images
from uniresxx.imaging import masks
from uniresxx.types import Granularity, ImageRecord

REASONSEG_FOLDERS, REASONSEG_SPLITS = ("ReasonSeg",), ("train", "val", "test")
MMR_FOLDERS = ("mmr",)
MMR_SPLITS = ("train", "val", "test_mixed", "test_obj_only", "test_part_only")
INSTRUCT_FOLDERS = ("InstructPart",)
# split -> folders; `all` holds the test photos too and is no split
INSTRUCT_SPLITS = {
    "train": ("train/train1800", "train"),
    "train1200": ("train/train1200",),
    "train600": ("train/train600",),
    "train200": ("train/train200",),
    "test": ("test",),
}


# ---- ReasonSeg: a labelme file beside each photo


def read_reasonseg(root: Path, split: str) -> list[ImageRecord]:
    """Records of one split, ids `reasonseg/<split>/<photo>_<place of the text>`.

    Shapes are painted in decreasing area as LISA's loader does, the outline included: `target` is the truth,
    `ignore` lies over it and counts neither way for LISA, `flag` is no shape. Pixels to be ignored are no truth here;
    `source["ignore"]` keeps them. Every text is asked (LISA's val: only the first). Granularity is object: the set
    does not say how many things a target is. Raises InputError naming file and field.
    """
    folder = next(
        (base / split for base in data_folders(root, REASONSEG_FOLDERS) if (base / split).is_dir()), None
    )
    if folder is None or split not in REASONSEG_SPLITS:
        raise NotThereError(
            f"{root}: holds no {REASONSEG_FOLDERS[0]}/{split}; --data must name the folder above it"
        )
    collector = Collector(str(folder), root, f"reasonseg/{split}", NOT_STATED)
    finder = PhotoFinder(root, (f"{folder.relative_to(root)}",))
    for path in sorted(folder.glob("*.json")):
        who, content = str(path), load_json(path, fallback="cp1252")
        if not isinstance(content, dict):
            raise InputError(f"{who}: must hold an object, not {shown(content)}")
        with collector.leaving_out():
            _add_labelme(collector, finder, content, path)
    return collector.records()


def _add_labelme(collector: Collector, finder: PhotoFinder, content: Mapping[str, Any], path: Path) -> None:
    """Add the texts of a file; BadAnnotationError where its shapes can be no target."""
    who, photo_path = str(path), finder.path(f"{path.stem}.jpg", str(path))
    size = _labelme_size(content, photo_path, who)
    mask_yx = _painted(list_of(content, "shapes", who), size, who)
    truth_yx, ignored_yx = mask_yx == 1, mask_yx == 255
    if not truth_yx.any():
        raise BadAnnotationError(f"{who}: its target covers no pixel")
    source: dict[str, Any] = {"is_sentence": bool(content.get("is_sentence"))}
    if ignored_yx.any():
        source["ignore"] = masks.encode(ignored_yx)
    texts = content.get("text")
    texts = [texts] if isinstance(texts, str) else list_of(content, "text", who)
    asked = [(f"{path.stem}_{place}", _sentence(text, who)) for place, text in enumerate(texts)]
    photo = Photo(path.stem, photo_path, size)
    collector.add(who, photo, Target(Granularity.OBJECT, masks.encode(truth_yx), source), asked)


def _labelme_size(content: Mapping[str, Any], photo: Path, who: str) -> tuple[int, int]:
    """The photo's size, else what the file says."""
    size = images.photo_size(photo)
    if size is not None:
        return size
    if "imageHeight" not in content:
        raise InputError(f"{photo}: is missing, and {who} does not say its size")
    return size_of({"height": content["imageHeight"], "width": content.get("imageWidth")}, who)


def _painted(shapes: Iterable[Any], size: tuple[int, int], who: str) -> np.ndarray:
    """uint8 (y, x): 1 target, 255 ignored, 0 neither."""
    layers: list[tuple[int, int, np.ndarray]] = []
    for index, shape in enumerate(shapes):
        name = f"{who}: shape {index}"
        if not isinstance(shape, dict):
            raise InputError(f"{name}: must be an object, not {shown(shape)}")
        label = text_of(shape, "label", name).lower()
        if label != "flag":
            layer_yx = _polygon(list_of(shape, "points", name), size, name)
            layers.append((int(layer_yx.sum()), 255 if "ignore" in label else 1, layer_yx))
    mask_yx = np.zeros(size, dtype=np.uint8)
    for _, value, layer_yx in sorted(layers, key=lambda item: -item[0]):
        mask_yx[layer_yx] = value
    return mask_yx


def _polygon(points: Sequence[Any], size: tuple[int, int], who: str) -> np.ndarray:
    """Bool (y, x): the polygon through whole pixels, its outline included."""
    try:
        corners = np.array(points, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise BadAnnotationError(f"{who}: points must be pairs of numbers, not {shown(points)}") from None
    if not np.isfinite(corners).all() or np.abs(corners).max(initial=0) > masks.MAX_PIXELS:
        raise BadAnnotationError(f"{who}: points must lie at the photo, not at {shown(points)}")
    layer = Image.new("1", (size[1], size[0]))
    drawn = [(int(x), int(y)) for x, y in corners]
    if len(drawn) == 1:
        ImageDraw.Draw(layer).point(drawn, fill=1)
    elif drawn:
        ImageDraw.Draw(layer).polygon(drawn, fill=1, outline=1)
    return np.asarray(layer)


def _sentence(text: Any, who: str) -> Sentence:
    if not isinstance(text, str):
        raise InputError(f"{who}: a text must be text, not {shown(text)}")
    return Sentence(text.strip(), text, None)


# ---- MMR: questions about objects and parts of PACO-LVIS


def read_mmr(root: Path, split: str) -> list[ImageRecord]:
    """Records of one split, ids `mmr/<split>/<image_id>_<place of the question>`.

    `answers[i]` holds the annotations that question i asks for; its own loader pairs some questions with answers of
    others. Granularity: part where all are parts (`object:part`), object where it is one object, multi otherwise.
    Raises InputError naming file, record and field.
    """
    path = data_file(root, MMR_FOLDERS, (f"MMR_{split}.json",))
    finder = PhotoFinder(root, COCO_FOLDERS)
    collector = Collector(str(path), root, f"mmr/{split}", "not stated (MMR)")
    for index, record in enumerate(load_records(path)):
        who = f"{path}: record {index}"
        size, file_name = size_of(record, who), file_name_of(record, who)
        photo = Photo(photo_id(file_name), finder.path(file_name, who), size)
        questions, answers = list_of(record, "questions", who), list_of(record, "answers", who)
        if len(questions) != len(answers):
            raise InputError(f"{who}: has {len(questions)} questions and {len(answers)} answers")
        for place, (question, rows) in enumerate(zip(questions, answers, strict=True)):
            name = f"{who}: question {place}"
            target = _mmr_target(collector, rows, size, name)
            if target is None:
                continue
            collector.add(name, photo, target, [(f"{photo.image_id}_{place}", _sentence(question, name))])
    return collector.records()


def _mmr_target(collector: Collector, rows: Any, size: tuple[int, int], who: str) -> Target | None:
    """What a question asks for; None, and left out, where it has no answer or one without a pixel."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{who}: its answer must be a list of annotations, not {shown(rows)}")
    names = [text_of(row, "category_name", who) for row in rows]
    rles = [collector.mask(row, size, f"{who}: {name}") for name, row in zip(names, rows, strict=True)]
    seen = [rle for rle in rles if rle is not None]
    if not rows:
        collector.leave_out(f"{who}: has no answer")
    if not rows or len(seen) < len(rows):
        return None
    if all(":" in name for name in names):
        kind = Granularity.PART
    else:
        kind = Granularity.OBJECT if len(rows) == 1 else Granularity.MULTI
    return Target(kind, masks.union(seen, size), {"categories": names})


# ---- InstructPart: one photo and one mask file for each part


def read_instructpart(root: Path, split: str) -> list[ImageRecord]:
    """Records of one split, ids `instructpart/<split>/<photo>-<object>-<part>_<place>`; every expression is a part.

    Six instructions for each part: written by a person, rewritten, and four that name the part. Mask files are named
    as the part (`<photo>-<object>-<part>.png`), photos too or as `image_path`. Raises InputError naming file, record
    and field.
    """
    if split not in INSTRUCT_SPLITS:
        raise NotThereError(f"InstructPart has no split {split!r}; it has {', '.join(INSTRUCT_SPLITS)}")
    kind = "test" if split == "test" else "train"
    path = data_file(root, INSTRUCT_FOLDERS, [f"{name}/data_{kind}.json" for name in INSTRUCT_SPLITS[split]])
    finder = PhotoFinder(root, (f"{path.parent.relative_to(root)}/images",))
    collector = Collector(str(path), root, f"instructpart/{split}", "MIT (InstructPart)")
    for index, record in enumerate(load_records(path)):
        who = f"{path}: record {index}"
        image = file_name_of(record, who, "image_path")
        for place, part in enumerate(list_of(record, "part_list", who)):
            name = f"{who}: part {place}"
            if not isinstance(part, dict):
                raise InputError(f"{name}: must be an object, not {shown(part)}")
            _add_instructions(collector, finder, path.parent / "masks", image, part, name)
    return collector.records()


def _add_instructions(
    collector: Collector, finder: PhotoFinder, folder: Path, image: str, part: Mapping[str, Any], who: str
) -> None:
    names = [text_of(part, field, who).replace(" ", "_") for field in ("object", "part")]
    stem = "-".join((Path(image).stem, *names))
    mask = finder.path(f"{stem}.png", who).name  # refuses a name that leads out of the folder
    if not (folder / mask).is_file():
        raise InputError(f"{who}: no mask {mask} in {folder}")
    mask_yx = images.read_mask(folder / mask)
    rle = masks.encode(mask_yx)
    if not masks.area(rle):
        collector.leave_out(f"{who}: its mask covers no pixel")
        return
    own = finder.path(f"{stem}{Path(image).suffix}", who)
    photo_path = own if own.is_file() else finder.path(image, who)
    asked = [
        (f"{stem}_{place}", _sentence(text, who))
        for place, text in enumerate(list_of(part, "instruction", who))
    ]
    size = (mask_yx.shape[0], mask_yx.shape[1])
    photo = Photo(Path(image).stem, photo_path, size, NOT_STATED)
    source = {name: part.get(name) for name in ("object", "part", "affordance", "action")}
    collector.add(who, photo, Target(Granularity.PART, rle, source), asked)
