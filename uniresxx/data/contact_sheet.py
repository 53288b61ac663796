"""A contact sheet: photos of every granularity with their true masks, their words beneath. PIL only.

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

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.files import write_atomic
from uniresxx.imaging import masks, panel
from uniresxx.imaging.lettering import font_for, one_line, wrapped
from uniresxx.imaging.marking import PALETTE
from uniresxx.types import Expression, Granularity, ImageRecord

SOFTWARE = "uniresxx data inspect --sheet"
COLUMNS, ROWS = 4, 2  # of tiles, per granularity
TILE = (240, 320)  # height, width of a photo's place
TEXT_LINES, TEXT, SMALL, HEAD, TITLE = 2, 16, 12, 24, 30  # lines; font sizes in pixels
LINE, GAP, MARGIN = 21, 18, 30
CANDIDATES = 8 * COLUMNS * ROWS  # per granularity, so that photos and words can differ
COLOURS = dict(zip(Granularity, (PALETTE[0], PALETTE[1], PALETTE[3], PALETTE[6]), strict=True))
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
    """The photo scaled into its place with the mask on it; small targets are zoomed."""
    tile = Image.new("RGB", (TILE[1], TILE[0]), EMPTY)
    try:
        photo = photo_of(record)
        mask = None if item.rle is None else masks.decode(masks.validate(item.rle, photo.shape[:2]))
    except InputError as error:
        _draw_error(tile, str(error))
        return tile
    drawn = panel.tile(photo, mask, COLOURS[item.granularity], TILE)
    tile.paste(drawn, ((TILE[1] - drawn.width) // 2, (TILE[0] - drawn.height) // 2))
    return tile


def _draw_error(tile: Image.Image, why: str) -> None:
    pen = ImageDraw.Draw(tile)
    lines: Sequence[str] = wrapped(one_line(why), font_for("x", SMALL), tile.width - 40, 6)
    for row, line in enumerate(lines):
        pen.text((20, 40 + row * 18), line, fill=FAINT, font=font_for(line, SMALL))
