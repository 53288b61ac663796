"""What a split holds, counted, and how that differs from what is published."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from uniresxx.data.published_counts import PublishedCount
from uniresxx.types import Expression, Granularity, ImageRecord


def summary(records: Iterable[ImageRecord]) -> dict[str, Any]:
    """What `inspect` prints of one split; passes over the records once and keeps none.

    Counts per granularity and of conversations (and per level where expressions have one, shares in percent), the
    median share of the photo that a target covers in percent, the median number of words, how much was left out, and
    how many photos are missing. `refs` are object records by their native ids, where the data set has such.
    """
    totals, kinds, levels = Counter[str](), Counter[Granularity](), Counter[int]()
    noted = Counter[str]()  # by the reader
    shares: dict[Granularity, list[float]] = {
        kind: [] for kind in Granularity if kind is not Granularity.NONE
    }
    words: list[int] = []
    refs: set[tuple[str, str, str]] = set()
    for record in records:
        totals["images"] += 1
        totals["left out"] += len(record.source.get("left_out", ()))
        noted.update(record.source.get("counts", {}))
        totals["photos missing"] += _is_missing(record)
        totals["dialogues"] += len(record.dialogues)
        for expression in record.expressions:
            kinds[expression.granularity] += 1
            words.append(len(expression.text.split()))
            if expression.level is not None:
                levels[expression.level] += 1
            if expression.granularity in shares:
                shares[expression.granularity].append(100 * expression.area / (record.height * record.width))
            ref = _ref_of(record, expression)
            if ref is not None:
                refs.add(ref)
    return {
        "images": totals["images"],
        **({"refs": len(refs)} if refs else {}),
        "expressions": len(words),
        **{str(kind): kinds[kind] for kind in Granularity},
        **({"dialogues": totals["dialogues"]} if totals["dialogues"] else {}),
        **{
            f"level {level}, %": round(100 * count / levels.total(), 1)
            for level, count in sorted(levels.items())
        },
        **{f"{kind}, median % of photo": round(statistics.median(s), 2) for kind, s in shares.items() if s},
        "words, median": statistics.median(words) if words else None,
        "left out": totals["left out"],
        "photos missing": totals["photos missing"],
        **noted,
    }


def _ref_of(record: ImageRecord, expression: Expression) -> tuple[str, str, str] | None:
    for key in ("ref_id", "segment_id"):
        if expression.source.get(key) is not None:
            dataset = expression.expression_id.partition("/")[0]
            return dataset, record.image_id, str(expression.source[key])
    return None


def _is_missing(record: ImageRecord) -> bool:
    place = record.inside.file if record.inside is not None else record.path
    return place is not None and not Path(place).exists()


def beside(
    counts: Mapping[str, Any], published: PublishedCount, removed: Mapping[str, int]
) -> tuple[dict[str, str], list[str]]:
    """(what is published, by the name of what we count; what differs); `removed` is what the guard took away.

    Photos and expressions that the guard removed count as found. Refs are compared only where it removed none:
    it does not count them.
    """
    shown, differ = {}, []
    for name, source in (("images", "images"), ("refs", "refs"), ("expressions", "sentences")):
        number = getattr(published, source)
        if number is None or name not in counts:
            continue
        recalled = source in published.recalled
        text = f"{number:,} (recalled)" if recalled else f"{number:,}"
        gone = removed.get(name, 0)
        shown[name] = f"published {text}" + (f", removed by the guard {gone:,}" if gone else "")
        if name == "refs" and removed.get("images"):
            continue
        if counts[name] + gone != number:
            found = f"{counts[name]:,}" + (f" (and {gone:,} removed)" if gone else "")
            field = f"{source}, recalled" if recalled else source
            differ.append(f"{name} {found}, published {number:,} ({field})")
    if published.only_objects and "expressions" in shown:
        shown["object"] = shown["expressions"]
    return shown, differ
