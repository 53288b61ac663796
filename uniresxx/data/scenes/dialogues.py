"""Conversations about a scene: several phrases at once, questions that point back, plain ones, unrelated turns."""

from __future__ import annotations

from uniresxx.data.dialogues.wording import ask_one, ask_several, pick
from uniresxx.data.scenes.follow_ups import follow_up
from uniresxx.data.scenes.named import any_phrase
from uniresxx.data.scenes.plain_questions import plain_turn
from uniresxx.data.scenes.propose import Proposer
from uniresxx.types import Dialogue, Phrase, Turn

MOST_PHRASES = 4
MOST_TURNS = 5


def _several(proposer: Proposer) -> tuple[Turn, ...] | None:
    """One question for two to four phrases, some of them about things that are not there."""
    roll = proposer.rng.random()
    wanted = 2 if roll < 0.45 else 3 if roll < 0.8 else MOST_PHRASES
    phrases: list[Phrase] = []
    for _ in range(wanted + 3):
        found = any_phrase(proposer)
        if found is not None and found.text not in [other.text for other in phrases]:
            phrases.append(found)
        if len(phrases) == wanted:
            break
    if len(phrases) < 2:
        return None
    question = ask_several([found.text for found in phrases], proposer.rng)
    return None if question is None else (Turn(question, tuple(phrases)),)


def _plain(proposer: Proposer) -> tuple[Turn, ...] | None:
    turn = plain_turn(proposer)
    return None if turn is None else (turn,)


def _unrelated(proposer: Proposer) -> tuple[Turn, ...] | None:
    """Two to five turns that each stand for themselves; some were asked before."""
    wanted = 2 + int(proposer.rng.random() * (MOST_TURNS - 1))
    turns: list[Turn] = []
    for _ in range(2 * wanted):
        turns += _unrelated_turn(proposer, turns)
        if len(turns) == wanted:
            break
    return tuple(turns) if len(turns) > 1 else None


def _unrelated_turn(proposer: Proposer, turns: list[Turn]) -> list[Turn]:
    roll = proposer.rng.random()
    if roll < 0.12:
        return list(_several(proposer) or ())
    if roll < 0.24:
        return list(_plain(proposer) or ())
    if roll < 0.34 and turns:
        return [pick(proposer.rng, turns)]
    found = any_phrase(proposer)
    return [] if found is None else [Turn(ask_one(found.text, proposer.rng), (found,))]


def make_dialogues(proposer: Proposer, prefix: str) -> tuple[Dialogue, ...]:
    """Up to four conversations of one picture: one of each sort, or a second plain question for unrelated turns."""
    found: list[tuple[Turn, ...]] = []
    last = _plain if proposer.chance(0.5) else _unrelated
    for make in (_several, follow_up, _plain, last):
        turns = make(proposer)
        if turns is not None and turns not in found:
            found.append(turns)
    return tuple(Dialogue(f"{prefix}_dialogue_{number}", turns) for number, turns in enumerate(found))
