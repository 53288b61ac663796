"""Where the files and photos of a data set lie under the data folder, in every known spelling.

Folder rules follow the public readers of these sets (refer.py, grefer.py, CRIS). Photos lie under
`images/train2014` or, in LISA's layout, under `images/mscoco/images/train2014`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

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
MAX_NAME = 255  # bytes, of most file systems


def data_folders(root: Path, names: Sequence[str]) -> list[Path]:
    """Folders of a data set under `root` or `root/refer_seg`, whichever case `names` are written in there."""
    known = {name.lower() for name in names}
    found = []
    for parent in (root, root / "refer_seg"):
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
    """The paths of photos below a data folder; a missing photo is an error only when its pixels are needed."""

    def __init__(self, root: Path, folders: Sequence[str] = PHOTO_FOLDERS) -> None:
        self.first = root / folders[0]
        self.folders = [root / name for name in folders if (root / name).is_dir()]

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
        return (self.folders[0] if self.folders else self.first) / name


def find_again(root: Path, place: str) -> Path:
    """Where a photo lies now that was not at `place` (below `root`, or absolute) when its path was stored.

    It is looked for in every known folder of photos; the path stays where it is in none.
    """
    path = root / place
    if path.is_file():
        return path
    known = next((folder for folder in PHOTO_FOLDERS if place.startswith(f"{folder}/")), None)
    name = PurePosixPath(place).name if known is None else place.removeprefix(f"{known}/")
    found = (root / folder / name for folder in PHOTO_FOLDERS)
    return next((item for item in found if item.is_file()), path)
