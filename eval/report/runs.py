"""What a report is about: evaluated folders, their scores, and every answer judged again from its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.report.cases import Case, judge_all
from eval.score import load_records, with_truth
from uniresxx.data.catalog import find_store
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import read_metrics
from uniresxx.scoring.predictions import Problems, sizes_of, stream_predictions
from uniresxx.scoring.protocols import protocol_of
from uniresxx.scoring.rejection import Rejection


@dataclass(frozen=True, slots=True)
class Run:
    """One entry of one folder's metrics.json: its scores, and its answers or the reason why there are
    none."""

    label: str
    folder: Path
    entry: Mapping[str, Any]
    cases: Sequence[Case]
    missing: str | None

    @property
    def title(self) -> str:
        """NAME/SPLIT."""
        return f"{self.entry['benchmark']}/{self.entry['split']}"


@dataclass(frozen=True, slots=True)
class Group:
    """All runs of one benchmark, side by side; labels are unique."""

    title: str
    runs: Sequence[Run]

    @property
    def answered(self) -> list[Run]:
        """Runs whose single answers are known, once per set of answers however many protocols scored it: another
        threshold decides otherwise, and other pictures are other answers."""
        found: dict[tuple[Any, ...], Run] = {}
        for run in self.runs:
            rejection, limit = run.entry.get("rejection") or {}, run.entry.get("limit")
            decided = (rejection.get("rule"), rejection.get("threshold"), limit)
            if run.cases:
                found.setdefault((run.folder, run.entry.get("predictions"), *decided), run)
        return list(found.values())


def read_runs(folders: Sequence[Path], data: Path | None) -> list[Run]:
    """Every entry of every folder's metrics.json. InputError where a folder holds no scores."""
    found = []
    for folder in dict.fromkeys(folders):
        home = next((f for f in (folder, folder / "eval") if (f / "metrics.json").is_file()), None)
        if home is None:
            raise InputError(
                f"{folder} holds no metrics.json: run `python -m eval run … --out {folder}` first"
            )
        entries = read_metrics(home / "metrics.json")
        for entry in entries:
            if "counts" not in entry or "trivial" not in entry:
                raise InputError(
                    f"{home / 'metrics.json'} was not written by `python -m eval`: score it again"
                )
            found.append(_run(_label(folder, entry, entries), folder, home, entry, data))
    return found


def _label(folder: Path, entry: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
    """The folder's name, with what tells this entry from the others of the same benchmark there."""
    rivals = [
        e for e in entries if (e["benchmark"], e.get("split")) == (entry["benchmark"], entry.get("split"))
    ]

    def asked(e: Mapping[str, Any]) -> tuple[str, ...]:
        rejection, padded, limit = e.get("rejection") or {}, e.get("padded_world_size"), e.get("limit")
        above = "" if rejection.get("threshold") is None else f" above {rejection['threshold']:.4g}"
        return (
            str(e["protocol"]),
            f"rejected by {rejection.get('rule') or 'flag'}{above}",
            f"padded to {padded}" if padded else "",
            f"first {limit} pictures" if limit else "",
            "partial" if e.get("partial") else "",
            Path(e.get("predictions") or "").name,
        )

    differing = zip(asked(entry), *map(asked, rivals), strict=True)
    apart = [own for own, *others in differing if own and len(set(others)) > 1]
    return (folder.name or str(folder)) + (f" ({', '.join(apart)})" if apart else "")


def _run(label: str, folder: Path, home: Path, entry: Mapping[str, Any], data: Path | None) -> Run:
    try:
        return Run(label, folder, entry, _cases(home, entry, data), None)
    except InputError as error:  # the numbers are still worth a page
        return Run(label, folder, entry, (), str(error))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs by benchmark, in order of appearance; equal labels are numbered."""
    groups = []
    for title in dict.fromkeys(run.title for run in runs):
        labels: dict[str, int] = {}
        members = []
        for run in (r for r in runs if r.title == title):
            labels[run.label] = count = labels.get(run.label, 0) + 1
            members.append(run if count == 1 else replace(run, label=f"{run.label} #{count}"))
        groups.append(Group(title, members))
    return groups


def _place(entry: Mapping[str, Any], data: Path | None) -> str | None:
    """The store that was scored, None where there was none or `data` must serve instead of one that is gone."""
    place = entry.get("store")
    if place is None or find_store(place, None) is not None:
        return place
    if data is None:
        raise InputError(
            f"{place}: the store is not there any more; --data DIR names where its data lies now"
        )
    return None


def _cases(home: Path, entry: Mapping[str, Any], data: Path | None) -> list[Case]:
    benchmark = f"{entry['benchmark']}/{entry['split']}"
    path = home / (entry.get("predictions") or f"{benchmark}/predictions.jsonl")
    if not path.exists():
        raise InputError(f"{path} is not there any more")
    root = data or (Path(entry["data"]) if entry.get("data") else None)
    records = load_records(_place(entry, data) or benchmark, root, entry.get("limit"))
    rejection, sizes, problems = Rejection(**(entry.get("rejection") or {})), sizes_of(records), Problems()
    answers = dict(stream_predictions(path, sizes, problems, rejection.apply))
    if not entry.get("partial") and not entry.get("problems"):  # else it was scored as far as it goes
        problems.add_missing([name for name in sizes if name not in answers], len(sizes))
        if problems:
            raise InputError(f"{path}: {problems}")
    return judge_all(with_truth(records, entry["protocol"], root), answers, protocol_of(entry["protocol"]))
