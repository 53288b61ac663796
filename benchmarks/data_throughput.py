"""How many prepared samples per second come out of a store with 1 and 2 worker processes, and where time goes.

Photographs are made at run time (gradients, shapes and noise, JPEG, about 640 x 480), with as many expressions
as RefCOCO has per photo, in a prepared store. A sample is one photo with up to 8 expressions at the sizes of
the recipe tiny_scenes: decoded, resized into both views, boxes proposed, masks resized, text tokenised. The
details say how many samples per second a training step of that recipe takes: loading must be faster than that.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks._common import finish, interleaved, median_of, parser
from mllm.chat import Row, render
from train.distributed import Ranks
from train.engines.choose import build_engine
from train.recipe import Recipe
from train.recipes.tiny_scenes import tiny_scenes
from train.step import do_step, prefetch
from uniresxx.data.mixture.batches import Batches
from uniresxx.data.mixture.open import open_mixture
from uniresxx.data.mixture.parts import MixturePart
from uniresxx.data.store.photos import photo_of
from uniresxx.data.store.write import Preparation, write_store
from uniresxx.imaging.geometry import Letterbox
from uniresxx.imaging.masks import area, decode, from_polygons
from uniresxx.model.collate import PackedCollator
from uniresxx.model.templates import expression_turn
from uniresxx.types import Expression, Granularity, ImageRecord

NAME = "data_throughput"
PHOTOS, SMALL_PHOTOS = 120, 12
HEIGHT, WIDTH = 480, 640
EXPRESSIONS = 7  # of one photo; RefCOCO has 7.1
BATCH_IMAGES, SHOWN = 8, 8  # images of a batch, expressions of an image
BATCHES, SMALL_BATCHES = 12, 3  # measured, after WARM_UP
WARM_UP = 4
REPEATS, SMALL_REPEATS = 5, 2
STEPS = 8  # of training, for what a step takes
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
THINGS = ("man on the left", "car", "dog next to the bench", "woman in the middle", "cup on the table")


def photograph(number: int) -> np.ndarray:
    """uint8 (y, x, 3): a gradient with blocks of colour and noise, which costs a decoder what a photo does."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    picture = np.stack([y / 3 + x * k for k in rng.random(3) / 5], axis=2)
    for _ in range(12):
        top, left = rng.integers(0, HEIGHT - 60), rng.integers(0, WIDTH - 80)
        picture[top : top + rng.integers(20, 160), left : left + rng.integers(20, 200)] += rng.normal(
            0, 60, 3
        )
    picture += rng.normal(0, 9, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def record(folder: Path, number: int) -> ImageRecord:
    """A photo on disk with expressions whose masks are polygons of a few dozen corners."""
    path = folder / f"{number:06d}.jpg"
    Image.fromarray(photograph(number)).save(path, quality=90)
    rng = np.random.default_rng((number, 1))
    expressions = []
    for place in range(EXPRESSIONS):
        angles = np.sort(rng.random(30)) * 2 * np.pi
        radius = rng.uniform(30, 110) * rng.uniform(0.7, 1.0, 30)
        corners = np.stack([320 + radius * np.cos(angles), 240 + radius * np.sin(angles)], axis=1)
        rle = from_polygons([corners.ravel().tolist()], HEIGHT, WIDTH)
        text = f"{COLOURS[rng.integers(6)]} {THINGS[rng.integers(5)]}"
        expressions.append(
            Expression(f"made/train/{number}_{place}", text, Granularity.OBJECT, rle, area(rle))
        )
    return ImageRecord(str(number), HEIGHT, WIDTH, tuple(expressions), path=str(path))


@dataclass(frozen=True)
class Bench:
    """What all arms share."""

    recipe: Recipe
    batches: Batches
    model: Any

    def samples_per_s(self, workers: int, count: int) -> float:
        """Of `count` batches, after WARM_UP; the processes are started before the clock."""
        data = replace(self.recipe.data, workers=workers)
        optim = replace(self.recipe.optim, steps=WARM_UP + count)
        stream = prefetch(self.batches, replace(self.recipe, data=data, optim=optim), 0)
        for _ in range(WARM_UP):
            next(stream)
        start = time.perf_counter()
        for _ in range(count):
            next(stream)
        seconds = time.perf_counter() - start
        stream.close()
        return count * BATCH_IMAGES / seconds


def opened(folder: Path, photos: int) -> Bench:
    """The store, and the tiny recipe on it."""
    from train.assemble import open_job

    pictures = folder / "images"
    pictures.mkdir()
    records = [record(pictures, number) for number in range(photos)]
    write_store(folder / "store", Preparation("made", {"train": lambda: (records, {})}, image_root=folder))
    recipe = tiny_scenes()
    data = replace(
        recipe.data, source=str(folder / "store"), batch_images=BATCH_IMAGES, expressions_per_image=SHOWN,
        warmup_images=0,
    )  # fmt: skip
    model = replace(recipe.model, dense_classes=(), loss=replace(recipe.model.loss, dense=0.0))
    recipe = replace(recipe, data=data, model=model)
    job = open_job(recipe, None)
    mixture = open_mixture((MixturePart(data.source),), SHOWN, recipe.seed)
    assert isinstance(job.batches, Batches)
    return Bench(recipe, replace(job.batches, source=mixture), job.model)


def shares(bench: Bench, samples: int) -> dict[str, float]:
    """Percent of the time of a sample by what it is spent on, in this process; pieces timed on their own."""
    collator = bench.batches.collator
    assert isinstance(collator, PackedCollator)
    config, vocabulary = collator.config, collator.vocabulary
    spent = dict.fromkeys(("order and record", "decode", "resize", "masks", "tokens"), 0.0)
    whole = 0.0
    for slot in range(samples):
        start = time.perf_counter()
        bench.batches.draw(slot)
        whole += time.perf_counter() - start
        marks = [time.perf_counter()]
        item = bench.batches.source(slot)
        marks.append(time.perf_counter())
        photo = photo_of(item)
        marks.append(time.perf_counter())
        frame = Letterbox.fit(item.height, item.width, config.mllm.high_size)
        frame.photo(photo)
        if config.mllm.low_size != config.mllm.high_size:
            Letterbox.fit(item.height, item.width, config.mllm.low_size).photo(photo)
        marks.append(time.perf_counter())
        for expression in item.expressions:
            if expression.rle is not None:
                frame.mask(decode(expression.rle))
        marks.append(time.perf_counter())
        row = Row()
        for expression in item.expressions:
            render([expression_turn(expression, 0)], vocabulary, row)
        marks.append(time.perf_counter())
        for name, begin, end in zip(spent, marks[:-1], marks[1:], strict=True):
            spent[name] += end - begin
    spent["rest (region proposals above all)"] = max(whole - sum(spent.values()), 0.0)
    return {name: round(100 * seconds / whole, 1) for name, seconds in spent.items()}


def step_takes(bench: Bench, steps: int) -> float:
    """Samples per second that training takes when it never waits for the stream."""
    recipe = replace(bench.recipe, engine=replace(bench.recipe.engine, device="cpu"))
    engine = build_engine(bench.model, recipe, Ranks())
    batch = bench.batches(0, 0)
    bench.model.train()
    times = []
    for step in range(steps + 1):
        start = time.perf_counter()
        do_step(engine, bench.model, [batch], step)
        times.append(time.perf_counter() - start)
    return BATCH_IMAGES / median_of(times[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; exit code 0."""
    words = parser(NAME, __doc__).parse_args(argv)
    torch.set_num_threads(1)
    photos, batches, repeats = (
        (SMALL_PHOTOS, SMALL_BATCHES, SMALL_REPEATS) if words.small else (PHOTOS, BATCHES, REPEATS)
    )
    with tempfile.TemporaryDirectory() as folder:
        bench = opened(Path(folder), photos)
        found = interleaved(
            {str(n): partial(bench.samples_per_s, n, batches) for n in (1, 2)},
            repeats,
        )
        details = {
            "percent_of_a_sample": shares(bench, photos // 4),
            "samples_per_s_a_training_step_takes": round(step_takes(bench, STEPS), 1),
            "photos": f"{photos} of {WIDTH} x {HEIGHT}, {EXPRESSIONS} expressions each",
            "all_runs": {name: [round(value, 1) for value in values] for name, values in found.items()},
            "load_average": [round(value, 1) for value in os.getloadavg()],
        }
    headline = {f"samples_per_s_{name}": round(median_of(values), 1) for name, values in found.items()}
    finish(NAME, headline, details, words.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
