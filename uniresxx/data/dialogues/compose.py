"""Conversations composed of the expressions of one picture, for data sets that bring none of their own.

Only what the annotation proves is asked: phrases with their own masks, absent ones from "none" expressions, a part
after its whole where the texts say that they belong together, numbers where the instances are known. Left out are
texts that mean two things, texts that point back by themselves, and lists that cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uniresxx.conversation.history import pointer_of, relevant_turns
from uniresxx.conversation.phrases import asked_phrases
from uniresxx.data.dialogues.as_asked import true_answer
from uniresxx.data.dialogues.wording import ITS, ask_one, ask_several, count_answer, pick
from uniresxx.imaging import masks
from uniresxx.types import Dialogue, Expression, Granularity, ImageRecord, Phrase, Turn

MIN_INSIDE = 0.5  # share of a part that must lie on its whole
MOST_PHRASES = 4
MOST_TURNS = 5
AND_THE = ("And the {}?", "and the {}", "What about the {}?")


def composed_dialogues(record: ImageRecord, seed: Sequence[int]) -> tuple[Dialogue, ...]:
    """At most one conversation of each sort: several phrases, a part after its whole, plain words, unrelated turns.

    A pure function of its arguments.

    Args:
        record: its expressions are what is asked.
        seed: numbers of the random choices.
    """
    rng = np.random.default_rng(list(seed))
    named = usable_expressions(record.expressions)
    made = (_several(named, rng), _follow_up(named, rng), _plain(named, rng), _unrelated(named, rng))
    return tuple(
        Dialogue(f"{record.image_id}/dialogue_{number}", turns)
        for number, turns in enumerate(turns for turns in made if turns)
    )


def usable_expressions(expressions: Sequence[Expression]) -> list[Expression]:
    """Each text once: those that mean one thing, stand for themselves and are one phrase."""
    meanings: dict[str, set[str | None]] = {}
    for item in expressions:
        meanings.setdefault(_plain_text(item.text), set()).add(item.rle and item.rle["counts"])
    found: dict[str, Expression] = {}
    for item in expressions:
        text = _plain_text(item.text)
        if len(meanings[text]) == 1 and pointer_of(text) is None and len(asked_phrases(text)) == 1:
            found.setdefault(text, item)
    return list(found.values())


def _plain_text(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .?!,;:")


def _phrase(item: Expression) -> Phrase:
    return Phrase(item.text.strip(" .?!,;:"), item.rle, item.granularity)


def _several_turn(named: Sequence[Expression], rng: np.random.Generator) -> Turn | None:
    """One question for two to four phrases with different masks, at least one of them in the picture."""
    chosen: list[Expression] = []
    wanted = 2 + int(rng.random() * (MOST_PHRASES - 1))
    for place in rng.permutation(len(named)):
        item = named[int(place)]
        if item.rle is None or all(other.rle != item.rle for other in chosen):
            chosen.append(item)
        if len(chosen) == wanted:
            break
    if len(chosen) < 2 or all(item.rle is None for item in chosen):
        return None
    phrases = tuple(map(_phrase, chosen))
    question = ask_several([phrase.text for phrase in phrases], rng)
    return None if question is None else Turn(question, phrases)


def _several(named: Sequence[Expression], rng: np.random.Generator) -> tuple[Turn, ...]:
    turn = _several_turn(named, rng)
    return () if turn is None else (turn,)


@dataclass(frozen=True, slots=True)
class _PartOf:
    """A part expression taken apart: "the wheel" "of" "the red car"."""

    expression: Expression
    part: str
    owner: str


def _part_of(item: Expression) -> _PartOf | None:
    """The part and its owner, by the part's name where the source has it, else at the first "of"."""
    text = _plain_text(item.text)
    part = item.source.get("part")
    if isinstance(part, str) and part:
        name = _plain_text(part)
        owner = text.removeprefix(f"{name} of ")
        return _PartOf(item, name, owner) if owner != text and owner else None
    name, of, owner = text.partition(" of ")
    name = name.removeprefix("the ")
    return _PartOf(item, name, owner) if of and name and owner and " of " not in owner else None


def _without_article(text: str) -> str:
    return text.removeprefix("the ").removeprefix("a ").removeprefix("an ")


def _follow_up(named: Sequence[Expression], rng: np.random.Generator) -> tuple[Turn, ...]:
    """A whole and then its part ("its wheel"), or a part and then another one of the same owner ("and the door?")."""
    parts = [
        p for p in map(_part_of, (e for e in named if e.granularity is Granularity.PART)) if p is not None
    ]
    wholes = {_without_article(_plain_text(e.text)): e for e in named if e.granularity is Granularity.OBJECT}
    for place in rng.permutation(len(parts)):
        item = parts[int(place)]
        whole = wholes.get(_without_article(item.owner))
        if whole is not None and _lies_on(item.expression, whole):
            return _checked(_phrase(whole), item.expression, pick(rng, ITS).format(item.part), rng)
        others = [o for o in parts if o.owner == item.owner and o.part != item.part]
        if others:
            other = pick(rng, others)
            return _checked(
                _phrase(item.expression), other.expression, pick(rng, AND_THE).format(other.part), rng
            )
    return ()


def _lies_on(part: Expression, whole: Expression) -> bool:
    if part.rle is None or whole.rle is None or part.rle["size"] != whole.rle["size"]:
        return False
    return masks.intersection_area(part.rle, whole.rle) >= MIN_INSIDE * masks.area(part.rle)


def _checked(first: Phrase, second: Expression, question: str, rng: np.random.Generator) -> tuple[Turn, ...]:
    """Both turns, if the second one's words point back to the first."""
    turn = Turn(ask_one(first.text, rng), (first,))
    if not relevant_turns([(turn.question, true_answer(turn))], question):
        return ()
    return turn, Turn(question, (Phrase(asked_phrases(question)[0], second.rle, second.granularity),))


def _plain(named: Sequence[Expression], rng: np.random.Generator) -> tuple[Turn, ...]:
    """A number, where the instances are known, or yes and no, where the picture has both."""
    counted: dict[int, list[Expression]] = {}
    for item in named:
        number = _number_of(item)
        if number is not None:
            counted.setdefault(number, []).append(item)
    several = any(number > 1 for number in counted)
    present = [e for e in named if e.rle is not None]
    absent = [e for e in named if e.rle is None]
    if several and rng.random() < 0.5:
        number = pick(rng, sorted(counted))
        text = _phrase(pick(rng, counted[number])).text
        return (Turn(f"Count {text}.", answer=count_answer(number)),)
    if not present or not absent:
        return ()
    yes = rng.random() < 0.5
    text = _phrase(pick(rng, present if yes else absent)).text
    return (Turn(f"Is {text} in the picture?", answer="Yes." if yes else "No."),)


def _number_of(item: Expression) -> int | None:
    """How many things an expression means; None where the annotation does not say."""
    if item.granularity is Granularity.NONE:
        return 0
    if item.granularity is Granularity.OBJECT and (item.instances is None or len(item.instances) == 1):
        return 1
    if item.granularity is Granularity.MULTI and item.instances is not None and len(item.instances) > 1:
        return len(item.instances)
    return None


def _unrelated(named: Sequence[Expression], rng: np.random.Generator) -> tuple[Turn, ...]:
    """Two to five turns that each stand for themselves; now and then one that was asked before."""
    wanted = 2 + int(rng.random() * (MOST_TURNS - 1))
    turns: list[Turn] = []
    for place in rng.permutation(len(named))[:wanted]:
        several = _several_turn(named, rng) if rng.random() < 0.2 else None
        repeated = pick(rng, turns) if len(turns) > 1 and rng.random() < 0.15 else None
        phrase = _phrase(named[int(place)])
        turns.append(several or repeated or Turn(ask_one(phrase.text, rng), (phrase,)))
    return tuple(turns) if len(turns) > 1 else ()
