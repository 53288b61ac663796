"""Questions about a scene that are answered in words: how many, yes or no, which colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from uniresxx.data.dialogues.wording import count_answer, pick
from uniresxx.data.scenes.named import name_one
from uniresxx.data.scenes.propose import Proposer
from uniresxx.data.scenes.words import plural
from uniresxx.types import Turn

MOST = 4  # things that a question counts
# What is counted -> how often each number of it is asked, where the picture has it. Larger where few pictures have
# so many: for each kind of wording the numbers come out about alike often, so the words do not tell the answer.
_EASY_WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "all": (0.0, 0.0, 0.0, 3.3, 3.7),
    "kind": (1.2, 1.2, 1.6, 6.0, 8.0),
    "colour": (1.0, 1.1, 1.5, 5.4, 30.0),
    "pair": (1.3, 1.3, 20.0, 7.0, 7.0),
}
_FULL_WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "all": (0.0, 0.0, 0.0, 0.0, 3.0),
    "kind": (0.9, 0.9, 3.6, 1.7, 0.5),
    "colour": (0.8, 0.9, 1.1, 1.8, 6.7),
    "pair": (1.0, 1.0, 1.3, 0.5, 0.5),
}
_HOW_MANY = ("How many {} are there?", "How many {} are there?", "How many {} do you see?", "Count the {}.")


def plain_turn(proposer: Proposer) -> Turn | None:
    """A random one; None where the picture does not settle the question that was drawn."""
    roll = proposer.rng.random()
    if roll < 0.45:
        return _how_many(proposer)
    return _yes_or_no(proposer) if roll < 0.75 else _which_colour(proposer)


def _how_many(proposer: Proposer) -> Turn:
    asked = _countable(proposer)
    table = _EASY_WEIGHTS if proposer.preset.easy else _FULL_WEIGHTS
    weights = np.cumsum([table[counted][number] for counted, number in asked])
    drawn = int(np.searchsorted(weights, proposer.rng.random() * weights[-1], side="right"))
    (_, number), texts = list(asked.items())[drawn]
    question = pick(proposer.rng, _HOW_MANY).format(pick(proposer.rng, texts))
    return Turn(question, answer=count_answer(number))


def _countable(proposer: Proposer) -> dict[tuple[str, int], list[str]]:
    """What is counted and how many of it there are -> the names of it."""
    things = proposer.scene.things
    kinds, colours = Counter(t.kind for t in things), Counter(t.colour for t in things)
    pairs = Counter((t.colour, t.kind) for t in things)
    asked: dict[tuple[str, int], list[str]] = {("all", len(things)): ["things"]}
    for kind in proposer.preset.kinds:
        asked.setdefault(("kind", kinds[kind]), []).append(plural(kind))
    for colour in proposer.preset.colours:
        asked.setdefault(("colour", colours[colour]), []).append(f"{colour} things")
        for kind in proposer.by_kind:
            if proposer.may_ask_pair(kind, colour) and (colours[colour] or proposer.chance(0.1)):
                asked.setdefault(("pair", pairs[colour, kind]), []).append(f"{colour} {plural(kind)}")
    return {key: texts for key, texts in asked.items() if key[1] <= MOST}


def _yes_or_no(proposer: Proposer) -> Turn | None:
    yes = proposer.chance(0.5)
    answer = "Yes." if yes else "No."
    roll = proposer.rng.random()
    if roll < 0.25:
        kinds = [kind for kind in proposer.preset.kinds if (kind in proposer.by_kind) == yes]
        return Turn(f"Are there any {plural(pick(proposer.rng, kinds))}?", answer=answer)
    kind = proposer.pick(list(proposer.by_kind))
    here = {thing.colour for thing in proposer.by_kind[kind]}
    colours = [c for c in proposer.preset.colours if proposer.may_ask_pair(kind, c) and (c in here) == yes]
    if not colours:
        return None
    present = {thing.colour for thing in proposer.scene.things}
    seen = [c for c in colours if c in present]  # the colour alone must not give the answer away
    colour = proposer.pick(seen if seen and proposer.chance(0.7) else colours)
    if roll < 0.5 and len(proposer.by_kind[kind]) == 1:
        return Turn(f"Is the {kind} {colour}?", answer=answer)
    article = "an" if colour[0] == "o" else "a"
    return Turn(f"Is there {article} {colour} {kind}?", answer=answer)


def _which_colour(proposer: Proposer) -> Turn | None:
    named = name_one(proposer)
    if named is None or named.query.colours or named.query.without or named.query.relation:
        alone = [things[0] for things in proposer.by_kind.values() if len(things) == 1]
        if not alone:
            return None
        thing = proposer.pick(alone)
        return Turn(f"What colour is the {thing.kind}?", answer=f"{thing.colour.capitalize()}.")
    return Turn(f"What colour is {named.phrase.text}?", answer=f"{named.thing.colour.capitalize()}.")
