"""The report of a run: what each step proposed, kept and rejected for which reason, scores, and contact sheets.

STORE.engine/report holds report.json, index.html, rejected.jsonl (every rejected item) and one sheet per step.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

from data_engine.assemble import record_of
from data_engine.records import Item, Picture
from data_engine.run import Job, pictures_of
from uniresxx.data.contact_sheet import Sheet, save_sheet
from uniresxx.errors import InputError
from uniresxx.files import write_atomic, write_json
from uniresxx.types import Granularity

BINS = 20  # of a histogram between 0 and 1
LEVELS = tuple(Granularity)
MARK = "<h1>Data engine</h1>"
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1c1e22}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ccc}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%;border:1px solid #d0d4db}"
    "figure{display:inline-block;margin:.5rem 1rem .5rem 0}figcaption{font-size:13px;color:#60666f}rect{fill:#4466aa}"
)


@dataclass
class Tally:
    """What is counted over all pictures."""

    pictures: Counter[str] = field(default_factory=Counter)
    proposed: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)  # (reason, level)
    slots: Counter[str] = field(default_factory=Counter)
    scores: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0] * BINS))
    words: Counter[int] = field(default_factory=Counter)

    def add(self, picture: Picture) -> None:
        """Count a picture and its items."""
        state = "done" if picture.failed is None else picture.failed.partition(" of ")[0]
        self.pictures[state if picture.failed is None or "duplicate" in state else "in quarantine"] += 1
        for item in picture.items if picture.failed is None else ():
            level = item.granularity.value
            self.proposed[level] += 1
            for name, score in item.scores.items():
                self.scores[f"{level} {name}"][min(BINS - 1, max(0, int(score * BINS)))] += 1
            if item.rejected is not None:
                self.reasons[(item.rejected, level)] += 1
                continue
            self.kept[level] += 1
            self.words[len(item.text.split())] += 1
            if item.slot is not None:
                self.slots[item.slot] += 1

    def as_json(self) -> dict[str, Any]:
        """The numbers, sorted."""
        reasons: dict[str, dict[str, int]] = {}
        for (reason, level), count in sorted(self.reasons.items()):
            reasons.setdefault(reason, {})[level] = count
        return {
            "pictures": dict(sorted(self.pictures.items())),
            "proposed": _by_level(self.proposed),
            "kept": _by_level(self.kept),
            "rejected": reasons,
            "negatives_by_slot": dict(sorted(self.slots.items())),
            "words_per_text": {str(count): n for count, n in sorted(self.words.items())},
            "scores": {name: self.scores[name] for name in sorted(self.scores)},
        }


def _by_level(counts: Mapping[str, int]) -> dict[str, int]:
    return {level.value: counts.get(level.value, 0) for level in LEVELS}


def write_report(job: Job, finished: Sequence[Path]) -> Path:
    """Write the report; the path of its page. InputError where another file is in its place, OSError of the disk."""
    out = job.folder / "report"
    page = out / "index.html"
    if page.is_file() and MARK not in page.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{page}: is not of this program; move it away")
    out.mkdir(parents=True, exist_ok=True)
    tally, sheets = Tally(), _Sheets(job)
    with (out / "rejected.jsonl").open("w", encoding="utf-8") as rejected:
        for picture in _pictures(finished):
            tally.add(picture)
            sheets.add(picture)
            for item in picture.items:
                if item.rejected is not None:
                    rejected.write(json.dumps({"picture": picture.name, **_short(item)}) + "\n")
    numbers = tally.as_json()
    write_json(out / "report.json", numbers)
    write_atomic(page, _page(job, numbers, sheets.write(out)).encode())
    return page


def _pictures(finished: Sequence[Path]) -> Iterator[Picture]:
    for path in finished:
        yield from pictures_of(path)


def _short(item: Item) -> dict[str, Any]:
    return {
        "item": item.item_id, "granularity": item.granularity.value, "category": item.category, "part": item.part,
        "text": item.text, "box": item.box, "reason": item.rejected, "scores": dict(item.scores),
    }  # fmt: skip


class _Sheets:
    """Contact sheets: what is kept, and what each step rejected."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.by_name: dict[str, Sheet] = {"kept": Sheet()}

    def add(self, picture: Picture) -> None:
        """Show some items of a picture."""
        if picture.failed is not None:
            return
        self._add("kept", picture, [item for item in picture.items if item.is_kept])
        by_step: dict[str, list[Item]] = defaultdict(list)
        for item in picture.items:
            if item.rejected is not None:
                step, _, reason = item.rejected.partition(": ")
                words = item.text or " ".join(filter(None, (item.part, item.category)))
                by_step[step].append(replace(item, text=f"{words} ({reason})", rejected=None, members=()))
        for step, items in by_step.items():
            self._add(f"rejected_{step}", picture, items)

    def _add(self, name: str, picture: Picture, items: Sequence[Item]) -> None:
        shown = record_of(replace(picture, items=tuple(items)), self.job.recipe.name, self.job.images)
        self.by_name.setdefault(name, Sheet()).add([shown])

    def write(self, out: Path) -> list[str]:
        """Write the sheets; their names, that of what is kept first."""
        order = ["kept", *(f"rejected_{step.NAME}" for step in self.job.recipe.steps)]
        names = [name for name in order if name in self.by_name and self.by_name[name].counts.total()]
        for name in names:
            save_sheet(self.by_name[name], name.replace("_", " by "), out / f"{name}.png")
        return names


def _page(job: Job, numbers: Mapping[str, Any], sheets: Sequence[str]) -> str:
    """The page: tables, histograms, sheets."""
    levels = [level.value for level in LEVELS]
    rejected = [
        [reason, *(by.get(level, 0) for level in levels)] for reason, by in numbers["rejected"].items()
    ]
    rows = [[what, *(numbers[what][level] for level in levels)] for what in ("proposed", "kept")]
    charts = "".join(_histogram(name, counts) for name, counts in numbers["scores"].items())
    images = "".join(
        f'<h2>{name.replace("_", " by ")}</h2><img src="{name}.png" alt="{name}">' for name in sheets
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Data engine</title><style>{STYLE}</style>{MARK}'
        f"<p>{escape(job.recipe.name)}: {' → '.join(step.NAME for step in job.recipe.steps)}</p>"
        f"{_table(['pictures', ''], [[k, v] for k, v in numbers['pictures'].items()])}"
        f"{_table(['items', *levels], rows)}{_table(['rejected', *levels], rejected)}"
        f"{_table(['negatives by changed slot', ''], [[k, v] for k, v in numbers['negatives_by_slot'].items()])}"
        f"<h2>Scores, 0 to 1</h2>{charts}{images}</html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{lines}</table>"


def _histogram(name: str, counts: Sequence[int]) -> str:
    """Bars as SVG."""
    most = max(max(counts), 1)
    bars = "".join(
        f'<rect x="{8 * place}" y="{60 - 60 * count / most:.1f}" width="7" height="{60 * count / most:.1f}"/>'
        for place, count in enumerate(counts)
    )
    total = sum(counts)
    return (
        f'<figure><svg width="{8 * BINS}" height="60" role="img" aria-label="{escape(name)}">{bars}</svg>'
        f"<figcaption>{escape(name)}, {total}</figcaption></figure>"
    )
