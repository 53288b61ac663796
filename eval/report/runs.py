"""What a report is about: evaluated folders, their scores, and every answer judged again from its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.score import load_records, mode_of, with_truth
from uniresxx.data.catalog import find_store
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import read_metrics
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import sizes_of, stream_predictions
from uniresxx.scoring.problems import Problems
from uniresxx.scoring.protocols import Protocol, protocol_of
from uniresxx.scoring.rejection import Rejection
from uniresxx.types import Expression, ImageRecord

OUTCOMES = ("answered", "false reject", "false accept", "correct reject")


@dataclass(frozen=True, slots=True)
class Case:
    """One answered expression as its protocol judges it."""

    record: ImageRecord
    expression: Expression
    prediction: Prediction
    iou: float  # as the protocol counts it; a correct rejection is 1
    targeted: bool
    rejected: bool

    @property
    def name(self) -> str:
        """The expression's id."""
        return self.expression.expression_id

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        if self.targeted:
            return "false reject" if self.rejected else "answered"
        return "correct reject" if self.rejected else "false accept"


@dataclass(frozen=True, slots=True)
class Run:
    """One entry of one folder's metrics.json: its scores, and its answers or the reason why there are none."""

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
    """All runs of one benchmark; their labels are unique."""

    title: str
    runs: Sequence[Run]

    @property
    def answered(self) -> list[Run]:
        """Runs whose answers are known, one per set of answers.

        Protocols that scored the same answers share one; another rule, threshold or limit makes another set.
        """
        found: dict[tuple[Any, ...], Run] = {}
        for run in self.runs:
            rejection, limit = run.entry.get("rejection") or {}, run.entry.get("limit")
            rule = (rejection.get("rule"), rejection.get("threshold"))
            if run.cases:
                found.setdefault((run.folder, run.entry.get("predictions"), *rule, limit), run)
        return list(found.values())


def home_of(folder: Path) -> Path | None:
    """Where the metrics.json of a run or evaluation folder lies; None where it holds none."""
    return next((f for f in (folder, folder / "eval") if (f / "metrics.json").is_file()), None)


def read_runs(folders: Sequence[Path], data: Path | None) -> list[Run]:
    """Every entry of every folder's metrics.json.

    Args:
        folders: run or evaluation folders.
        data: root of the data, where it is not where it was scored.

    Raises:
        InputError: a folder holds no scores, or scores that `python -m eval` did not write.
    """
    found = []
    for folder in folders:
        home = home_of(folder)
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
    """The folder's name, with what distinguishes this entry from the folder's others of the same benchmark."""
    rivals = [
        e for e in entries if (e["benchmark"], e.get("split")) == (entry["benchmark"], entry.get("split"))
    ]
    differing = zip(_traits(entry), *map(_traits, rivals), strict=True)
    distinct = [own for own, *others in differing if own and len(set(others)) > 1]
    return (folder.name or str(folder)) + (f" ({', '.join(distinct)})" if distinct else "")


def _traits(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What can differ between two entries of one benchmark in one folder, in words."""
    rejection, padded, limit = (entry.get(key) for key in ("rejection", "padded_world_size", "limit"))
    rule, threshold = (rejection or {}).get("rule"), (rejection or {}).get("threshold")
    return (
        str(entry["protocol"]),
        mode_of(entry),
        f"rejected by {rule or 'flag'}" + ("" if threshold is None else f" above {threshold:.4g}"),
        f"padded to {padded}" if padded else "",
        f"first {limit} pictures" if limit else "",
        "partial" if entry.get("partial") else "",
        Path(entry.get("predictions") or "").name,
    )


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


def _cases(home: Path, entry: Mapping[str, Any], data: Path | None) -> list[Case]:
    benchmark = f"{entry['benchmark']}/{entry['split']}"
    path = home / (entry.get("predictions") or f"{benchmark}/predictions.jsonl")
    if not path.exists():
        raise InputError(f"{path} does not exist any more")
    root = data or (Path(entry["data"]) if entry.get("data") else None)
    records = load_records(store_of(entry, data) or benchmark, root, entry.get("limit"))
    rejection, sizes, problems = Rejection(**(entry.get("rejection") or {})), sizes_of(records), Problems()
    answers = dict(stream_predictions(path, sizes, problems, rejection.apply))
    if not entry.get("partial") and not entry.get("problems"):  # else some answers were missing when scored
        problems.add_missing([name for name in sizes if name not in answers], len(sizes))
        if problems:
            raise InputError(f"{path}: {problems}")
    return judge_all(with_truth(records, entry["protocol"], root), answers, protocol_of(entry["protocol"]))


def store_of(entry: Mapping[str, Any], data: Path | None) -> str | None:
    """The store that was scored; None where there was none, or where it is gone and `data` replaces it."""
    store = entry.get("store")
    if store is None or find_store(store, None) is not None:
        return store
    if data is None:
        raise InputError(f"{store}: the store does not exist any more; give its new place by --data DIR")
    return None


def judge_all(
    records: Sequence[ImageRecord], predictions: Mapping[str, Prediction], protocol: Protocol
) -> list[Case]:
    """Every counted and answered expression of the records, judged, in their order."""
    return [
        Case(record, expression, prediction, outcome.iou, outcome.targeted, outcome.rejected)
        for record in records
        for expression in protocol.counted(record)
        if (prediction := predictions.get(expression.expression_id)) is not None
        for outcome in (protocol.judge(expression, prediction),)
    ]
