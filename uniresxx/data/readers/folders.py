"""Where the files and photos of a data set lie under the data folder, in every known spelling.

Folder rules follow the public readers of these sets (refer.py, grefer.py, CRIS). Photos lie under
`images/train2014` or, in LISA's layout, under `images/mscoco/images/train2014`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from uniresxx.data.readers.coco_ids import COCO_NAMES, id_in_name
from uniresxx.data.readers.fields import shown
from uniresxx.errors import InputError, NotThereError

PHOTO_FOLDERS = (
    "images/train2014",
    "images/mscoco/images/train2014",
    "images/mscoco/train2014",
    "refer_seg/images/mscoco/images/train2014",
    "refer_seg/images/train2014",
    "coco/train2014",
    "train2014",
    "images",
)
# above the folders of a year, for names that hold the year (train2017/000000000009.jpg)
COCO_FOLDERS = (
    "images",
    "images/mscoco/images",
    "images/mscoco",
    "coco/images",
    "coco",
    "refer_seg/images/mscoco/images",
    "refer_seg/images",
    "",
)
# folders that public code keeps data sets in
PARENTS = ("refer_seg", "vlpart", "reason_seg", "instructpart_part")
MAX_NAME = 255  # bytes, of most file systems


def data_folders(root: Path, names: Sequence[str]) -> list[Path]:
    """Folders of a data set under `root` or one of PARENTS in it, whichever case `names` are written in there."""
    known = {name.lower() for name in names}
    found = []
    for parent in (root, *(root / name for name in PARENTS)):
        if parent.is_dir():
            found += [
                item for item in sorted(parent.iterdir()) if item.name.lower() in known and item.is_dir()
            ]
    return found


def data_file(root: Path, names: Sequence[str], files: Sequence[str]) -> Path:
    """The first of `files` in a folder of the data set; NotThereError lists the names it tried."""
    if not root.is_dir():
        raise NotThereError(
            f"{root}: no such data folder; give the root of the native layout with --data DIR"
        )
    for folder in data_folders(root, names):
        for name in files:
            if (folder / name).is_file():
                return folder / name
    raise NotThereError(
        f"{root}: holds no {names[0]}/{' or '.join(files)}; --data must name the folder above it"
    )


class PhotoFinder:
    """The paths of photos below a data folder; a missing photo is an error only when its pixels are needed.

    A photo of COCO is also found under its names in the folders of other years: train2017 holds all photos of
    train2014 and most of val2014.
    """

    def __init__(self, root: Path, folders: Sequence[str] = PHOTO_FOLDERS) -> None:
        self.root, self.first = root, root / folders[0]
        self.folders = [root / name for name in folders if (root / name).is_dir()]
        years = [(root / name / year, form) for name in COCO_FOLDERS for year, form in COCO_NAMES]
        self.coco_folders = [(folder, form) for folder, form in years if folder.is_dir()]

    def path(self, file_name: str, who: str) -> Path:
        """Path of a photo; InputError starting with `who` where the name leads out of the photo folder."""
        name = PurePosixPath(file_name)
        if (
            name.is_absolute()
            or ".." in name.parts
            or not name.parts
            or "\\" in file_name
            or "\0" in file_name
            or len(file_name) > 4 * MAX_NAME
            or max(len(part.encode("utf-8", "replace")) for part in name.parts) > MAX_NAME
        ):
            raise InputError(f"{who}: photo name {shown(file_name)} must be a file under the photo folder")
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        image_id = id_in_name(file_name)
        for folder, form in self.coco_folders if image_id is not None else ():
            if (folder / form.format(image_id)).is_file():
                return folder / form.format(image_id)
        return (self.folders[0] if self.folders else self.first) / name

    def find_again(self, place: str) -> Path:
        """Where a photo lies now that was not at `place` (below the data folder, or absolute) when that was stored.

        It is looked for in the other folders if it lay in a known one or is called as COCO calls its photos; other
        names (`1.jpg`) may be another photo's there. The path stays where it is in none.
        """
        path = self.root / place
        known = next((folder for folder in PHOTO_FOLDERS if place.startswith(f"{folder}/")), None)
        if path.is_file() or (known is None and id_in_name(place) is None):
            return path
        name = PurePosixPath(place).name if known is None else place.removeprefix(f"{known}/")
        found = self.path(name, place)
        return found if found.is_file() else path
