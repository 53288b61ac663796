"""Every role for drawn scenes of the easy preset, from pixels and a number of labelled scenes; no weights.

The ground of such a scene has one hue and is light, so things are what has another hue or is dark. A thing gets the
kind and the part map of the labelled things that look most like it. For tests and for a first look at the engine.
Shapes: y x pixels of the picture, g side of the grid that a thing is scaled to, K labelled things, D numbers of a
thing's description, P parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from PIL import Image
from scipy import ndimage

from data_engine.records import Box
from data_engine.roles import FoundBox, FoundMask, FoundPart, Region
from uniresxx.data.readers.part_names import plural
from uniresxx.data.scenes.graph import Scene, Thing
from uniresxx.data.scenes.kinds import PART_NAMES
from uniresxx.data.scenes.presets import preset_of
from uniresxx.data.scenes.record import build_scene
from uniresxx.errors import InputError

GRID = 16
NEIGHBOURS = 7
HUE_CUT, STRICT, LAX = 26.0, 34.0, 20.0  # distance from the ground's hue; noise of a pixel is about 6
DARK = 150.0  # mean of the channels: darker pixels are no ground, which starts at 180
MIN_PIXELS = 12


@dataclass(frozen=True, slots=True)
class _Known:
    """A labelled thing."""

    kind: str
    colour: str
    hue: np.ndarray  # (2,), see _hue
    describes_D: np.ndarray
    parts_gg: np.ndarray  # place in PART_NAMES + 1, 0: none
    shade_of_part: Mapping[int, float]  # mean brightness of each part, as a share of the thing's


class DrawnScenes:
    """Detector, segmenter, part segmenter and captioner for drawn scenes."""

    def __init__(self, known: Sequence[_Known]) -> None:
        self.known = known
        self.known_KD = np.stack([item.describes_D for item in known])
        self.squares_K = (self.known_KD**2).sum(axis=1)
        self.kinds = np.array([item.kind for item in known])
        self.of_kind = {kind: np.flatnonzero(self.kinds == kind) for kind in sorted({*self.kinds.tolist()})}
        hues: dict[str, list[np.ndarray]] = {}
        for item in known:
            hues.setdefault(item.colour, []).append(item.hue)
        self.hues = {colour: np.mean(found, axis=0) for colour, found in sorted(hues.items())}

    @classmethod
    def named(cls, source: str) -> Self:
        """PRESET:COUNT, as `scenes_easy:1000`: the first COUNT scenes of its training split. InputError."""
        preset, _, count = source.partition(":")
        numbers = preset_of(preset)
        if not numbers.easy or not count.isdecimal() or not 1 <= int(count) <= 100_000:
            raise InputError(f"model drawn: {source!r} must be scenes_easy:COUNT, such as scenes_easy:1000")
        return cls(_labelled(preset, int(count)))

    # -- roles ---------------------------------------------------------------------------------------

    def detect(self, photo_yx3: np.ndarray, categories: Sequence[str]) -> list[FoundBox]:
        """Every connected thing; its score is the share of its neighbours that are of its kind."""
        found = []
        for mask_yx in _things(_foreground(photo_yx3, HUE_CUT)):
            near = self._nearest(photo_yx3, mask_yx)
            kind, votes = Counter(self.kinds[near].tolist()).most_common(1)[0]
            if kind in categories:
                found.append(FoundBox(kind, _box(mask_yx), votes / len(near)))
        return found

    def best_scores(self, photo_yx3: np.ndarray, texts: Sequence[str]) -> list[float]:
        """1 where a thing has the kind and the colour of a text, else 0; other words are not understood."""
        things = [caption.split()[1:] for caption in self._named(photo_yx3)]
        return [float(any(set(words) <= set(text.split()) for words in things)) for text in texts]

    def _named(self, photo_yx3: np.ndarray) -> list[str]:
        found = self.detect(photo_yx3, sorted(set(self.kinds.tolist())))
        return self.captions(photo_yx3, [Region(item.box, item.category) for item in found])

    def segment(self, photo_yx3: np.ndarray, boxes: Sequence[Box]) -> list[FoundMask]:
        """The connected thing that fills most of each box; its quality is the IoU of its box and the given one."""
        things = _things(_foreground(photo_yx3, HUE_CUT))
        strict_yx, lax_yx = _foreground(photo_yx3, STRICT), _foreground(photo_yx3, LAX)
        found = []
        for box in boxes:
            asked_yx = _filled(box, photo_yx3)
            mask_yx = max(things, key=lambda thing: (thing & asked_yx).sum(), default=np.zeros_like(asked_yx))
            own_yx = _filled(_box(mask_yx), photo_yx3) if mask_yx.any() else mask_yx
            quality = (own_yx & asked_yx).sum() / max((own_yx | asked_yx).sum(), 1)
            near_yx = ndimage.binary_dilation(mask_yx, iterations=2)
            stability = (strict_yx & near_yx).sum() / max((lax_yx & near_yx).sum(), 1)
            found.append(FoundMask(mask_yx, float(quality), float(stability)))
        return found

    def parts(self, photo_yx3: np.ndarray, region: Region, definitions: Mapping[str, str]) -> list[FoundPart]:
        """Parts by the maps of the nearest things of its kind, refined by how bright each part is."""
        mask_yx = _mask_of(region, photo_yx3)
        near = [int(k) for k in self._nearest(photo_yx3, mask_yx, region.category)]
        x0, y0, x1, y1 = (int(value) for value in _box(mask_yx))
        size = (x1 - x0, y1 - y0)
        brightness_yx = photo_yx3.mean(axis=2)[y0:y1, x0:x1]
        inside_yx = mask_yx[y0:y1, x0:x1]
        brightness_yx = brightness_yx / max(float(brightness_yx[inside_yx].mean()), 1.0)
        names = {PART_NAMES.index(name) + 1: name for name in definitions if name in PART_NAMES}
        labels = [0, *names]
        votes = np.zeros((len(labels), y1 - y0, x1 - x0))
        for k in near:
            chosen = np.asarray(
                Image.fromarray(self.known[k].parts_gg).resize(size, Image.Resampling.NEAREST)
            )
            votes += np.stack([chosen == label for label in labels])
        votes /= len(near)
        fits = np.stack([self._fit(near, label, brightness_yx) for label in labels])
        scores = (ndimage.uniform_filter(votes, (0, 2, 2)) + 0.02) * fits
        best_yx = scores.argmax(axis=0)
        share = scores.max(axis=0) / scores.sum(axis=0)
        found = []
        for place, label in enumerate(labels[1:], start=1):
            here_yx = (best_yx == place) & inside_yx
            if here_yx.sum() < MIN_PIXELS // 2:
                continue
            whole_yx = np.zeros_like(mask_yx)
            whole_yx[y0:y1, x0:x1] = here_yx
            found.append(FoundPart(names[label], whole_yx, float(share[here_yx].mean())))
        return found

    def captions(self, photo_yx3: np.ndarray, regions: Sequence[Region]) -> list[str]:
        """ "the red car", "wheels of the red car", as the scenes' sentences say it; of the picture, all things."""
        texts = []
        things = _things(_foreground(photo_yx3, HUE_CUT))
        for region in regions:
            if not region.category:
                texts.append(", ".join(self._named(photo_yx3)))
                continue
            owner_yx = max(
                things,
                key=lambda thing: (thing & _filled(region.box, photo_yx3)).sum(),
                default=_mask_of(region, photo_yx3),
            )
            hue = _hue(photo_yx3, owner_yx)
            colour = min(self.hues, key=lambda name: float(((self.hues[name] - hue) ** 2).sum()))
            thing = f"the {colour} {region.category}"
            if region.part is None:
                texts.append(thing)
            else:
                several = len(_things(_mask_of(region, photo_yx3), 3)) > 1
                texts.append(f"{plural(region.part) if several else region.part} of {thing}")
        return texts

    # -- what looks alike ------------------------------------------------------------------------------

    def _nearest(self, photo_yx3: np.ndarray, mask_yx: np.ndarray, kind: str | None = None) -> np.ndarray:
        """The places of the labelled things (of a kind) that look most like this one."""
        among_k = self.of_kind.get(kind, np.arange(len(self.known)))
        table_kD = self.known_KD if kind not in self.of_kind else self.known_KD[among_k]
        far_k = self.squares_K[among_k] - 2 * (table_kD @ _description(photo_yx3, mask_yx))
        near: np.ndarray = among_k[np.argsort(far_k, kind="stable")[:NEIGHBOURS]]
        return near

    def _fit(self, near: Sequence[int], label: int, brightness_yx: np.ndarray) -> np.ndarray:
        """How well each pixel's brightness fits a part, 0..1: a bell around what the neighbours' part has."""
        known = [self.known[k].shade_of_part[label] for k in near if label in self.known[k].shade_of_part]
        if not known:
            return np.full(brightness_yx.shape, 1e-3)
        fit_yx: np.ndarray = np.exp(-0.5 * ((brightness_yx - np.mean(known)) / 0.16) ** 2)
        return fit_yx


# -- pixels ------------------------------------------------------------------------------------------


def _chroma(photo_yx3: np.ndarray) -> np.ndarray:
    photo = photo_yx3.astype(np.float32)
    return np.stack([photo[..., 0] - photo[..., 1], photo[..., 1] - photo[..., 2]], axis=-1)


def _foreground(photo_yx3: np.ndarray, cut: float) -> np.ndarray:
    """Bool (y, x): pixels of another hue than the picture's outermost ones, or dark."""
    chroma = _chroma(photo_yx3)
    border = np.concatenate([chroma[0], chroma[-1], chroma[:, 0], chroma[:, -1]])
    distance = np.sqrt(((chroma - np.median(border, axis=0)) ** 2).sum(axis=-1))
    found_yx: np.ndarray = (distance > cut) | (photo_yx3.mean(axis=2) < DARK)
    return found_yx


def _things(mask_yx: np.ndarray, least: int = MIN_PIXELS) -> list[np.ndarray]:
    """The connected regions of a mask, each as a mask."""
    numbered, count = ndimage.label(mask_yx, structure=np.ones((3, 3)))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)
    return [numbered == number for number in range(1, count + 1) if sizes[number] >= least]


def _box(mask_yx: np.ndarray) -> Box:
    xs, ys = np.flatnonzero(mask_yx.any(axis=0)), np.flatnonzero(mask_yx.any(axis=1))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def _filled(box: Box, photo_yx3: np.ndarray) -> np.ndarray:
    mask_yx = np.zeros(photo_yx3.shape[:2], dtype=bool)
    x0, y0, x1, y1 = (round(value) for value in box)
    mask_yx[y0:y1, x0:x1] = True
    return mask_yx


def _mask_of(region: Region, photo_yx3: np.ndarray) -> np.ndarray:
    return _filled(region.box, photo_yx3) if region.mask_yx is None else region.mask_yx


def _hue(photo_yx3: np.ndarray, mask_yx: np.ndarray) -> np.ndarray:
    """The direction of the summed chroma of a thing's pixels, (2,): shading does not change it."""
    total = _chroma(photo_yx3)[mask_yx].sum(axis=0)
    direction: np.ndarray = total / max(float(np.hypot(*total)), 1e-6)
    return direction


def _description(photo_yx3: np.ndarray, mask_yx: np.ndarray) -> np.ndarray:
    """A thing as numbers: its shape and its shading on a grid, and its proportions, (D,)."""
    x0, y0, x1, y1 = (int(value) for value in _box(mask_yx))
    shape = mask_yx[y0:y1, x0:x1].astype(np.float32)
    bright = photo_yx3.mean(axis=2)[y0:y1, x0:x1] * shape
    bright = bright / max(float(bright.sum() / shape.sum()), 1.0)
    grids = [
        np.asarray(Image.fromarray(values.astype(np.float32)).resize((GRID, GRID), Image.Resampling.BOX))
        for values in (shape, bright)
    ]
    proportion = np.log((x1 - x0) / (y1 - y0))
    return np.concatenate([grids[0].ravel(), 0.7 * grids[1].ravel(), [GRID * 0.5 * proportion]])


# -- labelled scenes ---------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _labelled(preset: str, count: int) -> tuple[_Known, ...]:
    """The things of the first `count` training scenes."""
    numbers = preset_of(preset)
    scenes = (build_scene(numbers, "train", index, 0) for index in range(count))
    return tuple(known for scene in scenes for known in _known_things(scene))


def _known_things(scene: Scene) -> Iterator[_Known]:
    for thing in scene.things:
        mask_yx = scene.mask(thing.paints)
        labels_yx = _part_labels(scene, thing)
        x0, y0, x1, y1 = thing.box
        bright = scene.pixels_yx3.mean(axis=2)
        mean = float(bright[mask_yx].mean())
        shades = {
            int(label): float(bright[mask_yx & (labels_yx == label)].mean()) / mean
            for label in np.unique(labels_yx[mask_yx])
        }
        grid = Image.fromarray(labels_yx[y0:y1, x0:x1]).resize((GRID * 2, GRID * 2), Image.Resampling.NEAREST)
        yield _Known(
            thing.kind, thing.colour, _hue(scene.pixels_yx3, mask_yx),
            _description(scene.pixels_yx3, mask_yx), np.asarray(grid), shades,
        )  # fmt: skip


def _part_labels(scene: Scene, thing: Thing) -> np.ndarray:
    """uint8 (y, x): the part of each pixel of a thing, 0 none."""
    labels_yx = np.zeros(scene.paint_yx.shape, dtype=np.uint8)
    for name, instances in thing.parts.items():
        labels_yx[scene.mask([instance.paint for instance in instances])] = PART_NAMES.index(name) + 1
    return labels_yx
