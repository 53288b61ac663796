"""The files of one evaluation, and the fingerprint that says which evaluation they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError
from uniresxx.evaluation.shares import parts_of
from uniresxx.files import versions, write_json
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import Decoding, ImageRecord, thresholds_of

FORMAT = 1
ABOUT = "evaluation.json"  # the fingerprint
PREDICTIONS = "predictions.jsonl"  # one line per expression
IMAGES = "images.jsonl"  # one line per encoded image
DIALOGUES = "dialogues.jsonl"  # one line per conversation
CHATS = "chats.jsonl"  # one line per chat of many turns
LOCK = ".lock"  # held by the process that evaluates


def begin(folder: Path, about: Mapping[str, Any], notes: Mapping[str, Any], fresh: bool) -> None:
    """Store the fingerprint `about` in a benchmark's folder, or check that the stored one is equal.

    Args:
        about: what `fingerprint` returned.
        notes: kept in evaluation.json, not compared.
        fresh: first remove an earlier evaluation, whichever it was.

    Raises:
        InputError: the folder holds another evaluation, or files that no evaluation wrote.
    """
    before = read_about(folder)
    answers = [folder / name for name in (PREDICTIONS, IMAGES, DIALOGUES, CHATS)]
    answers += [part for path in answers for part in parts_of(path)]
    if before is None:
        foreign = next((path for path in answers if path.exists()), None)
        if foreign is not None:
            raise InputError(
                f"{foreign} exists without its {ABOUT}, so `eval run` did not write it: "
                "move it away or use another --out"
            )
    elif fresh:
        for path in (*answers, folder / ABOUT):  # the last one says that the others are ours
            path.unlink(missing_ok=True)
    elif changes := differences(before, about):
        raise InputError(
            f"{folder} holds another evaluation ({'; '.join(changes)}): use --fresh or another --out"
        )
    else:
        return
    write_json(folder / ABOUT, {**about, "notes": dict(notes), "versions": versions()})


def fingerprint(
    records: Sequence[ImageRecord],
    benchmark: str,
    checkpoint: str,
    decoding: Decoding,
    segmenter: Segmenter,
    precision: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What identifies an evaluation; two with equal fingerprints may share a predictions file.

    `precision`: dtype and quantisation of the weights; None: not known, and not compared.
    """
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
    } | ({} if precision is None else {"precision": dict(precision)})


def batches_of(folder: Path) -> int | None:
    """How many images were answered together in a benchmark's folder; None where it does not say."""
    return ((read_about(folder) or {}).get("notes") or {}).get("batch_images")


def precision_of(computed_on: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What of `model.placement.computed_on` can change an answer: dtype and quantisation, not the device."""
    if computed_on is None:
        return None
    return {"dtype": computed_on.get("dtype"), "quantization": computed_on.get("quantization")}


def read_about(folder: Path) -> dict[str, Any] | None:
    """The stored fingerprint of a benchmark's folder, or None. InputError where the file is no fingerprint."""
    path = folder / ABOUT
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text())
    except ValueError:
        about = None
    if not isinstance(about, dict) or "benchmark_sha256" not in about:
        raise InputError(f"{path} was not written by `eval run`: move it away or use another --out")
    return _completed(about)


def _completed(about: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint of a former version with what it did not say: nothing else was possible then."""
    decoding = about.get("decoding")
    if isinstance(decoding, dict):
        decoding.setdefault("mode", "generate")
        decoding.setdefault("thresholds", thresholds_of(decoding.get("rule")))
    if "precision" not in about and isinstance(notes := about.get("notes"), dict):
        found = precision_of(notes.get("computed_on"))
        about |= {} if found is None else {"precision": found}
    return about


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Readable `key: old -> new` for every value that differs."""
    changes = []
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key}: {old} -> {new}")
    return changes
