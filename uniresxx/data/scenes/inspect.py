"""Look at the benchmark: the shares that it promises, and contact sheets for the eye."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from uniresxx.data.scenes.benchmark import benchmark_records
from uniresxx.data.scenes.kinds import kinds
from uniresxx.data.scenes.presets import SPLITS, check_split, preset_of
from uniresxx.data.scenes.record import scene_record
from uniresxx.data.scenes.words import SYNONYMS
from uniresxx.imaging.masks import decode
from uniresxx.types import Expression, Granularity, ImageRecord

_OUTLINE = (255, 0, 255)


@dataclass(frozen=True, slots=True)
class Shares:
    """What a set of records holds; shares are 0..1, areas are shares of the picture."""

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
    words: tuple[int, int, int]  # fewest, median, most; telegraphic ones apart
    templates: Mapping[str, int]  # frames per granularity
    slots: Mapping[str, int]  # what the negatives changed
    twins: float  # pictures in which part, object and group are asked together


def _by_level(expressions: Sequence[Expression]) -> dict[int, float]:
    counted = Counter(e.level for e in expressions if e.level is not None)
    return {level: counted[level] / max(len(expressions), 1) for level in (1, 2, 3)}


def shares(records: Sequence[ImageRecord]) -> Shares:
    """Measure records of one preset; see Shares."""
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
    parts = {part for kind in numbers.kinds for part in kinds()[kind].parts}
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
    pairs = sum(len(kinds()[kind].parts) for kind in numbers.kinds)
    names = Counter(part for kind in numbers.kinds for part in kinds()[kind].parts)
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


def _outlined(pixels: np.ndarray, mask: np.ndarray | None, zoom: int) -> Image.Image:
    """The enlarged picture with the mask's border in magenta."""
    big = np.kron(pixels, np.ones((zoom, zoom, 1), dtype=np.uint8))
    if mask is not None:
        wide = np.pad(np.kron(mask, np.ones((zoom, zoom), dtype=bool)), 1)
        core = wide[1:-1, 1:-1]
        inner = core & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
        big[core & ~inner] = _OUTLINE
    return Image.fromarray(big)


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def contact_sheet(
    preset: str, split: str, n: int = 24, start: int = 0, columns: int = 6, per_picture: int = 12
) -> Image.Image:
    """A sheet of n expressions of a split from picture `start` on, `per_picture` of each, masks outlined."""
    numbers = preset_of(preset)
    check_split(numbers, split)
    zoom = 256 // numbers.side
    side = numbers.side * zoom
    cells: list[tuple[ImageRecord, Expression]] = []
    index = start
    while len(cells) < n:
        record = scene_record(preset, split, index)
        asked = record.expressions
        step = max(1, len(asked) // per_picture)
        cells += [
            (record, asked[(index + step * k) % len(asked)]) for k in range(min(per_picture, len(asked)))
        ]
        index += 1
    height = side + 46
    sheet = Image.new("RGB", (columns * (side + 8), -(-n // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (record, expression) in enumerate(cells[:n]):
        x, y = number % columns * (side + 8), number // columns * height
        assert record.pixels is not None
        mask = decode(expression.rle) if expression.rle else None
        sheet.paste(_outlined(record.pixels, mask, zoom), (x, y))
        label = f"{number} {expression.granularity} L{expression.level}: {expression.text}"
        for row, line in enumerate(_wrapped(label, 40)[:3]):
            pen.text((x + 2, y + side + 2 + 14 * row), line, fill="black")
    return sheet


__all__ = ["SPLITS", "Shares", "contact_sheet", "report", "shares", "synonym_share"]
