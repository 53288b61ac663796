"""COCO image ids in names: the same photo is called differently by the sets of 2014 and those of 2017."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

# COCO_train2014_000000581857.jpg, the same with RefCOCO's _<n>, 000000581857.jpg, train2017_000000581857.png
_COCO_NAME = re.compile(
    r"(?:(?:ms)?coco[_-])?(?:(?:train|val|test|unlabeled)20\d\d[_-])?0{6}(\d{6})(?:_\d{1,7})?", re.IGNORECASE
)
# every folder of COCO's photos, and how a photo with an id is called there
COCO_NAMES = (
    ("train2014", "COCO_train2014_{:012d}.jpg"),
    ("train2017", "{:012d}.jpg"),
    ("val2014", "COCO_val2014_{:012d}.jpg"),
    ("val2017", "{:012d}.jpg"),
    ("unlabeled2017", "{:012d}.jpg"),
)


def coco_image_id(name: str | int) -> int | None:
    """The COCO image id in a photo's name, path or address, or a bare id; None where it is none.

    In a name, only twelve digits that begin with six zeros, after nothing or a COCO folder's name, are COCO's:
    the numbers of Visual Genome, ADE20K, Flickr and others are not.
    """
    if isinstance(name, int):
        return name if name >= 0 and not isinstance(name, bool) else None
    return int(name) if re.fullmatch(r"\d{1,7}", name, re.ASCII) else id_in_name(name)


def id_in_name(path: str) -> int | None:
    """The COCO image id in a photo's name, path or address; None where its form is another."""
    file_name = PurePosixPath(path.replace("\\", "/").partition("?")[0]).name
    found = _COCO_NAME.fullmatch(file_name.partition(".")[0])
    return int(found.group(1)) if found else None
