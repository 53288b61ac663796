"""What each protocol makes of the same answers, in points: the tables of docs/eval.md.

    python tools/protocol_effects.py [--data DIR]

Answers are made, not a model's: masks shifted by up to 3 % of the picture, and of every hundred expressions
with a target 5 rejected (half of them carry their mask, all a forced one) and 2 answered by an empty mask; of
those without one 20 answered by another object and 20 by an empty mask. Pictures: `scenes/val`, the recorded
cases of the tests, and with --data (the folder of the photographs of the tests) `grefcoco/train`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uniresxx.data.catalog import load_benchmark
from uniresxx.data.polygons import with_polygons
from uniresxx.data.readers.instances import Instances, overlap_source
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import Scores, Tally
from uniresxx.scoring.protocols import PROTOCOLS, STRICT, Protocol
from uniresxx.scoring.protocols.base import areas
from uniresxx.scoring.protocols.rela import SQUASHED, squashed
from uniresxx.types import RLE, Expression, Granularity, ImageRecord

SEED = 4
WORLD_SIZE = 8
SHIFT = 0.03
REJECTED, EMPTY, FALSE_ACCEPT, SILENT = 0.05, 0.02, 0.20, 0.20
CASES = Path(__file__).resolve().parents[1] / "tests" / "data" / "protocols" / "cases.json"
SHOWN = ("gIoU", "cIoU", "mIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9", "N-acc", "T-acc")
Answers = dict[str, Prediction]


def shifted(rle: RLE, rng: np.random.Generator) -> RLE:
    """The mask moved by up to SHIFT of each side."""
    mask = masks.decode(rle)
    moves = [round(rng.uniform(-SHIFT, SHIFT) * side) for side in mask.shape]
    return masks.encode(np.roll(mask, moves, axis=(0, 1)))


def made_answer(expression: Expression, record: ImageRecord, rng: np.random.Generator) -> Prediction:
    """One answer of the kind the module's text describes."""
    draw, size = rng.random(), (record.height, record.width)
    if expression.rle is None:
        others = [e.rle for e in record.expressions if e.rle is not None]
        if draw < FALSE_ACCEPT and others:
            return Prediction(False, others[int(rng.integers(len(others)))], None)
        silent = draw < FALSE_ACCEPT + SILENT
        return Prediction(not silent, masks.empty(*size) if silent else None, None)
    mask = shifted(expression.rle, rng)
    if draw < REJECTED:
        return Prediction(True, mask if draw < REJECTED / 2 else None, None, mask_if_forced=mask)
    return Prediction(False, masks.empty(*size) if draw < REJECTED + EMPTY else mask, None)


def made_answers(records: Sequence[ImageRecord]) -> Answers:
    """Answers to every expression, the same from run to run."""
    rng = np.random.default_rng(SEED)
    return {e.expression_id: made_answer(e, record, rng) for record in records for e in record.expressions}


def recorded() -> tuple[list[ImageRecord], Answers]:
    """The cases of the tests, each a picture with one sentence or several about one referent."""
    records: list[ImageRecord] = []
    answers: Answers = {}
    for place, case in enumerate(json.loads(CASES.read_text())["cases"]):
        size = (case["size"][0], case["size"][1])
        rles = [masks.from_coco(item, *size) for item in case["anns"]]
        twice = overlap_source([{"segmentation": item} for item in case["anns"]], rles, size)
        given = [Prediction(case["rejected"], case["mask"], None, mask_if_forced=case["forced"])]
        given += [Prediction(False, rle, None) for rle in case["more"]]
        kind = (Granularity.NONE, Granularity.OBJECT, Granularity.MULTI)[min(len(rles), 2)]
        union = masks.union(rles, size) if rles else None
        names = [f"cases/val/{place}_{k}" for k in range(len(given))]
        source = {"ref_id": place, **twice}
        every = tuple(Expression(name, "it", kind, union, source=source) for name in names)
        records.append(ImageRecord(str(place), *size, every))
        answers |= dict(zip(names, given, strict=True))
    return records, answers


def scores(
    protocol: Protocol,
    records: Sequence[ImageRecord],
    answers: Mapping[str, Prediction],
    padded: bool = False,
) -> Scores:
    """Scores of the answers; null for what the protocol does not define."""
    tally = Tally()
    for record in records:
        tally = tally.merge(protocol.tally_image(record, answers))
    if padded:
        known = {e.expression_id: e for record in records for e in record.expressions}
        for name in protocol.padded(records, WORLD_SIZE):
            tally = tally.merge(Tally.of_image([protocol.judge(known[name], answers[name])]))
    found = tally.overall.scores()
    return {key: None if key in protocol.undefined else value for key, value in found.items()}


def line(name: str, values: Mapping[str, float | None], base: Mapping[str, float | None] | None) -> str:
    """A row of a Markdown table: values, or differences from `base`."""
    cells = []
    for key in SHOWN:
        value, other = values[key], 0.0 if base is None else base[key]
        known = value is not None and other is not None
        cells.append(
            f"{value - other:{'+' if base else ''}.2f}" if known else "–"  # type: ignore[operator]
        )
    return f"| {name} | " + " | ".join(cells) + " |"


def table(title: str, records: Sequence[ImageRecord], answers: Mapping[str, Prediction]) -> None:
    """Print strict's scores and what each protocol differs by."""
    expressions = [e for record in records for e in record.expressions]
    twice = sum("overlap" in e.source for e in expressions)
    none = sum(e.rle is None for e in expressions)
    print(
        f"\n{title}: {len(records)} pictures, {len(expressions)} expressions, {none} without a target, "
        f"{twice} with overlapping polygons\n"
    )
    print("| protocol | " + " | ".join(SHOWN) + " |\n" + "|---" * (1 + len(SHOWN)) + "|")
    base = scores(STRICT, records, answers)
    print(line("strict", base, None))
    for protocol in PROTOCOLS[1:]:
        if none and protocol.refuses:
            records_kept = [with_targets(record) for record in records]
            target_base = scores(STRICT, records_kept, answers)
            found = scores(protocol, records_kept, answers)
            print(line(f"{protocol.name} (targets only)", found, target_base))
            continue
        found = scores(protocol, records, answers)
        print(line(protocol.name, found, base))
        if protocol.padded(records, WORLD_SIZE):
            more = scores(protocol, records, answers, padded=True)
            print(line(f"{protocol.name}, padded on {WORLD_SIZE} against itself", more, found))


def polygons_at_480(data: Path) -> str:
    """How far ReLA's own truth (polygons scaled, then drawn at 480 x 480) is from the squashed mask."""
    instances = Instances.load(data / "grefcoco" / "instances.json")
    found = []
    for ann_id, row in instances.annotations.items():
        _, height, width = instances.image(row["image_id"], "")
        if isinstance(row["segmentation"], list) and not row.get("iscrowd"):
            factors = (SQUASHED / width, SQUASHED / height)
            drawn = [[v * factors[k % 2] for k, v in enumerate(p)] for p in row["segmentation"]]
            ours = squashed(instances.mask(ann_id, row["image_id"], ""))
            both = areas(ours, masks.from_polygons(drawn, SQUASHED, SQUASHED))
            found.append(100 * both.common / both.union)
    mean, least = np.mean(found), np.min(found)
    what = f"polygons drawn at 480 x 480 against squashed masks, {len(found)} objects"
    return f"\n{what}: mean IoU {mean:.2f}, least {least:.2f}"


def with_targets(record: ImageRecord) -> ImageRecord:
    """The record without its no-target expressions, which CRIS's data do not have."""
    kept = tuple(e for e in record.expressions if e.rle is not None)
    return ImageRecord(record.image_id, record.height, record.width, kept)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    scenes = list(load_benchmark("scenes/val", None))
    table("scenes/val", scenes, made_answers(scenes))
    if args.data is not None:
        photos = with_polygons(load_benchmark("grefcoco/train", args.data), args.data)
        table("grefcoco/train of the test photographs", photos, made_answers(photos))
        perfect = {
            e.expression_id: Prediction(e.rle is None, e.rle, None) for r in photos for e in r.expressions
        }
        table("the same, answered perfectly", photos, perfect)
        print(polygons_at_480(args.data))
    table("recorded cases", *recorded())
    return 0


if __name__ == "__main__":
    sys.exit(main())
