"""Indexed PNG as in PASCAL VOC: the value of a pixel is the number of its class, 0 is background."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from uniresxx.annotations.files import PhotoFiles, write_text
from uniresxx.annotations.palette import voc_palette
from uniresxx.annotations.records import Export, Photo
from uniresxx.errors import InputError
from uniresxx.files import write_atomic
from uniresxx.imaging import masks

FOLDER, LABELS = "SegmentationClass", "labelmap.txt"
VOID = 255  # pixels that scores leave out; never written


def write_voc_png(photos: Iterable[Photo], export: Export, out: Path) -> list[Path]:
    """Write SegmentationClass/NAME.png for each photo, and labelmap.txt, as CVAT reads it too."""
    wrong = [number for number in export.names if not 0 < number < VOID]
    if wrong:
        raise InputError(
            f"the category {export.names[wrong[0]]!r} has the id {wrong[0]}; an indexed PNG holds 1 to {VOID - 1}: "
            "0 is background, 255 is left out of scores"
        )
    palette = voc_palette()
    files = PhotoFiles(out / FOLDER, ".png")
    written = []
    for photo in photos:
        classes_yx = np.zeros((photo.height, photo.width), dtype=np.uint8)
        for shape in photo.shapes:
            classes_yx[masks.decode(shape.rle)] = shape.category_id
        path = files.path(photo)
        _write_png(path, classes_yx, palette, export.provenance.short)
        written.append(path)
    rows = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    rows += [
        f"{name.replace(':', ' ')}:{','.join(map(str, palette[number]))}::"
        for number, name in export.names.items()
    ]
    written.append(write_text(out / LABELS, "\n".join(rows) + "\n"))
    return written


def _write_png(path: Path, classes_yx: np.ndarray, palette: list[tuple[int, int, int]], source: str) -> None:
    picture = Image.fromarray(classes_yx, mode="P")
    picture.putpalette([value for colour in palette for value in colour])
    notes = PngInfo()
    notes.add_itxt("Source", source)
    stream = BytesIO()
    picture.save(stream, format="PNG", pnginfo=notes)
    write_atomic(path, stream.getvalue())
