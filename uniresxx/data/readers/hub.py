"""Parquet copies of the RefCOCO family as downloaded from the Hub: `jxu124/*` and `lmms-lab/*`.

jxu124/refcoco, refcocoplus, refcocog: one row per ref, annotation and image as JSON text, no photos; `bbox`
is xyxy; the split `test` is testA. jxu124/refcoco-benchmark: one row per photo with all its refs; splits such
as `refcoco_unc_val`. Both hold the full segmentation.

lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg: one row per ref with the photo inside; `bbox` is xywh. Their
segmentation is ONE flat list of numbers, so an object of several polygons has lost some: every expression is
labelled with that, and rows whose polygon does not fill their box are left out. The split `val`
of RefCOCO and RefCOCOg mixes the unc (umd) split with Google's, which shares photos with training: it is
refused under that name and read as `val_mixed`.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniresxx.data.readers.collector import Collector, Photo, Target, logger, with_sent_ids
from uniresxx.data.readers.fields import file_name_of, need, photo_id, sentences, shown, size_of, whole
from uniresxx.data.readers.files import note_opened
from uniresxx.data.readers.folders import PhotoFinder, data_folders
from uniresxx.data.readers.instances import overlap_source, photo_licence, truth
from uniresxx.errors import InputError, NotThereError
from uniresxx.imaging import decode as images
from uniresxx.imaging import masks
from uniresxx.imaging.formats import FORMATS
from uniresxx.types import RLE, Granularity, ImageRecord, PhotoInside

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

# data set -> (name on the Hub, our split -> theirs)
JXU124: dict[str, tuple[str, dict[str, str]]] = {
    "refcoco": ("refcoco", {"train": "train", "val": "validation", "testA": "test", "testB": "testB"}),
    "refcoco+": ("refcocoplus", {"train": "train", "val": "validation", "testA": "test", "testB": "testB"}),
    "refcocog_umd": ("refcocog", {"train": "train", "val": "validation", "test": "test"}),
}
LMMS: dict[str, tuple[str, dict[str, str]]] = {
    "refcoco": ("RefCOCO", {"val_mixed": "val", "testA": "testA", "testB": "testB", "test_google": "test"}),
    "refcoco+": ("RefCOCOplus", {"val": "val", "testA": "testA", "testB": "testB"}),
    "refcocog_umd": ("RefCOCOg", {"val_mixed": "val", "test": "test"}),
}
LOSSY = "one flat polygon per object: further polygons are lost"
BOX_PIXELS = 3.0  # a rasterised polygon may differ from its box by about one pixel per side
MAX_GROUP_BYTES = 8 * 2**30  # of one row group, unpacked
BATCH_ROWS = 64  # rows in memory at a time; a photo in each


def read_jxu124(root: Path, split: str, dataset: str = "refcoco") -> list[ImageRecord]:
    """Records of one split of jxu124/<set>, ids `jxu124_<set>/<split>/<sent_id>`; masks are exact.

    Raises InputError naming file, row and field, and for a row of another split.
    """
    name, splits = JXU124[dataset]
    finder = PhotoFinder(root)
    collector = Collector(f"jxu124/{name} {split}", root, f"jxu124_{dataset}/{split}")
    columns = ("raw_anns", "raw_image_info", "ann_id", "image_id", "split", "sentences", "ref_id", "bbox")
    for place, row in parquet_rows(root, "jxu124", name, _their_split(splits, split, name), columns):
        who = str(place)
        if need(row, "split", who) not in (split, splits[split]):
            raise InputError(f"{who}: is of split {shown(row['split'])}, not of {split}")
        box = _box(row, "bbox", who, xywh=False)
        ann, image = _object(row, "raw_anns", who), _object(row, "raw_image_info", who)
        with collector.leaving_out():
            _add_ref(collector, finder, row, ann, image, box, who)
    return collector.records()


def read_jxu124_benchmark(root: Path, split: str) -> list[ImageRecord]:
    """Records of one split of jxu124/refcoco-benchmark (`refcoco_unc_val`, …), ids as `read_jxu124`."""
    finder = PhotoFinder(root)
    start = f"jxu124_benchmark/{split}"
    collector = Collector(f"jxu124/refcoco-benchmark {split}", root, start)
    for place, row in parquet_rows(root, "jxu124", "refcoco-benchmark", split, ("ref_list", "image_info")):
        refs = need(row, "ref_list", str(place))
        if not isinstance(refs, list):
            raise InputError(f"{place}: ref_list must be a list, not {shown(refs)}")
        for index, item in enumerate(refs):
            name = f"{place}: ref {index}"
            if not isinstance(item, dict):
                raise InputError(f"{name}: must be an object, not {shown(item)}")
            ref, ann = _object(item, "ref_info", name), _object(item, "ann_info", name)
            box = _box(ann, "bbox", name, xywh=True)
            image = _object(row, "image_info", str(place))
            with collector.leaving_out():
                _add_ref(collector, finder, ref, ann, image, box, name)
    return collector.records()


def benchmark_splits(root: Path) -> list[str]:
    """Splits of jxu124/refcoco-benchmark that are there (`refcoco_unc_val`, …), from the names of its files."""
    names = [
        path.name.partition("-")[0]
        for folder in _folders(root, "jxu124", "refcoco-benchmark")
        for path in folder.glob("**/*-*.parquet")
    ]
    return sorted({name for name in names if re.fullmatch(r"\w{1,60}", name)})


def read_lmms(root: Path, split: str, dataset: str = "refcoco") -> list[ImageRecord]:
    """Records of one split of lmms-lab/<set>, ids `lmms_<set>/<split>/<question_id>_<place>`; masks are lossy.

    Every expression whose mask came from a flat list says so in `source["truth"]`. Left out and reported:
    crowd regions, rows without a polygon, and rows whose polygon does not fill their box. Raises InputError
    naming file, row and field, and for the split `val` that is two splits in one.
    """
    name, splits = LMMS[dataset]
    if split == "val" and "val_mixed" in splits:
        raise InputError(
            f"lmms-lab/{name}: its split val mixes unc (umd) with Google's, whose photos are in training "
            "sets; read the original files, or val_mixed to take it as it is"
        )
    collector = Collector(f"lmms-lab/{name} {split}", root, f"lmms_{dataset}/{split}")
    columns = ("question_id", "image", "answer", "segmentation", "bbox", "iscrowd", "file_name")
    for place, row in parquet_rows(root, "lmms-lab", name, _their_split(splits, split, name), columns):
        with collector.leaving_out():
            _add_answers(collector, row, place)
    logger.warning("lmms-lab/%s: %s; report no numbers on it", name, LOSSY)
    return collector.records()


def _add_ref(
    collector: Collector,
    finder: PhotoFinder,
    ref: Mapping[str, Any],
    ann: Mapping[str, Any],
    image: Mapping[str, Any],
    box: tuple[float, ...],
    who: str,
) -> None:
    """Add the sentences of a ref; its ids must be those of its annotation and its image."""
    ids = [whole(need(ref, name, who), name, who) for name in ("ann_id", "image_id")]
    for found, name, of in ((ann, "id", ids[0]), (ann, "image_id", ids[1]), (image, "id", ids[1])):
        if whole(found.get(name, of), name, who) != of:
            raise InputError(
                f"{who}: ann_id or image_id {of} differs from {name} {found[name]} in the same row"
            )
    file_name, size = file_name_of(image, who), size_of(image, who)
    if ann.get("iscrowd"):
        collector.leave_out(f"{who}: its target ann {ids[0]} is a crowd region")
        return
    rle = truth(ann, size, f"{who}: ann {ids[0]}", who)
    source: dict[str, Any] = {"ref_id": ref.get("ref_id"), "ann_id": ids[0], "box_xyxy": box}
    source |= overlap_source([ann], [rle], size)
    photo = Photo(str(ids[1]), finder.path(file_name, who), size, photo_licence(image))
    collector.add(who, photo, Target(Granularity.OBJECT, rle, source), with_sent_ids(ref, who))


def _add_answers(collector: Collector, row: Mapping[str, Any], place: Place) -> None:
    """Add the answers of a row of lmms-lab, unless its mask is known to be wrong. The photo stays in its row."""
    who = str(place)
    file_name = re.sub(r"(_\d{12})_\d+(\.\w+)$", r"\1\2", file_name_of(row, who))
    size = images.encoded_size(photo_bytes(row, who))
    if size is None:
        raise InputError(f"{who}: image is no photo in {', '.join(FORMATS)}, or is over the cap")
    box = _box(row, "bbox", who, xywh=True)
    segmentation = row.get("segmentation")
    if row.get("iscrowd") or not segmentation:
        collector.leave_out(f"{who}: " + ("is a crowd" if row.get("iscrowd") else "has no polygon"))
        return
    rle = truth({"segmentation": segmentation}, size, who, who)
    if not _fills(rle, box):
        collector.leave_out(f"{who}: its polygon does not fill its box, so some of it is lost")
        return
    source: dict[str, Any] = {"box_xyxy": box, "file_name": row["file_name"]}
    if isinstance(segmentation, list) and not isinstance(segmentation[0], list):
        source["truth"] = LOSSY
    question = need(row, "question_id", who)
    if not isinstance(question, int | str):
        raise InputError(f"{who}: question_id must be a number or text, not {shown(question)}")
    answers = enumerate(sentences({"sentences": row.get("answer")}, "sent_id", who))
    inside = PhotoInside("parquet", str(place.path), str(place.row), file_name)
    asked = [(f"{question}_{index}", sentence) for index, sentence in answers]
    collector.add(
        who, Photo(photo_id(file_name), inside, size), Target(Granularity.OBJECT, rle, source), asked
    )


def parquet_photo(path: Path, row: int) -> bytes:
    """The encoded photo in a row of an lmms-lab file; InputError as the reader.

    The last row group stays in memory, so photos in their order are read once.
    """
    starts = _row_groups(path)
    group = bisect_right(starts, row) - 1
    photos = _photos_of_group(path, group) if 0 <= row < starts[-1] else ()
    if row - starts[group] >= len(photos):
        raise InputError(f"{path}: has no row {row} any more; prepare the store again")
    return photo_bytes({"image": photos[row - starts[group]].as_py()}, f"{path}: row {row}")


@lru_cache(maxsize=1)
def _row_groups(path: Path) -> tuple[int, ...]:
    """Number of the first row of every row group, and of rows in all."""
    from pyarrow import parquet

    with _readable(path), parquet.ParquetFile(path) as file:
        counts = [_group_rows(file, group, path) for group in range(file.metadata.num_row_groups)]
    return tuple(accumulate(counts, initial=0))


@lru_cache(maxsize=1)
def _photos_of_group(path: Path, group: int) -> pyarrow.ChunkedArray:
    from pyarrow import parquet

    with _readable(path), parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=["image"], use_threads=False).column("image")


# ---- fields


def _their_split(splits: Mapping[str, str], split: str, name: str) -> str:
    if split not in splits:
        raise NotThereError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def _object(row: Mapping[str, Any], name: str, who: str) -> dict[str, Any]:
    """A field that holds an object, as it is, as JSON text, or as a list of one."""
    value = need(row, name, who)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError(f"{who}: {name} is no readable JSON: {shown(value)}") from None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        raise InputError(f"{who}: {name} must be an object, not {shown(value)}")
    return value


def _box(row: Mapping[str, Any], name: str, who: str, *, xywh: bool) -> tuple[float, ...]:
    """A box as xyxy, in pixels; InputError where it is none (an xywh box read as xyxy often is not)."""
    value = need(row, name, who)
    good = isinstance(value, list | tuple) and len(value) == 4
    if not good or not all(isinstance(v, int | float) and abs(v) < masks.MAX_PIXELS for v in value):
        raise InputError(f"{who}: {name} must be four numbers, not {shown(value)}")
    x0, y0, x1, y1 = (float(v) for v in value)
    if xywh:
        x1, y1 = x0 + x1, y0 + y1
    if x1 < x0 or y1 < y0:
        raise InputError(f"{who}: {name} {shown(value)} is no box of the form {'xywh' if xywh else 'xyxy'}")
    return x0, y0, x1, y1


def _fills(rle: RLE, box: Sequence[float]) -> bool:
    """Whether the mask reaches every side of its box."""
    own = masks.box_of(rle)
    return own is not None and all(abs(a - b) <= BOX_PIXELS for a, b in zip(own, box, strict=True))


def photo_bytes(row: Mapping[str, Any], who: str) -> bytes:
    """The encoded photo in the column `image` of a row."""
    image = need(row, "image", who)
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        raise InputError(f"{who}: image must hold the photo's bytes, not {shown(data)}")
    return data


# ---- files


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a file, from 0; as text, the name of the row in errors."""

    path: Path
    row: int

    def __str__(self) -> str:
        return f"{self.path}: row {self.row}"


def _files(root: Path, owner: str, name: str, split: str) -> list[Path]:
    """The files of a split in a download: `<owner>/<name>` and the spellings and layouts of the Hub's tools."""
    if re.fullmatch(r"\w{1,60}", split) is None:
        raise InputError(f"{owner}/{name} has no split {shown(split)}")
    for folder in _folders(root, owner, name):
        for base in (folder, *sorted(folder.glob("snapshots/*"))):
            for pattern in (f"data/{split}-*.parquet", f"{split}-*.parquet", f"*/{split}/*.parquet"):
                if found := sorted(base.glob(pattern)):
                    return found
    raise NotThereError(
        f"{root}: holds no {owner}/{name}/data/{split}-*.parquet; --data must name the folder above {owner}"
    )


def _folders(root: Path, owner: str, name: str) -> list[Path]:
    """Folders of a data set of the Hub, as its tools write them."""
    flat = (f"{owner}_{name}", f"{owner}--{name}", f"datasets--{owner}--{name}")
    found = [item for parent in data_folders(root, (owner,)) for item in data_folders(parent, (name,))]
    return found + data_folders(root, flat)


def parquet_rows(
    root: Path, owner: str, name: str, split: str, columns: Sequence[str]
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Place and content of every row of a split, of the columns that are there."""
    from pyarrow import parquet

    for path in _files(root, owner, name, split):
        note_opened(path)
        with _readable(path), parquet.ParquetFile(path) as file:
            for group in range(file.metadata.num_row_groups):
                _group_rows(file, group, path)
            wanted = [column for column in columns if column in file.schema_arrow.names]
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=wanted, use_threads=False)
            rows = (row for batch in batches for row in batch.to_pylist())
            for index, row in enumerate(rows):
                yield Place(path, index), row


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever Arrow raises over a damaged file is an InputError that names it."""
    import pyarrow

    try:
        yield
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: is no readable parquet ({' '.join(str(error).split())[:120]})") from None


def _group_rows(file: parquet.ParquetFile, group: int, path: Path) -> int:
    """Rows of a row group; InputError where it is over the cap."""
    stated = file.metadata.row_group(group)
    if not 0 <= stated.total_byte_size <= MAX_GROUP_BYTES:
        raise InputError(
            f"{path}: row group {group} of {stated.total_byte_size} bytes is over the cap {MAX_GROUP_BYTES}"
        )
    return int(stated.num_rows)
