"""Scores of conversations: masks of first turns and of questions that point back, lists of phrases, plain answers.

A question is right if all its phrases are: a mask with IoU >= 0.5, or a rejection where nothing is there. A plain
answer is right if it says the true words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uniresxx.conversation.history import needed_turns
from uniresxx.data.dialogues.as_asked import true_answer
from uniresxx.data.dialogues.wording import number_answered
from uniresxx.prediction import Prediction, Segment
from uniresxx.scoring.metrics import Counts, Outcome
from uniresxx.scoring.protocols import STRICT
from uniresxx.types import Dialogue, Expression, Phrase, Turn

RIGHT_IOU = 0.5
RIGHT = "IoU >= 0.5 with the truth, or rejected where nothing is there; of several phrases all"


@dataclass(slots=True)
class Share:
    """How many of some questions were answered right."""

    n: int = 0
    right: int = 0

    def add(self, right: bool) -> None:
        """Count one more question."""
        self.n += 1
        self.right += right

    def entry(self) -> dict[str, Any]:
        """For metrics.json: the number of questions and the percentage that is right (null of none)."""
        return {"n": self.n, "right": percent(self.right, self.n)}


def percent(part: int, whole: int) -> float | None:
    """A percentage, None of nothing."""
    return 100 * part / whole if whole else None


@dataclass(slots=True)
class TalkScores:
    """Sums over the turns of conversations."""

    first: Counts = field(default_factory=Counts)
    follow_up: Counts = field(default_factory=Counts)
    unrelated: Counts = field(default_factory=Counts)
    several: dict[int, Share] = field(default_factory=dict)  # by the number of phrases
    phrases: Share = field(default_factory=Share)  # those asked together, one by one
    plain: dict[str, dict[str, Share]] = field(default_factory=dict)  # sort -> true answer -> share

    def add(self, dialogue: Dialogue, answers: Sequence[Prediction]) -> None:
        """Count the turns of one conversation with their answers."""
        points_back = turns_that_point_back(dialogue)
        for place, (turn, answer) in enumerate(zip(dialogue.turns, answers, strict=True)):
            if not turn.phrases:
                by_answer = self.plain.setdefault(sort_of(turn), {})
                by_answer.setdefault(_said(turn.answer), Share()).add(
                    _said(turn.answer) == _said(answer.text)
                )
                continue
            outcomes = judge_phrases(turn.phrases, answer)
            counts = self.follow_up if place in points_back else self.unrelated if place else self.first
            for outcome in outcomes:
                counts.add(outcome)
            if len(outcomes) > 1:
                self.several.setdefault(len(outcomes), Share()).add(all(map(is_right, outcomes)))
                for outcome in outcomes:
                    self.phrases.add(is_right(outcome))

    def entry(self) -> dict[str, Any]:
        """The scores for metrics.json."""
        masks = {"first_turn": self.first, "follow_up": self.follow_up, "unrelated_turn": self.unrelated}
        several = {str(count): share.entry() for count, share in sorted(self.several.items())}
        return {
            "right": RIGHT,
            **{name: {**counts.scores(), **counts.sizes()} for name, counts in masks.items()},
            "several_phrases": {
                **_together(self.several.values()).entry(),
                "by_number": several,
                "each_phrase": self.phrases.entry(),
            },
            "plain": {sort: _plain_entry(found) for sort, found in sorted(self.plain.items())},
        }


def turns_that_point_back(dialogue: Dialogue) -> set[int]:
    """Places of the turns whose words need an earlier one."""
    needs = needed_turns([(turn.question, true_answer(turn)) for turn in dialogue.turns])
    return {place for need in needs for place in need[1:]}


def sort_of(turn: Turn) -> str:
    """What a plain question asks: "counting", "yes_no", "colour" or "other"."""
    said = _said(turn.answer)
    if said in ("yes", "no"):
        return "yes_no"
    if number_answered(said) is not None:
        return "counting"
    return "colour" if "colour" in turn.question.lower() else "other"


def _said(text: str | None) -> str:
    return " ".join((text or "").lower().split()).strip(" .!")


def _together(shares: Any) -> Share:
    found = list(shares)
    return Share(sum(share.n for share in found), sum(share.right for share in found))


def _plain_entry(by_answer: Mapping[str, Share]) -> dict[str, Any]:
    """Shares of one sort of plain question; chance: always the commonest true answer."""
    whole = _together(by_answer.values())
    commonest = Counter({answer: share.n for answer, share in by_answer.items()}).most_common(1)[0][1]
    return {
        **whole.entry(),
        "chance": percent(commonest, whole.n),
        "by_answer": {
            answer: share.entry() for answer, share in sorted(by_answer.items(), key=_answer_order)
        },
    }


def _answer_order(item: tuple[str, Share]) -> tuple[int, str]:
    number = number_answered(item[0])
    return (-1 if number is None else number), item[0]


def is_right(outcome: Outcome) -> bool:
    """Whether a phrase was answered right."""
    if outcome.targeted:
        return not outcome.rejected and outcome.iou >= RIGHT_IOU
    return outcome.rejected


def judge_phrases(truth: Sequence[Phrase], answer: Prediction) -> list[Outcome]:
    """Judge the phrases of one turn in order, each as an expression under `strict`.

    The k-th phrase of the truth is compared with the k-th segment of the answer; a missing segment counts as
    rejected. The answer to one phrase is its whole mask.
    """
    segments = answer.segments
    if not segments or len(truth) == 1:
        segments = (Segment("", None if answer.rejected else answer.rle, answer.score),)
    outcomes = []
    for k, phrase in enumerate(truth):
        mask = segments[k].rle if k < len(segments) else None
        asked = Expression("", phrase.text, phrase.granularity, phrase.rle)
        outcomes.append(STRICT.judge(asked, Prediction(rejected=mask is None, rle=mask, text=answer.text)))
    return outcomes
