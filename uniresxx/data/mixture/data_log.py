"""What a run was trained on: counts by data set and granularity, and the samples that could not be prepared.

Samples are prepared in any process. The training process gets their counts with each batch, in order, so that
the same run stops at the same step for any number of workers.
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
MAX_ATTEMPTS = 10  # samples tried for one slot; if all are bad, the data lies elsewhere or is broken
MIN_SLOTS = 10_000  # the allowed fraction of bad samples is taken of at least so many slots
TEXTS = "texts"  # conversations of images without expressions, such as captions; "dialogues" are all conversations
ASKED = (*Granularity, TEXTS)  # what the shares of a mixture are taken of
COUNTED = ("images", *ASKED, "dialogues")
_LISTED = 10


class DataError(RuntimeError):
    """More samples than allowed could not be prepared; programs exit with 1 and list them."""


class StepData(NamedTuple):
    """The data of one micro-batch of one process: its counts (keys of `zero_counts`) and its bad samples."""

    drawn: Mapping[str, int]
    bad: Sequence[BadSample]


def zero_counts(labels: Iterable[str]) -> dict[str, int]:
    """0 for every key that a batch of these data sets may count: "<label> <what>"."""
    return {f"{label} {what}": 0 for label in labels for what in COUNTED}


def too_many_bad(bad: Sequence[BadSample], reason: str) -> DataError:
    """The error that gives the reason and lists the last bad samples."""
    listed = "; ".join(f"{item.key}: {item.reason}" for item in bad[-_LISTED:])
    return DataError(f"{reason}; the last: {listed}")


@dataclass(frozen=True)
class DataLog:
    """Records what the steps of a run were trained on; one per run, in the training process."""

    shares: Mapping[str, float]  # of the expressions, by data set, adding up to 1: what the recipe wants
    slots_per_step: int
    max_bad_fraction: float  # of the slots so far, but at least of MIN_SLOTS

    def record(self, out: Path, step: int, data: Sequence[StepData]) -> dict[str, int]:
        """Record the data of a step before the step is done.

        Bad samples are added to OUT/quarantine.jsonl, each once, also when a continued run repeats a step.

        Args:
            out: the run folder.
            step: number of the step, from 0.
            data: one entry per micro-batch and process.

        Returns:
            The counts of the step; every step has the same keys.

        Raises:
            DataError: more samples are bad than `max_bad_fraction` allows.
        """
        counts = Counter(zero_counts(self.shares))
        for item in data:
            counts.update(item.drawn)
        bad = [sample for item in data for sample in item.bad]
        if bad:
            self._quarantine(out / QUARANTINE, (step + 1) * self.slots_per_step, bad)
        return dict(counts)

    def _quarantine(self, path: Path, slots: int, bad: Sequence[BadSample]) -> None:
        known = read_quarantine(path)
        new = [item for item in bad if item not in known]
        if new:
            with path.open("a", encoding="utf-8") as stream:
                stream.write("".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in new))
                stream.flush()
                os.fsync(stream.fileno())
        so_far = [item for item in [*known, *new] if item.slot < slots]
        if len(so_far) > self.max_bad_fraction * max(slots, MIN_SLOTS):
            raise too_many_bad(
                so_far,
                f"{len(so_far)} of {slots} samples could not be prepared, more than data.max_bad_fraction "
                f"{self.max_bad_fraction} allows; {path} lists them",
            )

    def report(self, out: Path, counts: Iterable[Mapping[str, int]]) -> list[str]:
        """Write OUT/data.json from the counts of all steps, and return the same as lines of text."""
        total: Counter[str] = Counter(zero_counts(self.shares))
        for step_counts in counts:
            total.update(step_counts)
        whole = sum(total[f"{label} {item}"] for label in self.shares for item in ASKED)
        drawn: dict[str, Any] = {}
        for label, share in self.shares.items():
            own = {what: total[f"{label} {what}"] for what in COUNTED}
            expressions, asked = (sum(own[item] for item in kinds) for kinds in (Granularity, ASKED))
            drawn[label] = {
                "wanted": share, "share": asked / max(whole, 1), "expressions": expressions, **own,
            }  # fmt: skip
        bad = read_quarantine(out / QUARANTINE)
        content = {"format": 1, "drawn": drawn, "bad_samples": len(bad)}
        write_atomic(out / DATA, json.dumps(content, indent=1, ensure_ascii=False).encode())
        lines = [f"drawn: {_line(label, entry)}" for label, entry in drawn.items()]
        return lines + ([f"{len(bad)} samples could not be prepared: {out / QUARANTINE}"] if bad else [])


def _line(label: str, entry: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{entry[item]} {item}" for item in ASKED if entry[item])
    shares = f"{100 * entry['share']:.1f} % (wanted {100 * entry['wanted']:.1f} %)"
    talks = f", {entry['dialogues']} conversations" if entry["expressions"] and entry["dialogues"] else ""
    images = f"{entry['images']} images{talks}"
    return f"{label}: {entry['expressions']} expressions, {shares}: {kinds or 'none'}; {images}"


def read_quarantine(path: Path) -> list[BadSample]:
    """The bad samples of a run, each once. Lines that a crash left incomplete are skipped."""
    found: dict[BadSample, None] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            item = json.loads(line)
            found[BadSample(int(item["slot"]), str(item["key"]), str(item["reason"]))] = None
        except (ValueError, KeyError, TypeError):
            continue
    return list(found)
