"""Pictures of the report as data URIs: one base picture per photo, masks as small transparent layers over
it."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from PIL import Image

LONGEST = 480  # pixels of a shown photo; drawn scenes are far below
TRUTH, ANSWER = (0, 214, 150), (255, 150, 20)  # apart for the colour-blind (after Okabe and Ito, 2008)
VEIL = (20, 26, 38)
SMALL = 160  # pixels; pictures up to here are embedded as they are and shown with sharp pixels


def shown_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which masks are drawn: whole-factor enlargement of small pictures, reduction of
    large ones."""
    longest = max(height, width)
    if longest > LONGEST:
        return max(1, round(height * LONGEST / longest)), max(1, round(width * LONGEST / longest))
    factor = max(1, LONGEST // longest)
    return height * factor, width * factor


def photo_uri(photo: np.ndarray) -> str:
    """Data URI of a photo (uint8 (y, x, 3)): PNG as it is when small, else a reduced JPEG."""
    height, width = photo.shape[:2]
    picture = Image.fromarray(np.ascontiguousarray(photo))
    if max(height, width) <= SMALL:
        return _uri(picture, "png")
    if max(height, width) > LONGEST:
        shown = shown_size(height, width)
        picture = picture.resize((shown[1], shown[0]), Image.Resampling.LANCZOS)
    return _uri(picture, "jpeg")


def thumbnail_uri(photo: np.ndarray, side: int) -> str:
    """Data URI of a photo for a list of many: its longest side at most `side`; PNG when it is small
    anyway."""
    height, width = photo.shape[:2]
    picture = Image.fromarray(np.ascontiguousarray(photo))
    if max(height, width) <= SMALL:
        return _uri(picture, "png")
    picture.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=2.0)
    return _uri(picture, "jpeg", quality=70)


def mask_uri(mask: np.ndarray, colour: tuple[int, int, int]) -> str:
    """Data URI of a mask (bool (y, x)) as a layer: clear inside, a bright edge, a dark veil outside."""
    shown = shown_size(*mask.shape)
    filter_ = Image.Resampling.BOX if shown[0] < mask.shape[0] else Image.Resampling.NEAREST
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize((shown[1], shown[0]), filter_)
    inside = np.asarray(grey) > 0  # any covered pixel: small parts stay visible when reduced
    edge = inside & ~_shrunk(inside, max(2, max(shown) // 120))
    index = np.zeros(shown, np.uint8)
    index[inside], index[edge] = 1, 2
    layer = Image.fromarray(index)
    layer.putpalette([*VEIL, *colour, *colour])
    layer.info["transparency"] = bytes((165, 0, 255))
    return _uri(layer, "png")


def _shrunk(mask: np.ndarray, steps: int) -> np.ndarray:
    """Pixels whose neighbours up to `steps` away (four directions) are in the mask; outside counts as
    inside."""
    for _ in range(steps):
        p = np.pad(mask, 1, constant_values=True)
        mask = mask & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
    return mask


def _uri(picture: Image.Image, kind: str, quality: int = 80) -> str:
    stream = BytesIO()
    if kind == "jpeg":
        picture.save(stream, format="JPEG", quality=quality)
    else:
        transparency = picture.info.get("transparency")
        more = {} if transparency is None else {"transparency": transparency}
        picture.save(stream, format="PNG", optimize=True, **more)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
