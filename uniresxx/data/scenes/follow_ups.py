"""Conversations about a scene whose last question points back: "its wheel", "the other one", "both of them".

Between the thing and the question that points back, turns may lie that the words cannot mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from uniresxx.conversation.history import needed_turns
from uniresxx.data.dialogues.as_asked import true_answer
from uniresxx.data.dialogues.wording import AGAIN, BOTH, ITS, ONE_IN, OTHER, THEIR, ask_one, pick
from uniresxx.data.scenes.named import (
    NamedThing,
    absent_like,
    name_one,
    solved_phrase,
    spoken,
    spoken_style,
)
from uniresxx.data.scenes.phrasing import noun_phrase, phrase
from uniresxx.data.scenes.plain_questions import plain_turn
from uniresxx.data.scenes.propose import Proposer
from uniresxx.data.scenes.solver import Query, solve
from uniresxx.imaging.masks import encode
from uniresxx.types import Granularity, Phrase, Turn

Turns = tuple[Turn, ...]
ABSENT_PARTS = 0.3  # share of parts that are asked for and not there
_TRIES = 4


def follow_up(proposer: Proposer) -> Turns | None:
    """A random one that is right by the rule of `relevant_turns`; None where none was found."""
    for _ in range(_TRIES):
        roll = proposer.rng.random()
        make = next(make for limit, make in _SORTS if roll < limit)
        turns = make(proposer)
        if turns is not None and points_at_first(turns):
            return turns
    return None


def points_at_first(turns: Turns) -> bool:
    """Whether the last turn needs the first one, by the rule that also holds when a model is asked."""
    return needed_turns([(turn.question, true_answer(turn)) for turn in turns])[-1][0] == 0 and len(turns) > 1


def _asked(proposer: Proposer, found: Phrase) -> Turn:
    return Turn(ask_one(found.text, proposer.rng), (found,))


def _between(proposer: Proposer, named: NamedThing) -> list[Turn]:
    """At times a turn that no "its" can mean: something that is not there, or a plain question."""
    roll = proposer.rng.random()
    if roll < 0.15:
        absent = absent_like(proposer, named.query, named.style)
        return [] if absent is None else [_asked(proposer, absent)]
    plain = plain_turn(proposer) if roll < 0.3 else None
    return [] if plain is None else [plain]


def _part_words(query: Query, named: NamedThing) -> str:
    return phrase(query, replace(named.style, plain=True)).split(" of ")[0]


def _part_turn(proposer: Proposer, named: NamedThing, taken: set[str]) -> Turn | None:
    """A part of a named thing, which may lack it."""
    parts = [part for part in proposer.askable_parts(named.thing, transfer=False) if part not in taken]
    if not parts:
        return None
    query = replace(named.query, part=proposer.pick(parts))
    if proposer.chance(ABSENT_PARTS):
        other = [q for q in proposer.other_parts(query) if (a := solve(proposer.scene, q)) and not a.paints]
        query = other[0] if other else query
    assert query.part is not None
    taken.add(query.part)
    words = _part_words(query, named)
    found = solved_phrase(proposer, query, f"its {words}", Granularity.PART)
    return None if found is None else Turn(pick(proposer.rng, ITS).format(words), (found,))


def _parts(proposer: Proposer) -> Turns | None:
    """A thing and a part of it, at times a second part."""
    named = name_one(proposer)
    if named is None:
        return None
    taken: set[str] = set()
    turns = [_asked(proposer, named.phrase), *_between(proposer, named)]
    part = _part_turn(proposer, named, taken)
    if part is None:
        return None
    turns.append(part)
    if proposer.chance(0.3) and points_at_first(tuple(turns)):
        second = _part_turn(proposer, named, taken)
        turns += [] if second is None else [second]
    return tuple(turns)


def _other(proposer: Proposer) -> Turns | None:
    """One of two things of a kind, then the other."""
    pairs = [things for things in proposer.by_kind.values() if len(things) == 2]
    if not pairs:
        return None
    one, other = proposer.rng.permutation(2)
    pair = proposer.pick(pairs)
    named = name_one(proposer, pair[one])
    if named is None:
        return None
    question = pick(proposer.rng, OTHER).format(noun_phrase(Query(named.thing.kind), named.style, False))
    mask = encode(proposer.scene.mask(pair[other].paints))
    found = Phrase("the other one", mask, Granularity.OBJECT)
    return _asked(proposer, named.phrase), *_between(proposer, named), Turn(question, (found,))


def _same_in(proposer: Proposer) -> Turns | None:
    """A thing of one colour, then one of the same kind in another; either may be missing."""
    thing = proposer.pick(list(proposer.scene.things))
    colours = [c for c in proposer.preset.colours if proposer.may_ask_pair(thing.kind, c)]
    present = [t.colour for t in proposer.by_kind[thing.kind] if t.colour in colours]
    if not present:
        return None
    first, second = (proposer.pick(present if proposer.chance(0.7) else colours) for _ in range(2))
    if first == second:
        return None
    style = spoken_style(proposer)
    turns: list[Turn] = []
    for colour in (first, second):
        query = Query(thing.kind, (colour,))
        found = solved_phrase(proposer, query, spoken(query, style))
        if found is None:
            return None
        question = pick(proposer.rng, ONE_IN).format(colour) if turns else ask_one(found.text, proposer.rng)
        turns.append(Turn(question, (found,)))
    return tuple(turns)


def _their(proposer: Proposer) -> Turns | None:
    """All things of a kind, then a part of each of them."""
    groups = [things for things in proposer.by_kind.values() if len(things) > 1]
    if not groups:
        return None
    group = proposer.pick(groups)
    shared = [part for part in group[0].parts if all(part in proposer.askable_parts(t, False) for t in group)]
    if not shared:
        return None
    style = spoken_style(proposer)
    query = Query(group[0].kind, number=0)
    owner = solved_phrase(proposer, query, spoken(query, style), Granularity.MULTI)
    part = replace(query, part=proposer.pick(shared))
    words = phrase(part, replace(style, plain=True)).split(" of ")[0]
    found = solved_phrase(proposer, part, f"their {words}", Granularity.PART)
    if owner is None or found is None:
        return None
    return _asked(proposer, owner), Turn(pick(proposer.rng, THEIR).format(words), (found,))


def _both(proposer: Proposer) -> Turns | None:
    """Two things one after the other, then both."""
    one, other = name_one(proposer), name_one(proposer)
    if one is None or other is None or one.thing is other.thing:
        return None
    mask = encode(proposer.scene.mask((*one.thing.paints, *other.thing.paints)))
    found = Phrase("both of them", mask, Granularity.MULTI)
    asked = _asked(proposer, one.phrase), _asked(proposer, other.phrase)
    return *asked, Turn(pick(proposer.rng, BOTH), (found,))


def _that(proposer: Proposer) -> Turns | None:
    """Two things of different kinds, then a part of the first one, called by its kind."""
    one, other = name_one(proposer), name_one(proposer)
    if one is None or other is None or one.thing.kind == other.thing.kind:
        return None
    part = _part_turn(proposer, one, set())
    if part is None:
        return None
    words = part.phrases[0].text.removeprefix("its ")
    noun = noun_phrase(Query(one.thing.kind), one.style, False)
    question = pick(proposer.rng, ("the {} of that {}", "Segment the {} of that {}.")).format(words, noun)
    return _asked(proposer, one.phrase), _asked(proposer, other.phrase), replace(part, question=question)


def _again(proposer: Proposer) -> Turns | None:
    """A thing, then the same thing, or its colour."""
    named = name_one(proposer)
    if named is None:
        return None
    first = _asked(proposer, named.phrase)
    if not named.query.colours and proposer.chance(0.5):
        return first, Turn("What colour is it?", answer=f"{named.thing.colour.capitalize()}.")
    again = Turn(pick(proposer.rng, AGAIN), (Phrase("it", named.phrase.rle, named.phrase.granularity),))
    return first, *_between(proposer, named), again


# each with the sum of the shares up to it
_SORTS: tuple[tuple[float, Callable[[Proposer], Turns | None]], ...] = (
    (0.50, _parts), (0.60, _other), (0.73, _same_in), (0.79, _their), (0.87, _both), (0.94, _that), (1.0, _again),
)  # fmt: skip
