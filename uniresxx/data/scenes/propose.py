"""Propose questions about a scene. Only those that the solver answers clearly are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from uniresxx.data.scenes.graph import Scene, Thing
from uniresxx.data.scenes.kinds import KINDS
from uniresxx.data.scenes.phrasing import Style, draw_style
from uniresxx.data.scenes.presets import HELD_OUT_COLOURS, HELD_OUT_PARTS, Preset
from uniresxx.data.scenes.solver import ORDERS, RELATIONS, Answer, Query, find_things, level_of, solve

OPPOSITE = {
    "left of": "right of", "right of": "left of", "above": "below", "below": "above",
    "in front of": "behind", "behind": "in front of",
}  # fmt: skip
Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A question with its solved answer and level."""

    query: Query
    answer: Answer
    level: int


class Proposer:
    """Proposes questions about one scene; every random choice comes from `rng`."""

    def __init__(self, scene: Scene, preset: Preset, split: str, rng: np.random.Generator) -> None:
        self.scene, self.preset, self.split, self.rng = scene, preset, split, rng
        self.easy = preset.easy
        self.by_kind: dict[str, list[Thing]] = {}
        for thing in scene.things:
            self.by_kind.setdefault(thing.kind, []).append(thing)
        self.levels = [level_of(scene, [thing]) for thing in scene.things]

    # -- small helpers -----------------------------------------------------------------------------

    def pick(self, choices: Sequence[Choice]) -> Choice:
        """A random one."""
        return choices[int(self.rng.random() * len(choices))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def draw_style(self) -> Style:
        """A random style of this split."""
        return draw_style(self.rng, self.easy, self.split == "paraphrase")

    def same_colour(self, thing: Thing) -> list[Thing]:
        """The things of its kind and colour, itself included."""
        return [t for t in self.by_kind[thing.kind] if t.colour == thing.colour]

    def askable_parts(self, thing: Thing, transfer: bool = True) -> list[str]:
        """Parts of a thing that this split may ask for: in `part_transfer`, with `transfer`, only held-out ones."""
        parts = [p for p in thing.parts if thing.part_area(p) >= self.preset.min_part]
        if self.easy:
            return parts
        held = [p for p in parts if (thing.kind, p) in HELD_OUT_PARTS]
        if self.split == "part_transfer" and transfer:
            return held
        return [p for p in parts if p not in held]

    def solved(self, query: Query, level: int | None = None) -> Proposal | None:
        """The proposal of a query that clearly means something in the picture (at `level`), else None."""
        answer = solve(self.scene, query)
        if answer is None or not answer.paints:
            return None
        true_level = level_of(self.scene, answer.things)
        if level is not None and true_level != level:
            return None
        return Proposal(query, answer, true_level)

    # -- one thing ---------------------------------------------------------------------------------

    def name_thing(self, thing: Thing) -> Query | None:
        """A query that means exactly this thing; None where none was found."""
        level = self.levels[thing.index]
        if level == 1:
            return Query(thing.kind, (thing.colour,) if self.chance(0.55 if self.easy else 0.5) else ())
        if level == 2:
            roll = self.rng.random()
            if roll < (0.6 if self.easy else 0.72):
                return Query(thing.kind, (thing.colour,))
            if roll < 0.9 or self.easy:
                return self._by_order(thing, ())
            others = {t.colour for t in self.by_kind[thing.kind] if t is not thing}
            return Query(thing.kind, without=others.pop()) if len(others) == 1 else None
        colours = () if self.chance(0.25) else (thing.colour,)
        return self._by_relation(thing, colours) if self.chance(0.45) else self._by_order(thing, colours)

    def _by_order(self, thing: Thing, colours: tuple[str, ...]) -> Query | None:
        count = len(self.same_colour(thing) if colours else self.by_kind[thing.kind])
        if self.easy and count != 2:  # plain words: "the left car" is clear only if there are two
            return None
        for order in self.rng.permutation(ORDERS).tolist():
            if self.easy and order in ("top", "bottom"):
                continue
            deepest = 1 if count < 3 or order not in ("left", "right", "top", "bottom") else 2
            for rank in range(deepest):
                query = Query(thing.kind, colours, order=str(order), rank=rank)
                if find_things(self.scene, query) == [thing]:
                    return query
        return None

    def _by_relation(self, thing: Thing, colours: tuple[str, ...]) -> Query | None:
        for _ in range(2):
            anchor = self._anchor(thing.kind)
            if anchor is None:
                return None
            for relation in self.rng.permutation(RELATIONS).tolist():
                query = Query(thing.kind, colours, relation=str(relation), anchor=anchor)
                if find_things(self.scene, query) == [thing]:
                    return query
        return None

    def _anchor(self, kind: str) -> Query | None:
        """A query for one thing of another kind, which a relation can refer to."""
        things = [t for t in self.scene.things if t.kind != kind and self.levels[t.index] < 3]
        if not things:
            return None
        thing = self.pick(things)
        kind_is_enough = self.levels[thing.index] == 1 and self.chance(0.5)
        return Query(thing.kind, () if kind_is_enough else (thing.colour,))

    def things_of_level(self, level: int) -> list[Thing]:
        """Things that words of this level name; in `compositional` only those of held-out pairs."""
        things = [t for t in self.scene.things if self.levels[t.index] == level]
        if self.split == "compositional":
            things = [t for t in things if (t.kind, t.colour) in HELD_OUT_COLOURS]
        return things

    def propose_object(self, level: int) -> Proposal | None:
        """One thing at a level."""
        things = self.things_of_level(level)
        query = self.name_thing(self.pick(things)) if things else None
        return self.named_in_words(self.solved(query, level) if query else None)

    def named_in_words(self, proposal: Proposal | None) -> Proposal | None:
        """The proposal; in `compositional` None unless its words name a held-out pair of kind and colour."""
        if proposal is None or self.split != "compositional":
            return proposal
        query = proposal.query
        return proposal if any((query.kind, c) in HELD_OUT_COLOURS for c in query.colours) else None

    # -- parts -------------------------------------------------------------------------------------

    def propose_part(self, level: int) -> Proposal | None:
        """A part of one thing at a level; sometimes a part of each thing of a group."""
        things = [t for t in self.things_of_level(level) if self.askable_parts(t)]
        if not things:
            return None
        thing = self.pick(things)
        query: Query | None
        if not self.easy and level < 3 and len(self.by_kind[thing.kind]) > 1 and self.chance(0.12):
            group = self.by_kind[thing.kind] if level == 1 else self.same_colour(thing)
            query = Query(thing.kind, () if level == 1 else (thing.colour,), number=min(len(group), 3))
        else:
            query = self.name_thing(thing)
        if query is None:
            return None
        part = self.pick(self.askable_parts(thing))
        query = replace(query, part=part)
        only_kind = sum(part in KINDS[kind].parts for kind in self.preset.kinds) == 1
        if query == Query(thing.kind, part=part) and only_kind and self.chance(0.85):
            # "the trunk of the tree" has no negative with one changed slot: the word would give the answer away
            query = replace(query, colours=(thing.colour,))
        of_one_side = None
        if len(thing.parts[part]) == 2 and query.number == 1 and self.chance(0.3):
            of_one_side = self.solved(replace(query, side=self.pick(("left", "right"))), level)
        return self.named_in_words(of_one_side or self.solved(query, level))

    # -- groups ------------------------------------------------------------------------------------

    def propose_group(self, level: int) -> Proposal | None:
        """Several things at a level."""
        if self.split != "compositional" and self.chance(0.09 if self.easy else 0.14):
            return self._union(level)
        kinds_here = [kind for kind, things in self.by_kind.items() if len(things) > 1]
        if not kinds_here:
            return None
        kind = self.pick(kinds_here)
        if level == 1:
            colours = {t.colour for t in self.by_kind[kind]}
            shown = (colours.pop(),) if len(colours) == 1 and self.chance(0.5) else ()
            query: Query | None = self._counted(Query(kind, shown))
        elif level == 2:
            query = self._colour_group(kind)
        else:
            query = self._picked_group(kind)
        return self.named_in_words(self.solved(query, level) if query else None)

    def _counted(self, query: Query) -> Query | None:
        """The query for all of its things, either as "all" or with their exact number."""
        found = find_things(self.scene, replace(query, number=0))
        if not found:
            return None
        exact = len(found) if len(found) <= 3 and self.chance(0.5) else 0
        return replace(query, number=exact)

    def _colour_group(self, kind: str) -> Query | None:
        colours = [t.colour for t in self.by_kind[kind]]
        distinct = list(dict.fromkeys(colours))
        if len(distinct) < 2:
            return None
        roll = self.rng.random()
        if not self.easy and roll < 0.2:
            return self._counted(Query(kind, without=self.pick(distinct)))
        if len(distinct) > 2 and roll < 0.5:
            two = tuple(str(c) for c in self.rng.permutation(distinct)[:2])
            return self._counted(Query(kind, two))
        doubled = [c for c in distinct if colours.count(c) > 1]
        return self._counted(Query(kind, (self.pick(doubled),))) if doubled else None

    def _picked_group(self, kind: str) -> Query | None:
        """A group of level 3: the two leftmost, or those in a relation to another thing."""
        thing = self.pick(self.by_kind[kind])
        same = self.same_colour(thing)
        colours = (thing.colour,) if len(same) > 2 and self.chance(0.6) else ()
        if len(same if colours else self.by_kind[kind]) < 3:
            return None
        if self.chance(0.55):
            return Query(kind, colours, order=self.pick(ORDERS), take=2, number=2)
        anchor = self._anchor(kind)
        if anchor is None:
            return None
        return self._counted(Query(kind, colours, relation=self.pick(RELATIONS), anchor=anchor))

    def _union(self, level: int) -> Proposal | None:
        first = [t for t in self.scene.things if self.levels[t.index] <= level]
        if len(first) < 2:
            return None
        one, other = self.pick(first), self.pick(first)
        if one is other or (self.easy and one.kind == other.kind):
            return None
        a, b = self.name_thing(one), self.name_thing(other)
        if a is None or b is None or a.relation or b.relation or a.without or b.without:
            return None
        return self.solved(replace(a, also=b), level)

    # -- no target ---------------------------------------------------------------------------------

    def propose_negative(self, positive: Proposal) -> tuple[str, Query] | None:
        """(changed slot, query) for a query that differs from the positive in one slot and clearly means nothing."""
        if positive.query.also is not None:
            return None  # half of a union would still be there
        slots = ("kind", "colour", "part", "relation", "anchor")
        weights = np.array([0.7, 2.2, 7.0, 6.0, 1.5])
        for number in np.argsort(self.rng.random(len(slots)) ** (1.0 / weights))[::-1]:
            for query in self._changed(positive.query, slots[number]):
                answer = solve(self.scene, query)
                if answer is not None and not answer.paints:
                    return slots[number], query
        return None

    def _changed(self, query: Query, slot: str) -> list[Query]:
        """Queries with another value of one slot, in random order; some of them still have a target."""
        if slot == "kind":
            return self._other_kinds(query)
        if slot == "colour":
            return self._other_colours(query)
        if slot == "part" and query.part:
            return self.other_parts(query)
        if slot == "relation" and query.relation:
            relations = (OPPOSITE[query.relation], *self.rng.permutation(RELATIONS).tolist())
            return [replace(query, relation=r) for r in relations if r != query.relation]
        if slot == "anchor" and query.anchor:
            anchors = (*self._other_colours(query.anchor), *self._other_kinds(query.anchor))
            return [replace(query, anchor=anchor) for anchor in anchors]
        return []

    def may_ask_pair(self, kind: str, colour: str) -> bool:
        """Whether this split may name the kind with the colour."""
        return self.easy or (kind, colour) not in HELD_OUT_COLOURS or self.split == "compositional"

    def _other_colours(self, query: Query) -> list[Query]:
        if not query.colours:
            return []
        present = {t.colour for t in self.scene.things}
        order = self.rng.permutation(self.preset.colours).tolist()
        # colours of the picture first: the colour word alone must not give the answer away
        if self.chance(0.7):
            order.sort(key=lambda colour: colour not in present)
        allowed = [c for c in order if c not in query.colours and self.may_ask_pair(query.kind, c)]
        return [replace(query, colours=(colour, *query.colours[1:])) for colour in allowed[:3]]

    def _other_kinds(self, query: Query) -> list[Query]:
        order = self.rng.permutation(self.preset.kinds).tolist()
        if self.chance(0.85):
            order.sort(key=lambda kind: kind not in self.by_kind)
        allowed = [
            kind
            for kind in order
            if kind != query.kind
            and (query.part is None or self._may_have(kind, query.part))
            and all(self.may_ask_pair(kind, colour) for colour in query.colours)
        ]
        return [replace(query, kind=kind) for kind in allowed[:4]]

    def _may_have(self, kind: str, part: str) -> bool:
        if not self.easy and (kind, part) in HELD_OUT_PARTS and self.split != "part_transfer":
            return False
        return part in KINDS[kind].parts

    def other_parts(self, query: Query) -> list[Query]:
        """The query with each other part that its kind may have."""
        if query.side is not None:
            return []
        parts = self.rng.permutation(KINDS[query.kind].parts).tolist()
        return [replace(query, part=p) for p in parts if p != query.part and self._may_have(query.kind, p)]
