"""What a run was really given: bad samples and what stood in for them, and counts by data set and granularity.

Samples are prepared in any process; the training process hears of them with each batch, in order, so that the
same run stops at the same step for any number of workers. InputError is never raised here: DataError is.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from uniresxx.files import write_atomic
from uniresxx.types import BadSample, Granularity

QUARANTINE, DATA = "quarantine.jsonl", "data.json"
IN_A_ROW = 10  # samples of one slot; then the data is not where it is thought to be
FIRST = 10_000  # slots that the budget is counted over at least: a bad sample among the first few is no rate
COUNTED = ("images", *Granularity, "dialogues")
_LISTED = 10


class DataError(RuntimeError):
    """More samples than allowed could not be prepared; programs exit with 1 and list them."""


class StepData(NamedTuple):
    """What a micro-batch of one process gave: counts by `no_counts`' keys, and what could not be prepared."""

    drawn: Mapping[str, int]
    bad: Sequence[BadSample]


def no_counts(labels: Sequence[str]) -> dict[str, int]:
    """Zeros under every key that a batch of these data sets may count: "<label> <what>"."""
    return {f"{label} {what}": 0 for label in labels for what in COUNTED}


def over_budget(bad: Sequence[BadSample], why: str) -> DataError:
    """The error with its list."""
    shown = "; ".join(f"{item.key}: {item.reason}" for item in bad[-_LISTED:])
    return DataError(f"{why}; the last: {shown}")


@dataclass(frozen=True)
class Ledger:
    """Kept by the training process. `wanted` is each data set's share of the expressions, adding up to 1."""

    wanted: Mapping[str, float]
    slots_per_step: int
    max_bad_fraction: float  # of the slots so far, of FIRST at least

    def note(self, out: Path, step: int, micro: Sequence[StepData]) -> dict[str, int]:
        """Take in the micro-batches of a step, of all processes, before it is done; returns its counts, the same
        keys always.

        Bad samples go to OUT/quarantine.jsonl, each once, also when a run does a step again. Raises DataError
        where they are over the budget.
        """
        counts = Counter(no_counts(tuple(self.wanted)))
        for batch in micro:
            counts.update(batch.drawn)
        new = [item for batch in micro for item in batch.bad]
        if new:
            self._quarantine(out / QUARANTINE, (step + 1) * self.slots_per_step, new)
        return dict(counts)

    def _quarantine(self, path: Path, slots: int, new: Sequence[BadSample]) -> None:
        known = read_quarantine(path)
        lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in new if item not in known]
        if lines:
            with path.open("a", encoding="utf-8") as stream:
                stream.write("".join(lines))
                stream.flush()
                os.fsync(stream.fileno())
        bad = [item for item in [*known, *(n for n in new if n not in known)] if item.slot < slots]
        if len(bad) > self.max_bad_fraction * max(slots, FIRST):
            raise over_budget(
                bad,
                f"{len(bad)} of {slots} samples could not be prepared, more than data.max_bad_fraction "
                f"{self.max_bad_fraction} allows; {path} lists them",
            )

    def report(self, out: Path, lines: Iterable[Mapping[str, int]]) -> list[str]:
        """Write OUT/data.json from the counts of all steps; returns it as lines for people."""
        counts: Counter[str] = Counter(no_counts(tuple(self.wanted)))
        for line in lines:
            counts.update(line)
        whole = sum(counts[f"{label} {kind}"] for label in self.wanted for kind in Granularity)
        drawn: dict[str, Any] = {}
        for label, share in self.wanted.items():
            mine = {what: counts[f"{label} {what}"] for what in COUNTED}
            seen = sum(mine[kind] for kind in Granularity)
            drawn[label] = {"wanted": share, "share": seen / max(whole, 1), "expressions": seen, **mine}
        bad = read_quarantine(out / QUARANTINE)
        content = {"format": 1, "drawn": drawn, "bad_samples": len(bad)}
        write_atomic(out / DATA, json.dumps(content, indent=1, ensure_ascii=False).encode())
        said = [f"drawn: {_line(label, entry)}" for label, entry in drawn.items()]
        return said + ([f"{len(bad)} samples could not be prepared: {out / QUARANTINE}"] if bad else [])


def _line(label: str, entry: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{entry[kind]} {kind}" for kind in Granularity if entry[kind])
    shares = f"{100 * entry['share']:.1f} % (wanted {100 * entry['wanted']:.1f} %)"
    return (
        f"{label}: {entry['expressions']} expressions, {shares}: {kinds or 'none'}; {entry['images']} images"
    )


def read_quarantine(path: Path) -> list[BadSample]:
    """The bad samples of a run, in no order; lines torn by a crash are left out."""
    found: dict[BadSample, None] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            item = json.loads(line)
            found[BadSample(int(item["slot"]), str(item["key"]), str(item["reason"]))] = None
        except (ValueError, KeyError, TypeError):
            continue
    return list(found)
