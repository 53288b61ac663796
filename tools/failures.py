"""`python -m tools.failures RUN scenes_easy/test --out DIR`: where a model fails on drawn scenes, and how.

RUN is a folder that `python -m eval run --benchmark` wrote. An answer is right where its IoU with the truth is at
least 0.5, or where it rejects what is not there. Prints the share that is right, and the mIoU, by granularity and
level, by what the words say, by the size of a part, by how much of a thing is hidden and by template, then what wrong
answers show instead: the thing, the part or the group of the scene that their mask covers best. DIR gets these tables
as JSON, and a picture of the commonest confusions, a row each: the truth on the left, the answer on the right. Exit
codes: 0 written; 2 wrong input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from PIL import Image

from uniresxx.cli import exit_code
from uniresxx.data.catalog import load_benchmark
from uniresxx.data.scenes.graph import Scene, Thing
from uniresxx.data.scenes.presets import preset_of
from uniresxx.data.scenes.record import build_scene
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic
from uniresxx.imaging import masks
from uniresxx.imaging.legend import Line, draw_lines
from uniresxx.imaging.marking import PALETTE
from uniresxx.imaging.panel import tile
from uniresxx.imaging.sheets import in_columns, stacked
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import from_json, json_lines
from uniresxx.scoring.protocols.base import areas
from uniresxx.types import RLE, Expression, Granularity, ImageRecord

RIGHT = 0.5  # IoU
ROWS, COLUMNS = 10, 3  # of the picture: confusions, and examples of each
TILE, GAP, LETTERS = (190, 190), 14, 13
# word of a template -> what it says
ORDERS = dict(left="left or right", right="left or right", large="big", small="small", top="top or bottom",
              bottom="top or bottom")  # fmt: skip
SIZES, HIDDEN = (20, 40, 80), (0.0, 0.2, 0.4)  # upper ends of the bins: pixels of a part, hidden share


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answer."""

    record: ImageRecord
    expression: Expression
    answer: Prediction

    @property
    def mask(self) -> RLE | None:
        """What was answered; None where it was rejected or has no pixel."""
        rle = None if self.answer.rejected else self.answer.rle
        return rle if rle is not None and masks.area(rle) else None

    @property
    def iou(self) -> float:
        """IoU of the answer with the truth; of two that show nothing 1."""
        if self.expression.rle is None or self.mask is None:
            return float(self.expression.rle is None and self.mask is None)
        return areas(self.expression.rle, self.mask).iou

    @property
    def is_right(self) -> bool:
        """Whether the answer counts as right."""
        return self.iou >= RIGHT


def asked_of(run: Path, benchmark: str) -> list[Asked]:
    """Every answer of the run to the benchmark; InputError where it has none."""
    path = run / benchmark / "predictions.jsonl"
    if not path.is_file():
        raise InputError(f"{path} is missing: python -m eval run --benchmark {benchmark} --out {run}")
    answers = {line["expression_id"]: from_json(line) for line, _, _ in json_lines(path)}
    return [
        Asked(record, expression, answers[expression.expression_id])
        for record in load_benchmark(benchmark, None)
        for expression in record.expressions
        if expression.expression_id in answers
    ]


# -- tables ----------------------------------------------------------------------------------------------


def groups_of(asked: Asked) -> Iterator[tuple[str, str]]:
    """The rows of the tables that a question counts in: (table, row)."""
    expression = asked.expression
    granularity = str(expression.granularity)
    yield "granularity and level", f"{granularity}, level {expression.level}"
    yield "what the words say", f"{granularity}, {words_say(expression.source['template'])}"
    if expression.granularity is Granularity.PART:
        yield "pixels of a part", _bin(expression.area, SIZES)
    hidden = expression.source.get("hidden")
    if expression.granularity is Granularity.OBJECT and hidden:
        yield "hidden share of an object", _bin(max(hidden), HIDDEN)
    if expression.granularity is Granularity.NONE:
        yield "what was changed in words for nothing", str(expression.source.get("slot"))
    yield "template", f"{granularity}, {expression.source['template']}"


def words_say(template: str) -> str:
    """What an expression says beside the kind, as its template names it (`scenes.phrasing.template_of`)."""
    form = template.rpartition(" | ")[2].replace("colour after", "").replace("order after", "").split()
    colours, *rest = form
    at = next(place for place, word in enumerate(rest) if word.isdigit())
    order, rank, more = rest[:at], rest[at], rest[at + 1 :]
    if "related" in more or "not" in more:
        return "a relation" if "related" in more else "what it is not"
    if rank != "0":
        return "a rank"
    if order:
        return ORDERS[order[0]]
    if more:
        return "left or right of the part"
    return "a colour" if colours != "0" else "the kind alone"


def _bin(value: float, ends: Sequence[float]) -> str:
    """The bin of a value, so that bins sort by size as text."""
    number = next((n for n, end in enumerate(ends) if value <= end), len(ends))
    return f"{number + 1}: " + (f"to {ends[number]:g}" if number < len(ends) else f"above {ends[-1]:g}")


class Row(NamedTuple):
    """How the questions of a row were answered."""

    right: int
    asked: int
    mIoU: float  # percent


def tables_of(asked: Sequence[Asked]) -> dict[str, dict[str, Row]]:
    """Table -> row -> how it was answered."""
    tables: dict[str, dict[str, list[float]]] = {}
    for one in asked:
        iou = one.iou
        for table, row in groups_of(one):
            tables.setdefault(table, {}).setdefault(row, []).append(iou)
    return {
        table: {
            row: Row(sum(iou >= RIGHT for iou in ious), len(ious), round(100 * fmean(ious), 2))
            for row, ious in sorted(rows.items())
        }
        for table, rows in tables.items()
    }


# -- what a wrong answer shows ---------------------------------------------------------------------------


def confusion(asked: Asked, scene: Scene) -> str:
    """What was asked and what the answer shows instead, in words."""
    expression, mask = asked.expression, asked.mask
    if expression.rle is None:
        return f"nothing ({expression.source.get('slot')} changed) -> {_shown(asked, scene)}"
    asks = {Granularity.PART: "part", Granularity.OBJECT: "object", Granularity.MULTI: "several"}
    what = asks[expression.granularity]
    return f"{what} -> {'rejected' if mask is None else _shown(asked, scene)}"


def _shown(asked: Asked, scene: Scene) -> str:
    """What the mask covers best, seen from what was asked; "no one thing" below RIGHT."""
    kind, part = asked.expression.source["kind"], asked.expression.source["part"]
    truth, mask = asked.expression.rle, asked.mask
    meant = [thing for thing in scene.things if truth is not None and _share(scene, thing, truth) >= RIGHT]
    found = [(_iou(scene, paints, mask), name) for name, paints in _regions(scene, kind, part, meant)]
    best, name = max(found, default=(0.0, ""))
    if best >= RIGHT:
        return name
    if truth is not None and mask is not None and areas(truth, mask).iou > 0.2:
        return "the right place, too coarse"
    return "no one thing"


def _regions(
    scene: Scene, kind: str, part: str | None, meant: Sequence[Thing]
) -> Iterator[tuple[str, Sequence[int]]]:
    """Regions of a scene, and what each is to a question for a kind (and a part) of which `meant` are the owners."""
    same = [thing for thing in scene.things if thing.kind == kind]
    for thing in scene.things:
        which = (
            "it" if thing in meant else "another of its kind" if thing in same else "a thing of another kind"
        )
        yield which, thing.paints
        for name, instances in thing.parts.items():
            paints = [instance.paint for instance in instances]
            own = "another part" if name != part else "all such parts" if len(paints) > 1 else "the part"
            yield f"{own} of {which}", paints
            if name == part and len(paints) > 1:
                yield from ((f"one of such parts of {which}", [paint]) for paint in paints)
    if len(same) > 1:
        yield "all of its kind", [paint for thing in same for paint in thing.paints]
        shared = [instance.paint for thing in same for instance in thing.parts.get(part or "", ())]
        if shared:
            yield "the part of all of its kind", shared


def _share(scene: Scene, thing: Thing, truth: RLE) -> float:
    """How much of the truth lies on a thing."""
    inside = scene.mask(thing.paints) & masks.decode(truth)
    return float(inside.sum()) / max(masks.area(truth), 1)


def _iou(scene: Scene, paints: Sequence[int], mask: RLE | None) -> float:
    return 0.0 if mask is None else areas(masks.encode(scene.mask(paints)), mask).iou


def confusions_of(asked: Sequence[Asked], benchmark: str) -> dict[str, list[Asked]]:
    """Wrong answers by what they show, the commonest first."""
    preset, _, split = benchmark.partition("/")
    found: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        if not one.is_right:
            seed, _, number = one.record.image_id.rpartition("/")[2].partition("_")
            found[confusion(one, build_scene(preset_of(preset), split, int(number), int(seed)))].append(one)
    return dict(sorted(found.items(), key=lambda entry: -len(entry[1])))


# -- output ----------------------------------------------------------------------------------------------


def drawn(confusions: Mapping[str, Sequence[Asked]]) -> Image.Image:
    """A heading for each confusion, and examples below it: the truth, then the answer."""
    rows = []
    for name, found in list(confusions.items())[:ROWS]:
        cards = []
        for one in found[:: -(-len(found) // COLUMNS)]:
            photo, truth = photo_of(one.record), one.expression.rle
            pair = [
                tile(photo, None if rle is None else masks.decode(rle), colour, TILE)
                for rle, colour in zip((truth, one.mask), PALETTE, strict=False)
            ]
            line = draw_lines([Line(one.expression.text)], 2 * TILE[1], LETTERS)
            cards.append(stacked([in_columns(pair, 2, 4), line]))
        heading = draw_lines([Line(f"{name}: {len(found)}")], 2 * COLUMNS * TILE[1], LETTERS + 3)
        rows.append(stacked([heading, in_columns(cards, COLUMNS, GAP, margin=GAP)]))
    return stacked(rows)


def lines_of(
    tables: Mapping[str, Mapping[str, Row]], confusions: Mapping[str, Sequence[Asked]]
) -> Iterator[str]:
    """For people: shares that are right, mIoU, and the commonest confusions with their share of what is wrong."""
    for table, rows in tables.items():
        yield f"right by {table}, % (mIoU):"
        for name, row in rows.items():
            yield f"  {name:<44} {100 * row.right / row.asked:5.1f} ({row.mIoU:5.1f})  of {row.asked}"
    wrong = sum(map(len, confusions.values()))
    yield f"{wrong} wrong answers show:"
    for name, found in list(confusions.items())[:ROWS]:
        yield f"  {name:<64} {len(found):4}  {100 * len(found) / wrong:.0f} %"


def main(argv: Sequence[str]) -> int:
    """Count, print and draw."""
    parser = argparse.ArgumentParser(prog="python -m tools.failures", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("benchmark", metavar="BENCHMARK", help="scenes_easy/SPLIT or scenes/SPLIT")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(argv)
    if options.benchmark.partition("/")[0] not in ("scenes", "scenes_easy"):
        raise InputError(f"{options.benchmark!r}: only drawn scenes have a scene graph")
    asked = asked_of(options.run, options.benchmark)
    tables, confusions = tables_of(asked), confusions_of(asked, options.benchmark)
    print("\n".join(lines_of(tables, confusions)))
    counts = {name: len(found) for name, found in confusions.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"right": tables, "confusions": counts}, indent=1)
    write_atomic(options.out / "failures.json", content.encode())
    if confusions:
        write_atomic(options.out / "confusions.png", png_bytes(drawn(confusions)))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("failures", lambda: main(sys.argv[1:])))
