"""`python -m eval report`: one self-contained page (no script, nothing loaded from anywhere) per evaluation
folder."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from eval.cases import Case, choose_cases
from eval.page import STYLE
from eval.pictures import ANSWER, SMALL, TRUTH, mask_uri, photo_uri
from eval.published import Kind, published_for, split_and_setting
from eval.score import SCENES_NOTE, detail_rows, load_records, notes, number, overview_rows
from uniresxx import masks
from uniresxx.errors import InputError
from uniresxx.evaluate import read_metrics
from uniresxx.files import write_atomic
from uniresxx.images import photo_of
from uniresxx.predictions import read_predictions
from uniresxx.types import RLE

TITLES = {"part": "Parts", "object": "Objects", "multi": "Several objects", "none": "Nothing there"}
COMPARED = ("mIoU part", "object", "multi", "N-acc", "T-acc", "gIoU", "cIoU")


@dataclass(frozen=True, slots=True)
class Section:
    """One benchmark of one folder: its scores, and its cases or the reason why there are none."""

    folder: Path
    entry: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, list[Case]]]
    missing: str | None

    @property
    def title(self) -> str:
        """NAME/SPLIT."""
        return f"{self.entry['benchmark']}/{self.entry['split']}"


def report(folders: Sequence[Path], data: Path | None = None) -> Path:
    """Write FIRST/report/index.html about all folders (run or evaluation folders); returns its path."""
    sections = [section for folder in folders for section in _sections(folder, data)]
    page = folders[0] / "report" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    curves = [(folder, folder / "curve.png") for folder in folders if (folder / "curve.png").is_file()]
    write_atomic(page, render(sections, curves).encode())
    return page


def _sections(folder: Path, data: Path | None) -> list[Section]:
    """Every entry of the folder's metrics.json with its cases."""
    home = next((f for f in (folder, folder / "eval") if (f / "metrics.json").is_file()), None)
    if home is None:
        raise InputError(f"{folder} holds no metrics.json: run `python -m eval run … --out {folder}` first")
    sections = []
    for entry in read_metrics(home / "metrics.json"):
        if "counts" not in entry or "trivial" not in entry:
            raise InputError(f"{home / 'metrics.json'} was not written by `python -m eval`: score it again")
        try:
            cases, missing = _cases(home, entry, data), None
        except InputError as error:  # the numbers are still worth a page
            cases, missing = {}, str(error)
        sections.append(Section(folder, entry, cases, missing))
    return sections


def _cases(home: Path, entry: Mapping[str, Any], data: Path | None) -> dict[str, dict[str, list[Case]]]:
    benchmark = f"{entry['benchmark']}/{entry['split']}"
    path = home / entry.get("predictions", f"{benchmark}/predictions.jsonl")
    if not path.is_file():
        raise InputError(f"{path} is not there any more")
    root = data or (Path(entry["data"]) if entry.get("data") else None)
    records = load_records(entry.get("store") or benchmark, root, entry.get("limit"))
    return choose_cases(records, read_predictions(path, records))


# ------------------------------------------------------------------------------------------------ the page


def render(sections: Sequence[Section], curves: Sequence[tuple[Path, Path]] = ()) -> str:
    """The page as HTML. Everything is inside: styles, pictures as data URIs, no script."""
    photos = _Photos()
    body = [_head(sections), *(_section(section, photos) for section in sections)]
    body += [_curve(folder, path) for folder, path in curves]
    title = escape(", ".join(dict.fromkeys(s.title for s in sections)))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{title}</title><style>{STYLE}{photos.styles()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


class _Photos:
    """Photos of the page: each is embedded once, as a style, however many panels show it."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._styles: list[str] = []

    def name(self, benchmark: str, case: Case) -> str:
        """The style class that shows the photo of a case; InputError where the photo cannot be read."""
        key = (benchmark, case.record.image_id)
        if key not in self._names:
            uri = photo_uri(photo_of(case.record))  # first: may fail, and then there is no such style
            self._names[key] = name = f"i{len(self._names)}"
            ratio = f"{case.record.width}/{case.record.height}"
            sharp = ";image-rendering:pixelated" if _is_small(case) else ""
            self._styles.append(f".{name}{{aspect-ratio:{ratio};background-image:url({uri}){sharp}}}")
        return self._names[key]

    def styles(self) -> str:
        """All photo styles."""
        return "".join(self._styles)


def _head(sections: Sequence[Section]) -> str:
    total = sum(s.entry["n_expressions"] for s in sections)
    names = ", ".join(dict.fromkeys(escape(s.title) for s in sections))
    parts = [
        "<header><h1>Words to masks</h1>",
        "<p class=lead>How well a model finds what words point at in a picture — a part, an object, several "
        f"objects, or nothing at all: {total:,} expressions of {names}, "
        "answered without ever seeing the truth.</p>",
    ]
    if len(sections) > 1:
        header = ["folder", "benchmark", "N", *COMPARED]
        rows = []
        for section in sections:
            _, (model, *_) = overview_rows(section.entry)
            size = str(section.entry["n_expressions"])
            rows.append([_name(section.folder), section.title, size, *model[1 : 1 + len(COMPARED)]])
        parts += ["<h2>Side by side</h2>", _table(header, rows, text_columns=2)]
    return "".join(parts) + "</header>"


def _name(folder: Path) -> str:
    return folder.name or str(folder)


def _section(section: Section, photos: _Photos) -> str:
    entry = section.entry
    parts = [f"<section><h2>{escape(section.title)}</h2>", _facts(section)]
    if entry["benchmark"].startswith("scenes"):
        parts.append(f"<p class=warn>{escape(SCENES_NOTE[0].upper() + SCENES_NOTE[1:])}.</p>")
    header, rows = overview_rows(entry)
    parts += ["<h3>Beside the trivial answers</h3>", _table(header, rows, bars=True)]
    parts.append(
        "<p class=small>Percent. The twin score asks for a part, its object and its group all at once.</p>"
    )
    header, rows = detail_rows(entry)
    parts += ["<h3>All scores</h3>", _table(header, rows)]
    parts.append("<ul class=small>" + "".join(f"<li>{escape(line)}</li>" for line in notes(entry)) + "</ul>")
    parts += [_published(entry), _gallery(section, photos)]
    return "".join(parts) + "</section>"


def _facts(section: Section) -> str:
    entry = section.entry
    decoding = entry.get("decoding") or {}
    versions = ", ".join(f"{k} {v}" for k, v in (entry.get("versions") or {}).items() if v)
    facts = {
        "folder": _name(section.folder),
        "expressions": f"{entry['n_expressions']:,}",
        "checkpoint": entry.get("checkpoint") or "not known",
        "protocol": entry["protocol"],
        "rejected by": decoding.get("rule") or "the predictions file",
        "question": entry.get("template") or "not known",
        "made with": versions or "not known",
    }
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f"<dl class=facts>{cells}</dl>"


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, bars: bool = False, text_columns: int = 1
) -> str:
    """A table that scrolls sideways on small screens; with `bars` percentages get a bar behind them."""
    head = "".join(
        f"<th scope=col{' class=text' if j < text_columns else ''}>{escape(name)}</th>"
        for j, name in enumerate(header)
    )
    lines = []
    for k, row in enumerate(rows):
        cells = [f"<th scope=row>{escape(row[0])}</th>"]
        for j, value in enumerate(row[1:], start=1):
            if j < text_columns:
                cells.append(f"<td class=text>{escape(value)}</td>")
            elif bars and "." in value:
                cells.append(f'<td class=bar style="--v:{value}%">{value}</td>')
            else:
                cells.append(f"<td>{escape(value)}</td>")
        kind = " class=main" if bars and k == 0 else " class=sizes" if row[0].startswith("N ") else ""
        lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<div class=wide><table>{body}</table></div>"


def _published(entry: Mapping[str, Any]) -> str:
    """Published numbers of the same benchmark and split, one table per kind of system; none beside scenes."""
    split, setting = split_and_setting(entry["split"])
    found = published_for(entry["benchmark"])
    rows = [r for r in found if split in r.values and (setting is None or r.setting == setting)]
    if not rows:
        return ""
    parts = [
        "<h3>Published numbers</h3><p class=small>Percent, on this split. Another way of scoring moves "
        "numbers by points: read the protocol before comparing. Kinds of systems are kept apart.</p>"
    ]
    header = ["method", "setting", "metric", "protocol", "source", "value"]
    for kind in Kind:
        chosen = [r for r in rows if r.kind is kind]
        cells = []
        for metric in dict.fromkeys(r.metric for r in chosen):
            same = sorted((r for r in chosen if r.metric == metric), key=lambda r: r.values[split])
            for r in same:
                source = r.source + (" (secondary)" if r.secondary else "")
                cells.append([r.method, r.setting, metric, r.protocol, source, f"{r.values[split]:.1f}"])
            if kind is Kind.TRAINED:
                ours = number(entry["overall"].get(metric))
                cells.append(["this model", setting or "all", metric, entry["protocol"], "this page", ours])
        if cells:
            parts += [f"<h4>{escape(kind.value)}</h4>", _table(header, cells, text_columns=5)]
    return "".join(parts)


def _gallery(section: Section, photos: _Photos) -> str:
    if section.missing is not None:
        return _no_pictures(section.missing)
    try:
        return _cards(section, photos)
    except InputError as error:  # a photo was moved or deleted: the numbers are still worth a page
        return _no_pictures(str(error))


def _no_pictures(reason: str) -> str:
    return f"<h3>Cases</h3><p class=warn>No pictures: {escape(reason)}</p>"


def _cards(section: Section, photos: _Photos) -> str:
    parts = [
        "<h3>Good and bad cases</h3><p class=small>Picture, <b class=truth>truth</b>, "
        "<b class=answer>answer</b>. Chosen by their numbers alone; "
        "of decisions, those the model was surest about.</p>"
    ]
    for granularity, groups in section.cases.items():
        parts.append(f"<h4>{TITLES[granularity]}</h4>")
        for group, cases in groups.items():
            figures = "".join(_figure(case, photos.name(section.title, case)) for case in cases)
            cards = "cards" if all(map(_is_small, cases)) else "cards large"
            good = "good" if group in ("best", "rightly rejected") else "bad" if group != "median" else "mid"
            parts.append(f"<h5 class={good}>{escape(group)}</h5><div class='{cards}'>{figures}</div>")
    return "".join(parts)


def _is_small(case: Case) -> bool:
    return max(case.record.height, case.record.width) <= SMALL


def _figure(case: Case, photo: str) -> str:
    expression, prediction = case.expression, case.prediction
    said = None if prediction.rejected else prediction.mask
    truth = _panel(photo, "truth", expression.rle, TRUTH, "nothing there")
    answer = _panel(photo, "answer", said, ANSWER, "“not there”" if prediction.rejected else "empty mask")
    plain = f'<div class="p {photo}" role=img aria-label="picture"></div>'
    facts = [f"IoU {case.iou:.2f}" if case.targeted else "no target"]
    if prediction.score is not None and not prediction.rejected:
        facts.append(f"predicted IoU {prediction.score:.2f}")
    if prediction.p_absent is not None:
        facts.append(f"p(absent) {prediction.p_absent:.2f}")
    if expression.level is not None:
        facts.append(f"level {expression.level}")
    return (
        f"<figure><div class=panels>{plain}{truth}{answer}</div>"
        f"<figcaption><q>{escape(expression.text)}</q><span>{' · '.join(facts)}</span>"
        f"<small>{escape(expression.expression_id)}</small></figcaption></figure>"
    )


def _panel(photo: str, label: str, mask: RLE | None, colour: tuple[int, int, int], otherwise: str) -> str:
    """One panel: the photo with a mask over it, or greyed with a word where there is none."""
    if mask is None or not masks.area(mask):
        return f'<div class="p off {photo}" role=img aria-label="{label}"><i>{otherwise}</i></div>'
    uri = mask_uri(masks.decode(mask), colour)
    return f'<div class="p {photo}" role=img aria-label="{label}"><img alt="" src="{uri}"></div>'


def _curve(folder: Path, path: Path) -> str:
    uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    title = f"<h2>Training of {escape(_name(folder))}</h2>"
    return f'<section>{title}<img class=curve alt="training curve" src="{uri}"></section>'
