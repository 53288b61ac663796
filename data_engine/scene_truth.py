"""How right the engine is on drawn scenes: `python -m data_engine.scene_truth STORE --split scenes_easy/val`

STORE is what a run made of the pictures that `uniresxx data export-scenes` wrote; where that was told `--first N`,
say it here, too. Every item is put to the scene graph: its words are read back as a query, the solver answers it, and
the item is right where the granularity is that of the query and its mask has an IoU of 0.5 or more with the answer
(no mask, where the answer is empty). Words that the solver finds unclear count as wrong. Recall is over things that
kind and colour name alone, their parts of at least 12 pixels, and groups of a kind. An item that was rejected before
it had words is right where its mask is that of a thing of its kind, or of its part of such a thing.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_engine.records import Item, Picture
from data_engine.review import Precision, wilson
from data_engine.run import pictures_of
from uniresxx.cli import exit_code
from uniresxx.data.readers.part_names import plural
from uniresxx.data.scenes.graph import Scene
from uniresxx.data.scenes.kinds import COLOURS, KINDS, PART_NAMES
from uniresxx.data.scenes.presets import check_split, preset_of
from uniresxx.data.scenes.record import build_scene
from uniresxx.data.scenes.solver import Query, solve
from uniresxx.errors import InputError
from uniresxx.files import write_atomic
from uniresxx.imaging import masks
from uniresxx.scoring.protocols.base import areas
from uniresxx.types import Granularity

RIGHT = 0.5  # IoU
STAGES = ("caption", "combine", "round_trip")  # what is kept after each
_NOUNS = {noun: kind for kind in KINDS for noun in (kind, plural(kind))}
_ORDERS = {"left": "left", "right": "right", "small": "small", "big": "large"}
_PARTS = {noun: part for part in PART_NAMES for noun in (part, plural(part))}


def query_of(text: str) -> tuple[Query, Granularity] | None:
    """The meaning of words that the engine composes for drawn scenes; None where they are none of these."""
    words = text.removeprefix("the ").split()
    if " and the " in text:
        found = [query_of(half) for half in text.split(" and ")]
        if None in found or len(found) != 2:
            return None
        one, other = (entry[0] for entry in found if entry is not None)
        return replace(one, also=other), Granularity.MULTI
    part = re.fullmatch(r"([a-z ]+) of the (.+)", text)
    if part is not None and part[1] in _PARTS:
        owner = query_of(part[2])
        return None if owner is None else (replace(owner[0], part=_PARTS[part[1]]), Granularity.PART)
    number = {"all": 0, "both": 2}.get(words[0], 1)
    words = words[1:] if number != 1 else words
    order = _ORDERS.get(words[0]) if number == 1 else None
    colours = tuple(words[order is not None : -1])
    if words[-1] not in _NOUNS or len(colours) > 1 or not COLOURS.keys() >= set(colours):
        return None
    query = Query(_NOUNS[words[-1]], colours, number=number, order=order)
    return query, Granularity.OBJECT if number == 1 else Granularity.MULTI


def is_right(item: Item, scene: Scene) -> bool:
    """Whether the item's words mean its mask in the scene."""
    meaning = query_of(item.text)
    answer = None if meaning is None else solve(scene, meaning[0])
    if meaning is None or answer is None:
        return False
    if not answer.paints or item.rle is None:
        return not answer.paints and item.rle is None and item.granularity is Granularity.NONE
    truth = masks.encode(scene.mask(answer.paints))
    return item.granularity is meaning[1] and areas(truth, item.rle).iou >= RIGHT


def mask_is_right(item: Item, scene: Scene) -> bool:
    """Whether an item without words has the mask of a thing of its category, or of that part of one."""
    paints = [
        thing.paints if item.part is None else [found.paint for found in thing.parts.get(item.part, ())]
        for thing in scene.things
        if thing.kind == item.category
    ]
    truths = [masks.encode(scene.mask(found)) for found in paints if found]
    return item.rle is not None and any(areas(truth, item.rle).iou >= RIGHT for truth in truths)


def truths(scene: Scene) -> Iterator[tuple[Granularity, Query]]:
    """What could be named: see the module's page."""
    kinds = Counter(thing.kind for thing in scene.things)
    looks = Counter((thing.kind, thing.colour) for thing in scene.things)
    yield from ((Granularity.MULTI, Query(kind, number=0)) for kind, count in kinds.items() if count > 1)
    for thing in scene.things:
        if looks[thing.kind, thing.colour] == 1:
            query = Query(thing.kind, (thing.colour,))
            yield Granularity.OBJECT, query
            yield from (
                (Granularity.PART, replace(query, part=part))
                for part in thing.parts
                if thing.part_area(part) >= scene.min_part
            )


def kept_after(item: Item, stages: Sequence[str]) -> Sequence[str]:
    """The steps after which an item with words was still there."""
    if not item.text:
        return ()
    return stages if item.rejected is None else stages[: stages.index(item.rejected.partition(":")[0])]


@dataclass(frozen=True, slots=True)
class Found:
    """Precision by stage and granularity, recall by granularity, and what each filter rejected."""

    precision: Mapping[str, Mapping[str, Precision]]
    recall: Mapping[str, Precision]
    rejected: Mapping[str, Precision]  # share of what a filter rejected that was right


def measure(pictures: Iterable[tuple[Picture, Scene]], stages: Sequence[str] = STAGES) -> Found:
    """Count what is right in pictures with their scenes, after each of some steps, in order."""
    right: Counter[tuple[str, str]] = Counter()
    of: Counter[tuple[str, str]] = Counter()
    named: Counter[str] = Counter()
    possible: Counter[str] = Counter()
    for picture, scene in pictures:
        kept_meanings = set()
        for item in picture.items:
            good, level = (is_right if item.text else mask_is_right)(item, scene), item.granularity.value
            keys = [("rejected", item.rejected)] if item.rejected else []
            keys += [(stage, level) for stage in kept_after(item, stages)]
            of.update(keys)
            right.update(keys if good else [])
            meaning = query_of(item.text) if item.text else None
            if good and item.rejected is None and meaning is not None:
                number = 0 if meaning[0].number == 2 else meaning[0].number  # "both" is all of two
                kept_meanings.add(replace(meaning[0], number=number))
        for granularity, query in truths(scene):
            possible[granularity.value] += 1
            named[granularity.value] += query in kept_meanings
    precision = {
        stage: {
            level.value: wilson(right[stage, level.value], of[stage, level.value]) for level in Granularity
        }
        for stage in stages
    }
    recall = {level.value: wilson(named[level.value], possible[level.value]) for level in Granularity}
    filters = sorted(reason for kind, reason in of if kind == "rejected")
    rejected = {reason: wilson(right["rejected", reason], of["rejected", reason]) for reason in filters}
    return Found(precision, recall, rejected)


def lines_of(found: Found) -> list[str]:
    """For people: percent with a 95 % interval, and counts."""

    def share(p: Precision) -> str:
        return f"{100 * p.value:.1f} % [{100 * p.low:.1f}, {100 * p.high:.1f}], {p.accepted} of {p.reviewed}"

    lines = []
    for stage, levels in found.precision.items():
        lines += [
            f"precision after {stage}, {level}: {share(p)}" for level, p in levels.items() if p.reviewed
        ]
    lines += [f"recall, {level}: {share(p)}" for level, p in found.recall.items() if p.reviewed]
    return lines + [f"right although rejected, {reason}: {share(p)}" for reason, p in found.rejected.items()]


def csv_of(found: Found) -> str:
    """The counts behind `lines_of`: what was right, and of how many."""
    rows = [
        ("precision", f"{stage}, {level}", p)
        for stage, levels in found.precision.items()
        for level, p in levels.items()
    ]
    rows += [("recall", level, p) for level, p in found.recall.items()]
    rows += [("right although rejected", reason, p) for reason, p in found.rejected.items()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("measure", "of", "right", "count", "percent", "low", "high"))
    for measure_name, what, p in rows:
        if p.reviewed:
            percents = [f"{100 * value:.2f}" for value in (p.value, p.low, p.high)]
            writer.writerow((measure_name, what, p.accepted, p.reviewed, *percents))
    return text.getvalue()


def work_of(store: Path) -> Path:
    """Where the work on a store lies."""
    return store.parent / f"{store.name}.engine"


def steps_of(store: Path) -> list[str]:
    """The steps of the run that made a store."""
    path = work_of(store) / "recipe.json"
    try:
        return [step["step"] for step in json.loads(path.read_bytes())["steps"]]
    except OSError:
        raise InputError(f"{path}: is not there; run `python -m data_engine run drawn` first") from None


def exported(store: Path, split: str, first: int) -> Iterator[tuple[Picture, Scene]]:
    """The pictures of a finished run with their scenes; InputError where it is not one of exported scenes."""
    name, _, part = split.partition("/")
    preset = preset_of(name)
    check_split(preset, part)
    folder = work_of(store) / "shards" / steps_of(store)[-1]
    seen: set[str] = set()
    for path in sorted(folder.glob("*.jsonl")):
        for picture in pictures_of(path):
            stem = Path(picture.name).stem
            if not stem.isdecimal() or stem in seen:
                raise InputError(f"{picture.name}: is no scene that export-scenes wrote, or of several runs")
            seen.add(stem)
            if picture.failed is None:
                yield picture, build_scene(preset, part, first + int(stem) - 1, 0)


def main(argv: Sequence[str]) -> int:
    """Print what is right; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m data_engine.scene_truth", description=__doc__)
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument(
        "--split", default="scenes_easy/val", help="of the pictures (default: scenes_easy/val)"
    )
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first scene")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the counts")
    words = parser.parse_args(argv)
    store = words.store.resolve()
    stages = [stage for stage in STAGES if stage in steps_of(store)]
    found = measure(exported(store, words.split, words.first), stages)
    print("\n".join(lines_of(found)))
    if words.csv is not None:
        write_atomic(words.csv, csv_of(found).encode())
    last: dict[str, Any] = {
        level: round(100 * p.value, 1) for level, p in found.precision[stages[-1]].items() if p.reviewed
    }
    print(json.dumps(last))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("scene_truth", lambda: main(sys.argv[1:])))
