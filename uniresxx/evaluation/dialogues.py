"""Conversations about an image: ask the turns in order, write the answers down, score them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniresxx.conversation.history import relevant_turns
from uniresxx.errors import InputError
from uniresxx.evaluation.files import DIALOGUES, LOCK, batches_of
from uniresxx.evaluation.ranks import ALONE, Processes
from uniresxx.evaluation.regions import encode_records
from uniresxx.evaluation.run import Progress
from uniresxx.evaluation.shares import answer_in_shares
from uniresxx.evaluation.talk_scores import TalkScores
from uniresxx.files import lock_file
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import from_json, to_json, whole_lines
from uniresxx.segmenters.asking import answer_phrases
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import AS_TYPED, Decoding, Dialogue, ImageRecord, Question


def evaluate_dialogues(
    segmenter: Segmenter,
    records: Sequence[ImageRecord],
    decoding: Decoding,
    out: Path,
    *,
    batch_images: int = 8,
    progress: Progress | None = None,
    ranks: Processes = ALONE,
) -> dict[str, Any] | None:
    """Ask and score the conversations of `records`; call `evaluate` on `out` first.

    A turn gets the earlier turns that its words point back to, with the answers that the model generated, never the
    true ones. Answers are appended to `out`/dialogues.jsonl and scored from there; the same call continues an
    interrupted one. Several processes share the batches, as in `evaluate`.

    Returns:
        Scores for metrics.json (`TalkScores`), None where the records hold no conversation.
    """
    if not any(record.dialogues for record in records):
        return None
    chat = replace(decoding, template=AS_TYPED)
    path = out / DIALOGUES

    def answer(batch: Sequence[int]) -> Iterator[dict[str, Any]]:
        for record, dialogue, answers in _converse(segmenter, [records[k] for k in batch], chat):
            turns = [to_json(t.question, a) for t, a in zip(dialogue.turns, answers, strict=True)]
            yield {"dialogue_id": dialogue.dialogue_id, "image_id": record.image_id, "turns": turns}

    with ExitStack() as stack:
        ranks.on_rank0(lambda: stack.enter_context(lock_file(out / LOCK, f"evaluate into {out}")))
        answer_in_shares(
            path, "dialogue_id", [[d.dialogue_id for d in record.dialogues] for record in records],
            batch_images, batches_of(out) == batch_images, ranks, answer, progress,
        )  # fmt: skip
        scores = ranks.on_rank0(lambda: score_dialogues(path, records))
    return {"decoding": chat.describe(chat.rule or segmenter.decision_rule), **scores}


def score_dialogues(path: Path, records: Sequence[ImageRecord]) -> dict[str, Any]:
    """Scores of the conversations in a dialogues.jsonl."""
    turns_of = {line["dialogue_id"]: line["turns"] for line in whole_lines(path)[0]}
    scores = TalkScores()
    dialogues = [(record, dialogue) for record in records for dialogue in record.dialogues]
    for record, dialogue in dialogues:
        lines = turns_of.get(dialogue.dialogue_id)
        if lines is None:
            raise InputError(
                f"{path}: dialogue {dialogue.dialogue_id!r} is missing: run the evaluation again"
            )
        scores.add(dialogue, [from_json(line, (record.height, record.width)) for line in lines])
    return {"n_dialogues": len(dialogues), **scores.entry()}


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
            said = [(t.question, a.text or "") for t, a in zip(turns, replies[b, d], strict=False)]
            texts[b].append(Question(turns[k].question, relevant_turns(said, turns[k].question)))
        answers = answer_phrases(segmenter, encoded, texts, decoding)
        if len(answers) != len(asked):
            raise RuntimeError(f"{len(asked)} questions asked, {len(answers)} predictions returned")
        for key, answer in zip(asked, answers, strict=True):
            replies[key].append(answer)
    for (b, d), answers_of_dialogue in replies.items():
        yield records[b], records[b].dialogues[d], answers_of_dialogue
