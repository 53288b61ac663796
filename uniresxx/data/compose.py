"""Part expressions for training, composed of part masks and sentences of their objects; RefCOCOm has no train split.

A part of PACO-LVIS or DensePose-COCO lies on an object whose mask may also be a referent of RefCOCO, RefCOCO+ or
RefCOCOg: the same COCO photo, and masks that overlap by more than MIN_IOU. Then every train sentence of that object
gives "<part> of <sentence>", which means all instances of the part on it (left and right, upper and lower merged, as
in RefCOCOm). An object that no sentence means gives "<part> of the <category>" where the photo shows one object of
the category, else all objects together give "all <parts> of the <categories>" (`part_objects`). Pascal-Part and
PartImageNet have no COCO photos, so nothing can be joined: their readers write the category phrases alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uniresxx.data.guard import held_out, record_coco_id
from uniresxx.data.readers.coco_ids import coco_image_id
from uniresxx.data.readers.collector import Collector, Target
from uniresxx.data.readers.densepose import densepose_images
from uniresxx.data.readers.fields import Sentence
from uniresxx.data.readers.folders import data_file
from uniresxx.data.readers.instances import Instances
from uniresxx.data.readers.paco import paco_images
from uniresxx.data.readers.part_names import category_noun, coco_names, definition
from uniresxx.data.readers.part_objects import PartImage, PartObject, category_phrases
from uniresxx.data.readers.refcoco import REFCOCO, read_refcoco
from uniresxx.errors import NotThereError
from uniresxx.imaging import masks
from uniresxx.scoring.protocols.base import areas
from uniresxx.types import RLE, Granularity, ImageRecord

MIN_IOU = 0.7  # of the two masks of one object
MIN_INSIDE = 0.5  # share of a part that must lie on its object (our choice)
MANY = 1_000  # more objects than any photo shows
DEFINED_SHARE = 0.2  # of the composed expressions, the share that says what the part does instead of its name
SENTENCES = ("refcoco", "refcoco+", "refcocog_umd")
# part sets on COCO photos -> photos of their train split
PART_SETS: Mapping[str, Callable[[Path, str, Collector], Iterator[PartImage]]] = {
    "paco": paco_images,
    "densepose": densepose_images,
}
LICENCE = "parts MIT (PACO), CC BY-NC 4.0 (DensePose); masks CC BY 4.0 (COCO, LVIS), sentences not stated"


@dataclass(frozen=True, slots=True)
class Parent:
    """An object that train sentences mean: its mask, and (expression id, text) of each sentence."""

    ann_id: int
    rle: RLE
    sentences: tuple[tuple[str, str], ...]


def read_composed(root: Path, split: str) -> list[ImageRecord]:
    """All composed expressions (split `train`), ids `composed_parts/train/<set>:<image_id>:…`.

    Photos in val or test of a benchmark whose list lies under `root` are removed before anything is joined, whatever
    the guard of a preparation is set to. Sets that are not there are left out and named in `counts`. Raises
    NotThereError where no part set or no set of sentences is there, and what the readers raise.
    """
    if split != "train":
        raise NotThereError(f"composed_parts has no split {split!r}; it has train")
    collector = Collector("composed_parts/train", root, "composed_parts/train", LICENCE)
    held = held_out(root).all()
    parents = _parents(root, held, collector)
    shown = _coco_counts(root)
    found = 0
    for name, read in PART_SETS.items():
        try:
            for image in read(root, "train", collector):
                found += 1
                image_id = coco_image_id(image.photo.image_id)
                if image_id is None:
                    collector.count("photos without a COCO id")
                elif image_id in held:
                    collector.count("photos of val and test splits removed before the join")
                else:
                    counted = with_counts(image, shown.get(image_id, {}))
                    compose(collector, name, counted, parents.get(image_id, []))
        except NotThereError:
            collector.count(f"part sets that are not there ({name})")
    if not found:
        raise NotThereError(f"{root}: holds no part set to compose from: {' or '.join(PART_SETS)}")
    return collector.records()


def _parents(root: Path, held: frozenset[int], report: Collector) -> dict[int, list[Parent]]:
    """The objects that train sentences mean, by COCO image id."""
    merged: dict[tuple[int, int], Parent] = {}
    there = 0
    for name in SENTENCES:
        folder, split_by, _ = REFCOCO[name]
        try:
            records = read_refcoco(root, "train", folder, split_by, name)
        except NotThereError:
            report.count(f"sets of sentences that are not there ({name})")
            continue
        there += 1
        for record in records:
            image_id = record_coco_id(record)
            if image_id is None or image_id in held:
                continue
            for item in record.expressions:
                assert item.rle is not None
                key = (image_id, int(item.source["ann_id"]))
                known = merged.get(key, Parent(key[1], item.rle, ()))
                sentence = (item.expression_id, item.text)
                merged[key] = replace(known, sentences=(*known.sentences, sentence))
    if not there:
        raise NotThereError(f"{root}: holds no train sentences to compose from: {' or '.join(SENTENCES)}")
    found: dict[int, list[Parent]] = {}
    for (image_id, _), parent in merged.items():
        found.setdefault(image_id, []).append(parent)
    return found


def _coco_counts(root: Path) -> dict[int, Counter[str]]:
    """COCO image id -> how many objects of each category COCO annotated; a crowd region counts as many."""
    found: dict[int, Counter[str]] = {}
    for folder in dict.fromkeys(REFCOCO[name][0] for name in SENTENCES):
        names = (folder, folder.replace("+", "plus"))
        try:
            instances = Instances.load(data_file(root, names, ("instances.json",)))
        except NotThereError:
            continue
        for image_id, rows in instances.rows_of_image.items():
            counts: Counter[str] = Counter()
            for row in rows:
                noun = category_noun(instances.categories.get(row.get("category_id", -1), ""))
                counts[noun] += MANY if row.get("iscrowd", 0) else 1
            found[image_id] = counts
    return found


def with_counts(image: PartImage, counts: Mapping[str, int]) -> PartImage:
    """The photo with the categories `uncounted` of which COCO annotated more objects than the part set."""
    more = {
        category
        for category, objects in image.groups().items()
        if max(counts.get(name, 0) for name in coco_names(category)) > len(objects)
    }
    return replace(image, uncounted=image.uncounted | more)


def compose(collector: Collector, part_set: str, image: PartImage, parents: Sequence[Parent]) -> None:
    """Add the expressions of a photo: those of objects with sentences, then the category phrases of the others."""
    texts: dict[str, list[tuple[str, Target]]] = {}
    rest: set[str] = set()
    for item in image.objects:
        parent, overlap = _parent_of(item, parents)
        if parent is None:
            rest.add(item.category)
        elif item.parts:
            collector.count("objects joined to a sentence")
            source = {"part_set": part_set, "object": dict(item.source), "iou": round(overlap, 3)}
            for part, rle in item.parts.items():
                if masks.intersection_area(rle, parent.rle) < MIN_INSIDE * masks.area(rle):
                    collector.count("parts that do not lie on their object")
                    continue
                target = Target(Granularity.PART, rle, {**source, "part": part})
                for native, text in _phrases(part_set, image, item, part, parent):
                    texts.setdefault(text, []).append((native, target))
    others = replace(image, objects=tuple(item for item in image.objects if item.category in rest))
    for native, text, target in category_phrases(others, collector, with_objects=False):
        source = {"part_set": part_set, **target.source}
        texts.setdefault(text, []).append((f"{part_set}:{native}", replace(target, source=source)))
    for text, found in texts.items():
        _add_once(collector, image, text, found)


def _parent_of(item: PartObject, parents: Sequence[Parent]) -> tuple[Parent | None, float]:
    """The object with sentences whose mask overlaps this one's most, and the IoU; None where that is too little."""
    best: tuple[Parent | None, float] = (None, MIN_IOU)
    for parent in parents:
        if item.rle is not None and parent.rle["size"] == item.rle["size"]:
            overlap = areas(item.rle, parent.rle).iou
            if overlap > best[1]:
                best = (parent, overlap)
    return best


def _phrases(
    part_set: str, image: PartImage, item: PartObject, part: str, parent: Parent
) -> Iterator[tuple[str, str]]:
    """(native id, text) for every sentence of the parent; a share of them with a definition for the part's name."""
    meaning = definition(item.category, part)
    for expression_id, sentence in parent.sentences:
        start = f"{part_set}:{item.source['ann_id']}:{part}:".replace(" ", "_")
        native = start + expression_id.replace("/train/", ":")
        text = sentence.rstrip(" .")
        # the same for every object, so that a sentence of two objects is found out
        chance = _chance(f"{image.photo.image_id} {part} {text}")
        if meaning is not None and chance < DEFINED_SHARE:
            yield native, f"part of {text} that {meaning}"
        else:
            yield native, f"{part} of {text}"


def _chance(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


def _add_once(collector: Collector, image: PartImage, text: str, found: list[tuple[str, Target]]) -> None:
    """Add a text that several sentences gave; one that means different masks is left out and counted."""
    if any(target.rle != found[0][1].rle for _, target in found):
        collector.count("texts that would mean different parts")
        return
    native, target = found[0]
    sources = [name.split(":", 3)[-1] for name, item in found if "iou" in item.source]
    kind = "expressions composed with a sentence" if sources else "expressions that name a category"
    collector.count(kind)
    if text.startswith("part of "):
        collector.count("expressions with a definition of the part")
    source = {**target.source, **({"sentences": sources} if sources else {})}
    asked = [(native, Sentence(text, text, None))]
    collector.add(f"image {image.photo.image_id}", image.photo, replace(target, source=source), asked)
