"""What a recipe names, opened: data, vocabulary, model, and the picture that shows what the model sees now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mllm.tokens import Vocabulary
from train.loop import Job
from train.recipe import DataConfig, Recipe
from uniresxx.data.benchmarks import load_benchmark
from uniresxx.data.mixture import Batches, RecordSource, SceneSource, Source
from uniresxx.data.scenes import scene_record, text_corpus
from uniresxx.data.scenes.lessons import COLOUR_FORMS, SIDE_FORMS
from uniresxx.data.templates import TRAINING_TEMPLATES
from uniresxx.errors import InputError
from uniresxx.evaluate import look_at
from uniresxx.film_unet.config import FilmUNetConfig
from uniresxx.film_unet.modeling import build_film_unet
from uniresxx.images import photo_of
from uniresxx.masks import decode
from uniresxx.model.build import build_for_training, check_sources, open_vocabulary
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.overlay import Layer, draw_overlay
from uniresxx.segmenter import EVALUATION_TEMPLATE, Decoding, Segmenter
from uniresxx.types import ImageRecord

SCENES = ("scenes_easy", "scenes")
CORPUS_LINES = 4_000
SHOWN = 3  # pictures in an overlay

# What `recipe.model` may be, and who builds it from a vocabulary.
BUILDERS: dict[type, Callable[[Any, Vocabulary], Any]] = {
    UniRESPlusPlusConfig: partial(build_for_training, say=print),
    FilmUNetConfig: build_film_unet,
}


def open_job(recipe: Recipe, data: Path | None) -> Job:
    """Everything `train` needs. Raises InputError where the data cannot be read."""
    inputs = recipe.model.view if isinstance(recipe.model, FilmUNetConfig) else recipe.model
    check_sources(inputs)
    source, shown, corpus, fingerprint = _open_data(recipe, data)
    vocabulary = open_vocabulary(inputs, [*corpus, *TRAINING_TEMPLATES])
    torch.manual_seed(recipe.seed)
    model = BUILDERS[type(recipe.model)](recipe.model, vocabulary)
    d = recipe.data
    batches = Batches(
        source, inputs, vocabulary, recipe.seed,
        d.batch_images, d.accumulate, d.expressions_per_image, d.dialogue_share,
    )  # fmt: skip
    extra = {"templates": {"training": list(TRAINING_TEMPLATES), "evaluation": EVALUATION_TEMPLATE}}
    return Job(model, batches, lambda step: overlay(model, shown, step), fingerprint, extra)


def _open_data(recipe: Recipe, data: Path | None) -> tuple[Source, list[ImageRecord], list[str], str]:
    """Source of training images, pictures for the overlay, text for the vocabulary, fingerprint of the data."""
    d, seed = recipe.data, recipe.seed
    _check_source(d)
    if d.source in SCENES:
        shown = [scene_record(d.source, "val", index) for index in range(SHOWN)]
        source = SceneSource(d.source, seed, d.first_preset, d.first_images, d.lesson_images)
        return (
            source,
            shown,
            [*text_corpus(d.source, CORPUS_LINES), *COLOUR_FORMS, *SIDE_FORMS],
            f"{d.source}/{d.split}, seed {seed}",
        )
    records = load_benchmark(f"{d.source}/{d.split}", data)
    digest = sha256()
    for record in records:
        for e in record.expressions:
            digest.update(f"{e.expression_id}\0{e.text}\0{e.granularity}\0{e.rle}\n".encode())
    corpus = [e.text for record in records for e in record.expressions]
    return RecordSource(records, seed), records[:SHOWN], corpus, digest.hexdigest()


def _check_source(d: DataConfig) -> None:
    """Raise InputError for options that this source would silently ignore."""
    if d.source in SCENES and d.split != "train":
        raise InputError(
            f"--data.split {d.split}: scenes are trained on train only, the other splits measure"
        )
    if d.source not in SCENES and (d.first_preset or d.first_images or d.lesson_images):
        raise InputError(
            f"data.first_preset, first_images and lesson_images are for scenes, not for {d.source}"
        )
    if bool(d.first_preset) != bool(d.first_images):
        raise InputError("data.first_preset and data.first_images go together: give both or neither")


def overlay(model: Segmenter, records: Sequence[ImageRecord], step: int) -> Image.Image:
    """Truth above, the model's answers below, for a few expressions of each picture."""
    columns = []
    for record in records:
        photo = photo_of(record)
        chosen = record.expressions[:: max(1, len(record.expressions) // 4)][:4]
        answers = model.answer(look_at(model, [record]), [[e.text for e in chosen]], Decoding())
        truth = [Layer(e.text, None if e.rle is None else decode(e.rle)) for e in chosen]
        found = [
            Layer(e.text, None if a.mask is None else decode(a.mask))
            for e, a in zip(chosen, answers, strict=True)
        ]
        columns.append(
            _stack([draw_overlay(photo, truth, "truth"), draw_overlay(photo, found, f"step {step}")], 0)
        )
    return _stack(columns, 1)


def _stack(pictures: Sequence[Image.Image], axis: int) -> Image.Image:
    """Pictures below (axis 0) or beside (axis 1) one another on white."""
    along = [p.height if axis == 0 else p.width for p in pictures]
    across = max(p.width if axis == 0 else p.height for p in pictures)
    canvas = Image.new("RGB", (across, sum(along)) if axis == 0 else (sum(along), across), "white")
    for start, picture in zip((sum(along[:i]) for i in range(len(along))), pictures, strict=True):
        canvas.paste(picture, (0, start) if axis == 0 else (start, 0))
    return canvas
