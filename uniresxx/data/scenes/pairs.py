"""Both of two things of a kind, asked for in one picture: "the left car" and "the right car".

Words for sides and sizes are not learned where only one of the two is asked for now and then: both things are masked
for either word (docs/log.md).
"""

from __future__ import annotations

from uniresxx.data.scenes.graph import Thing
from uniresxx.data.scenes.phrasing import Style, fitting_style, phrase
from uniresxx.data.scenes.propose import Proposer
from uniresxx.data.scenes.solver import Query
from uniresxx.imaging.masks import encode
from uniresxx.types import Expression, Granularity

SIDES, HEIGHTS, SIZES = ("left", "right"), ("top", "bottom"), ("large", "small")
PAIR_STAGES = 3
PLAIN = Style(plain=True)


def pair_expressions(proposer: Proposer, prefix: str, number: int, stage: int) -> tuple[Expression, ...]:
    """For each kind that the picture has exactly two things of: both by side, or both by size, or a part of both.

    Args:
        proposer: of the picture.
        prefix: of the expressions' ids.
        number: of the picture; it decides what is asked for.
        stage: 1: sides only; 2: in every second picture sizes; 3: as 2, in every third picture of parts. The full
            preset, whose questions say top and bottom too, asks for these in every second picture of sides, and has
            its own words and templates.
    """
    orders = SIZES if stage >= 2 and number % 2 else SIDES
    if orders is SIDES and not proposer.easy and number // 2 % 2:
        orders = HEIGHTS
    of_parts = stage >= 3 and number % 3 == 0
    expressions: list[Expression] = []
    for kind, things in proposer.by_kind.items():
        if len(things) != 2:
            continue
        part = _common_part(proposer, things, number) if of_parts else None
        queries = [Query(kind, order=order, part=part) for order in orders]
        style = PLAIN if proposer.easy else fitting_style(queries[0], proposer.draw_style())
        if style is None:
            continue
        for proposal in filter(None, map(proposer.solved, queries)):
            mask = proposer.scene.mask(proposal.answer.paints)
            granularity = Granularity.OBJECT if part is None else Granularity.PART
            name, text = f"{prefix}_pair_{len(expressions)}", phrase(proposal.query, style)
            expressions.append(
                Expression(name, text, granularity, encode(mask), int(mask.sum()), proposal.level)
            )
    return tuple(expressions)


def _common_part(proposer: Proposer, things: list[Thing], number: int) -> str | None:
    """A part that both things have and show."""
    first, second = (proposer.askable_parts(thing) for thing in things)
    common = [part for part in first if part in second]
    return common[number % len(common)] if common else None


def with_pairs(
    expressions: tuple[Expression, ...], pairs: tuple[Expression, ...], number: int
) -> tuple[Expression, ...]:
    """The pairs in the place of half of the expressions that mean something; the rest is as before."""
    texts = {pair.text for pair in pairs}
    there = [e for e in expressions if e.rle is not None and e.text not in texts]
    absent = [e for e in expressions if e.rle is None]
    return (*pairs, *there[number % 2 :: 2], *absent)
