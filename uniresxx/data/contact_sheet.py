"""A contact sheet: photos of every granularity with their true masks, their words beneath. numpy and PIL only.

Which expressions are shown depends on their ids alone: the same data gives the same sheet, on any machine.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.files import write_atomic
from uniresxx.imaging import masks
from uniresxx.imaging.overlay import font_for, one_line, paint_mask, resized_mask, wrapped
from uniresxx.types import Expression, Granularity, ImageRecord

SOFTWARE = "uniresxx data inspect --sheet"
COLUMNS, ROWS = 4, 2  # of tiles, per granularity
TILE = (240, 320)  # height, width of a photo's place
TEXT_LINES, TEXT, SMALL, HEAD, TITLE = 2, 16, 12, 24, 30  # lines; font sizes in pixels
LINE, GAP, MARGIN = 21, 18, 30
CANDIDATES = 8 * COLUMNS * ROWS  # per granularity, so that photos and words can differ
ZOOM_BELOW, ZOOM_SIDE = 0.01, 92  # share of the photo below which a target gets a window; its side
DIMMED, TINT = 0.6, 0.2  # brightness outside the target; share of the colour on it
# from the palette of Okabe and Ito, as the overlays
COLOURS = {
    Granularity.PART: (230, 159, 0),
    Granularity.OBJECT: (0, 114, 178),
    Granularity.MULTI: (0, 158, 115),
    Granularity.NONE: (204, 121, 167),
}
WORDS = {
    Granularity.PART: "part",
    Granularity.OBJECT: "object",
    Granularity.MULTI: "several objects",
    Granularity.NONE: "not there",
}
PAGE, CARD, EMPTY, RULE = (241, 243, 246), (255, 255, 255), (224, 227, 232), (208, 212, 219)
INK, FAINT = (28, 30, 34), (118, 124, 134)

Pair = tuple[ImageRecord, Expression]


@dataclass
class Sheet:
    """What may be drawn, gathered split by split; holds a bounded number of records."""

    counts: Counter[Granularity] = field(default_factory=Counter)
    candidates: dict[Granularity, list[Pair]] = field(default_factory=dict)

    def add(self, records: Iterable[ImageRecord]) -> None:
        """Take the expressions of some records into account."""
        for record in records:
            for item in record.expressions:
                pairs = self.candidates.setdefault(item.granularity, [])
                pairs.append((record, item))
                self.counts[item.granularity] += 1
                if len(pairs) >= 2 * CANDIDATES:
                    pairs[:] = nsmallest(CANDIDATES, pairs, key=_rank)

    def chosen(self, kind: Granularity) -> list[Pair]:
        """The expressions to draw: photos that no other tile of the granularity shows first, then the rest."""
        first: list[Pair] = []
        again: list[Pair] = []
        seen: set[str] = set()
        for record, item in nsmallest(CANDIDATES, self.candidates.get(kind, []), key=_rank):
            (again if record.image_id in seen else first).append((record, item))
            seen.add(record.image_id)
        return [*first, *again][: COLUMNS * ROWS]

    def draw(self, title: str) -> Image.Image:
        """The sheet, RGB. A photo that cannot be read has an empty tile that says so."""
        kinds = [kind for kind in Granularity if self.candidates.get(kind)]
        rows = {kind: -(-len(self.chosen(kind)) // COLUMNS) for kind in kinds}
        card = (TILE[0] + TEXT_LINES * LINE + 36, TILE[1])
        width = 2 * MARGIN + COLUMNS * card[1] + (COLUMNS - 1) * GAP
        band = HEAD + 2 * GAP
        height = 2 * MARGIN + TITLE + 40 + sum(band + count * (card[0] + GAP) for count in rows.values())
        page = Image.new("RGB", (width, height), PAGE)
        pen = ImageDraw.Draw(page)
        name = one_line(title, 90)
        pen.text((MARGIN, MARGIN), name, fill=INK, font=font_for(name, TITLE))
        total = (
            f"{self.counts.total():,} expressions and their true masks; {COLUMNS * ROWS} of each kind at most"
        )
        pen.text((MARGIN, MARGIN + TITLE + 12), total, fill=FAINT, font=font_for(total, TEXT))
        y = MARGIN + TITLE + 40
        for kind in kinds:
            _band(pen, kind, self.counts[kind], y + GAP, width)
            y += band
            for place, pair in enumerate(self.chosen(kind)):
                row, column = divmod(place, COLUMNS)
                corner = (MARGIN + column * (card[1] + GAP), y + row * (card[0] + GAP))
                page.paste(_card(pair, card), corner)
            y += rows[kind] * (card[0] + GAP)
        return page


def check_sheet_path(path: Path) -> None:
    """InputError where no contact sheet can be written, or another file than a contact sheet would be replaced."""
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise InputError(f"{path}: --sheet must name a PNG file in a folder that is there")
    if path.exists() and not _is_sheet(path):
        raise InputError(f"{path} exists and is not a contact sheet: name another file with --sheet")


def _is_sheet(path: Path) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return picture.info.get("Software") == SOFTWARE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def save_sheet(sheet: Sheet, title: str, path: Path) -> None:
    """Draw the sheet and write it as PNG; OSError where it cannot be written."""
    marks, stream = PngInfo(), BytesIO()
    marks.add_text("Software", SOFTWARE)  # so that the next one may replace it
    sheet.draw(title).save(stream, format="PNG", compress_level=3, pnginfo=marks)
    write_atomic(path, stream.getvalue())


def _rank(pair: Pair) -> bytes:
    return hashlib.sha256(pair[1].expression_id.encode("utf-8", "replace")).digest()


def _band(pen: ImageDraw.ImageDraw, kind: Granularity, count: int, y: int, width: int) -> None:
    """The heading of a granularity: its colour, its name, how many there are, a line to the right edge."""
    pen.rectangle((MARGIN, y + 3, MARGIN + 8, y + HEAD + 3), fill=COLOURS[kind])
    head, tail = WORDS[kind], f"{count:,}"
    font = font_for(head, HEAD)
    pen.text((MARGIN + 20, y + HEAD // 2 + 3), head, fill=INK, font=font, anchor="lm")
    x = MARGIN + 32 + round(font.getlength(head))
    small = font_for(tail, TEXT)
    pen.text((x, y + HEAD // 2 + 5), tail, fill=FAINT, font=small, anchor="lm")
    x += round(small.getlength(tail)) + 14
    pen.line((x, y + HEAD // 2 + 4, width - MARGIN, y + HEAD // 2 + 4), fill=RULE)


def _card(pair: Pair, size: tuple[int, int]) -> Image.Image:
    """A photo with its mask, the words beneath, the id below them in small letters."""
    record, item = pair
    card = Image.new("RGB", (size[1], size[0]), CARD)
    card.paste(_tile(record, item), (0, 0))
    pen = ImageDraw.Draw(card)
    text = one_line(item.text) or "(no text)"
    font = font_for(text, TEXT)
    for row, line in enumerate(wrapped(text, font, size[1] - 20, TEXT_LINES)):
        pen.text((10, TILE[0] + 18 + row * LINE), line, fill=INK, font=font, anchor="lm")
    name = one_line(item.expression_id, 200)
    small = font_for(name, SMALL)
    while small.getlength(name) > size[1] - 20:
        name = f"…{name[2:]}"
    pen.text((10, size[0] - 12), name, fill=FAINT, font=small, anchor="lm")
    pen.rectangle((0, 0, size[1] - 1, size[0] - 1), outline=RULE)
    return card


def _tile(record: ImageRecord, item: Expression) -> Image.Image:
    """The photo scaled into its place with the mask on it; small targets also in a window, enlarged."""
    tile = Image.new("RGB", (TILE[1], TILE[0]), EMPTY)
    try:
        photo = photo_of(record)
        mask = None if item.rle is None else masks.decode(masks.validate(item.rle, photo.shape[:2]))
    except InputError as error:
        _draw_error(tile, str(error))
        return tile
    drawn = _drawn(photo, mask, TILE, COLOURS[item.granularity])
    left, top = (TILE[1] - drawn.width) // 2, (TILE[0] - drawn.height) // 2
    tile.paste(drawn, (left, top))
    if mask is not None and mask.any() and mask.mean() < ZOOM_BELOW:
        _window(tile, photo, mask, COLOURS[item.granularity])
    if mask is None:
        _draw_absent(ImageDraw.Draw(tile), COLOURS[item.granularity])
    return tile


def _drawn(
    photo: np.ndarray, mask: np.ndarray | None, limit: tuple[int, int], colour: tuple[int, int, int]
) -> Image.Image:
    """Photo and mask at the largest size that fits (height, width) `limit`."""
    height, width = photo.shape[:2]
    scale = min(limit[0] / height, limit[1] / width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    filter_ = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    picture = Image.fromarray(np.ascontiguousarray(photo)).resize((size[1], size[0]), filter_)
    if mask is None:
        return picture
    if scale >= 1:
        return _marked(picture, np.asarray(Image.fromarray(mask).resize((size[1], size[0]), filter_)), colour)
    return _marked(picture, resized_mask(mask, size), colour)


def _marked(picture: Image.Image, mask: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """The target in its own colours with an outline, the rest of the picture dimmed."""
    canvas = np.array(picture)
    canvas[~mask] = (canvas[~mask] * DIMMED).astype(np.uint8)
    paint_mask(canvas, mask, colour, TINT)
    return Image.fromarray(canvas)


def _window(tile: Image.Image, photo: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """The surroundings of a small target, in the corner that is farthest from it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    centre = ((rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2)
    side = min(max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) * 1.6 + 6, min(mask.shape))
    y, x = (int(np.clip(at - side / 2, 0, of - side)) for at, of in zip(centre, mask.shape, strict=True))
    part = slice(y, y + max(1, round(side))), slice(x, x + max(1, round(side)))
    crop = Image.fromarray(np.ascontiguousarray(photo[part])).resize((ZOOM_SIDE, ZOOM_SIDE))
    target = Image.fromarray(mask[part]).resize((ZOOM_SIDE, ZOOM_SIDE), Image.Resampling.NEAREST)
    drawn = _marked(crop, np.asarray(target), colour)
    right, below = centre[1] < mask.shape[1] / 2, centre[0] < mask.shape[0] / 2
    corner = (
        tile.width - ZOOM_SIDE - 8 if right else 8,
        tile.height - ZOOM_SIDE - 8 if below else 8,
    )
    tile.paste(Image.new("RGB", (ZOOM_SIDE + 6, ZOOM_SIDE + 6), CARD), (corner[0] - 3, corner[1] - 3))
    tile.paste(drawn, corner)


def _draw_absent(pen: ImageDraw.ImageDraw, colour: tuple[int, int, int]) -> None:
    """A crossed circle in the corner: the expression has no target."""
    box = (10, 10, 36, 36)
    pen.ellipse(box, fill=CARD, outline=colour, width=3)
    pen.line((15, 31, 31, 15), fill=colour, width=3)


def _draw_error(tile: Image.Image, why: str) -> None:
    pen = ImageDraw.Draw(tile)
    lines: Sequence[str] = wrapped(one_line(why), font_for("x", SMALL), tile.width - 40, 6)
    for row, line in enumerate(lines):
        pen.text((20, 40 + row * 18), line, fill=FAINT, font=font_for(line, SMALL))
