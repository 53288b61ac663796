"""Dialogues about a scene: several phrases at once, a thing and then its part, plain questions."""

from __future__ import annotations

from dataclasses import replace

from uniresxx.data.scenes.phrasing import Style, noun_phrase, phrase
from uniresxx.data.scenes.propose import Proposer
from uniresxx.data.scenes.solver import Query, solve
from uniresxx.data.scenes.words import plural
from uniresxx.imaging.masks import encode
from uniresxx.types import Dialogue, Granularity, Phrase, Turn

_NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def _phrase(proposer: Proposer, query: Query, text: str, granularity: Granularity) -> Phrase | None:
    """The phrase with its solved mask; None where the answer is not clear."""
    answer = solve(proposer.scene, query)
    if answer is None:
        return None
    if not answer.paints:
        return Phrase(text, None, Granularity.NONE)
    return Phrase(text, encode(proposer.scene.mask(answer.paints)), granularity)


def _style(proposer: Proposer) -> Style:
    return replace(proposer.draw_style(), telegraphic=False, form=0)


def _one(proposer: Proposer) -> Query | None:
    return proposer.name_thing(proposer.pick(list(proposer.scene.things)))


def _several(proposer: Proposer) -> tuple[Turn, ...] | None:
    """One question with two or three phrases, some of them about things that are not there."""
    phrases: list[Phrase] = []
    for _ in range(3):
        query = _one(proposer)
        if query is None:
            continue
        found = proposer.solved(query)
        if found is not None and proposer.chance(0.35):
            changed = proposer.propose_negative(found)
            query = changed[1] if changed else query
        style = _style(proposer)
        item = _phrase(proposer, query, "the " + noun_phrase(query, style, False), Granularity.OBJECT)
        if item is not None and item.text not in [other.text for other in phrases]:
            phrases.append(item)
    if len(phrases) < 2:
        return None
    names = [item.text for item in phrases]
    return (Turn(f"Segment {', '.join(names[:-1])} and {names[-1]}.", tuple(phrases)),)


def _follow_up(proposer: Proposer) -> tuple[Turn, ...] | None:
    """A thing, then a part of it, called "its wheel" or the like."""
    query = _one(proposer)
    if query is None:
        return None
    thing_answer = solve(proposer.scene, query)
    if thing_answer is None or len(thing_answer.things) != 1:
        return None
    thing = thing_answer.things[0]
    style = _style(proposer)
    name = "the " + noun_phrase(query, style, False)
    first = _phrase(proposer, query, name, Granularity.OBJECT)
    parts = proposer.askable_parts(thing, transfer=False)
    if not parts or first is None:
        return None
    part_query = replace(query, part=proposer.pick(parts))
    if proposer.chance(0.3):
        absent = [
            q for q in proposer.other_parts(part_query) if (a := solve(proposer.scene, q)) and not a.paints
        ]
        part_query = absent[0] if absent else part_query
    words = phrase(part_query, replace(style, plain=True)).split(" of ")[0]
    second = _phrase(proposer, part_query, f"its {words}", Granularity.PART)
    if second is None:
        return None
    return Turn(f"Segment {name}.", (first,)), Turn(f"And its {words}?", (second,))


def _plain(proposer: Proposer) -> tuple[Turn, ...] | None:
    """A question without a mask: how many, is there, which colour."""
    roll = proposer.rng.random()
    kind = proposer.pick(proposer.preset.kinds if proposer.chance(0.3) else list(proposer.by_kind))
    here = proposer.by_kind.get(kind, [])
    if roll < 0.45:
        return (
            Turn(f"How many {plural(kind)} are there?", answer=f"{_NUMBER_WORDS[len(here)].capitalize()}."),
        )
    if roll < 0.75:
        colours = [c for c in proposer.preset.colours if proposer.may_ask_pair(kind, c)]
        colour = proposer.pick(here).colour if here and proposer.chance(0.5) else proposer.pick(colours)
        present = any(thing.colour == colour for thing in here)
        article = "an" if colour[0] == "o" else "a"
        return (Turn(f"Is there {article} {colour} {kind}?", answer="Yes." if present else "No."),)
    if len(here) != 1:
        return None
    return (Turn(f"What colour is the {kind}?", answer=f"{here[0].colour.capitalize()}."),)


def make_dialogues(proposer: Proposer, prefix: str) -> tuple[Dialogue, ...]:
    """Up to three dialogues of one picture: at most one of each sort."""
    dialogues: list[Dialogue] = []
    for make in (_several, _follow_up, _plain):
        turns = make(proposer)
        if turns is not None:
            dialogues.append(Dialogue(f"{prefix}_dialogue_{len(dialogues)}", turns))
    return tuple(dialogues)
