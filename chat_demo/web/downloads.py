"""What a visitor can take home of an answer: masks, COCO RLE, the overlay, the conversation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from PIL import Image

from chat_demo.web.kept import to_json
from chat_demo.web.talk import Talk
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, safe_name
from uniresxx.files import to_json as json_bytes
from uniresxx.imaging.overlay import Layer, draw_overlay
from uniresxx.prediction import Segment


def masks_zip(segments: Sequence[Segment]) -> bytes:
    """A PNG for each mask at the photo's size, 0 outside and 255 inside. InputError where there is none."""
    there = [(number, part) for number, part in enumerate(segments, start=1) if part.rle is not None]
    if not there:
        raise InputError("this answer has no mask: ask for something that is in the picture")
    stream = BytesIO()
    with ZipFile(stream, "w", ZIP_DEFLATED) as folder:
        for number, part in there:
            mask = part.mask
            assert mask is not None
            picture = Image.fromarray(mask.astype(np.uint8) * 255)
            folder.writestr(f"{number:02d}_{safe_name(part.phrase)}.png", png_bytes(picture))
    return stream.getvalue()


def rle_json(name: str, question: str, segments: Sequence[Segment]) -> bytes:
    """The masks as COCO RLE at the photo's size, null where a phrase is not there."""
    phrases = [{"phrase": part.phrase, "segmentation": part.rle, "score": part.score} for part in segments]
    return json_bytes({"picture": name, "question": question, "phrases": phrases})


def overlay_png(photo: np.ndarray, segments: Sequence[Segment]) -> bytes:
    """The overlay as everywhere in the project, with its legend."""
    return png_bytes(draw_overlay(photo, (Layer(part.phrase, part.mask, part.score) for part in segments)))


def conversation_json(talk: Talk) -> bytes:
    """All pictures and turns with their masks; the link is left out."""
    value: dict[str, Any] = to_json(talk)
    return json.dumps(value, ensure_ascii=False, indent=1).encode()
