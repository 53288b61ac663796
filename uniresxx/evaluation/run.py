"""Evaluation of any `Segmenter`: generate, write down, then score what was written.

The model sees photos and texts, never the truth. One `look` per few pictures, one `answer` for all their
expressions. Folder of one benchmark: `evaluation.json` (what was asked of whom), `predictions.jsonl` (scored
from here only), `images.jsonl` (seconds and proposal recall per picture), `dialogues.jsonl` (conversations).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.files import versions, write_json
from uniresxx.imaging import masks
from uniresxx.imaging.geometry import box_iou
from uniresxx.scoring.metrics import Counts, Outcome, RecallCounts
from uniresxx.scoring.predictions import (
    JsonlWriter,
    Problems,
    from_json,
    sizes_of,
    stream_predictions,
    to_json,
    whole_lines,
)
from uniresxx.scoring.protocols import STRICT, has_target, protocol_of
from uniresxx.scoring.rejection import FLAG, Rejection
from uniresxx.scoring.tally import Scored, entry_of, tally_answers
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import (
    Decoding,
    Dialogue,
    Expression,
    Granularity,
    ImageRecord,
    Phrase,
    Prediction,
    Question,
    Segment,
)

FORMAT = 1
CHAT_TEMPLATE = "{expression}"  # questions of a conversation are whole sentences already
STREAM_OF = {Granularity.OBJECT: "object", Granularity.PART: "part"}
RECALL_IOU = 0.5
Item = TypeVar("Item")
Progress = Callable[[int, int], None]  # expressions answered so far, expressions in all


@runtime_checkable
class ShowsRegions(Protocol):
    """Optional door of a Segmenter that proposes regions: their boxes, for measuring recall."""

    def regions(self, sight: Any) -> list[Mapping[str, np.ndarray]]:
        """Per photo of the sight: valid proposal boxes by "object" / "part", xyxy (N, 4), image frame,
        pixels."""
        ...


@runtime_checkable
class TimesRegions(Protocol):
    """Optional door of a Segmenter that proposes regions: what that costs, apart from the rest."""

    def proposal_seconds(self, sight: Any) -> float:
        """Seconds that finding the proposals of all photos of the sight took."""
        ...


@runtime_checkable
class ReadsTruthBoxes(Protocol):
    """Optional door for the labelled ablation whose region proposals are the truth's boxes."""

    @property
    def wants_truth_boxes(self) -> bool:
        """Whether this model was configured so."""
        ...

    def encode_images_with_truth_boxes(
        self, photos: Sequence[np.ndarray], records: Sequence[ImageRecord]
    ) -> Any:
        """`encode_images` that reads the boxes (and only the boxes) of the truth."""
        ...


def encode_records(segmenter: Segmenter, records: Sequence[ImageRecord]) -> Any:
    """The sight of the records' photos; truth boxes go only to the ablation that names them in its config."""
    photos = [photo_of(record) for record in records]
    if isinstance(segmenter, ReadsTruthBoxes) and segmenter.wants_truth_boxes:
        return segmenter.encode_images_with_truth_boxes(photos, records)
    return segmenter.encode_images(photos)


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """Where one benchmark's evaluation lives."""

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
        """One line per looked-at picture."""
        return self.folder / "images.jsonl"

    @property
    def dialogues(self) -> Path:
        """One line per conversation."""
        return self.folder / "dialogues.jsonl"

    def clear(self) -> None:
        """Remove this benchmark's evaluation (--fresh)."""
        for path in (self.about, self.predictions, self.images, self.dialogues):
            path.unlink(missing_ok=True)


def evaluate(
    segmenter: Segmenter,
    records: Sequence[ImageRecord],
    benchmark: str,
    decoding: Decoding,
    out: Path,
    *,
    checkpoint: str = "",
    batch_images: int = 8,
    fresh: bool = False,
    progress: Progress | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Answer every expression of `records`; returns the predictions file in `out` (the folder of this
    benchmark).

    Continues an interrupted evaluation of the same benchmark, checkpoint and decoding; InputError with the
    difference where they are others. `checkpoint` identifies the weights; `notes` are kept but not compared
    (data folder, limit). Interrupting between or inside batches loses at most one batch of answers.
    """
    files = EvaluationFiles(out)
    if fresh:
        files.clear()
    about = fingerprint(records, benchmark, checkpoint, decoding, segmenter)
    begin(files, about, notes or {})
    with JsonlWriter(files.predictions) as lines, JsonlWriter(files.images) as looks:
        done = {line.get("expression_id") for line in lines.kept}
        total = sum(len(r.expressions) for r in records)
        answered = sum(e.expression_id in done for r in records for e in r.expressions)
        if progress:
            progress(answered, total)
        waiting = [(r, [e for e in r.expressions if e.expression_id not in done]) for r in records]
        waiting = [(record, asked) for record, asked in waiting if asked]
        for batch in _chunks(waiting, batch_images):
            start = time.perf_counter()
            sight = encode_records(segmenter, [record for record, _ in batch])
            texts = [[e.text for e in asked] for _, asked in batch]
            answers = segmenter.answer(sight, texts, decoding)
            seconds = time.perf_counter() - start
            asked_all = [e for _, asked in batch for e in asked]
            if len(answers) != len(asked_all):
                raise RuntimeError(f"{len(asked_all)} texts asked, {len(answers)} predictions returned")
            for line in _image_lines(segmenter, sight, [r for r, _ in batch], seconds):
                looks.write(line)
            for expression, prediction in zip(asked_all, answers, strict=True):
                _write(lines, expression.expression_id, to_json(expression.expression_id, prediction))
            answered += len(asked_all)
            if progress:
                progress(answered, total)
    return files.predictions


def _write(lines: JsonlWriter, asked: str, line: Mapping[str, Any]) -> None:
    """Append the answer to `asked`. InputError where it holds NaN or infinity, which no score can take."""
    try:
        lines.write(line)
    except ValueError:
        raise InputError(
            f"the model answers {asked} with numbers that are not finite: its weights have gone bad, as by too high "
            "an --optim.lr; use an earlier checkpoint"
        ) from None


def fingerprint(
    records: Sequence[ImageRecord], benchmark: str, checkpoint: str, decoding: Decoding, segmenter: Segmenter
) -> dict[str, Any]:
    """What an evaluation is an evaluation of; two with equal fingerprints may share a predictions file."""
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


def begin(files: EvaluationFiles, about: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Store the fingerprint, or refuse another one with the difference (InputError)."""
    before = read_about(files.folder)
    if before is None:
        if files.predictions.exists():
            raise InputError(
                f"{files.predictions} exists without its evaluation.json: use --fresh or another --out"
            )
        files.folder.mkdir(parents=True, exist_ok=True)
        write_json(files.about, {**about, "notes": dict(notes), "versions": versions()})
        return
    changes = _differences({k: before.get(k) for k in about}, about)
    if changes:
        raise InputError(
            f"{files.folder} holds another evaluation ({'; '.join(changes)}): use --fresh or another --out"
        )


def read_about(folder: Path) -> dict[str, Any] | None:
    """The stored fingerprint of a benchmark's folder, or None."""
    path = EvaluationFiles(folder).about
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text())
    except ValueError:
        raise InputError(f"{path} is not JSON: use --fresh") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{path}: another format than {FORMAT}: use --fresh or another --out")
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


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# -------------------------------------------------------------------------------------- proposal recall


def _image_lines(
    segmenter: Segmenter, sight: Any, records: Sequence[ImageRecord], seconds: float
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {"image_id": r.image_id, "seconds": seconds / len(records)} for r in records
    ]
    if isinstance(segmenter, ShowsRegions):
        for line, record, proposals in zip(lines, records, segmenter.regions(sight), strict=True):
            line["found"], line["total"] = box_recall(record, proposals)
    if isinstance(segmenter, TimesRegions):
        for line in lines:
            line["proposal_seconds"] = segmenter.proposal_seconds(sight) / len(records)
    return lines


def box_recall(
    record: ImageRecord, proposals: Mapping[str, np.ndarray]
) -> tuple[dict[str, int], dict[str, int]]:
    """(found, total) truth boxes per stream: those of the picture where it lists them, else of its
    expressions."""
    found, total = {}, {}
    for granularity, stream in STREAM_OF.items():
        truth = record.boxes.get(stream)
        if truth is None:
            boxes = [_box(e) for e in record.expressions if e.granularity == granularity and has_target(e)]
            truth = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        overlaps = box_iou(np.asarray(truth, np.float64), np.asarray(proposals[stream], np.float64))
        total[stream] = len(truth)
        found[stream] = int((overlaps.max(axis=1, initial=0.0) >= RECALL_IOU).sum())
    return found, total


def _box(expression: Expression) -> tuple[float, float, float, float]:
    assert expression.rle is not None
    box = masks.box_of(expression.rle)
    assert box is not None
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3]))


# ------------------------------------------------------------------------------------------------ scoring


def score_file(
    path: Path,
    records: Sequence[ImageRecord],
    benchmark: str,
    protocol: str = STRICT.name,
    *,
    rejection: Rejection = FLAG,
    allow_partial: bool = False,
    padded_world_size: int | None = None,
) -> dict[str, Any]:
    """Score a predictions.jsonl or a folder of PNGs against a benchmark: one entry of metrics.json.

    Streams: memory holds counters, never the file. InputError lists what does not fit; with `allow_partial`
    what fits is scored, `partial` says how much that was and `problems` what was left out. The file is only
    read.
    """
    way = protocol_of(protocol)
    way.check(benchmark)
    scored, problems = tally_file(path, records, protocol, rejection, padded_world_size)
    if problems and not allow_partial:
        raise InputError(f"{path}: {problems}; `python -m eval score … --allow-partial` scores the rest")
    if len(scored.missing) == scored.expressions:
        raise InputError(f"{path}: no expression of {benchmark} is answered: {problems}")
    entry = entry_of(scored, benchmark, way, rejection, padded_world_size) | {"versions": versions()}
    if problems:
        entry["problems"] = str(problems)
    files = EvaluationFiles(path.parent)
    about = read_about(path.parent) if path.name == files.predictions.name else None
    if about is not None:
        entry["decoding"], entry["template"] = about["decoding"], about["decoding"]["template"]
        entry["checkpoint"] = about["checkpoint"]
    if about is not None and files.images.exists():
        entry |= _image_summary(files.images, {r.image_id for r in records})
    return entry


def tally_file(
    path: Path,
    records: Sequence[ImageRecord],
    protocol: str = STRICT.name,
    rejection: Rejection = FLAG,
    padded_world_size: int | None = None,
) -> tuple[Scored, Problems]:
    """The counters of everything that fits in a predictions.jsonl or a folder of PNGs, and what does not."""
    problems = Problems()
    answers = stream_predictions(path, sizes_of(records), problems, rejection.apply)
    scored = tally_answers(answers, records, protocol_of(protocol), padded_world_size)
    problems.add_missing(scored.missing, scored.expressions)
    return scored, problems


def score_predictions(
    predictions: Mapping[str, Prediction],
    records: Sequence[ImageRecord],
    benchmark: str,
    protocol: str = STRICT.name,
) -> dict[str, Any]:
    """Scores of predictions that cover every expression, with the trivial answers beside: an entry of
    metrics.json. KeyError where one is missing."""
    way = protocol_of(protocol)
    asked = (e.expression_id for record in records for e in way.counted(record))
    scored = tally_answers(((name, predictions[name]) for name in asked), records, way)
    return entry_of(scored, benchmark, way) | {"versions": versions()}


def _image_summary(path: Path, image_ids: set[str]) -> dict[str, Any]:
    """Proposal recall and time per picture, from the last line of each picture."""
    kept, _ = whole_lines(path)
    lines = {line["image_id"]: line for line in kept if line["image_id"] in image_ids}
    recall = RecallCounts()
    for line in lines.values():
        recall.add(line.get("found", {}), line.get("total", {}))
    seconds = sum(line["seconds"] for line in lines.values())
    proposing = [line["proposal_seconds"] for line in lines.values() if "proposal_seconds" in line]
    return {
        "proposal_recall": recall.scores() or None,
        "proposal_boxes": recall.total or None,
        "seconds_per_image": seconds / len(lines) if lines else None,
        "proposal_seconds_per_image": sum(proposing) / len(proposing) if proposing else None,
    }


def write_metrics(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put entries into a metrics.json; returns all.

    An entry replaces only one that answers the same question: same benchmark, split, protocol, rule of
    rejection, padding, pictures, predictions file, and whole or partial alike. Everything else is kept.
    """
    kept = read_metrics(path) if path.exists() else []
    fresh = [_question(e) for e in entries]
    merged = [e for e in kept if _question(e) not in fresh] + [dict(e) for e in entries]
    write_json(path, merged)
    return merged


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Entries of a metrics.json; InputError where it is something else."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a metrics file ({error}); use another --out") from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "benchmark" in e for e in entries):
        raise InputError(f"{path} is not a list of benchmark scores; use another --out")
    return entries


def _question(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an entry is the answer to; two with equal ones may replace each other."""
    keys = ("benchmark", "split", "protocol", "padded_world_size", "limit", "predictions")
    rejection = entry.get("rejection") or FLAG.describe()  # older entries say nothing else
    return (*(entry.get(key) for key in keys), rejection, entry.get("partial") is None)


# -------------------------------------------------------------------------------------- conversations


def evaluate_dialogues(
    segmenter: Segmenter,
    records: Sequence[ImageRecord],
    decoding: Decoding,
    out: Path,
    *,
    batch_images: int = 8,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Hold and score the conversations of `records`; None where there are none. Call `evaluate` on `out`
    first.

    Each turn sees the turns before it with the answers the model itself generated, never the true ones.
    Answers go to `out`/dialogues.jsonl, are continued from there and scored from there.
    """
    total = sum(len(record.dialogues) for record in records)
    if not total:
        return None
    chat = replace(decoding, template=CHAT_TEMPLATE)
    path = EvaluationFiles(out).dialogues
    with JsonlWriter(path) as lines:
        done = {line.get("dialogue_id") for line in lines.kept}
        waiting = [r for r in records if any(d.dialogue_id not in done for d in r.dialogues)]
        for batch in _chunks(waiting, batch_images):
            for record, dialogue, answers in _converse(segmenter, batch, chat):
                if dialogue.dialogue_id in done:
                    continue
                done.add(dialogue.dialogue_id)
                turns = [to_json(t.question, a) for t, a in zip(dialogue.turns, answers, strict=True)]
                line = {"dialogue_id": dialogue.dialogue_id, "image_id": record.image_id, "turns": turns}
                _write(lines, dialogue.dialogue_id, line)
            if progress:
                progress(len(done), total)
    return {"decoding": chat.describe(chat.rule or segmenter.decision_rule), **score_dialogues(path, records)}


def score_dialogues(path: Path, records: Sequence[ImageRecord]) -> dict[str, Any]:
    """Scores of the conversations in a dialogues.jsonl; follow-ups (turns after the first) apart from first
    turns.

    The k-th phrase of the truth is compared with the k-th segment of the answer; a missing one counts as
    rejected.
    """
    given = {line["dialogue_id"]: line["turns"] for line in whole_lines(path)[0]}
    first, later = Counts(), Counts()
    held = 0
    for record in records:
        for dialogue in record.dialogues:
            if dialogue.dialogue_id not in given:
                raise InputError(
                    f"{path}: dialogue {dialogue.dialogue_id!r} is missing: run the evaluation again"
                )
            held += 1
            for k, (turn, line) in enumerate(zip(dialogue.turns, given[dialogue.dialogue_id], strict=True)):
                for outcome in judge_phrases(turn.phrases, from_json(line, (record.height, record.width))):
                    (later if k else first).add(outcome)
    return {
        "n_dialogues": held,
        "first_turn": {**first.scores(), **first.sizes()},
        "follow_up": {**later.scores(), **later.sizes()},
    }


def _converse(
    segmenter: Segmenter, records: Sequence[ImageRecord], decoding: Decoding
) -> Iterator[tuple[ImageRecord, Dialogue, list[Prediction]]]:
    """Hold all dialogues of a few pictures, turn by turn; one `look`, one `answer` per turn number."""
    sight = encode_records(segmenter, records)
    given: dict[tuple[int, int], list[Prediction]] = {
        (b, d): [] for b, record in enumerate(records) for d in range(len(record.dialogues))
    }
    for k in range(max(len(d.turns) for r in records for d in r.dialogues)):
        texts: list[list[str | Question]] = [[] for _ in records]
        asked = [key for key in given if k < len(records[key[0]].dialogues[key[1]].turns)]
        for b, d in asked:
            turns = records[b].dialogues[d].turns
            before = tuple((t.question, a.text or "") for t, a in zip(turns, given[b, d], strict=False))
            texts[b].append(Question(turns[k].question, before))
        answers = segmenter.answer(sight, texts, decoding)
        if len(answers) != len(asked):
            raise RuntimeError(f"{len(asked)} questions asked, {len(answers)} predictions returned")
        for key, answer in zip(asked, answers, strict=True):
            given[key].append(answer)
    for (b, d), turns_given in given.items():
        yield records[b], records[b].dialogues[d], turns_given


def judge_phrases(truth: Sequence[Phrase], answer: Prediction) -> list[Outcome]:
    """Judge the phrases of one turn in order, each as an expression under `strict`."""
    segments = answer.segments
    if not segments:
        segments = (Segment("", None if answer.rejected else answer.mask, answer.score),)
    outcomes = []
    for k, phrase in enumerate(truth):
        mask = segments[k].mask if k < len(segments) else None
        asked = Expression("", phrase.text, phrase.granularity, phrase.rle)
        outcomes.append(STRICT.judge(asked, Prediction(rejected=mask is None, mask=mask, text=answer.text)))
    return outcomes
