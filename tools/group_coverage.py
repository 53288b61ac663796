"""`python -m tools.group_coverage RUN BENCHMARK [--pictures N]`: do low-level groups of a UniRES cover parts?

The region of a group is the fewest patches that hold half of its attention before it leaves the encoder. Its best
IoU with a true part is compared with its best IoU with a true object (single ones; the masks of the benchmark's
expressions). A group "covers a part" where the first is larger. Parts are smaller than objects, so small regions
cover them by chance: the control moves each region to a random place (torus), which keeps its size and form.
Intervals: 95 %, 2,000 resamples of pictures. Exit codes: 0 done; 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from uniresxx.data.catalog import load_benchmark
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.imaging.geometry import Letterbox
from uniresxx.imaging.masks import decode
from uniresxx.model.processing import pixels
from uniresxx.segmenters.unires.explain import group_attention, load_grouped
from uniresxx.segmenters.unires.modeling import Unires
from uniresxx.types import Granularity, ImageRecord

RESAMPLES = 2_000
LEVELS = ("low", "high")


class Overlap(NamedTuple):
    """Of the regions of one picture's groups: best IoU with a part and with an object, by level; NaN: no region."""

    part_LG: np.ndarray
    object_LG: np.ndarray


def best_iou(regions_Gyx: np.ndarray, masks_Kyx: np.ndarray) -> np.ndarray:
    """The largest IoU of each region with one of the masks (G,); NaN where the region is empty."""
    regions, masks = (x.reshape(len(x), -1).astype(np.float64) for x in (regions_Gyx, masks_Kyx))
    shared_GK = regions @ masks.T
    joined_GK = regions.sum(1)[:, None] + masks.sum(1) - shared_GK
    return np.where(regions.sum(1) > 0, (shared_GK / np.maximum(joined_GK, 1)).max(axis=1), np.nan)


def regions_of(look_GN: np.ndarray, box: Letterbox, grid: int) -> np.ndarray:
    """Bool (G, S, S) in the square frame: the fewest patches that hold half of a group's attention, on the photo."""
    order_GN = np.argsort(-look_GN, axis=1, kind="stable")
    before_GN = np.cumsum(np.take_along_axis(look_GN, order_GN, axis=1), axis=1)
    before_GN -= np.take_along_axis(look_GN, order_GN, axis=1)  # what better patches hold
    chosen_GN = np.zeros(look_GN.shape, dtype=bool)
    np.put_along_axis(chosen_GN, order_GN, before_GN < 0.5 * look_GN.sum(axis=1, keepdims=True), axis=1)
    cell = box.side // grid
    found_Ggg = chosen_GN.reshape(-1, grid, grid)
    return found_Ggg.repeat(cell, axis=1).repeat(cell, axis=2) & box.valid()


def moved(regions_Gss: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each region at a random place of the torus."""
    places = rng.integers(0, regions_Gss.shape[1], (len(regions_Gss), 2))
    return np.stack([np.roll(r, tuple(p), (0, 1)) for r, p in zip(regions_Gss, places, strict=True)])


def overlaps(
    model: Unires, records: Iterable[ImageRecord], seed: int = 0
) -> tuple[list[Overlap], list[Overlap]]:
    """Of every picture with a part and an object: the groups' overlap, and that of the moved regions."""
    rng = np.random.default_rng(seed)
    found: list[Overlap] = []
    control: list[Overlap] = []
    for record in records:
        box = Letterbox.fit(record.height, record.width, model.config.size)
        truth = [masks_of(record, kind, box) for kind in (Granularity.PART, Granularity.OBJECT)]
        if not all(map(len, truth)):
            continue
        inputs = pixels([box.photo(photo_of(record))]).to(model.patches.weight.device)
        looks = group_attention(model.vision, model.normalise(inputs))
        regions = [regions_of(look[0].float().cpu().numpy(), box, model.config.grid) for look in looks]
        for kept, levels in ((found, regions), (control, [moved(level, rng) for level in regions])):
            kept.append(Overlap(*(np.stack([best_iou(level, masks) for level in levels]) for masks in truth)))
    return found, control


def masks_of(record: ImageRecord, kind: Granularity, box: Letterbox) -> np.ndarray:
    """Bool (K, S, S) of the expressions of a granularity."""
    rles = [e.rle for e in record.expressions if e.granularity == kind and e.rle is not None]
    return np.stack([box.mask(decode(rle)) for rle in rles]) if rles else np.zeros((0, box.side, box.side))


def shares(found: Sequence[Overlap]) -> np.ndarray:
    """Of each picture, the share of groups that cover a part, in percent (pictures, levels)."""
    part, other = (np.stack([getattr(o, name) for o in found]) for name in Overlap._fields)
    covers = np.where(np.isnan(part), np.nan, 100.0 * (part > other))
    return np.nanmean(covers, axis=2)


def interval(values_I: np.ndarray, seed: int = 0) -> str:
    """Mean over pictures with its interval."""
    known = values_I[~np.isnan(values_I)]
    drawn = np.random.default_rng(seed).integers(0, len(known), (RESAMPLES, len(known)))
    low, high = np.percentile(known[drawn].mean(axis=1), (2.5, 97.5))
    return f"{known.mean():.1f} ({low:.1f} to {high:.1f})"


def report(found: Sequence[Overlap], control: Sequence[Overlap]) -> str:
    """The table."""
    lines = [
        f"{len(found)} pictures",
        "| groups | cover a part | moved regions | best IoU part | object |",
        "|---|---|---|---|---|",
    ]
    own, chance = shares(found), shares(control)
    for i, level in enumerate(LEVELS):
        means = [100 * np.nanmean([getattr(o, name)[i] for o in found]) for name in Overlap._fields]
        lines.append(
            f"| {level} | {interval(own[:, i])} | {interval(chance[:, i])} | {means[0]:.1f} | {means[1]:.1f} |"
        )
    lines.append(f"low - high: {interval(own[:, 0] - own[:, 1])}")
    excess = own - chance
    lines.append(f"low - high, each beyond its moved regions: {interval(excess[:, 0] - excess[:, 1])}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The program: returns the exit code, prints an error as one line."""
    parser = argparse.ArgumentParser(prog="python -m tools.group_coverage", description=__doc__)
    parser.add_argument(
        "run", help="run or checkpoint folder of a UniRES with groups of both levels, as many of each"
    )
    parser.add_argument("benchmark", help="NAME/SPLIT of drawn scenes")
    parser.add_argument("--pictures", type=int, default=None, help="the first so many")
    options = parser.parse_args(argv)
    try:
        model = load_grouped(options.run)
        if model.config.low_groups != model.config.high_groups:
            counts = f"{model.config.low_groups} and {model.config.high_groups} groups"
            raise InputError(f"{options.run} has {counts}: they are compared where both levels have as many")
        records = load_benchmark(options.benchmark, None)[: options.pictures]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with torch.inference_mode():
        print(report(*overlaps(model, records)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
