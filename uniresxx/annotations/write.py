"""The one function that writes any format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from uniresxx.annotations.coco import write_coco, write_supervision
from uniresxx.annotations.cvat import write_cvat
from uniresxx.annotations.fiftyone import write_fiftyone
from uniresxx.annotations.files import earlier_files, write_provenance
from uniresxx.annotations.label_studio import write_label_studio
from uniresxx.annotations.prepare import class_names, class_numbers, photo_names, prepared
from uniresxx.annotations.records import AnnotatedImage, Export, Options, Photo, Provenance
from uniresxx.annotations.voc_png import write_voc_png
from uniresxx.annotations.yolo import write_yolo
from uniresxx.errors import InputError


@dataclass(frozen=True, slots=True)
class Format:
    """How a format is written.

    Args:
        write: its module's function.
        first_id: the number of the first class where none are given.
        one_class_per_pixel: whether pixels cannot be shared by categories.
    """

    write: Callable[[Iterable[Photo], Export, Path], list[Path]]
    first_id: int = 1
    one_class_per_pixel: bool = False


_FORMATS = {
    "coco": Format(write_coco),
    "cvat": Format(write_cvat),
    "fiftyone": Format(write_fiftyone),
    "labelstudio": Format(write_label_studio),
    "supervision": Format(write_supervision),
    "voc-png": Format(write_voc_png, one_class_per_pixel=True),
    "yolo": Format(write_yolo, first_id=0),
}
FORMATS = tuple(_FORMATS)


def write(
    format: str,  # noqa: A002
    images: Iterable[AnnotatedImage],
    out: Path,
    *,
    classes: Mapping[str, int] | None = None,
    provenance: Provenance,
    options: Options | None = None,
) -> list[Path]:
    """Write the masks of photos in one format.

    Args:
        format: one of FORMATS.
        images: all photos of the export; one without masks is listed too.
        out: folder for the files; made if it is not there. An earlier export in it is replaced: files
            that only that one had are removed.
        classes: category names and their ids; None: numbered by name, from 1 on (YOLO: from 0 on). Names that share
            an id are one class, called by the first of them.
        provenance: which model made the masks; written beside each of them.
        options: how masks are written; None: exact masks, nothing left out.

    Returns:
        The written files; the last is provenance.json, which lists every answer, those without a mask too.

    Raises:
        InputError: an unknown format, a category without an id, an id that the format cannot hold, a mask of another
            size than its photo, a photo that comes twice.
        OSError: the disk is full or the folder cannot be written.
    """
    chosen, options = _FORMATS.get(format), options or Options()
    if chosen is None:
        raise InputError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
    images = list(images)
    names, numbers = photo_names(images), class_numbers(images, classes, chosen.first_id)
    export = Export(class_names(numbers), provenance, options)
    overlap = "score" if chosen.one_class_per_pixel and options.overlap == "keep" else options.overlap
    out.mkdir(parents=True, exist_ok=True)
    pixels: list[dict[int, int]] = []
    earlier = earlier_files(out)
    files = chosen.write(_counted(prepared(images, numbers, options, overlap), pixels), export, out)
    provenance_file = write_provenance(out, files, images, names, numbers, pixels, export)
    for path in filter(Path.is_file, earlier - set(files)):
        path.unlink()
    return [*files, provenance_file]


def _counted(photos: Iterable[Photo], pixels: list[dict[int, int]]) -> Iterator[Photo]:
    """The photos as they come; notes how many pixels are left of each mask."""
    for photo in photos:
        pixels.append({shape.place: shape.area for shape in photo.shapes})
        yield photo
