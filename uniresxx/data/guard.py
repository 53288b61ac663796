"""The leak guard: no training image that belongs to a val or test split of the benchmarks.

All sets of the RefCOCO family are cut from COCO train2014, each in its own way, so a test photo of one is a
training photo of another, and of PACO, LVIS, COCO-Stuff and MMR, which use the same photos under the names of
2017. So photos are compared by COCO image id. Pure functions over records and the id lists under a data root.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniresxx.data.readers import cris, grefcoco, refcocom
from uniresxx.data.readers.coco_ids import coco_image_id, id_in_name
from uniresxx.data.readers.fields import need, whole
from uniresxx.data.readers.files import load_records
from uniresxx.data.readers.folders import data_folders
from uniresxx.data.readers.refcoco import REFCOCO, UNC_SPLITS
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


def record_coco_id(record: ImageRecord) -> int | None:
    """The COCO image id of a record: from its source, else its photo's name, else its image id.

    A photo whose name is not of COCO's form has none, whatever number its data set gave it.
    """
    name = record.path if record.inside is None else record.inside.name
    return coco_id_of(record.source, name, record.image_id)


def coco_id_of(source: Mapping[str, Any], photo: str | None, image_id: str) -> int | None:
    """As `record_coco_id`, from a record's source, its photo's name (None: it has none) and its image id."""
    for key in ("coco_id", "coco_image_id"):
        stated = source.get(key)
        if isinstance(stated, int | str) and coco_image_id(stated) is not None:
            return coco_image_id(stated)
    return coco_image_id(image_id) if photo is None else id_in_name(photo)


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
    splits = UNC_SPLITS if name == "grefcoco" else REFCOCO[name][2]
    return [split for split in splits if split not in there and not is_training(split)]


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
            found = id_in_name(name)
            if found is None:
                raise InputError(f"{path}: record {index}: img_name {name!r} holds no COCO image id")
            yield found


def remove_held_out(
    records: Iterable[ImageRecord], ids: frozenset[int], removed: Counter[str]
) -> Iterator[ImageRecord]:
    """The records whose COCO image id is not among `ids`, one by one; what was removed is counted on the way.

    `removed` gets images, expressions, and images `without_coco_id`, which could not be checked.
    """
    removed.update(images=0, expressions=0, without_coco_id=0)
    for record in records:
        image_id = record_coco_id(record)
        removed["without_coco_id"] += image_id is None
        if image_id not in ids:
            yield record
        else:
            removed.update(images=1, expressions=len(record.expressions))


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

    def passing(
        self, split: str, records: Iterable[ImageRecord], removed: Counter[str]
    ) -> Iterator[ImageRecord]:
        """The records of a split that may be used, one by one; `removed` as in `remove_held_out`.

        Val and test stay whole.
        """
        checked = self.mode != "published_data" and is_training(split)
        if checked:
            return remove_held_out(records, self.held.all(), removed)
        removed.update(images=0, expressions=0, without_coco_id=0)
        return iter(records)

    def apply(self, split: str, records: Iterable[ImageRecord]) -> tuple[list[ImageRecord], dict[str, int]]:
        """As `passing`, all at once: the records, and what was removed."""
        removed: Counter[str] = Counter()
        return list(self.passing(split, records, removed)), dict(removed)

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
