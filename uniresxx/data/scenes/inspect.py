"""Measure the shares that the benchmark promises: levels, granularities, hidden pixels, lengths, templates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uniresxx.data.scenes.benchmark import benchmark_records
from uniresxx.data.scenes.kinds import KINDS
from uniresxx.data.scenes.presets import preset_of
from uniresxx.data.scenes.words import SYNONYMS
from uniresxx.types import Expression, Granularity, ImageRecord


@dataclass(frozen=True, slots=True)
class Shares:
    """Numbers of a set of records; shares are between 0 and 1, areas are shares of the picture."""

    pictures: int
    granularity: Mapping[str, int]
    level: Mapping[int, float]
    level_of: Mapping[str, Mapping[int, float]]  # granularity -> level -> share
    occluded: float  # referents (one per thing and expression) hidden by 10-60 %
    most_hidden: float
    part_median: float
    part_min: int  # pixels
    telegraphic: float
    typos: float
    words: tuple[int, int, int]  # fewest, median, most in texts that are not telegraphic
    templates: Mapping[str, int]  # number of frames per granularity
    slots: Mapping[str, int]  # what the negatives changed
    twins: float  # pictures in which part, object and group are asked together


def _by_level(expressions: Sequence[Expression]) -> dict[int, float]:
    counted = Counter(e.level for e in expressions if e.level is not None)
    return {level: counted[level] / max(len(expressions), 1) for level in (1, 2, 3)}


def shares(records: Sequence[ImageRecord]) -> Shares:
    """The numbers of records of one preset."""
    every = [expression for record in records for expression in record.expressions]
    by = {g: [e for e in every if e.granularity is g] for g in Granularity}
    hidden = [share for e in every for share in e.source["hidden"]]
    parts = [e.area for e in by[Granularity.PART]]
    lengths = [len(e.text.split()) for e in every if not e.source["telegraphic"]]
    return Shares(
        pictures=len(records),
        granularity={str(g): len(some) for g, some in by.items()},
        level=_by_level(every),
        level_of={str(g): _by_level(some) for g, some in by.items()},
        occluded=float(np.mean([0.1 <= share <= 0.6 for share in hidden])),
        most_hidden=max(hidden),
        part_median=float(np.median(parts)) / (records[0].height * records[0].width),
        part_min=min(parts),
        telegraphic=float(np.mean([e.source["telegraphic"] for e in every])),
        typos=float(np.mean([e.source["typo"] for e in every])),
        words=(min(lengths), int(np.median(lengths)), max(lengths)),
        templates={
            str(g): len({e.source["template"].split(" | ")[0] for e in some} - {"telegraphic"})
            for g, some in by.items()
        },
        slots=dict(Counter(str(e.source["slot"]) for e in by[Granularity.NONE])),
        twins=float(np.mean([any(e.twin for e in record.expressions) for record in records])),
    )


def synonym_share(preset: str) -> tuple[int, int]:
    """(words with a synonym, words) among the kinds, parts, colours, relations and orders of a preset."""
    numbers = preset_of(preset)
    parts = {part for kind in numbers.kinds for part in KINDS[kind].parts}
    relations = ("left of", "right of", "above", "below", "in front of", "behind")
    every = [*numbers.kinds, *sorted(parts), *numbers.colours, *relations]
    return (0 if numbers.easy else sum(word in SYNONYMS for word in every)), len(every)


def _percent(values: Mapping[int, float]) -> str:
    return " / ".join(f"{100 * values[level]:.0f}" for level in (1, 2, 3))


def _lines(name: str, split: str, found: Shares) -> list[str]:
    counts = ", ".join(f"{count} {name}" for name, count in found.granularity.items())
    total = sum(found.granularity.values())
    most = f"most hidden: {100 * found.most_hidden:.0f} %"
    return [
        f"{name}/{split}: {total} expressions on {found.pictures} pictures ({counts})",
        f"  levels 1 / 2 / 3           {_percent(found.level)} %",
        *(f"    of {name:<22} {_percent(level)} %" for name, level in found.level_of.items()),
        f"  referents 10-60 % hidden   {100 * found.occluded:.0f} % ({most})",
        f"  part, median of picture    {100 * found.part_median:.2f} % (smallest: {found.part_min} pixels)",
        f"  words                      {found.words[0]}-{found.words[2]}, median {found.words[1]}",
        f"  telegraphic, typos         {100 * found.telegraphic:.0f} %, {100 * found.typos:.0f} %",
        f"  templates                  {', '.join(f'{n} {g}' for g, n in found.templates.items())}",
        f"  no target changes          {', '.join(f'{s} {n}' for s, n in sorted(found.slots.items()))}",
        f"  pictures with a twin trio  {100 * found.twins:.0f} %",
    ]


def report(preset: str, split: str = "val") -> str:
    """The shares of a preset as text, measured on a split (default: val), and the sizes of all splits."""
    numbers = preset_of(preset)
    pairs = sum(len(KINDS[kind].parts) for kind in numbers.kinds)
    names = Counter(part for kind in numbers.kinds for part in KINDS[kind].parts)
    shared = sorted(name for name, count in names.items() if count > 1)
    known, words = synonym_share(preset)
    lines = [
        f"{preset}: {numbers.side} x {numbers.side} pixels, {len(numbers.kinds)} kinds,"
        f" {pairs} kind-part pairs of {len(names)} part names, {len(numbers.colours)} colours",
        f"  part names of several kinds: {', '.join(shared)}",
        f"  words with synonyms: {known} of {words}",
        "  splits: train without end; "
        + ", ".join(f"{s} {sum(numbers.quota(s))}" for s in numbers.splits if s != "train"),
        *_lines(preset, split, shares(benchmark_records(preset, split))),
        "These are drawn pictures: numbers made from them say nothing about photographs.",
    ]
    return "\n".join(lines)
