"""Phrases of conversations about a scene: one thing, a part of it, a group, something that is not there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from uniresxx.data.scenes.graph import Thing
from uniresxx.data.scenes.phrasing import Style, noun_phrase, phrase
from uniresxx.data.scenes.propose import Proposal, Proposer
from uniresxx.data.scenes.solver import Query, solve
from uniresxx.imaging.masks import encode
from uniresxx.types import Granularity, Phrase


@dataclass(frozen=True, slots=True)
class NamedThing:
    """One thing with the words that mean it."""

    thing: Thing
    query: Query
    style: Style
    phrase: Phrase


def spoken_style(proposer: Proposer) -> Style:
    """A random style of this split, in whole words and with the adjectives in front."""
    return replace(proposer.draw_style(), telegraphic=False, form=0)


def spoken(query: Query, style: Style) -> str:
    """The words of a query with an article: "the wheels of the red car", "all cars"."""
    text = phrase(query, replace(style, plain=True)) if query.part else _things(query, style)
    return text if text.split()[0] in ("all", "both", "the") else f"the {text}"


def _things(query: Query, style: Style) -> str:
    if query.number == 1:
        return noun_phrase(query, style, False)
    return phrase(query, replace(style, plain=True))


def solved_phrase(
    proposer: Proposer, query: Query, text: str, granularity: Granularity = Granularity.OBJECT
) -> Phrase | None:
    """The phrase with its solved mask; None where the answer is not clear."""
    answer = solve(proposer.scene, query)
    if answer is None:
        return None
    if not answer.paints:
        return Phrase(text, None, Granularity.NONE)
    return Phrase(text, encode(proposer.scene.mask(answer.paints)), granularity)


def name_one(proposer: Proposer, thing: Thing | None = None) -> NamedThing | None:
    """A thing, a random one unless it is given, with words that mean it alone."""
    thing = thing or proposer.pick(list(proposer.scene.things))
    query = proposer.name_thing(thing)
    if query is None:
        return None
    style = spoken_style(proposer)
    found = solved_phrase(proposer, query, spoken(query, style))
    return None if found is None or found.rle is None else NamedThing(thing, query, style, found)


def absent_like(proposer: Proposer, query: Query, style: Style) -> Phrase | None:
    """Words that differ from those of a query in one place and mean nothing in the picture."""
    positive = proposer.solved(query)
    changed = None if positive is None else proposer.propose_negative(positive)
    return None if changed is None else Phrase(spoken(changed[1], style), None, Granularity.NONE)


def any_phrase(proposer: Proposer, absent: float = 0.3) -> Phrase | None:
    """A thing, a part or a group; with probability `absent`, one that is not there."""
    roll = proposer.rng.random()
    style = spoken_style(proposer)
    found: Proposal | None
    if roll < 0.35:
        found = proposer.propose_part(1 + int(proposer.rng.random() * 2))
        granularity = Granularity.PART
    elif roll < 0.5:
        found = proposer.propose_group(1 + int(proposer.rng.random() * 2))
        granularity = Granularity.MULTI
    else:
        named = name_one(proposer)
        found = None if named is None else proposer.solved(named.query)
        granularity = Granularity.OBJECT
    if found is None or found.query.also is not None or found.query.side is not None:
        return None
    if proposer.chance(absent):
        return absent_like(proposer, found.query, style)
    return solved_phrase(proposer, found.query, spoken(found.query, style), granularity)
