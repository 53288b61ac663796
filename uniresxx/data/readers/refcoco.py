"""RefCOCO, RefCOCO+, RefCOCOg and RefClef: `instances.json` and `refs(SPLIT_BY).p`, or those records as `.json`."""

from __future__ import annotations

from pathlib import Path

from uniresxx.data.readers.collector import (
    COCO_MASKS,
    Collector,
    Photo,
    Target,
    records_of_split,
    with_sent_ids,
)
from uniresxx.data.readers.fields import need, whole
from uniresxx.data.readers.files import load_records
from uniresxx.data.readers.folders import PHOTO_FOLDERS, PhotoFinder, data_file
from uniresxx.data.readers.instances import NOT_STATED, Instances
from uniresxx.types import Granularity, ImageRecord

UNC_SPLITS = ("train", "val", "testA", "testB")
# name -> (folder, name of the splits in its file, splits); google splits share photos between train and val:
# their numbers cannot be compared with those of the unc and umd splits
REFCOCO = {
    "refcoco": ("refcoco", "unc", UNC_SPLITS),
    "refcoco_google": ("refcoco", "google", ("train", "val", "test")),
    "refcoco+": ("refcoco+", "unc", UNC_SPLITS),
    "refcocog_umd": ("refcocog", "umd", ("train", "val", "test")),
    "refcocog_google": ("refcocog", "google", ("train", "val")),
    "refclef_unc": ("refclef", "unc", (*UNC_SPLITS, "testC")),
    "refclef_berkeley": ("refclef", "berkeley", ("train", "val", "test")),
}
CLEF_FOLDERS = ("images/saiapr_tc-12", "refer_seg/images/saiapr_tc-12", "saiapr_tc-12")
CLEF_BAD = frozenset({"19579.jpg", "17975.jpg", "19575.jpg"})  # as CRIS's data_process.py skips them


def read_refcoco(
    root: Path, split: str, dataset: str = "refcoco", split_by: str = "unc", prefix: str | None = None
) -> list[ImageRecord]:
    """Records of one split; every expression points at one object.

    `dataset` is the folder (refcoco, refcoco+, refcocog), `split_by` the name of the splits in the file's name,
    and `prefix` what ids start with (`dataset` where None): `<prefix>/<split>/<sent_id>`.
    `file_name` of a ref is no file (it ends on `_<n>`): the photo is the one `instances.json` names. RefClef
    (`refclef`) has photos of SAIAPR TC-12: its image ids get `saiapr_` before them, so that none is taken for
    a COCO image, and refs on three photos that are known to be bad are left out and reported. Raises
    InputError naming file, record and field.
    """
    names = (dataset, dataset.replace("+", "plus"))
    path = data_file(root, names, (f"refs({split_by}).p", f"refs({split_by}).json"))
    instances = Instances.load(data_file(root, names, ("instances.json",)))
    clef = dataset == "refclef"
    finder = PhotoFinder(root, CLEF_FOLDERS if clef else PHOTO_FOLDERS)
    collector = Collector(
        f"{path}: {split}", root, f"{prefix or dataset}/{split}", NOT_STATED if clef else COCO_MASKS
    )
    for who, record in records_of_split(load_records(path), split, path):
        ann_id = whole(need(record, "ann_id", who), "ann_id", who)
        image_id = whole(need(record, "image_id", who), "image_id", who)
        file_name, height, width = instances.image(image_id, who)
        if clef and file_name.rpartition("/")[2] in CLEF_BAD:
            collector.leave_out(f"{who}: its photo {file_name} is known to be bad")
            continue
        if instances.is_crowd(ann_id, image_id, who):
            collector.leave_out(f"{who}: its target ann {ann_id} is a crowd region")
            continue
        with collector.leaving_out():
            rle = instances.mask(ann_id, image_id, who)
            source = {"ref_id": record.get("ref_id"), "ann_id": ann_id}
            source |= instances.overlap_source([ann_id], [rle], image_id, who)
            name = f"{'saiapr_' if clef else ''}{image_id}"
            photo = Photo(
                name, finder.path(file_name, who), (height, width), instances.licence(image_id),
                instances.boxes(image_id, who),
            )  # fmt: skip
            collector.add(who, photo, Target(Granularity.OBJECT, rle, source), with_sent_ids(record, who))
    return collector.records()
