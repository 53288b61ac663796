"""The files of one evaluation, and what says which evaluation they belong to.

A benchmark's folder holds `evaluation.json` (benchmark, checkpoint, decoding), `predictions.jsonl` (scored from
here only), `images.jsonl` (seconds and proposal recall per image), `dialogues.jsonl` (conversations) and `.lock`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError
from uniresxx.files import versions, write_json
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import Decoding, ImageRecord

FORMAT = 1


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """Paths of one benchmark's evaluation."""

    folder: Path

    @property
    def about(self) -> Path:
        """The fingerprint: benchmark, checkpoint, decoding."""
        return self.folder / "evaluation.json"

    @property
    def predictions(self) -> Path:
        """One line per expression."""
        return self.folder / "predictions.jsonl"

    @property
    def images(self) -> Path:
        """One line per encoded image."""
        return self.folder / "images.jsonl"

    @property
    def dialogues(self) -> Path:
        """One line per conversation."""
        return self.folder / "dialogues.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the process that evaluates."""
        return self.folder / ".lock"

    def begin(self, about: Mapping[str, Any], notes: Mapping[str, Any], fresh: bool) -> None:
        """Store the fingerprint `about`, or check that the stored one is equal.

        Args:
            about: what `fingerprint` returned.
            notes: kept in evaluation.json, not compared.
            fresh: first remove an earlier evaluation, whichever it was.

        Raises:
            InputError: the folder holds another evaluation, or files that no evaluation wrote.
        """
        before = read_about(self.folder)
        answers = (self.predictions, self.images, self.dialogues)
        if before is None:
            foreign = next((path for path in answers if path.exists()), None)
            if foreign is not None:
                raise InputError(
                    f"{foreign} exists without its evaluation.json, so `eval run` did not write it: "
                    "move it away or use another --out"
                )
        elif fresh:
            for path in (*answers, self.about):  # the last one says that the others are ours
                path.unlink(missing_ok=True)
        elif before.get("format") != FORMAT:
            raise InputError(f"{self.about}: another format than {FORMAT}: use --fresh or another --out")
        elif changes := _differences(before, about):
            raise InputError(
                f"{self.folder} holds another evaluation ({'; '.join(changes)}): use --fresh or another --out"
            )
        else:
            return
        write_json(self.about, {**about, "notes": dict(notes), "versions": versions()})


def fingerprint(
    records: Sequence[ImageRecord], benchmark: str, checkpoint: str, decoding: Decoding, segmenter: Segmenter
) -> dict[str, Any]:
    """What identifies an evaluation; two with equal fingerprints may share a predictions file."""
    digest = sha256()
    for record in records:
        digest.update(repr((record.image_id, record.height, record.width, record.dialogues)).encode())
        for e in record.expressions:
            digest.update(
                repr((e.expression_id, e.text, e.granularity.value, e.rle and e.rle["counts"])).encode()
            )
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "n_expressions": sum(len(r.expressions) for r in records),
        "benchmark_sha256": digest.hexdigest()[:16],
        "checkpoint": checkpoint,
        "decoding": decoding.describe(decoding.rule or segmenter.decision_rule),
    }


def read_about(folder: Path) -> dict[str, Any] | None:
    """The stored fingerprint of a benchmark's folder, or None. InputError where the file is no fingerprint."""
    path = EvaluationFiles(folder).about
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text())
    except ValueError:
        about = None
    if not isinstance(about, dict) or "benchmark_sha256" not in about:
        raise InputError(f"{path} was not written by `eval run`: move it away or use another --out")
    return about


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Readable `key: old -> new` for every value that differs."""
    changes = []
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key}: {old} -> {new}")
    return changes
