"""FiftyOne: samples.json and metadata.json, a folder of the type `fo.types.FiftyOneDataset`.

It is the form without a format version, which FiftyOne reads into the current one. Photos stay where they are.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.annotations.files import write_compact
from uniresxx.annotations.records import Export, Photo, Shape, rounded
from uniresxx.imaging import masks

SAMPLES, METADATA, FIELD = "samples.json", "metadata.json", "predictions"


def write_fiftyone(photos: Iterable[Photo], export: Export, out: Path) -> list[Path]:
    """Write samples.json and metadata.json."""
    samples = [
        {
            "filepath": os.path.abspath(photo.source),
            "tags": [],
            "metadata": {"_cls": "ImageMetadata", "width": photo.width, "height": photo.height},
            "_media_type": "image",
            FIELD: {
                "_cls": "Detections",
                "detections": [_detection(shape, photo, export) for shape in photo.shapes],
            },
        }
        for photo in photos
    ]
    info = {"classes": {FIELD: list(export.names.values())}, "uniresxx": export.describe()}
    metadata = {"name": "uniresxx", "media_type": "image", "info": info}
    return [write_compact(out / SAMPLES, {"samples": samples}), write_compact(out / METADATA, metadata)]


def _detection(shape: Shape, photo: Photo, export: Export) -> dict[str, Any]:
    """A detection: its box in shares of the photo's sides, and its mask inside the box."""
    box = masks.box_of(shape.rle)
    assert box is not None, "a mask that is written has a pixel"
    x0, y0, x1, y1 = box
    left, top, width, height = (
        x0 / photo.width,
        y0 / photo.height,
        (x1 - x0) / photo.width,
        (y1 - y0) / photo.height,
    )
    return {
        "_cls": "Detection",
        "label": shape.category,
        "bounding_box": [left, top, width, height],
        "mask": _array(masks.decode(shape.rle)[y0:y1, x0:x1]),
        "confidence": rounded(shape.answer.score),
        "tags": [],
        **export.attributes(shape.answer),
    }


def _array(values: np.ndarray) -> dict[str, Any]:
    """An array as FiftyOne writes it: a compressed .npy file, in MongoDB's JSON form of binary data."""
    stream = BytesIO()
    np.save(stream, np.ascontiguousarray(values), allow_pickle=False)
    return {
        "$binary": {"base64": base64.b64encode(zlib.compress(stream.getvalue())).decode(), "subType": "00"}
    }
