"""What the native formats share: folders in their known spellings, COCO `instances.json`, sentences, records.

Folder and field rules follow the public readers of these sets (refer.py, grefer.py, CRIS); image files lie
under `images/train2014` or, in the LISA layout, under `images/mscoco/images/train2014`.
"""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from uniresxx.data.readers.pickles import load_json
from uniresxx.errors import InputError, NotThereError
from uniresxx.imaging import masks
from uniresxx.types import RLE, Expression, Granularity, ImageRecord, PhotoInside

logger = logging.getLogger("uniresxx.data")

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
NOT_STATED = "not stated"
COCO_MASKS = "masks CC BY 4.0 (COCO), expressions not stated"  # no release of the family names a licence
COCO_LICENCES: dict[Any, str] = {  # of photos, by the numbers of COCO's own files
    1: "Attribution-NonCommercial-ShareAlike License",
    2: "Attribution-NonCommercial License",
    3: "Attribution-NonCommercial-NoDerivs License",
    4: "Attribution License",
    5: "Attribution-ShareAlike License",
    6: "Attribution-NoDerivs License",
    7: "No known copyright restrictions",
    8: "United States Government Work",
}
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxlong, _REPR.maxother = 2, 60, 60, 60


def shown(value: Any) -> str:
    """A value for an error: one short line, also of data that holds itself or one list a million times."""
    return _REPR.repr(value)


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
    """The first of `files` in a folder of the data set; InputError that lists what was looked for."""
    if not root.is_dir():
        raise NotThereError(
            f"{root}: no such data folder; give the root of the native layout with --data DIR"
        )
    for folder in data_folders(root, names):
        for name in files:
            if (folder / name).is_file():
                return folder / name
    raise NotThereError(
        f"{root}: holds no {names[0]}/{' or '.join(files)}; "
        "--data (in prepare: --root) must name the folder above it"
    )


class PhotoFinder:
    """Where the photos of a root lie; a photo that is missing is only an error once its pixels are wanted."""

    def __init__(self, root: Path, folders: Sequence[str] = PHOTO_FOLDERS) -> None:
        self.first = root / folders[0]
        self.folders = [root / name for name in folders if (root / name).is_dir()]

    def path(self, file_name: str, who: str) -> Path:
        """Path of a photo; InputError that starts with `who` where the name would leave the photo folder."""
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
        for folder in self.folders[:-1]:  # the last needs no look: there is nowhere else
            if (folder / name).is_file():
                return folder / name
        return (self.folders[-1] if self.folders else self.first) / name


def need(record: Mapping[str, Any], name: str, who: str) -> Any:
    """A field of a record; InputError naming the field and the record."""
    if name not in record:
        raise InputError(f"{who}: has no field {name!r}")
    return record[name]


def whole(value: Any, name: str, who: str) -> int:
    """An int of a field (12, 12.0 or "12"); InputError otherwise."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{who}: {name} must be a whole number, not {shown(value)}")
    return value


def size_of(row: Mapping[str, Any], who: str) -> tuple[int, int]:
    """(height, width) of a row, both from 1 up and within the cap for photos; InputError otherwise."""
    height, width = (whole(need(row, side, who), side, who) for side in ("height", "width"))
    if height < 1 or width < 1 or height * width > masks.MAX_PIXELS:
        raise InputError(
            f"{who}: {shown(height)} x {shown(width)} (height x width) is no size of a photo of at most "
            f"{masks.MAX_PIXELS} pixels"
        )
    return height, width


def file_name_of(row: Mapping[str, Any], who: str, field_name: str = "file_name") -> str:
    """A field that names a file; InputError where it is no text or empty."""
    value = need(row, field_name, who)
    if not isinstance(value, str) or not value:
        raise InputError(f"{who}: {field_name} must be a file name, not {shown(value)}")
    return _unicode(value, who)


def _unicode(text: str, who: str) -> str:
    """The text; InputError where it holds half a character (JSON can), which no file or tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{who}: {shown(text)} holds half a character; correct the file") from None
    return text


def photo_id(file_name: str) -> str:
    """The COCO image id in a file name, as in the other sets, or the bare name where there is none."""
    bare = PurePosixPath(file_name).stem
    number = re.search(r"(?:^|_)(\d{12})$", bare)
    return str(int(number.group(1))) if number else bare


def truth(row: Mapping[str, Any], size: tuple[int, int], name: str, who: str) -> RLE:
    """OR of the polygons or run lengths in `segmentation` at the photo's size (height, width).

    Raises InputError that starts with `name`, also where no pixel is covered: `who` has no target then.
    """
    try:
        rle = masks.from_coco(need(row, "segmentation", name), *size)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
    if masks.area(rle) == 0:
        raise InputError(f"{name}: its segmentation covers no pixel, so it can be no target of {who}")
    return rle


def overlap_source(
    rows: Sequence[Mapping[str, Any]], rles: Sequence[RLE], size: tuple[int, int]
) -> dict[str, RLE]:
    """{"overlap": pixels that more than one polygon or code of `rows` covers}, empty where there is none.

    `rles` are the masks of the rows (`truth`). LISA sums polygons, so these pixels are no truth in its scores;
    our masks are ORs and do not know them. Only polygons whose boxes meet are drawn a second time.
    """
    pieces = [_pieces(row["segmentation"]) for row in rows]
    if not _may_meet([piece for some in pieces for piece in some]):
        return {}
    layers: list[RLE] = []
    for some, rle in zip(pieces, rles, strict=True):
        layers += [masks.from_coco([piece], *size) for piece in some] if _may_meet(some) else [rle]
    if sum(map(masks.area, layers)) == masks.area(masks.union(layers, size)):
        return {}
    counts = np.zeros(size, dtype=np.int32)
    for layer in layers:
        counts += masks.decode(layer)
    return {"overlap": masks.encode(counts > 1)}


def _pieces(segmentation: Any) -> list[Any]:
    """What is summed where public code sums: the solid polygons, or the run-length codes."""
    if not isinstance(segmentation, list | tuple):
        return [segmentation]
    if segmentation and isinstance(segmentation[0], int | float):
        return [segmentation]  # one flat polygon
    return [piece for piece in segmentation if isinstance(piece, Mapping) or len(piece) >= 6]


def _may_meet(pieces: Sequence[Any]) -> bool:
    """Whether two pieces may share a pixel: their boxes do, or one is no polygon."""
    if len(pieces) < 2 or any(isinstance(piece, Mapping) for piece in pieces):
        return len(pieces) >= 2
    return _boxes_meet(pieces)


def _boxes_meet(polygons: Sequence[Sequence[float]]) -> bool:
    """Whether the boxes of two polygons share a pixel; one pixel is left for how edges are drawn."""
    points = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]
    low = np.array([item.min(axis=0) for item in points]) - 1
    high = np.array([item.max(axis=0) for item in points]) + 1
    apart = (low[:, None] > high[None]) | (high[:, None] < low[None])
    meet = ~apart.any(axis=-1)
    return bool(meet.sum() > len(points))  # each meets itself


@dataclass(frozen=True)
class Instances:
    """COCO images and annotations by id."""

    path: Path
    images: Mapping[int, Mapping[str, Any]]
    annotations: Mapping[int, Mapping[str, Any]]
    licences: Mapping[Any, str] = field(default_factory=dict)  # of photos: id -> name

    @classmethod
    def load(cls, path: Path) -> Instances:
        """Read `instances.json`; InputError naming file and field where it is not of COCO's form."""
        content = load_json(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: must hold a COCO object, not {type(content).__name__}")
        tables = {}
        for name in ("images", "annotations"):
            rows = need(content, name, str(path))
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise InputError(f"{path}: {name} must be a list of objects")
            tables[name] = _by_id(rows, f"{path}: {name}")
        return cls(
            path, tables["images"], tables["annotations"], _licences(content.get("licenses")) or COCO_LICENCES
        )

    def image(self, image_id: int, who: str) -> tuple[str, int, int]:
        """(file name, height, width) of an image."""
        if image_id not in self.images:
            raise InputError(f"{who}: image_id {image_id} is not in {self.path}")
        row, name = self.images[image_id], f"{self.path}: image {image_id}"
        return file_name_of(row, name), *size_of(row, name)

    def licence(self, image_id: int) -> str:
        """The licence of a photo by its name, "not stated" where the file has none."""
        return photo_licence(self.images[image_id], self.licences)

    def annotation(self, ann_id: int, image_id: int, who: str) -> Mapping[str, Any]:
        """An annotation, which must belong to the image."""
        if ann_id not in self.annotations:
            raise InputError(f"{who}: ann_id {ann_id} is not in {self.path}")
        row = self.annotations[ann_id]
        if whole(row.get("image_id", image_id), "image_id", f"{self.path}: ann {ann_id}") != image_id:
            raise InputError(f"{who}: ann_id {ann_id} belongs to image {row['image_id']}, not to {image_id}")
        return row

    def is_crowd(self, ann_id: int, image_id: int, who: str) -> bool:
        """Crowd regions mean "many" and are never a referent."""
        return bool(self.annotation(ann_id, image_id, who).get("iscrowd", 0))

    def mask(self, ann_id: int, image_id: int, who: str) -> RLE:
        """OR of an annotation's polygons or run lengths at the photo's size; InputError where empty."""
        row = self.annotation(ann_id, image_id, who)
        return truth(row, self.image(image_id, who)[1:], f"{self.path}: ann {ann_id}", who)

    def overlap_source(
        self, ann_ids: Sequence[int], rles: Sequence[RLE], image_id: int, who: str
    ) -> dict[str, RLE]:
        """`overlap_source` of annotations and their masks."""
        rows = [self.annotation(ann_id, image_id, who) for ann_id in ann_ids]
        return overlap_source(rows, rles, self.image(image_id, who)[1:])


def _by_id(rows: Sequence[Mapping[str, Any]], who: str) -> dict[int, Mapping[str, Any]]:
    """Rows by their `id`; InputError where two different rows have the same."""
    found: dict[int, Mapping[str, Any]] = {}
    for index, row in enumerate(rows):
        number = whole(need(row, "id", f"{who}[{index}]"), "id", f"{who}[{index}]")
        if found.setdefault(number, row) != row:
            raise InputError(f"{who}[{index}]: id {number} is also that of another one; correct the file")
    return found


def photo_licence(row: Mapping[str, Any], names: Mapping[Any, str] = COCO_LICENCES) -> str:
    """The licence of COCO's image row by its name, "not stated" where the row has none."""
    told = row.get("license")
    known = isinstance(told, int | str) and told in names
    return f"{names[told]} (COCO {told})" if known else NOT_STATED


def _licences(rows: Any) -> dict[Any, str]:
    """The list of photo licences as id -> name; what is not of that form is left aside."""
    good = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {
        row["id"]: row["name"]
        for row in good
        if isinstance(row.get("id"), int | str) and isinstance(row.get("name"), str)
    }


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence: the text given to the model, and what the file says."""

    text: str
    raw: str
    native_id: str | None


def sentences(record: Mapping[str, Any], id_field: str, who: str) -> Iterator[Sentence]:
    """The sentences of a record, dicts or plain text.

    `text` is `sent` without blanks at its ends, otherwise as it came (HTML residue too) and never shortened;
    where `sent` is blank, `raw` serves (our choice). A sentence that is blank in both comes with an empty
    text.
    """
    items = need(record, "sentences", who)
    if not isinstance(items, list):
        raise InputError(f"{who}: sentences must be a list, not {type(items).__name__}")
    for index, item in enumerate(items):
        if isinstance(item, str):
            yield Sentence(_unicode(item, f"{who}: sentence {index}").strip(), item, None)
            continue
        if not isinstance(item, dict):
            raise InputError(f"{who}: sentence {index} must be a dict or text, not {type(item).__name__}")
        sent = need(item, "sent", f"{who}: sentence {index}")
        raw = item.get("raw", sent)
        if not isinstance(sent, str) or not isinstance(raw, str):
            raise InputError(f"{who}: sentence {index}: sent and raw must be text")
        native = item.get(id_field)
        if native is not None and (not isinstance(native, int | str) or isinstance(native, bool)):
            raise InputError(f"{who}: sentence {index}: {id_field} must be a number, not {shown(native)}")
        _unicode(f"{sent}{raw}{native}", f"{who}: sentence {index}")
        yield Sentence(sent.strip() or raw.strip(), raw, None if native is None else str(native))


@dataclass
class _Image:
    path: str | None
    inside: PhotoInside | None
    height: int
    width: int
    licence: str
    expressions: list[Expression] = field(default_factory=list)


class Collector:
    """Gathers expressions into one ImageRecord per image and reports what was left out.

    `root` is the data folder: what goes into a record names files below it, so that a record does not depend
    on where the data lies. `licence` is that of the annotations.
    """

    def __init__(self, where: str, root: Path, licence: str = COCO_MASKS) -> None:
        self.where, self.root, self.licence = where, root, licence
        self.images: dict[str, _Image] = {}
        self.left_out: list[str] = []
        self._seen: dict[str, int] = {}

    def add(
        self,
        image_id: str,
        photo: Path | PhotoInside,
        size: tuple[int, int],
        expression: Expression,
        licence: str = NOT_STATED,
    ) -> None:
        """Add an expression; `size` is (height, width), one per image, or InputError.

        `photo` and its `licence` are those of the image's first expression.
        """
        inside = photo if isinstance(photo, PhotoInside) else None
        path = None if inside else str(photo)
        image = self.images.setdefault(image_id, _Image(path, inside, *size, licence))
        if (image.height, image.width) != size:
            raise InputError(
                f"{self.where}: {expression.expression_id} says image {image_id} is {size[0]} x {size[1]} "
                f"(height x width), earlier records say {image.height} x {image.width}"
            )
        image.expressions.append(expression)

    def unique(self, expression_id: str) -> str:
        """The id, with `#2`, `#3`, … where it comes again (our choice: predictions are keyed by it)."""
        count = self._seen[expression_id] = self._seen.get(expression_id, 0) + 1
        return expression_id if count == 1 else f"{expression_id}#{count}"

    def leave_out(self, what: str) -> None:
        """Note something that is right but cannot be asked or scored."""
        self.left_out.append(what)

    def records(self) -> list[ImageRecord]:
        """The records; warns about what was left out. InputError where nothing is left."""
        if self.left_out:
            some = "; ".join(self.left_out[:3]) + ("; …" if len(self.left_out) > 3 else "")
            if not self.images:
                raise InputError(f"{self.where}: nothing left to read: {some}")
            logger.warning("%s: left out %d: %s", self.where, len(self.left_out), some)
        if not self.images:
            raise InputError(f"{self.where}: holds no expression")
        repeated = sum(count > 1 for count in self._seen.values())
        if repeated:
            logger.warning("%s: %d native ids are used more than once; got #2, #3, …", self.where, repeated)
        records = [
            ImageRecord(
                name,
                item.height,
                item.width,
                tuple(item.expressions),
                path=item.path,
                inside=item.inside,
                source={"licence": f"photo {item.licence}; annotations: {self.licence}"},
            )
            for name, item in self.images.items()
        ]
        if self.left_out:  # noted on the first record only, so that counts over records add up
            lines = tuple(line.replace(f"{self.root}/", "") for line in self.left_out)
            records[0] = replace(records[0], source={**records[0].source, "left_out": lines})
        return records


def asked(record: Mapping[str, Any], who: str, collector: Collector) -> Iterator[Sentence]:
    """The sentences of a RefCOCO-type record that can be asked; blank ones are left out by name.

    InputError where a sentence has no `sent_id`.
    """
    for sentence in sentences(record, "sent_id", who):
        if sentence.native_id is None:
            need({}, "sent_id", f"{who}: a sentence")
        if sentence.text:
            yield sentence
        else:
            collector.leave_out(f"{who}: sentence {sentence.native_id} is blank")


def target_expression(
    expression_id: str,
    sentence: Sentence,
    granularity: Granularity,
    rle: RLE | None,
    source: Mapping[str, Any],
) -> Expression:
    """An Expression with the area of its mask; `source` gets the raw text."""
    return Expression(
        expression_id,
        sentence.text,
        granularity,
        rle,
        area=0 if rle is None else masks.area(rle),
        source={"raw": sentence.raw, **source},
    )


def records_of_split(
    records: Sequence[Mapping[str, Any]], split: str, path: Path
) -> list[tuple[str, Mapping[str, Any]]]:
    """(name for errors, record) of the records of a split; InputError listing the splits if it has none."""
    named = [(f"{path}: record {index}{_ref_name(record)}", record) for index, record in enumerate(records)]
    chosen = [(who, record) for who, record in named if need(record, "split", who) == split]
    if not chosen:
        known = sorted({str(record["split"])[:30] for record in records if isinstance(record["split"], str)})
        raise NotThereError(f"{path}: has no split {split!r}; it has {', '.join(known) or 'no records'}")
    return chosen


def _ref_name(record: Mapping[str, Any]) -> str:
    return f" (ref_id {shown(record['ref_id'])})" if "ref_id" in record else ""
