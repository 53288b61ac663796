"""Objects whose boxes are given: a COCO JSON in place of a detector."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_engine.records import Box, Item, Picture
from data_engine.steps.base import Step, Work
from data_engine.steps.objects import inside
from uniresxx.errors import InputError
from uniresxx.types import Granularity

Given = Mapping[str, Sequence[tuple[str, Box]]]  # name of a picture -> category and box of each object


@dataclass(frozen=True, kw_only=True)
class Boxes(Step):
    """Boxes of objects from a file; `segment` makes their masks.

    Args:
        file: a COCO JSON (images, annotations with `bbox` xywh, categories). `file_name` is the picture's path below
            --images, or its last part where no other picture has the same one.
        max_objects: the first of a picture.
    """

    NAME: ClassVar[str] = "boxes"
    VERSION: ClassVar[int] = 1
    file: str
    max_objects: int = 64

    def build(self) -> Work:
        """Read the file; InputError naming what is wrong in it."""
        given = boxes_of(Path(self.file))
        return lambda picture, photo: _with_boxes(self, given, picture, photo)

    def identity(self) -> dict[str, Any]:
        """The file by its content."""
        try:
            content = Path(self.file).read_bytes()
        except OSError as error:
            raise InputError(f"boxes: {self.file} cannot be read ({error.strerror})") from None
        return {**super().identity(), "file": hashlib.sha256(content).hexdigest()[:16]}


def boxes_of(path: Path) -> Given:
    """The boxes of a COCO JSON by file name. InputError naming what is wrong in it."""
    try:
        content = json.loads(path.read_bytes())
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        categories = {category["id"]: str(category["name"]) for category in content["categories"]}
        found: dict[str, list[tuple[str, Box]]] = defaultdict(list)
        for item in content["annotations"]:
            x, y, width, height = map(float, item["bbox"])
            found[names[item["image_id"]]].append(
                (categories[item["category_id"]], (x, y, x + width, y + height))
            )
    except OSError as error:
        raise InputError(f"boxes: {path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"boxes: {path} is no COCO JSON with bbox in every annotation ({error!r})") from None
    return found


def _with_boxes(options: Boxes, given: Given, picture: Picture, photo: np.ndarray) -> Picture:
    found = given.get(picture.name) or given.get(picture.name.rpartition("/")[2], ())
    cut = [(category, box) for category, whole in found if (box := inside(whole, picture)) is not None]
    return picture.with_items(
        Item(f"o{number}", Granularity.OBJECT, category, box)
        for number, (category, box) in enumerate(cut[: options.max_objects])
    )
