"""Chats of many turns about one picture: its expressions in random order, each a question that stands for itself.

Earlier turns must not change an answer, so a chat is compared with the same questions asked fresh. It is asked as a
chat asks: with the earlier turns that a question points back to; and, beside it, with all earlier turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.conversation.history import relevant_turns
from uniresxx.errors import InputError
from uniresxx.evaluation.files import CHATS, LOCK, batches_of
from uniresxx.evaluation.ranks import ALONE, Processes
from uniresxx.evaluation.regions import encode_records
from uniresxx.evaluation.run import Progress
from uniresxx.evaluation.shares import answer_in_shares
from uniresxx.evaluation.talk_scores import RIGHT, Share, is_right, judge_phrases
from uniresxx.files import lock_file
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import from_json, to_json, whole_lines
from uniresxx.segmenters.asking import answer_phrases
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import AS_TYPED, EVALUATION_TEMPLATE, Decoding, Expression, ImageRecord, Phrase, Question

TURNS = 12  # of a chat at most
FEWEST = 2  # expressions that a picture needs for a chat
WAYS = ("chat", "fresh", "full_history")  # of asking

Answers = Mapping[str, Sequence[Prediction]]  # by way of asking


def evaluate_chats(
    segmenter: Segmenter,
    records: Sequence[ImageRecord],
    decoding: Decoding,
    out: Path,
    *,
    pictures: int,
    batch_images: int = 8,
    progress: Progress | None = None,
    ranks: Processes = ALONE,
) -> dict[str, Any] | None:
    """Ask one chat about each of the first `pictures` records that have two expressions; score all answers.

    Answers are appended to `out`/chats.jsonl and scored from there; the same call continues an interrupted one.
    Several processes share the batches, as in `evaluate`.

    Returns:
        Shares right of turns 2 and later for metrics.json; None where no picture has two expressions.
    """
    chosen = [record for record in records if len(record.expressions) >= FEWEST][:pictures]
    if not chosen:
        return None

    def answer(batch: Sequence[int]) -> Iterator[dict[str, Any]]:
        for record, answers in ask_chats(segmenter, [chosen[k] for k in batch], decoding):
            line: dict[str, Any] = {"image_id": record.image_id}
            for way, found in answers.items():
                asked = zip(shuffled(record), found, strict=True)
                line[way] = [to_json(item.expression_id, answer) for item, answer in asked]
            yield line

    with ExitStack() as stack:
        ranks.on_rank0(lambda: stack.enter_context(lock_file(out / LOCK, f"evaluate into {out}")))
        answer_in_shares(
            out / CHATS, "image_id", [[record.image_id] for record in chosen],
            batch_images, batches_of(out) == batch_images, ranks, answer, progress,
        )  # fmt: skip
        return ranks.on_rank0(lambda: score_chats(out / CHATS, chosen))


def shuffled(record: ImageRecord) -> list[Expression]:
    """The expressions of a chat in the order in which they are asked: the same for every model."""
    order = np.random.default_rng(0).permutation(len(record.expressions))[:TURNS]
    return [record.expressions[int(place)] for place in order]


def ask_chats(
    segmenter: Segmenter, records: Sequence[ImageRecord], decoding: Decoding
) -> Iterator[tuple[ImageRecord, Answers]]:
    """One chat about each picture, in all ways. The pictures are encoded once."""
    encoded = encode_records(segmenter, records)
    chat = replace(decoding, template=AS_TYPED)
    asked = [[EVALUATION_TEMPLATE.format(expression=e.text) for e in shuffled(r)] for r in records]
    fresh = _by_picture(
        answer_phrases(segmenter, encoded, [list(map(Question, texts)) for texts in asked], chat), asked
    )
    found: dict[str, list[list[Prediction]]] = {
        way: [[] for _ in records] for way in ("chat", "full_history")
    }
    for way, answers in found.items():
        for k in range(max(map(len, asked))):
            questions: list[list[str | Question]] = [[] for _ in records]
            for b, texts in enumerate(asked):
                if k < len(texts):
                    said = [(q, a.text or "") for q, a in zip(texts, answers[b], strict=False)]
                    before = relevant_turns(said, texts[k]) if way == "chat" else tuple(said)
                    if before:
                        questions[b].append(Question(texts[k], before))
                    else:  # the very question that was asked fresh
                        answers[b].append(fresh[b][k])
            replies = iter(answer_phrases(segmenter, encoded, questions, chat) if any(questions) else ())
            for b, question in enumerate(questions):
                answers[b] += [next(replies) for _ in question]
    for b, record in enumerate(records):
        yield record, {"chat": found["chat"][b], "fresh": fresh[b], "full_history": found["full_history"][b]}


def _by_picture(answers: Sequence[Prediction], asked: Sequence[Sequence[str]]) -> list[list[Prediction]]:
    rest = iter(answers)
    return [[next(rest) for _ in texts] for texts in asked]


def score_chats(path: Path, records: Sequence[ImageRecord]) -> dict[str, Any]:
    """Shares right of the chats in a chats.jsonl, by way of asking and by turn (from 1 on)."""
    lines = {line["image_id"]: line for line in whole_lines(path)[0]}
    turns = {way: [Share() for _ in range(TURNS)] for way in WAYS}
    for record in records:
        line = lines.get(record.image_id)
        if line is None:
            raise InputError(
                f"{path}: the chat about {record.image_id!r} is missing: run the evaluation again"
            )
        for way in WAYS:
            for k, (expression, answer) in enumerate(zip(shuffled(record), line[way], strict=True)):
                truth = (Phrase(expression.text, expression.rle, expression.granularity),)
                found = from_json(answer, (record.height, record.width))
                turns[way][k].add(is_right(judge_phrases(truth, found)[0]))
    later = {
        way: Share(sum(s.n for s in found[1:]), sum(s.right for s in found[1:]))
        for way, found in turns.items()
    }
    return {
        "right": RIGHT,
        "n_pictures": len(records),
        "turns": f"2 to {TURNS}",
        **{way: share.entry() for way, share in later.items()},
        "by_turn": {
            way: {str(k): share.entry() for k, share in enumerate(found, start=1) if share.n}
            for way, found in turns.items()
        },
    }
