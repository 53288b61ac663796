"""Our own JSONL, for sets of millions of rows such as MRES-32M: one expression a line, read as a stream.

`<folder>/<split>.jsonl`, or `<folder>/<split>-*.jsonl` in order of their names. A line is an object:

    {"image": "a/b.jpg", "height": 480, "width": 640, "granularity": "part", "text": "wheel of the red car",
     "segmentation": {"size": [480, 640], "counts": "…"}}

`image` is the photo below `<folder>/images` (or a known photo folder). `granularity` is part, object, multi or none.
`segmentation` is anything COCO has (run lengths or polygons), `ann_ids` (ids in `<folder>/instances.json`) may stand
for it; `none` has neither. Optional: `image_id` (else the name without folder and ending is taken), `source` (an
object, kept as it is). Lines of one photo that follow one another become one record, so sort them by photo.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from uniresxx.data.readers.coco_ids import id_in_name
from uniresxx.data.readers.collector import Collector, Photo, Target
from uniresxx.data.readers.fields import Sentence, file_name_of, list_of, shown, size_of, text_of, whole
from uniresxx.data.readers.files import json_lines
from uniresxx.data.readers.folders import COCO_FOLDERS, PHOTO_FOLDERS, PhotoFinder, data_folders
from uniresxx.data.readers.instances import NOT_STATED, Instances
from uniresxx.errors import InputError, NotThereError
from uniresxx.imaging import masks
from uniresxx.types import Granularity, ImageRecord

MRES_FOLDERS = ("mres32m", "mres-32m", "mres_32m")
_FILE = re.compile(r"(?P<split>\w{1,60}?)(?:-[\w-]{1,60})?\.jsonl")


def jsonl_splits(root: Path, *folders: str) -> list[str]:
    """Splits that have a file."""
    names = [path.name for folder in data_folders(root, folders) for path in sorted(folder.glob("*.jsonl"))]
    return list(dict.fromkeys(found["split"] for name in names if (found := _FILE.fullmatch(name))))


def read_jsonl(root: Path, split: str, *folders: str, prefix: str) -> Iterator[ImageRecord]:
    """Records of one split, ids `<prefix>/<split>/<line>` (`<file>:<line>` where it has several), one by one.

    Raises InputError naming file, line and field.
    """
    paths = [
        path
        for folder in data_folders(root, folders)
        for path in sorted(folder.glob("*.jsonl"))
        if (found := _FILE.fullmatch(path.name)) and found["split"] == split
    ]
    if not paths:
        raise NotThereError(
            f"{root}: holds no {folders[0]}/{split}.jsonl; --data must name the folder above it"
        )
    where = str(paths[0] if len(paths) == 1 else paths[0].parent)
    collector = Collector(f"{where}: {split}", root, f"{prefix}/{split}", NOT_STATED, repeated_ids=False)
    return collector.streamed(_photos(collector, root, paths, len(paths) > 1))


def _photos(collector: Collector, root: Path, paths: list[Path], several: bool) -> Iterator[None]:
    """Add the lines, one step for each stretch of lines of one photo."""
    below = f"{paths[0].parent.relative_to(root)}/images"
    finder = PhotoFinder(root, (below, *PHOTO_FOLDERS, *COCO_FOLDERS))
    instances, last = None, None
    for path in paths:
        if (path.parent / "instances.json").is_file() and instances is None:
            instances = Instances.load(path.parent / "instances.json")
        for who, row in json_lines(path):
            file_name, size = file_name_of(row, who, "image"), size_of(row, who)
            if last is None or last[0] != file_name:
                if last is not None:
                    yield
                last = (file_name, Photo(_image_id(row, file_name), finder.path(file_name, who), size))
            text = text_of(row, "text", who)
            line = who.rpartition(" ")[2]
            native = f"{path.stem}:{line}" if several else line
            photo = Photo(last[1].image_id, last[1].place, size)
            target = _target(collector, row, size, instances, who)
            if target is not None:
                collector.add(who, photo, target, [(native, Sentence(text, text, None))])
    yield


def _image_id(row: Mapping[str, Any], file_name: str) -> str:
    stated = row.get("image_id")
    if isinstance(stated, int | str) and not isinstance(stated, bool):
        return str(stated)
    number = id_in_name(file_name)
    return str(number) if number is not None else PurePosixPath(file_name).stem


def _target(
    collector: Collector, row: Mapping[str, Any], size: tuple[int, int], instances: Instances | None, who: str
) -> Target | None:
    """What a line points at; None, and left out, where a mask covers no pixel."""
    name, source = text_of(row, "granularity", who), row.get("source", {})
    if name not in list(Granularity) or not isinstance(source, dict):
        raise InputError(
            f"{who}: granularity must be {', '.join(Granularity)} and source an object, "
            f"not {shown(name)}, {shown(source)}"
        )
    granularity = Granularity(name)
    stated = row.get("segmentation"), row.get("ann_ids")
    if granularity is Granularity.NONE:
        if any(stated):
            raise InputError(f"{who}: granularity none has no segmentation and no ann_ids")
        return Target(granularity, None, source)
    if stated[0] is not None:
        rle = collector.mask(row, size, who)
        return None if rle is None else Target(granularity, rle, source)
    if instances is None:
        raise InputError(f"{who}: has no segmentation, and there is no instances.json beside it for ann_ids")
    rles = []
    for item in list_of(row, "ann_ids", who):
        ann = instances.annotations.get(whole(item, "ann_ids", who))
        if ann is None:
            raise InputError(f"{who}: ann_ids {shown(item)} is not in {instances.path}")
        rles.append(collector.mask(ann, size, f"{who}: ann {item}"))
    seen = [rle for rle in rles if rle is not None]
    if not rles:
        raise InputError(f"{who}: ann_ids is empty; granularity none means no target")
    if len(seen) < len(rles):
        return None
    return Target(granularity, masks.union(seen, size), {**source, "ann_id": row["ann_ids"]})
