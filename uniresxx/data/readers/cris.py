"""CRIS: RefCOCO, RefCOCO+ and RefCOCOg as one list per split with a mask file per referent, or as LMDB.

`anns/<set>/<split>.json` holds {img_name, segment_id, sentences, cat, bbox, …}, `masks/<set>/<segment_id>.png`
the mask; `lmdb/<set>/<split>.lmdb` holds the same records under the keys 0, 1, … with photo and mask inside.
Both give the same ids and masks. Masks were made from summed polygons times 255 in 8 bits, so where polygons
overlap they hold 254 or 253: every value above 0 is foreground. (After CRIS's own data_process.py and
folder2lmdb.py. CRIS trains on one sentence of a record and scores the first in mode `val`; all are read here.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any

from uniresxx.data.readers.collector import Collector, Photo, Target
from uniresxx.data.readers.fields import file_name_of, need, photo_id, sentences, shown, whole
from uniresxx.data.readers.files import load_records, note_opened
from uniresxx.data.readers.folders import PHOTO_FOLDERS, PhotoFinder, data_folders
from uniresxx.data.readers.lmdb_pages import check_whole
from uniresxx.data.readers.pickles import plain_data
from uniresxx.errors import BadAnnotationError, InputError, NotThereError
from uniresxx.imaging import decode as images
from uniresxx.imaging import masks
from uniresxx.types import RLE, Granularity, ImageRecord, PhotoInside

if TYPE_CHECKING:
    import lmdb

# data set -> its folder names
SETS = {
    "refcoco": ("refcoco", "refcoco_unc"),
    "refcoco+": ("refcoco+", "refcocoplus", "refcoco+_unc"),
    "refcocog_umd": ("refcocog_u", "refcocog_umd"),
    "refcocog_google": ("refcocog_g", "refcocog_google"),
}
CRIS_PHOTO_FOLDERS = (*PHOTO_FOLDERS, "datasets/images/train2014", "datasets/images")
MAX_VALUE_BYTES = 64 * 2**20  # one photo and one mask
_ONE_AT_A_TIME = Lock()


def read_cris(root: Path, split: str, dataset: str = "refcoco") -> list[ImageRecord]:
    """Records of one split, ids `cris_<set>/<split>/<segment_id>_<idx>`, from the list or else from the LMDB.

    `root` is CRIS's `datasets` folder or the one above it; `dataset` is one of SETS. Every expression points
    at one object. Raises InputError naming file, record and field, and where neither form is there.
    """
    start = f"cris_{dataset}/{split}"
    for path in _places(root, "anns", dataset, split, ".json"):
        collector = Collector(str(path), root, start)
        _add_list(
            collector, path, PhotoFinder(root, CRIS_PHOTO_FOLDERS), _places(root, "masks", dataset, "", "")
        )
        return collector.records()
    for path in _places(root, "lmdb", dataset, split, ".lmdb"):
        collector = Collector(str(path), root, start)
        _add_lmdb(collector, path, PhotoFinder(root, CRIS_PHOTO_FOLDERS))
        return collector.records()
    name = SETS[dataset][0]
    raise NotThereError(
        f"{root}: holds neither anns/{name}/{split}.json nor lmdb/{name}/{split}.lmdb; "
        "--data must name the folder `datasets` of CRIS or the one above it"
    )


def _places(root: Path, kind: str, dataset: str, split: str, suffix: str) -> list[Path]:
    """What is there of `<kind>/<set>/<split><suffix>`, under `root/datasets` or `root`."""
    if re.fullmatch(r"\w{0,60}", split) is None:
        return []
    folders = [
        folder for base in (root / "datasets", root) for folder in data_folders(base / kind, SETS[dataset])
    ]
    return [folder / (split + suffix) for folder in folders if (folder / (split + suffix)).exists()]


def _add_list(collector: Collector, path: Path, finder: PhotoFinder, folders: Sequence[Path]) -> None:
    for index, record in enumerate(load_records(path)):
        who = f"{path}: record {index}"
        photo = finder.path(file_name_of(record, who, "img_name"), who)
        with collector.leaving_out():
            rle = mask_of(folders, segment_of(record, who), photo, who)
            add_segment(collector, record, Granularity.OBJECT, rle, photo, who)


def _add_lmdb(collector: Collector, path: Path, finder: PhotoFinder) -> None:
    for key, value in _values(path):
        who = f"{path}: record {key}"
        record = _record_of(value, who)
        photo = need(record, "img", who)
        if not isinstance(photo, bytes):
            raise InputError(f"{who}: img must be the photo's bytes, not {shown(photo)}")
        with collector.leaving_out():
            rle = _mask_of_bytes(need(record, "mask", who), images.encoded_size(photo), who)
            name = file_name_of(record, who, "img_name")
            finder.path(name, who)  # refuses a name that no photo can have
            add_segment(
                collector, record, Granularity.OBJECT, rle, PhotoInside("lmdb", str(path), key, name), who
            )


# ---- segments and mask files, which RefCOCOm shares


def add_segment(
    collector: Collector,
    record: Mapping[str, Any],
    granularity: Granularity,
    rle: RLE,
    photo: Path | PhotoInside,
    who: str,
) -> None:
    """Add the sentences of a record, ids `<segment_id>_<idx>`, or their place where they have no idx."""
    name, segment = file_name_of(record, who, "img_name"), segment_of(record, who)
    asked = [
        (f"{segment}_{place if item.native_id is None else item.native_id}", item)
        for place, item in enumerate(sentences(record, "idx", who))
    ]
    target = Target(granularity, rle, {"segment_id": segment, "cat": record.get("cat")})
    collector.add(who, Photo(photo_id(name), photo, (rle["size"][0], rle["size"][1])), target, asked)


def segment_of(record: Mapping[str, Any], who: str) -> str:
    """segment_id as text, whether the file holds a number or text."""
    value = need(record, "segment_id", who)
    good = isinstance(value, int | str) and not isinstance(value, bool)
    if not good or not re.fullmatch(r"[\w-]{1,60}", str(value)):
        raise InputError(f"{who}: segment_id must be a number or a plain name, not {shown(value)}")
    return str(value)


def mask_of(folders: Sequence[Path], segment: str, photo: Path, who: str) -> RLE:
    """The mask of a segment, checked against the size of its photo where the photo is there."""
    for folder in folders:
        path = folder / f"{segment}.png"
        if path.is_file():
            break
    else:
        raise InputError(f"{who}: no mask {segment}.png in {' or '.join(str(item) for item in folders)}")
    return checked_mask(images.read_mask(path), images.photo_size(photo), str(path), photo.name, who)


def _mask_of_bytes(data: Any, size: tuple[int, int] | None, who: str) -> RLE:
    if not isinstance(data, bytes):
        raise InputError(f"{who}: mask must be the bytes of a PNG, not {shown(data)}")
    return checked_mask(images.decode_mask(data, f"{who}: mask"), size, f"{who}: mask", "beside it", who)


def checked_mask(mask_yx: Any, size: tuple[int, int] | None, name: str, photo: str, who: str) -> RLE:
    """The mask `name`; InputError: its photo is of another size, BadAnnotationError: it covers no pixel."""
    if size is not None and size != mask_yx.shape:
        raise InputError(
            f"{name}: the mask is {mask_yx.shape[0]} x {mask_yx.shape[1]} (height x width), "
            f"but its photo {photo} is {size[0]} x {size[1]}"
        )
    rle = masks.encode(mask_yx)
    if masks.area(rle) == 0:
        raise BadAnnotationError(f"{name}: the mask covers no pixel, so it can be no target of {who}")
    return rle


# ---- LMDB


def _library() -> ModuleType:
    """lmdb; InputError where it is not installed."""
    try:
        import lmdb
    except ImportError:
        raise InputError("CRIS's LMDB files need the package lmdb: pip install 'uniresxx[cris]'") from None
    return lmdb


def _plain(value: bytes, who: str) -> Any:
    """The data of a value; InputError where it is no pickle of plain data."""
    if not value.startswith(b"\x80"):
        raise InputError(
            f"{who}: is no pickle (older CRIS code wrote pyarrow.serialize, which pyarrow dropped in 16); "
            "write the LMDB again with pickle, or give the folders anns and masks"
        )
    return plain_data(value, who)


def _record_of(value: bytes, who: str) -> dict[str, Any]:
    """A value as a record of the list form; InputError where it is none."""
    content = _plain(value, who)
    if not isinstance(content, dict):
        raise InputError(f"{who}: must be a dict, not {type(content).__name__}")
    texts = need(content, "sents", who)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{who}: sents must be a list of text, not {shown(texts)}")
    if whole(content.get("num_sents", len(texts)), "num_sents", who) != len(texts):
        raise InputError(f"{who}: num_sents is {shown(content['num_sents'])}, but sents has {len(texts)}")
    return {**content, "segment_id": need(content, "seg_id", who), "sentences": texts}


def _values(path: Path) -> Iterator[tuple[str, bytes]]:
    """Key and value of every record, in order; InputError where the file is damaged or one is missing.

    LMDB maps the file and trusts its pages: one that is cut short is refused before a page is read, but a
    page that was changed on purpose may still end the process (it runs no code of the file).
    """
    lmdb = _library()
    try:
        with closing(_opened(path)) as environment, environment.begin(buffers=False) as transaction:
            size = transaction.get(b"__len__")
            if size is None:
                raise InputError(f"{path}: has no key __len__; it is no LMDB of CRIS")
            count = whole(_plain(size, f"{path}: __len__"), "__len__", str(path))
            for index in range(count):
                value = transaction.get(str(index).encode())
                if value is None:
                    raise InputError(f"{path}: record {index} of {count} is missing; copy the file again")
                if len(value) > MAX_VALUE_BYTES:
                    raise InputError(f"{path}: record {index} is over the cap of {MAX_VALUE_BYTES} bytes")
                yield str(index), value
    except (lmdb.Error, OSError) as error:
        raise InputError(f"{path}: is no readable LMDB ({' '.join(str(error).split())[:120]})") from None


def _opened(path: Path) -> lmdb.Environment:
    lmdb = _library()
    file = path / "data.mdb" if path.is_dir() else path
    note_opened(file)
    check_whole(file)
    return lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, create=False, max_dbs=0)


def lmdb_photo(path: Path, key: str) -> bytes:
    """The encoded photo of a record of an LMDB; InputError as `read_cris`. Safe to call from threads."""
    lmdb = _library()
    try:
        with (
            _ONE_AT_A_TIME,  # LMDB may be open only once in a process
            closing(_opened(path)) as environment,
            environment.begin(buffers=False) as transaction,
        ):
            value = transaction.get(key.encode())
    except (lmdb.Error, OSError) as error:
        raise InputError(f"{path}: is no readable LMDB ({' '.join(str(error).split())[:120]})") from None
    if value is None:
        raise InputError(f"{path}: record {key} is missing; copy the file again")
    photo = _record_of(value, f"{path}: record {key}").get("img")
    if not isinstance(photo, bytes):
        raise InputError(f"{path}: record {key}: img must be the photo's bytes, not {shown(photo)}")
    return photo
