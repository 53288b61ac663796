"""A conversation as a model is asked it: each turn with the earlier turns that its words point back to."""

from __future__ import annotations

from uniresxx.conversation.history import needed_turns
from uniresxx.prediction import listed_answer
from uniresxx.types import EVALUATION_TEMPLATE, Dialogue, Turn


def true_answer(turn: Turn) -> str:
    """The true answer as a model generates it: "a: [SEG], b: [REJ].", "[SEG].", or plain words."""
    marks = ["[REJ]" if phrase.rle is None else "[SEG]" for phrase in turn.phrases]
    if not marks:
        return turn.answer or ""
    if len(marks) == 1:
        return f"{marks[0]}."
    return listed_answer([phrase.text for phrase in turn.phrases], marks)


def as_asked(dialogue: Dialogue) -> list[Dialogue]:
    """The conversations that teach what `dialogue` asks, as inference sends it.

    Turns that need an earlier one come with it, the others alone. Of several phrases each is a question of its own.
    One phrase asked alone is left out: that is what the expressions of the picture teach. A conversation in plain
    words stays whole, because such questions lean on one another in ways that no rule of words sees.
    """
    if not any(turn.phrases for turn in dialogue.turns):
        return [dialogue]
    said = [(turn.question, true_answer(turn)) for turn in dialogue.turns]
    found = []
    for places in needed_turns(said):
        *earlier, last = (dialogue.turns[place] for place in places)
        if earlier or not last.phrases:
            found += [Dialogue(dialogue.dialogue_id, (*earlier, one)) for one in _one_by_one(last)]
    return found


def _one_by_one(turn: Turn) -> list[Turn]:
    """A question for each phrase of a turn that asks for several; else the turn."""
    if len(turn.phrases) < 2:
        return [turn]
    return [Turn(EVALUATION_TEMPLATE.format(expression=one.text), (one,)) for one in turn.phrases]
