"""The leak guard: no training image that belongs to a val or test split of the benchmarks.

All sets of the RefCOCO family are cut from COCO train2014, each in its own way, so a test photo of one is a
training photo of another, and of PACO, LVIS, COCO-Stuff and MMR, which use the same photos under the names of
2017. So photos are compared by COCO image id. Pure functions over records and the id lists under a data root.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from uniresxx.data.catalog import splits_of
from uniresxx.data.readers import cris, grefcoco, refcocom
from uniresxx.data.readers.fields import need, whole
from uniresxx.data.readers.files import load_records
from uniresxx.data.readers.folders import data_folders
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord

MODES = ("on", "strict", "published_data")
OWN_DATA = "own"  # the mode in the report of a store of own data
# benchmark -> (folders, annotation lists, folders in the CRIS layout); RefCOCOm's lists are globbed
LISTS = {
    "refcoco": (("refcoco",), ("refs(unc).p", "refs(unc).json"), cris.SETS["refcoco"]),
    "refcoco+": (("refcoco+", "refcocoplus"), ("refs(unc).p", "refs(unc).json"), cris.SETS["refcoco+"]),
    "refcocog_umd": (("refcocog",), ("refs(umd).p", "refs(umd).json"), cris.SETS["refcocog_umd"]),
    "grefcoco": (grefcoco.FOLDERS, ("grefs(unc).p", "grefs(unc).json"), ("grefcoco",)),
}
BENCHMARKS = (*LISTS, "refcocom")

# COCO_train2014_000000581857.jpg, the same with RefCOCO's _<n>, 000000581857.jpg, train2017_000000581857.png
_COCO_NAME = re.compile(
    r"(?:(?:ms)?coco[_-])?(?:(?:train|val|test|unlabeled)20\d\d[_-])?0{6}(\d{6})(?:_\d{1,7})?", re.IGNORECASE
)


def coco_image_id(name: str | int) -> int | None:
    """The COCO image id in a photo's name, path or address, or a bare id; None where it is none.

    In a name, only twelve digits that begin with six zeros, after nothing or a COCO folder's name, are COCO's:
    the numbers of Visual Genome, ADE20K, Flickr and others are not.
    """
    if isinstance(name, int):
        return name if name >= 0 and not isinstance(name, bool) else None
    return int(name) if re.fullmatch(r"\d{1,7}", name, re.ASCII) else _id_in_name(name)


def _id_in_name(path: str) -> int | None:
    file_name = PurePosixPath(path.replace("\\", "/").partition("?")[0]).name
    found = _COCO_NAME.fullmatch(file_name.partition(".")[0])
    return int(found.group(1)) if found else None


def record_coco_id(record: ImageRecord) -> int | None:
    """The COCO image id of a record: from its source, else its photo's name, else its image id.

    A photo whose name is not of COCO's form has none, whatever number its data set gave it.
    """
    for key in ("coco_id", "coco_image_id"):
        stated = record.source.get(key)
        if isinstance(stated, int | str) and coco_image_id(stated) is not None:
            return coco_image_id(stated)
    if record.path is not None:
        return _id_in_name(record.path)
    if record.inside is not None:
        return _id_in_name(record.inside.name)
    return coco_image_id(record.image_id)


def is_training(split: str) -> bool:
    """Whether a split is learned from: all but those with val, test or dev in their name and no train.

    `val`, `testA_part_only`, `refcoco_unc_val`, `minival` are not; `trainval` is, the guard is for it too.
    """
    named = re.search(r"(?:^|_)(?:mini)?(?:val|test|dev)", split, re.IGNORECASE)
    return named is None or "train" in split.lower()


@dataclass(frozen=True)
class HeldOut:
    """Image ids that no training record may have, by benchmark, and the benchmarks without a list."""

    ids: Mapping[str, frozenset[int]] = field(default_factory=dict)
    not_found: tuple[str, ...] = ()  # NAME, or NAME (SPLIT, …) where only these are missing

    def all(self) -> frozenset[int]:
        """The ids of all benchmarks."""
        return frozenset().union(*self.ids.values())


def held_out(root: Path) -> HeldOut:
    """Ids of the val and test splits of the benchmarks whose lists lie under `root`.

    The lists are the native ones, or those of the CRIS layout, one per split: where some of these are missing, their
    ids are unknown, and `not_found` names them behind the benchmark. Raises InputError where a list is there
    and cannot be read.
    """
    ids = {name: frozenset(_ids_of(root, name)) for name in BENCHMARKS}
    found = {name: held for name, held in ids.items() if held}
    not_found = []
    for name in BENCHMARKS:
        if name not in found:
            not_found.append(name)
        elif missing := _missing(root, name):
            not_found.append(f"{name} ({', '.join(missing)})")
    return HeldOut(found, tuple(not_found))


def _ids_of(root: Path, name: str) -> Iterator[int]:
    if name == "refcocom":
        for folder in data_folders(root, refcocom.FOLDERS):
            yield from _photo_ids((folder / "annotations").glob("*.json"))
        return
    native = _native_list(root, name)
    yield from _photo_ids(_cris_lists(root, name)) if native is None else _ref_ids(native)


def _native_list(root: Path, name: str) -> Path | None:
    folders, files, _ = LISTS[name]
    paths = (folder / item for folder in data_folders(root, folders) for item in files)
    return next((path for path in paths if path.is_file()), None)


def _cris_lists(root: Path, name: str) -> list[Path]:
    parents = (root / "anns", root / "datasets" / "anns")
    folders = [item for parent in parents for item in data_folders(parent, LISTS[name][2])]
    return [path for folder in folders for path in folder.glob("*.json")]


def _missing(root: Path, name: str) -> list[str]:
    """Val and test splits whose list is not there, where each has a file of its own.

    RefCOCOm's names of files are not known for certain; its photos are RefCOCO's.
    """
    if name == "refcocom" or _native_list(root, name) is not None:
        return []
    there = {path.stem for path in _cris_lists(root, name)}
    return [split for split in splits_of(name, root) if split not in there and not is_training(split)]


def _ref_ids(path: Path) -> Iterator[int]:
    for index, record in enumerate(load_records(path)):
        who = f"{path}: record {index}"
        if not is_training(str(need(record, "split", who))):
            yield whole(need(record, "image_id", who), "image_id", who)


def _photo_ids(paths: Iterable[Path]) -> Iterator[int]:
    """Ids from lists that name photos, one file per split."""
    for path in sorted(paths):
        if is_training(path.stem.removeprefix("refcocom_")):
            continue
        for index, record in enumerate(load_records(path)):
            name = str(need(record, "img_name", f"{path}: record {index}"))
            found = _id_in_name(name)
            if found is None:
                raise InputError(f"{path}: record {index}: img_name {name!r} holds no COCO image id")
            yield found


@dataclass(frozen=True)
class Removed:
    """What the guard did to one split."""

    images: int = 0
    expressions: int = 0
    without_coco_id: int = 0  # images it could not check


def remove_held_out(records: Sequence[ImageRecord], ids: frozenset[int]) -> tuple[list[ImageRecord], Removed]:
    """The records whose COCO image id is not among `ids`, in their order, and what was removed."""
    found = [record_coco_id(record) for record in records]
    kept = [record for record, image_id in zip(records, found, strict=True) if image_id not in ids]
    gone = [record for record, image_id in zip(records, found, strict=True) if image_id in ids]
    expressions = sum(len(record.expressions) for record in gone)
    return kept, Removed(len(gone), expressions, found.count(None))


@dataclass(frozen=True)
class Guard:
    """The guard of one preparation: its mode and the ids that training may not see."""

    mode: str
    held: HeldOut

    @classmethod
    def of(cls, mode: str, root: Path | None) -> Guard:
        """The guard over the id lists under `root`; InputError: unknown mode, or `strict` and a list is missing."""
        if mode not in MODES:
            raise InputError(f"unknown guard {mode!r}; known: {', '.join(MODES)}")
        if mode == "published_data":
            return cls(mode, HeldOut(not_found=BENCHMARKS))
        held = HeldOut(not_found=BENCHMARKS) if root is None else held_out(root)
        if mode == "strict" and held.not_found:
            raise InputError(
                f"the strict guard found no id list of {', '.join(held.not_found)} under {root}; "
                "put their annotations there, or use --guard on"
            )
        return cls(mode, held)

    def apply(self, split: str, records: Sequence[ImageRecord]) -> tuple[list[ImageRecord], dict[str, int]]:
        """The records of a split that may be used, and what was removed; val and test stay whole."""
        if self.mode == "published_data" or not is_training(split):
            return list(records), asdict(Removed())
        kept, removed = remove_held_out(records, self.held.all())
        return kept, asdict(removed)

    def report(self) -> dict[str, Any]:
        """JSON-ready: the mode, ids per benchmark, and benchmarks without a list."""
        return {
            "mode": self.mode,
            "benchmarks": {name: len(ids) for name, ids in self.held.ids.items()},
            "not_found": list(self.held.not_found) if self.mode != "published_data" else [],
        }


def stored_report(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The guard's report in the metadata of a store, with what was removed by data set and split."""
    dataset = str(meta["name"]).partition("/")[0]
    removed = {
        f"{dataset}/{name}": entry["notes"] for name, entry in meta["splits"].items() if is_training(name)
    }
    return {**meta.get("guard", {"mode": "none"}), "removed": removed}


def lines_of_report(report: Mapping[str, Any]) -> list[str]:
    """The report of a store as lines for people; `report["removed"]` is by data set and split."""
    if report["mode"] == "published_data":
        return [
            "guard: off (published_data): training images may be in val and test splits of the benchmarks"
        ]
    if report["mode"] == "drawn":
        return ["guard: not needed, the pictures are drawn"]
    if report["mode"] == OWN_DATA:
        return ["guard: none, own data is compared with no benchmark"]
    if report["mode"] == "none":
        return ["guard: none was set when this store was written"]
    held = ", ".join(f"{name} {count}" for name, count in report["benchmarks"].items())
    lines = [f"guard: {report['mode']}; val and test images held out: {held or 'none'}"]
    for name, removed in report["removed"].items():
        line = f"guard: {name}: removed {removed['images']} images, {removed['expressions']} expressions"
        unknown = removed["without_coco_id"]
        lines.append(f"{line}; {unknown} images have no COCO id" if unknown else line)
    if report["not_found"]:
        lines.append(f"guard: warning: found no id list of {', '.join(report['not_found'])}")
    return lines
