"""Review: a sample of a store's expressions for people, and the precision that their verdicts show.

A sample is a folder. The correction page of `python -m chat_demo` opens its `predictions.jsonl` and saves what people
decide in a `corrections.jsonl`. Or, without the page: `sample.jsonl` has one line per expression, whose `verdict` a
person fills in, and there is a picture of each. Verdicts: "accept"; "fix" with a corrected `text` or `mask`;
"reject".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from heapq import nsmallest
from math import sqrt
from pathlib import Path
from typing import Any

from PIL import Image

from uniresxx.data.readers.files import json_lines
from uniresxx.data.store.photos import photo_of
from uniresxx.data.store.read import Store
from uniresxx.errors import InputError
from uniresxx.evaluation.files import ABOUT, FORMAT, PREDICTIONS
from uniresxx.files import png_bytes, write_atomic, write_json
from uniresxx.imaging import masks
from uniresxx.imaging.marking import PALETTE
from uniresxx.imaging.panel import tile
from uniresxx.text import clean_text
from uniresxx.types import Expression, Granularity, ImageRecord

SAMPLE = "sample.jsonl"
PAGE = "corrections.jsonl"  # what the correction page saves
FROM_CHAT = "chat/"  # how its keys begin where the sentence came from a chat: these are about no store
VERDICTS = ("accept", "fix", "reject")
SHOWN = (480, 640)  # height and width that a picture may have
Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class Precision:
    """The share of accepted expressions with its 95 % interval (Wilson 1927), 0..1."""

    accepted: int
    reviewed: int
    value: float
    low: float
    high: float


def wilson(accepted: int, reviewed: int) -> Precision:
    """Precision of a sample; the whole interval where nothing was reviewed."""
    if not reviewed:
        return Precision(0, 0, float("nan"), 0.0, 1.0)
    share, extra = accepted / reviewed, Z * Z / reviewed
    centre = (share + extra / 2) / (1 + extra)
    half = Z * sqrt(share * (1 - share) / reviewed + extra / (4 * reviewed)) / (1 + extra)
    return Precision(accepted, reviewed, share, max(0.0, centre - half), min(1.0, centre + half))


def export_sample(store: Store, out: Path, per_level: int, seed: int) -> int:
    """Write a sample with up to `per_level` expressions of each granularity; how many there are.

    Which ones depends on the seed and the ids alone. InputError where `out` holds a sample already.
    """
    path = out / SAMPLE
    if path.exists():
        raise InputError(f"{path}: there is a sample already, perhaps with verdicts: name another --out")
    chosen: list[tuple[ImageRecord, Expression]] = []
    for level in Granularity:
        pairs = ((r, e) for r in store for e in r.expressions if e.granularity is level)
        chosen += nsmallest(per_level, pairs, key=lambda pair: _rank(pair[1], seed))
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (record, item) in enumerate(chosen):
        name = f"{number:04d}.png"
        write_atomic(out / name, png_bytes(_drawn(record, item)))
        lines.append(
            {
                "expression_id": item.expression_id, "picture": record.image_id, "shown": name,
                "granularity": item.granularity.value, "text": item.text, "mask": item.rle, "verdict": None,
            }
        )  # fmt: skip
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(path, text.encode())
    _write_for_page(store, [item for _, item in chosen], out)
    return len(lines)


def _write_for_page(store: Store, items: Sequence[Expression], out: Path) -> None:
    """The sample as answers that `python -m chat_demo --review` opens."""
    lines = [
        {
            "expression_id": item.expression_id, "rejected": item.rle is None, "mask": item.rle,
            "score": None, "p_absent": None, "text": None,
        }
        for item in items
    ]  # fmt: skip
    write_atomic(out / PREDICTIONS, "".join(json.dumps(line) + "\n" for line in lines).encode())
    about = {"format": FORMAT, "benchmark": str(store.path.resolve()), "benchmark_sha256": store.fingerprint}
    write_json(out / ABOUT, {**about, "checkpoint": store.name})


def _rank(item: Expression, seed: int) -> bytes:
    return sha256(f"{seed} {item.expression_id}".encode()).digest()


def _drawn(record: ImageRecord, item: Expression) -> Image.Image:
    mask = None if item.rle is None else masks.decode(item.rle)
    return tile(photo_of(record), mask, PALETTE[0], SHOWN)


def read_verdicts(place: Path, records: Iterable[ImageRecord]) -> dict[str, dict[str, Any]]:
    """expression_id -> line with a verdict, of a sample's folder, or of the page's `corrections.jsonl`.

    `place` may be any folder above that file, as the `--out` of the page. InputError naming what is wrong.
    """
    if place.is_dir() and (place / SAMPLE).is_file():
        return _filled_in(place / SAMPLE)
    files = [place] if place.is_file() else [place / PAGE, place / Path(PAGE).stem / PAGE]
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        raise InputError(f"{place}: holds neither {SAMPLE} nor {PAGE}: give one of them, or its folder")
    return _decided(path, records)


def _decided(path: Path, records: Iterable[ImageRecord]) -> dict[str, dict[str, Any]]:
    """Verdicts by what was decided on the page; of several decisions about a key the last one stands."""
    latest = {str(line.get("key")): (who, line) for who, line in json_lines(path)}
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for item in record.expressions:
            who, line = latest.pop(item.expression_id, ("", None))
            if line is not None:
                found[item.expression_id] = _verdict_of(who, line, item, record)
    unknown = [key for key in latest if not key.startswith(FROM_CHAT)]
    if unknown:
        raise InputError(f"{path}: {unknown[0]} is not in the store: name the store that the sample is of")
    if not found:
        raise InputError(f"{path}: holds no decision about the store")
    return found


def _verdict_of(who: str, line: Mapping[str, Any], item: Expression, record: ImageRecord) -> dict[str, Any]:
    """What a decision means for an item: that it is not there after all, is to reject it."""
    mask, text, level = line.get("mask"), line.get("text"), line.get("granularity")
    if not isinstance(text, str) or level not in list(Granularity):
        raise InputError(f"{who}: has no text or no granularity: it is no line of the page")
    rle = None if mask is None else masks.validate(mask, (record.height, record.width))
    if rle is None and item.rle is not None:
        return {"verdict": "reject"}
    if (rle, text, level) == (item.rle, item.text, item.granularity):
        return {"verdict": "accept"}
    return {"verdict": "fix", "text": text, "mask": rle, "granularity": level}


def _filled_in(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of a sample with a verdict; others are left out."""
    found = {}
    for who, line in json_lines(path):
        verdict = line.get("verdict")
        if verdict is None:
            continue
        if verdict not in VERDICTS or not isinstance(line.get("expression_id"), str):
            raise InputError(f"{who}: verdict must be one of {', '.join(VERDICTS)}, or null, not {verdict!r}")
        if verdict == "fix" and not isinstance(line.get("text"), str):
            raise InputError(f"{who}: a fixed line needs its text")
        if line.get("granularity") not in list(Granularity):
            raise InputError(f"{who}: granularity must be one of {', '.join(Granularity)}")
        found[line["expression_id"]] = line
    if not found:
        raise InputError(f"{path}: holds no verdict: fill in {', '.join(VERDICTS)}")
    return found


def precision_by_level(
    verdicts: Mapping[str, Mapping[str, Any]], records: Iterable[ImageRecord]
) -> dict[str, Precision]:
    """Precision by granularity of what was reviewed; fixed ones count as wrong, because they were."""
    reviewed: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    known: set[str] = set()
    for record in records:
        for item in record.expressions:
            if item.expression_id in verdicts:
                known.add(item.expression_id)
                level = item.granularity.value
                reviewed[level] += 1
                accepted[level] += verdicts[item.expression_id]["verdict"] == "accept"
    missing = sorted(verdicts.keys() - known)
    if missing:
        raise InputError(f"{missing[0]}: is not in the store: name the store that the sample is of")
    return {level.value: wilson(accepted[level.value], reviewed[level.value]) for level in Granularity}


def corrected(
    verdicts: Mapping[str, Mapping[str, Any]], records: Iterable[ImageRecord]
) -> Iterator[ImageRecord]:
    """The records without what was rejected, and with what was fixed; those that are left without words go, too."""
    for record in records:
        kept = tuple(
            fixed for item in record.expressions if (fixed := _fixed(item, verdicts, record)) is not None
        )
        if kept:
            yield replace(record, expressions=kept)


def _fixed(
    item: Expression, verdicts: Mapping[str, Mapping[str, Any]], record: ImageRecord
) -> Expression | None:
    line = verdicts.get(item.expression_id)
    if line is None or line["verdict"] == "accept":
        return item
    if line["verdict"] == "reject":
        return None
    rle = item.rle
    if line.get("mask") is not None:
        rle = masks.validate(line["mask"], (record.height, record.width))
    level = Granularity(line["granularity"])
    if (rle is None) != (level is Granularity.NONE):
        raise InputError(
            f"{item.expression_id}: has a mask, so its granularity must be another one than none"
        )
    same = rle == item.rle
    area = 0 if rle is None else masks.area(rle)
    instances = item.instances if same else None
    return replace(
        item, text=clean_text(line["text"]), granularity=level, rle=rle, area=area, instances=instances
    )


def lines_of(found: Mapping[str, Precision], counts: Mapping[str, int]) -> list[str]:
    """Precision by granularity, and over the store: levels weighted by how many expressions it has of each."""
    lines = []
    for level, p in found.items():
        if p.reviewed:
            shares = f"{100 * p.value:.1f} % [{100 * p.low:.1f}, {100 * p.high:.1f}]"
            lines.append(f"{level}: {shares}, {p.accepted} of {p.reviewed} reviewed")
    reviewed = [level for level, p in found.items() if p.reviewed]
    total = sum(counts[level] for level in reviewed)
    if total:
        mean = sum(counts[level] * found[level].value for level in reviewed) / total
        lines.append(f"of the store's {total} expressions of these granularities: {100 * mean:.1f} %")
    return lines


def counts_of(records: Sequence[ImageRecord] | Store) -> Counter[str]:
    """Expressions by granularity."""
    return Counter(item.granularity.value for record in records for item in record.expressions)
