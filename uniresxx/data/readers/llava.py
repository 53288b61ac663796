"""LLaVA's captions and instructions: conversations of plain words about a photo, without masks.

Below the data folder: `llava_pretrain/blip_laion_cc_sbu_558k.json` with its photos in `llava_pretrain/images/` (or in
`llava_pretrain/`), and `llava_instruct/llava_v1_5_mix665k.json`, whose photos keep the names it gives them
(`coco/train2017/…`, `gqa/images/…`, `vg/VG_100K/…`) below the data folder. Both files are a list of {id, image,
conversations [{from, value}]}; `<image>` in a question is where LLaVA puts the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from uniresxx.data.readers.collector import Collector, Photo
from uniresxx.data.readers.fields import file_name_of, list_of, need, shown, text_of
from uniresxx.data.readers.files import load_records
from uniresxx.data.readers.folders import PhotoFinder, data_file
from uniresxx.data.readers.region_captions import visual_genome_coco_ids
from uniresxx.errors import BadAnnotationError
from uniresxx.imaging.decode import photo_size
from uniresxx.types import ImageRecord, Turn

PLACEHOLDER = "<image>"


class _Release(NamedTuple):
    """The folders of a release, its list, the folders of its photos, its licence."""

    folders: tuple[str, ...]
    file: str
    photos: tuple[str, ...]
    licence: str


SETS = {
    "llava_pretrain": _Release(
        ("llava_pretrain", "LLaVA-Pretrain"),
        "blip_laion_cc_sbu_558k.json",
        ("llava_pretrain/images", "LLaVA-Pretrain/images", "llava_pretrain", "LLaVA-Pretrain"),
        "those of CC-3M and BLIP (LLaVA-Pretrain)",
    ),
    "llava_instruct": _Release(
        ("llava_instruct", "LLaVA-Instruct", "LLaVA-Instruct-150K"),
        "llava_v1_5_mix665k.json",
        ("images", "llava_instruct", "."),
        "not stated for the mixture (llava_v1_5_mix665k); parts of it were written by GPT-4",
    ),
}
# folders of the instructions' photos whose names are Visual Genome's image ids
VISUAL_GENOME_PHOTOS = ("vg/VG_100K", "vg/VG_100K_2", "gqa/images")


def read_llava(root: Path, split: str, dataset: str = "llava_pretrain") -> list[ImageRecord]:
    """Records of the one split `train`: each row of the file is a conversation about its photo.

    Rows without a photo, with a photo that is not there, or whose turns are blank or do not alternate between human
    and gpt are left out and reported. The file states no sizes, so those of the photos are read from their headers.
    Photos of Visual Genome get its COCO ids where its `image_data.json` is there. Raises InputError naming file and
    record.
    """
    release = SETS[dataset]
    path = data_file(root, release.folders, (release.file,))
    finder = PhotoFinder(root, release.photos)
    collector = Collector(str(path), root, f"{dataset}/{split}", release.licence)
    coco_ids = visual_genome_coco_ids(root)
    photos: dict[str, Photo | None] = {}
    for index, row in enumerate(load_records(path)):
        who = f"{path}: record {index}"
        if row.get("image") is None:
            collector.leave_out(f"{who}: has no image")
            continue
        name = file_name_of(row, who, "image")
        with collector.leaving_out():
            turns = _turns(row, who)
            if name not in photos:
                photos[name] = _photo(name, finder.path(name, who), coco_ids)
            photo = photos[name]
            if photo is None:
                raise BadAnnotationError(f"{who}: its photo {name} is missing or cannot be read")
            collector.add_dialogue(photo, row.get("id", index), turns)
    return collector.records()


def _photo(name: str, path: Path, coco_ids: Mapping[str, int]) -> Photo | None:
    """The photo with the size in its header; None where there is none."""
    size = photo_size(path)
    if size is None:
        return None
    place = PurePosixPath(name)
    coco_id = coco_ids.get(place.stem) if str(place.parent) in VISUAL_GENOME_PHOTOS else None
    return Photo(name, path, size, coco_id=coco_id)


def _turns(row: Mapping[str, Any], who: str) -> tuple[Turn, ...]:
    """Questions and answers of a row; BadAnnotationError where they cannot be asked and answered in turn."""
    said = list_of(row, "conversations", who)
    if not all(isinstance(item, dict) for item in said):
        raise BadAnnotationError(f"{who}: conversations must be a list of {{from, value}}, not {shown(said)}")
    roles = [need(item, "from", who) for item in said]
    values = [text_of(item, "value", who).replace(PLACEHOLDER, "").strip() for item in said]
    pairs = len(said) // 2
    if not pairs or roles != ["human", "gpt"] * pairs or not all(values):
        raise BadAnnotationError(f"{who}: its turns are blank or do not alternate between human and gpt")
    return tuple(Turn(values[2 * i], answer=values[2 * i + 1]) for i in range(pairs))
