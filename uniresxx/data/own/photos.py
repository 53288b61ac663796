"""The photos of own data: where each lies, which are missing, and in which frame it is annotated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uniresxx.data.own.annotations import PhotoName, Size
from uniresxx.data.own.files import FileIndex, name_parts
from uniresxx.errors import InputError
from uniresxx.imaging.decode import PhotoHeader, photo_header
from uniresxx.imaging.formats import SUFFIXES

Frame = Literal["upright", "raw"]


class OtherSizeError(InputError):
    """An annotation was made at another size than its photo has."""


@dataclass(frozen=True, slots=True)
class FoundPhoto:
    """A photo that is there; `problem` says why its header cannot be read."""

    path: Path
    header: PhotoHeader | None
    problem: str = ""

    @property
    def is_turned(self) -> bool:
        """Whether the two frames of the photo differ."""
        return self.header is not None and self.header.orientation != 1


class Photos:
    """Finds photos below a folder and notes which are asked for and which of these are missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = FileIndex(folder, SUFFIXES)
        self.masks: set[Path] = set()  # PNGs that a sentences file names as masks
        self.asked: dict[PhotoName, FoundPhoto | None] = {}
        self._headers: dict[Path, FoundPhoto] = {}

    def path(self, photo: PhotoName) -> Path | None:
        """Where a photo lies; asks for nothing."""
        return self.index.find(photo.name, photo.folder, photo.without_suffix, self.masks)

    def look(self, photo: PhotoName) -> FoundPhoto | None:
        """A photo with its header, None where it is missing; asks for nothing."""
        path = self.path(photo)
        if path is None:
            return None
        if path not in self._headers:
            try:
                self._headers[path] = FoundPhoto(path, photo_header(path))
            except InputError as error:
                self._headers[path] = FoundPhoto(path, None, str(error))
        return self._headers[path]

    def ask(self, photo: PhotoName) -> FoundPhoto | None:
        """A photo that the data needs; None where it is missing."""
        if photo not in self.asked:
            self.asked[photo] = self.look(photo)
        return self.asked[photo]

    @property
    def found(self) -> list[FoundPhoto]:
        """The photos that were asked for and are there."""
        return list({found.path: found for found in self.asked.values() if found is not None}.values())

    @property
    def missing(self) -> list[str]:
        """The distinct names that were asked for and are not there; `a/x.png` and `x.png` are one."""
        names = sorted({name_parts(photo.name) for photo, found in self.asked.items() if found is None})
        ends = Counter(name[start:] for name in names for start in range(1, len(name)))
        return ["/".join(name) for name in names if not ends[name]]


def frame_of_size(photo: FoundPhoto, size: Size | None) -> Frame | None:
    """The frame that width and height of an annotation tell, None where both or neither agree."""
    header = photo.header
    assert header is not None, photo
    upright, raw = size == header.upright, size == header.stored
    return None if upright == raw else "upright" if upright else "raw"


class Frames:
    """In which frame annotations are read: the one that is asked for, or else that their width and height tell.

    Where they tell nothing, because the turned photo has the same size or the format has no sizes, the frame is that
    of all others which tell one, and upright where these differ or there are none (our choice).
    """

    def __init__(self, asked: Frame | None, by_size: Iterable[Frame | None]) -> None:
        self.asked = asked
        known: Collection[Frame] = {frame for frame in by_size if frame is not None}
        self.default: Frame = "raw" if known == {"raw"} else "upright"
        self.photos: dict[Path, Frame] = {}  # of photos with an orientation, as they were read

    def of(self, photo: FoundPhoto, size: Size | None, in_shares: bool = False) -> Frame:
        """The frame of an annotation of a photo; OtherSizeError where its size is not of that frame.

        An annotation `in_shares` of the photo's sides fits every size.
        """
        header = photo.header
        assert header is not None, photo
        by_size = frame_of_size(photo, size)
        frame = self.asked or by_size or self.default
        expected = header.upright if frame == "upright" else header.stored
        if size is not None and size != expected and not in_shares:
            raise OtherSizeError(
                f"says {size[0]} x {size[1]} (height x width), the photo is {expected[0]} x {expected[1]}"
                + (f" in the {frame} frame" if header.orientation != 1 else "")
            )
        if header.orientation != 1:
            self.photos[photo.path] = frame
        return frame

    def line(self) -> str | None:
        """A line about EXIF orientations; None where no photo has an orientation."""
        if not self.photos:
            return None
        counts = Counter(self.photos.values())
        read = ", ".join(
            f"{counts[frame]} in the {frame} frame" for frame in ("upright", "raw") if counts[frame]
        )
        how = "as --frame says" if self.asked else "as width and height in the files tell, where they do"
        return f"EXIF: photos with an orientation: {len(self.photos)}; annotated: {read} ({how})"
