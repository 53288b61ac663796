"""One question for several things: each phrase is asked by itself, and the answers are joined.

Phrases are branches after the same picture, so they cost little more than a list would, and none is lost or mixed
with another. It works with every Segmenter, also one that gives a single mask for each text. A list whose later
phrases point back to the first ("the fish and its eye") is asked as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from uniresxx.conversation.history import points_back
from uniresxx.conversation.phrases import asked_phrases
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction, Segment, listed_answer, phrases_in
from uniresxx.segmenters.base import Segmenter
from uniresxx.text import asked_questions
from uniresxx.types import AS_TYPED, RLE, Decoding, OnText, Question

_MARK = {False: "[SEG]", True: "[REJ]"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A text as the model gets it."""

    photo: int
    phrases: tuple[str, ...]  # what its answer names; () where it is asked as it is
    questions: tuple[Question, ...]


def answer_phrases(
    segmenter: Segmenter,
    encoded: Any,
    texts: Sequence[Sequence[str | Question]],
    decoding: Decoding,
    on_text: OnText | None = None,
) -> list[Prediction]:
    """`Segmenter.answer`, where a text that names several things gets a segment for each.

    Args:
        segmenter: the model.
        encoded: result of its `encode_images`.
        texts: `texts[b]` belongs to photo b.
        decoding: how answers are generated. With the template `AS_TYPED` each phrase of several is asked in the
            model's own question about an expression.
        on_text: called while the answers are generated, with the number of a text and the words of its answer so
            far.

    Returns:
        One prediction per text. That of several phrases reads "a: [SEG], b: [REJ]." and has the union of their
        masks; it is rejected where all of them are.
    """
    template = segmenter.question_template if decoding.template == AS_TYPED else AS_TYPED
    asked = [_asked(photo, question, template) for photo, question in asked_questions(texts)]
    if not any(item.phrases for item in asked):
        return segmenter.answer(encoded, texts, decoding, on_text)
    rows: list[list[Question]] = [[] for _ in texts]
    for item in asked:
        rows[item.photo] += item.questions
    answers = iter(segmenter.answer(encoded, rows, decoding, _joined_words(asked, on_text)))
    found = []
    for item in asked:
        own = [next(answers) for _ in item.questions]
        found.append(joined(item.phrases, own) if item.phrases else own[0])
    return found


def questions_asked(
    segmenter: Segmenter, question: str | Question, decoding: Decoding
) -> tuple[Question, ...]:
    """The questions that the model gets for a text: one for each phrase, where it names several."""
    ((_, asked),) = asked_questions([[question]])
    template = segmenter.question_template if decoding.template == AS_TYPED else AS_TYPED
    return _asked(0, asked, template).questions


def _asked(photo: int, question: Question, template: str) -> _Asked:
    phrases = asked_phrases(question.text)
    to_the_first = any(map(points_back, phrases)) and not points_back(phrases[0])  # "the fish and its eye"
    if len(phrases) < 2 or to_the_first:
        return _Asked(photo, (), (question,))
    return _Asked(
        photo, phrases, tuple(replace(question, text=template.format(expression=p)) for p in phrases)
    )


def joined(phrases: Sequence[str], answers: Sequence[Prediction]) -> Prediction:
    """The answers to several phrases about one photo as one answer."""
    text = listed_answer(phrases, [_MARK[answer.rejected] for answer in answers])
    there = [answer for answer in answers if not answer.rejected]
    scores = [answer.score for answer in there or answers if answer.score is not None]
    absent = [answer.p_absent for answer in answers if answer.p_absent is not None]
    return Prediction(
        rejected=not there,
        rle=_union([answer.rle for answer in there]),
        text=text,
        score=max(scores, default=None),
        p_absent=min(absent, default=None),
        mask_if_forced=None if there else _union([answer.mask_if_forced for answer in answers]),
        segments=tuple(
            Segment(phrase, None if answer.rejected else answer.rle, answer.score, span)
            for phrase, answer, (_, span) in zip(phrases, answers, phrases_in(text), strict=True)
        ),
        instances=tuple(instance for answer in there for instance in answer.instances),
        truncated=any(answer.truncated for answer in answers),
        dropped_turns=max(answer.dropped_turns for answer in answers),
    )


def _union(rles: Sequence[RLE | None]) -> RLE | None:
    there = [rle for rle in rles if rle is not None]
    return masks.union(there, (there[0]["size"][0], there[0]["size"][1])) if there else None


def _joined_words(asked: Sequence[_Asked], on_text: OnText | None) -> OnText | None:
    """A listener of the single answers that passes on the words of each text so far."""
    if on_text is None:
        return None
    place_of = [(number, k) for number, item in enumerate(asked) for k in range(len(item.questions))]
    words = [[""] * len(item.questions) for item in asked]

    def listen(row: int, so_far: str) -> None:
        number, k = place_of[row]
        words[number][k] = so_far.strip(" .")
        done = words[number][: words[number].index("")] if "" in words[number] else words[number]
        phrases = asked[number].phrases
        on_text(number, listed_answer(phrases, done) if phrases else so_far)

    return listen
