"""Conversations about a scene: several phrases at once, follow-ups, plain questions."""

from __future__ import annotations

from dataclasses import replace

from uniresxx.data.scenes.phrasing import Style, draw_style, noun_phrase, phrase
from uniresxx.data.scenes.propose import Asker
from uniresxx.data.scenes.solver import Query, solve
from uniresxx.data.scenes.words import plural
from uniresxx.imaging.masks import encode
from uniresxx.types import Dialogue, Granularity, Phrase, Turn

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def _phrase(asker: Asker, query: Query, text: str, granularity: Granularity) -> Phrase | None:
    """The phrase with its solved mask; None where the answer is not clear."""
    answer = solve(asker.scene, query)
    if answer is None:
        return None
    if not answer.paints:
        return Phrase(text, None, Granularity.NONE)
    return Phrase(text, encode(asker.scene.mask(answer.paints)), granularity)


def _styled(asker: Asker) -> Style:
    return replace(draw_style(asker.rng, asker.easy, asker.split == "paraphrase"), telegraphic=False, form=0)


def _one(asker: Asker) -> Query | None:
    return asker.name(asker.pick(list(asker.scene.things)))


def _several(asker: Asker) -> tuple[Turn, ...] | None:
    """One question with two or three phrases, some of them about things that are not there."""
    phrases: list[Phrase] = []
    for _ in range(3):
        query = _one(asker)
        if query is None:
            continue
        found = asker.solved(query)
        if found is not None and asker.chance(0.35):
            changed = asker.a_negative(found)
            query = changed[1] if changed else query
        style = _styled(asker)
        item = _phrase(asker, query, "the " + noun_phrase(query, style, False), Granularity.OBJECT)
        if item is not None and item.text not in [other.text for other in phrases]:
            phrases.append(item)
    if len(phrases) < 2:
        return None
    names = [item.text for item in phrases]
    return (Turn(f"Segment {', '.join(names[:-1])} and {names[-1]}.", tuple(phrases)),)


def _follow_up(asker: Asker) -> tuple[Turn, ...] | None:
    """A thing, then a part of it that is only called "its"."""
    query = _one(asker)
    if query is None:
        return None
    thing_answer = solve(asker.scene, query)
    if thing_answer is None or len(thing_answer.things) != 1:
        return None
    thing = thing_answer.things[0]
    style = _styled(asker)
    name = "the " + noun_phrase(query, style, False)
    first = _phrase(asker, query, name, Granularity.OBJECT)
    parts = asker.targetable(thing)
    if not parts or first is None:
        return None
    part_query = replace(query, part=asker.word(parts))
    if asker.chance(0.3):
        gone = [q for q in asker._other_part(part_query) if (a := solve(asker.scene, q)) and not a.paints]
        part_query = gone[0] if gone else part_query
    words = phrase(part_query, replace(style, plain=True)).split(" of ")[0]
    second = _phrase(asker, part_query, f"its {words}", Granularity.PART)
    if second is None:
        return None
    return Turn(f"Segment {name}.", (first,)), Turn(f"And its {words}?", (second,))


def _plain(asker: Asker) -> tuple[Turn, ...] | None:
    """A question without a mask: how many, is there, which colour."""
    roll = asker.rng.random()
    kind = asker.word(asker.preset.kinds if asker.chance(0.3) else list(asker.by_kind))
    here = asker.by_kind.get(kind, [])
    if roll < 0.45:
        return (Turn(f"How many {plural(kind)} are there?", say=f"{_NUMBERS[len(here)].capitalize()}."),)
    if roll < 0.75:
        colours = [c for c in asker.preset.colours if asker._pair_is_kept(kind, c)]
        colour = asker.pick(here).colour if here and asker.chance(0.5) else asker.word(colours)
        seen = any(thing.colour == colour for thing in here)
        return (
            Turn(
                f"Is there {'an' if colour[0] == 'o' else 'a'} {colour} {kind}?",
                say="Yes." if seen else "No.",
            ),
        )
    if len(here) != 1:
        return None
    return (Turn(f"What colour is the {kind}?", say=f"{here[0].colour.capitalize()}."),)


def make_dialogues(asker: Asker, prefix: str) -> tuple[Dialogue, ...]:
    """Up to three dialogues of one picture, one of each sort."""
    out: list[Dialogue] = []
    for make in (_several, _follow_up, _plain):
        turns = make(asker)
        if turns is not None:
            out.append(Dialogue(f"{prefix}_dialogue_{len(out)}", turns))
    return tuple(out)
