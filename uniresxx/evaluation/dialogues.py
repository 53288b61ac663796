"""Conversations about an image: ask the turns in order, write the answers down, score them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError
from uniresxx.evaluation.files import DIALOGUES, LOCK
from uniresxx.evaluation.regions import encode_records
from uniresxx.evaluation.run import Progress, chunks, write_answer
from uniresxx.files import lock_file
from uniresxx.scoring.metrics import Counts, Outcome
from uniresxx.scoring.predictions import JsonlWriter, from_json, to_json, whole_lines
from uniresxx.scoring.protocols import STRICT
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import Decoding, Dialogue, Expression, ImageRecord, Phrase, Prediction, Question, Segment

CHAT_TEMPLATE = "{expression}"  # questions of a conversation are whole sentences already


def evaluate_dialogues(
    segmenter: Segmenter,
    records: Sequence[ImageRecord],
    decoding: Decoding,
    out: Path,
    *,
    batch_images: int = 8,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Ask and score the conversations of `records`; call `evaluate` on `out` first.

    A turn gets the turns before it with the answers that the model generated, never the true ones. Answers are
    appended to `out`/dialogues.jsonl and scored from there; the same call continues an interrupted one.

    Returns:
        Scores of first turns and follow-ups for metrics.json, None where the records hold no conversation.
    """
    total = sum(len(record.dialogues) for record in records)
    if not total:
        return None
    chat = replace(decoding, template=CHAT_TEMPLATE)
    path = out / DIALOGUES
    with lock_file(out / LOCK, f"evaluate into {out}"), JsonlWriter(path) as lines:
        done = {line.get("dialogue_id") for line in lines.kept}
        waiting = [r for r in records if any(d.dialogue_id not in done for d in r.dialogues)]
        for batch in chunks(waiting, batch_images):
            for record, dialogue, answers in _converse(segmenter, batch, chat):
                if dialogue.dialogue_id in done:
                    continue
                done.add(dialogue.dialogue_id)
                turns = [to_json(t.question, a) for t, a in zip(dialogue.turns, answers, strict=True)]
                line = {"dialogue_id": dialogue.dialogue_id, "image_id": record.image_id, "turns": turns}
                write_answer(lines, dialogue.dialogue_id, line)
            if progress:
                progress(len(done), total)
    return {"decoding": chat.describe(chat.rule or segmenter.decision_rule), **score_dialogues(path, records)}


def score_dialogues(path: Path, records: Sequence[ImageRecord]) -> dict[str, Any]:
    """Scores of the conversations in a dialogues.jsonl: first turns, and apart from them all later turns.

    The k-th phrase of the truth is compared with the k-th segment of the answer; a missing segment counts as
    rejected.
    """
    turns_of = {line["dialogue_id"]: line["turns"] for line in whole_lines(path)[0]}
    first, later = Counts(), Counts()
    dialogues = [(record, dialogue) for record in records for dialogue in record.dialogues]
    for record, dialogue in dialogues:
        lines = turns_of.get(dialogue.dialogue_id)
        if lines is None:
            raise InputError(
                f"{path}: dialogue {dialogue.dialogue_id!r} is missing: run the evaluation again"
            )
        for k, (turn, line) in enumerate(zip(dialogue.turns, lines, strict=True)):
            for outcome in judge_phrases(turn.phrases, from_json(line, (record.height, record.width))):
                (later if k else first).add(outcome)
    return {
        "n_dialogues": len(dialogues),
        "first_turn": {**first.scores(), **first.sizes()},
        "follow_up": {**later.scores(), **later.sizes()},
    }


def _converse(
    segmenter: Segmenter, records: Sequence[ImageRecord], decoding: Decoding
) -> Iterator[tuple[ImageRecord, Dialogue, list[Prediction]]]:
    """Ask all dialogues of a few images: encode the images once, then one `answer` call per turn number."""
    encoded = encode_records(segmenter, records)
    replies: dict[tuple[int, int], list[Prediction]] = {
        (b, d): [] for b, record in enumerate(records) for d in range(len(record.dialogues))
    }
    for k in range(max(len(d.turns) for r in records for d in r.dialogues)):
        texts: list[list[str | Question]] = [[] for _ in records]
        asked = [key for key in replies if k < len(records[key[0]].dialogues[key[1]].turns)]
        for b, d in asked:
            turns = records[b].dialogues[d].turns
            before = tuple((t.question, a.text or "") for t, a in zip(turns, replies[b, d], strict=False))
            texts[b].append(Question(turns[k].question, before))
        answers = segmenter.answer(encoded, texts, decoding)
        if len(answers) != len(asked):
            raise RuntimeError(f"{len(asked)} questions asked, {len(answers)} predictions returned")
        for key, answer in zip(asked, answers, strict=True):
            replies[key].append(answer)
    for (b, d), answers_of_dialogue in replies.items():
        yield records[b], records[b].dialogues[d], answers_of_dialogue


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
