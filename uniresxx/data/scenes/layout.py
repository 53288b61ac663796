"""Plan a picture: which things, in which colours, sizes and poses.

Every picture has groups of things of one kind, so that an expression must say which of them it means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uniresxx.data.scenes.kinds import KINDS
from uniresxx.data.scenes.presets import HELD_OUT_COLOURS, HELD_OUT_PARTS, Preset


@dataclass(frozen=True, slots=True)
class Plan:
    """One thing to draw; `turn` in radians, `stretch` multiplies width / height."""

    kind: str
    colour: str
    size: float
    absent: str | None  # the optional part that it lacks
    own_colours: tuple[tuple[str, str], ...]
    pattern: int
    mirror: bool
    turn: float
    stretch: float


def _pick(rng: np.random.Generator, choices: list[str]) -> str:
    return choices[int(rng.random() * len(choices))]


def _allowed(preset: Preset, kind: str) -> list[str]:
    """Colours a kind may wear; held-out pairs are for `compositional` alone."""
    if preset.easy:
        return list(preset.colours)
    return [colour for colour in preset.colours if (kind, colour) not in HELD_OUT_COLOURS]


def _group(
    preset: Preset, split: str, kind: str, count: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """(kind, colour) of the things of one group: some in a first colour, the others in further ones."""
    colours = [str(c) for c in rng.permutation(_allowed(preset, kind))]
    first = colours[0]
    if split == "compositional":
        first = next((c for k, c in sorted(HELD_OUT_COLOURS) if k == kind), first)
    roll = rng.random()
    if preset.easy:
        same = count if roll < 0.12 else max(1, count - 1) if roll < 0.3 else 1
    else:
        same = 1 if roll < 0.12 else min(count, 2) if roll < 0.6 else max(2, count - 1)
    others = [colour for colour in colours if colour != first]
    return [(kind, colour) for colour in [first] * same + others[: count - same]]


def _cast(preset: Preset, split: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(kind, colour) of every thing: one or two groups of a kind, then single things that often reuse a colour."""
    order = [str(kind) for kind in rng.permutation(preset.kinds)]
    if split == "part_transfer":
        held = [kind for kind in order if any(kind == k for k, _ in HELD_OUT_PARTS)]
        order = held[:1] + [kind for kind in order if kind != held[0]]
    low, high = (9, 12) if split == "crowded" else preset.objects
    total = int(rng.integers(low, high + 1))
    if preset.easy:
        groups = [2 if total < 4 or rng.random() < 0.65 else 3]
    else:
        groups = [min(int(rng.integers(3, 5)), total - 1)]
        if total - groups[0] >= 3 and rng.random() < 0.75:
            groups.append(2 if total - groups[0] < 5 else 3)
    cast: list[tuple[str, str]] = []
    for number, count in enumerate(groups):
        cast += _group(preset, split, order[number], count, rng)
    for kind in order[len(groups) : len(groups) + total - len(cast)]:
        allowed = _allowed(preset, kind)
        used = [colour for _, colour in cast if colour in allowed]
        cast.append((kind, _pick(rng, used) if used and rng.random() < 0.45 else _pick(rng, allowed)))
    return cast


def _absent(preset: Preset, split: str, kind: str, rng: np.random.Generator) -> str | None:
    """The optional part that is not drawn, if any; at most one, so that people can still tell the kind."""
    optional = KINDS[kind].optional
    missing = rng.random() < preset.missing
    part = optional[int(rng.random() * len(optional))] if optional else None
    if split == "part_transfer" and (kind, part) in HELD_OUT_PARTS:
        missing = missing and rng.random() < 0.5  # this split needs these parts: drop them half as often
    return part if missing else None


def plan_things(preset: Preset, split: str, rng: np.random.Generator) -> list[Plan]:
    """Everything to draw in a picture, from back to front."""
    cast = _cast(preset, split, rng)
    low, high = preset.sizes
    if split == "crowded":
        high = 40
    plans = []
    for number in rng.permutation(len(cast)):
        kind, colour = cast[int(number)]
        # our choice: smaller sizes come more often, as in crowded photographs
        size = low + (high - low) * float(rng.random()) ** (1.0 if preset.easy else 1.15)
        absent = _absent(preset, split, kind, rng)
        mirror = bool(rng.random() < 0.5)
        if preset.easy:
            plans.append(Plan(kind, colour, size, absent, (), 0, mirror, 0.0, 1.0))
            continue
        own = tuple(
            (part, _pick(rng, list(preset.colours)))
            for part in KINDS[kind].own_colour
            if part != absent and rng.random() < 0.12
        )
        turn = float(rng.uniform(-0.6, 0.6) if kind == "hammer" else rng.uniform(-0.18, 0.18))
        stretch = float(rng.uniform(0.86, 1.16))
        plans.append(Plan(kind, colour, size, absent, own, int(rng.integers(3)), mirror, turn, stretch))
    return plans
