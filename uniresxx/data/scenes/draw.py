"""Draw one picture: place the planned things, number their paints, colour the pixels. Numpy and PIL only.

Shapes: n corners of a kind; y x pixels of the picture, or of a thing's own box.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from uniresxx.data.scenes.graph import PartInstance, Scene, Thing, bounding_box
from uniresxx.data.scenes.kinds import COLOURS, KINDS, PART_NAMES
from uniresxx.data.scenes.layout import Plan, plan_things
from uniresxx.data.scenes.presets import HELD_OUT_PARTS, Preset

NOT_SUPERVISED = 255  # dense part label of pairs that are held out of training: the loss ignores these pixels
_KEEP_VISIBLE = 0.5  # with less than this visible, people cannot tell the kind (docs/scenes.md)


@lru_cache(maxsize=64)
def _outline(kind: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Corners of all pieces of a kind (n, 2) in the instance box, and where each piece starts."""
    pieces = KINDS[kind].pieces
    starts = np.cumsum([0] + [len(piece.points) for piece in pieces])
    return np.concatenate([np.asarray(piece.points) for piece in pieces]), tuple(int(s) for s in starts)


@dataclass(slots=True)
class _Placed:
    """A thing on the canvas."""

    plan: Plan
    paints: list[tuple[int, int]]  # (paint number, number of the kind's piece)
    full_area: int  # pixels, hidden ones included
    visible: int  # pixels that nothing in front of it hides


def _stamp(plan: Plan, size: float, first: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Draw one thing in its own box.

    Returns:
        Paint numbers, uint8 (y, x), 0 outside the thing, and the piece that each number is.
    """
    kind = KINDS[plan.kind]
    corners, starts = _outline(plan.kind)
    aspect = kind.aspect * plan.stretch
    width, height = (size, size / aspect) if aspect >= 1 else (size * aspect, size)
    x = corners[:, 0] * (width - 1)
    y = corners[:, 1] * (height - 1)
    if plan.mirror:
        x = -x
    if plan.turn:
        cosine, sine = np.cos(plan.turn), np.sin(plan.turn)
        x, y = cosine * x - sine * y, sine * x + cosine * y
    points = np.stack([x - x.min(), y - y.min()], axis=1)
    canvas = Image.new("L", (int(points[:, 0].max()) + 1, int(points[:, 1].max()) + 1))
    pen = ImageDraw.Draw(canvas)
    flat = points.ravel().tolist()
    paints: list[tuple[int, int]] = []
    for number, piece in enumerate(kind.pieces):
        if piece.part is not None and piece.part == plan.absent:
            continue
        paint = first + len(paints)
        pen.polygon(flat[2 * starts[number] : 2 * starts[number + 1]], fill=paint)
        paints.append((paint, number))
    return np.asarray(canvas), paints


def _find_place(
    preset: Preset, owner_yx: np.ndarray, placed: list[_Placed], stamp: np.ndarray, rng: np.random.Generator
) -> tuple[int, int, np.ndarray] | None:
    """A place where the thing hides no earlier thing too much.

    Returns:
        Its y and x, and the pixels it hides of each earlier thing (number 0 is the ground); None if none was found.
    """
    height, width = stamp.shape
    solid = stamp > 0
    free_yx = preset.side - np.array([height, width])
    if free_yx.min() < 0:
        return None
    tries = rng.random((30, 2))
    near = not preset.easy and bool(placed) and rng.random() < 0.45
    for spot in tries:
        y, x = (int(v) for v in spot * (free_yx + 1))
        under = owner_yx[y : y + height, x : x + width]
        if preset.easy:
            if not under.any():
                return y, x, np.zeros(len(placed) + 1, dtype=np.int64)
            continue
        covered = np.bincount(under[solid], minlength=len(placed) + 1)
        if near and covered[1:].sum() < 0.1 * solid.sum():
            continue
        if all(
            p.visible - c >= _KEEP_VISIBLE * p.full_area for p, c in zip(placed, covered[1:], strict=True)
        ):
            return y, x, covered
    return None


def _place(
    preset: Preset, plans: list[Plan], rng: np.random.Generator
) -> tuple[np.ndarray, list[_Placed], dict[tuple[int, int], int]]:
    """Put the planned things on the canvas from back to front; a thing that finds no place is left out.

    Returns:
        The paint number of each pixel, the placed things, and how many pixels of one thing another hides.
    """
    side = preset.side
    paint_yx = np.zeros((side, side), dtype=np.uint8)
    owner_yx = np.zeros((side, side), dtype=np.uint8)
    placed: list[_Placed] = []
    covers: dict[tuple[int, int], int] = {}
    paint = 1
    for plan in plans:
        for shrink in (1.0, 0.8, 0.65):
            stamp, paints = _stamp(plan, max(plan.size * shrink, preset.sizes[0]), paint)
            place = _find_place(preset, owner_yx, placed, stamp, rng)
            if place is None:
                continue
            y, x, covered = place
            solid = stamp > 0
            window = (slice(y, y + stamp.shape[0]), slice(x, x + stamp.shape[1]))
            paint_yx[window][solid] = stamp[solid]
            owner_yx[window][solid] = len(placed) + 1
            for other, hidden in enumerate(covered[1:]):
                if hidden:
                    placed[other].visible -= int(hidden)
                    covers[(len(placed), other)] = int(hidden)
            area = int(solid.sum())
            placed.append(_Placed(plan, paints, area, area))
            paint += len(paints)
            break
    return paint_yx, placed, covers


def _describe(paint_yx: np.ndarray, placed: list[_Placed]) -> tuple[Thing, ...]:
    """The scene graph of the visible pixels."""
    side = paint_yx.shape[0]
    flat = paint_yx.ravel()
    steps = np.arange(side, dtype=np.float64)
    area = np.bincount(flat, minlength=256)
    sum_x = np.bincount(flat, weights=np.tile(steps, side), minlength=256)
    sum_y = np.bincount(flat, weights=np.repeat(steps, side), minlength=256)
    things = []
    for index, item in enumerate(placed):
        pieces = KINDS[item.plan.kind].pieces
        numbers = [paint for paint, _ in item.paints]
        total = int(area[numbers].sum())
        parts: dict[str, tuple[PartInstance, ...]] = {}
        for paint, piece in item.paints:
            name, visible = pieces[piece].part, int(area[paint])
            if name is not None and visible:
                instance = PartInstance(
                    paint, visible, float(sum_x[paint] / visible), float(sum_y[paint] / visible)
                )
                parts[name] = (*parts.get(name, ()), instance)
        inside = (paint_yx >= numbers[0]) & (paint_yx <= numbers[-1])  # paints of a thing are consecutive
        things.append(
            Thing(
                index, item.plan.kind, item.plan.colour, tuple(numbers), parts,
                frozenset(name for _, p in item.paints if (name := pieces[p].part) is not None),
                float(sum_x[numbers].sum() / total), float(sum_y[numbers].sum() / total), total,
                item.full_area,
                bounding_box(inside),
            )
        )  # fmt: skip
    return tuple(things)


def _shaded(rgb: np.ndarray, shade: float) -> np.ndarray:
    """A darker (shade < 0) or lighter colour; the other way round if the colour is already dark or light."""
    bright = float(rgb.mean())
    if shade < 0 and bright < 75:
        shade = -shade * 0.7
    elif shade > 0 and bright > 185:
        shade = -shade * 0.6
    return rgb * (1 + shade) if shade < 0 else rgb + (255.0 - rgb) * shade


def _paint_tables(
    preset: Preset, split: str, placed: list[_Placed], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Colour per paint, float32 (256, 3), and dense labels per paint, uint8 (256, 3)."""
    rgb = np.zeros((256, 3), dtype=np.float32)
    dense = np.zeros((256, 3), dtype=np.uint8)
    jitter = 12.0 if preset.easy else 16.0
    for item in placed:
        kind = KINDS[item.plan.kind]
        base = np.asarray(COLOURS[item.plan.colour], dtype=np.float32)
        base = np.clip(base + rng.uniform(-jitter, jitter, 3), 18, 248)
        own = dict(item.plan.own_colours)
        for paint, number in item.paints:
            piece = kind.pieces[number]
            colour = own.get(piece.part or "", item.plan.colour)
            tone = base if colour == item.plan.colour else np.asarray(COLOURS[colour], dtype=np.float32)
            rgb[paint] = _shaded(tone, piece.shade)
            part = PART_NAMES.index(piece.part) + 1 if piece.part else 0
            if split == "train" and not preset.easy and (kind.name, piece.part) in HELD_OUT_PARTS:
                part = NOT_SUPERVISED
            dense[paint] = (preset.kinds.index(kind.name) + 1, preset.colours.index(colour) + 1, part)
    return rgb, dense


@lru_cache(maxsize=8)
def _patterns(side: int) -> np.ndarray:
    """Brightness factors, float32 (3, y, x): plain, stripes, dots."""
    y, x = np.mgrid[:side, :side]
    stripes = np.where((x + y) // 3 % 2, 1.12, 0.86)
    dots = np.where((x % 5 < 2) & (y % 5 < 2), 0.72, 1.05)
    return np.stack([np.ones_like(stripes), stripes, dots]).astype(np.float32)


@lru_cache(maxsize=8)
def _smooth(side: int, knots: int) -> np.ndarray:
    """Linear interpolation weights (side, knots) of a coarse grid."""
    at = np.linspace(0, knots - 1, side)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(knots)[None])).astype(np.float32)


def _ground(preset: Preset, rng: np.random.Generator) -> np.ndarray:
    """The background, float32 (y, x, 3): light and calm (easy) or textured with clutter shapes."""
    side = preset.side
    low, high, tint, rough = (196, 236, 10, 7.0) if preset.easy else (112, 172, 16, 16.0)
    base = rng.uniform(low, high) + rng.uniform(-tint, tint, 3)
    if preset.easy and rng.random() < 0.5:
        return np.broadcast_to(base.astype(np.float32), (side, side, 3)).copy()
    weights = _smooth(side, 7 if preset.easy else 17)
    coarse = rng.standard_normal((weights.shape[1],) * 2, dtype=np.float32) * rough
    ground = base.astype(np.float32) + (weights @ coarse @ weights.T)[..., None]
    if preset.easy:
        return np.asarray(ground, dtype=np.float32)
    count = int(rng.integers(3, 8))
    clutter = Image.new("L", (side, side))
    pen = ImageDraw.Draw(clutter)
    for number in range(count):
        turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 6))))
        centre, radius = rng.uniform(0, side, 2), rng.uniform(5, 16)
        points = centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        pen.polygon(points.ravel().tolist(), fill=number + 1)
    shifts = np.zeros((count + 1, 3), dtype=np.float32)
    shifts[1:] = rng.uniform(-34, 34, (count, 1)) + rng.uniform(-10, 10, (count, 3))
    return np.asarray(ground + shifts[np.asarray(clutter)], dtype=np.float32)


def _colour_in(
    preset: Preset, paint_yx: np.ndarray, placed: list[_Placed], rgb: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The picture, uint8 (y, x, 3)."""
    picture = _ground(preset, rng)
    covered = paint_yx > 0
    colours = rgb[paint_yx[covered]]
    if not preset.easy:
        pattern = np.zeros(256, dtype=np.intp)
        for item in placed:
            pattern[[paint for paint, _ in item.paints]] = item.plan.pattern
        ys, xs = np.nonzero(covered)
        colours = colours * _patterns(preset.side)[pattern[paint_yx[covered]], ys, xs][:, None]
    picture[covered] = colours
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * (4.0 if preset.easy else 7.0)
    return np.asarray(np.clip(picture, 0, 255).astype(np.uint8))


def draw(preset: Preset, split: str, rng: np.random.Generator) -> Scene:
    """One picture and its scene graph; the same generator state gives the same scene."""
    while True:
        plans = plan_things(preset, split, rng)
        paint_yx, placed, covers = _place(preset, plans, rng)
        if len(placed) >= preset.objects[0] and (split != "crowded" or len(placed) >= 9):
            break
    things = _describe(paint_yx, placed)
    rgb, dense = _paint_tables(preset, split, placed, rng)
    pixels = _colour_in(preset, paint_yx, placed, rgb, rng)
    return Scene(
        preset.side, preset.margin, preset.min_part, pixels, paint_yx, dense[paint_yx], things, covers
    )
