"""What an expression means: a query over the scene graph, and the function that answers it.

A query whose answer a person could dispute (two things almost equally far left, a slight overlap) is answered None
and never asked. The empty answer says clearly that there is no such thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uniresxx.data.scenes.graph import Scene, Thing

ORDERS = ("left", "right", "top", "bottom", "large", "small")
RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
_LARGER = 1.3  # from this ratio of visible areas on, one thing is called larger than another
_HIDES = 15  # from this number of hidden pixels on, one thing is in front of another


@dataclass(frozen=True, slots=True)
class Query:
    """Things of one kind, restricted by the other fields; with `part`, that part of them.

    `number` is how many things the words promise: 1, 2, 3, or 0 for "all". `order` selects `take` things along a
    direction, from place `rank` on (0 is the first). `also` adds the things of a second query.
    """

    kind: str
    colours: tuple[str, ...] = ()  # any of these; empty = any colour
    without: str | None = None  # not this colour
    order: str | None = None
    rank: int = 0
    take: int = 1
    relation: str | None = None
    anchor: Query | None = None
    number: int = 1
    also: Query | None = None
    part: str | None = None
    side: str | None = None  # of two visible instances of the part: "left" or "right"


@dataclass(frozen=True, slots=True)
class Answer:
    """The things that are meant, and the paints whose pixels are the mask; both empty: no target."""

    things: tuple[Thing, ...]
    paints: tuple[int, ...]


_EMPTY = Answer((), ())


def _place(thing: Thing, order: str) -> float:
    """The value by which things are ordered, smallest first."""
    values = {
        "left": thing.x, "right": -thing.x, "top": thing.y, "bottom": -thing.y,
        "large": -thing.area, "small": thing.area,
    }  # fmt: skip
    return values[order]


def _clearly_before(one: Thing, other: Thing, order: str, margin: float) -> bool:
    if order not in ("large", "small"):
        return _place(other, order) - _place(one, order) >= margin
    large, small = (one, other) if order == "large" else (other, one)
    # partly hidden things: their visible areas and their full areas must agree
    return large.area >= _LARGER * small.area and large.full_area >= 1.1 * small.full_area


def _ordered(
    candidates: Sequence[Thing], order: str, first: int, last: int, margin: float
) -> list[Thing] | None:
    """Things first..last-1 along the order; None where it is not clear which they are."""
    if last > len(candidates) or len(candidates) < 2:
        return None
    line = sorted(candidates, key=lambda thing: _place(thing, order))
    for cut in (first, last):
        if 0 < cut < len(line) and not _clearly_before(line[cut - 1], line[cut], order, margin):
            return None
    return line[first:last]


def _related(scene: Scene, thing: Thing, relation: str, anchor: Thing) -> bool | None:
    """Whether the relation holds; None where a person could say either."""
    if relation in ("in front of", "behind"):
        front, back = (thing, anchor) if relation == "in front of" else (anchor, thing)
        hidden = scene.covers.get((front.index, back.index), 0)
        return True if hidden >= _HIDES else None if hidden else False
    along, across = thing.x - anchor.x, thing.y - anchor.y
    if relation in ("above", "below"):
        along, across = across, along
    if relation in ("right of", "below"):
        along = -along
    if along <= -scene.margin and -along >= abs(across):
        return True
    return False if along >= 0 or abs(across) >= 3 * abs(along) else None


def _candidates(scene: Scene, query: Query) -> list[Thing]:
    return [
        thing
        for thing in scene.things
        if thing.kind == query.kind
        and (not query.colours or thing.colour in query.colours)
        and thing.colour != query.without
    ]


def find_things(scene: Scene, query: Query) -> list[Thing] | None:
    """The things a query without its part and its union means; None where that is not clear."""
    candidates = _candidates(scene, query)
    if query.relation is not None:
        assert query.anchor is not None
        anchors = find_things(scene, query.anchor)
        if anchors is None or len(anchors) > 1:
            return None
        holds = {
            t.index: _related(scene, t, query.relation, anchor)
            for t in candidates
            for anchor in anchors
            if t is not anchor
        }
        if None in holds.values():
            return None
        candidates = [t for t in candidates if holds.get(t.index)]
    if not candidates:
        return []
    if query.order is not None:
        chosen = _ordered(candidates, query.order, query.rank, query.rank + query.take, scene.margin)
        if chosen is None:
            return None
        candidates = chosen
    if query.number == 0:
        return candidates if len(candidates) >= 2 else None
    # "the red and blue cars": there must be a car of each colour
    if len(query.colours) > 1 and {t.colour for t in candidates} != set(query.colours):
        return None
    return candidates if len(candidates) == query.number else None


def _find_part(scene: Scene, query: Query, things: Sequence[Thing]) -> Answer | None:
    assert query.part is not None
    if all(thing.part_area(query.part) == 0 for thing in things):
        # drawn but fully hidden: nobody could tell whether it is there
        return None if any(query.part in thing.drawn_parts for thing in things) else _EMPTY
    if any(thing.part_area(query.part) < scene.min_part for thing in things):
        return None
    instances = [instance for thing in things for instance in thing.parts[query.part]]
    if query.side is not None:
        if len(things) != 1 or len(instances) != 2 or abs(instances[0].x - instances[1].x) < scene.margin:
            return None
        instances = [sorted(instances, key=lambda instance: instance.x)[0 if query.side == "left" else 1]]
        if instances[0].area < scene.min_part:
            return None
    return Answer(tuple(things), tuple(instance.paint for instance in instances))


def solve(scene: Scene, query: Query) -> Answer | None:
    """The answer of a query: empty if it has no target, None if it is not clear and must not be asked."""
    things = find_things(scene, query)
    if things is None:
        return None
    if query.also is not None:
        other = solve(scene, query.also)
        if other is None or not other.things or not things:
            return None
        if {t.index for t in things} & {t.index for t in other.things}:
            return None
        paints = tuple(paint for thing in things for paint in thing.paints)
        return Answer((*things, *other.things), (*paints, *other.paints))
    if not things:
        return _EMPTY
    if query.part is not None:
        return _find_part(scene, query, things)
    return Answer(tuple(things), tuple(paint for thing in things for paint in thing.paints))


def level_of(scene: Scene, things: Sequence[Thing]) -> int:
    """What words must name to mean these things: 1 the kind, 2 kind and colour, 3 a relation, order or count."""
    worst = 1
    for kind in {thing.kind for thing in things}:
        chosen = {thing.index for thing in things if thing.kind == kind}
        same_kind = {thing.index for thing in scene.things if thing.kind == kind}
        if chosen == same_kind:
            continue
        colours = {scene.things[index].colour for index in chosen}
        same_colour = {index for index in same_kind if scene.things[index].colour in colours}
        worst = max(worst, 2 if chosen == same_colour else 3)
    return worst
