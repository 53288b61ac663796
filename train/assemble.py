"""Open what a recipe names: data, vocabulary, model, and the overlay of its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from mllm.prefix import check_packed
from train.engines.base import device_of
from train.job import Job
from train.recipe import Recipe, check
from train.throughput import cost_counter
from train.validation import open_validation
from uniresxx.checkpoints.tensors import CONFIG, read_json
from uniresxx.data.catalog import SCENES
from uniresxx.data.guard import lines_of_report
from uniresxx.data.mixture.batches import Batches, SceneSource, Source
from uniresxx.data.mixture.counts import texts_of, texts_of_record
from uniresxx.data.mixture.data_log import DataLog
from uniresxx.data.mixture.mix import Mixture
from uniresxx.data.mixture.open import open_mixture
from uniresxx.data.mixture.parts import MixturePart, mixture_named
from uniresxx.data.scenes import scene_record, text_corpus
from uniresxx.data.scenes.warmup import COLOUR_TEMPLATES, SIDE_TEMPLATES
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.evaluation.regions import encode_records
from uniresxx.imaging.legend import Line, draw_lines
from uniresxx.imaging.lettering import PAPER
from uniresxx.imaging.marking import PALETTE
from uniresxx.imaging.masks import decode
from uniresxx.imaging.panel import tile
from uniresxx.imaging.sheets import in_columns, stacked
from uniresxx.model.build import build_for_training, check_sources, open_vocabulary
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.segmenters.base import Segmenter
from uniresxx.segmenters.film_unet.config import FilmUNetConfig
from uniresxx.segmenters.film_unet.modeling import FilmUNet
from uniresxx.segmenters.lisa.build import build_lisa_for_training, open_lisa_vocabulary
from uniresxx.segmenters.lisa.config import LisaConfig
from uniresxx.segmenters.unires.build import build_unires_for_training, open_unires_vocabulary
from uniresxx.segmenters.unires.config import UniresConfig
from uniresxx.types import Decoding, Expression, ImageRecord

CORPUS_LINES = 4_000
CORPUS_TEXTS = 200_000  # of one data set, for the vocabulary
SHOWN, SHOWN_TEXTS = 3, 4  # pictures in an overlay, expressions of each
TILE = (262, 262)  # height, width of a picture in it


class Builder(NamedTuple):
    """How a model is made from its config; both functions get the checkpoint that a run goes on from, if it does."""

    vocabulary: Callable[
        [Any, Sequence[str], Path | None], Any
    ]  # from the config and texts of the training data
    model: Callable[[Any, Any, torch.device, Path | None], Any]  # from the config and that vocabulary


# What `recipe.model` may be.
BUILDERS: dict[type, Builder] = {
    UniRESPlusPlusConfig: Builder(
        open_vocabulary,
        lambda config, vocabulary, device, newest: build_for_training(
            config, vocabulary, print, device, newest
        ),
    ),
    FilmUNetConfig: Builder(
        lambda config, texts, newest: open_vocabulary(config.view, texts, newest),
        lambda config, vocabulary, *_: FilmUNet(config, vocabulary),
    ),
    LisaConfig: Builder(
        lambda config, *_: open_lisa_vocabulary(config),
        lambda config, vocabulary, *_: build_lisa_for_training(config, vocabulary),
    ),
    UniresConfig: Builder(
        lambda config, texts, newest: open_unires_vocabulary(config, texts),
        lambda config, vocabulary, *_: build_unires_for_training(config, vocabulary),
    ),
}


def check_attention_of(recipe: Recipe) -> None:
    """InputError for an attention backend that cannot train on the recipe's device."""
    if isinstance(recipe.model, UniRESPlusPlusConfig):
        try:
            check_packed(recipe.model.mllm.attention, device_of(recipe.engine))
        except ValueError as error:
            raise InputError(f"--model.mllm.attention: {error}") from None


def check_quantization_of(recipe: Recipe) -> None:
    """InputError for an engine that would divide quantised weights, whose codes it takes for numbers."""
    kind = recipe.model.tuning.quantization if isinstance(recipe.model, UniRESPlusPlusConfig) else "none"
    if kind != "none" and recipe.engine.zero_stage == 3:
        raise InputError(
            f"--model.tuning.quantization {kind}: ZeRO stage 3 divides weights, quantised ones are whole on every "
            "GPU; use --engine.zero_stage 2"
        )


def open_job(recipe: Recipe, data: Path | None, newest: Path | None = None) -> Job:
    """Everything `train` needs.

    Args:
        recipe: names it.
        data: root of the data sets' native layouts.
        newest: the checkpoint from which the run goes on. Where it is of this model, its weights are loaded, and
            what the run started from is not opened.

    Raises:
        InputError: the data cannot be read, or pretrained parts do not fit.
    """
    check(recipe)
    if isinstance(recipe.model, UniRESPlusPlusConfig):
        check_sources(recipe.model)
    check_attention_of(recipe)
    check_quantization_of(recipe)
    found = _open_data(recipe, data, all_boxes=_learns_boxes(recipe))
    recipe, level_lines = _with_box_levels(recipe, found.source)
    builder = BUILDERS[type(recipe.model)]
    continued = newest if newest is not None and _has_model(newest, recipe.model) else None
    vocabulary = builder.vocabulary(recipe.model, [*found.texts, *TRAINING_TEMPLATES], continued)
    torch.manual_seed(recipe.seed)
    model = builder.model(recipe.model, vocabulary, device_of(recipe.engine), continued)
    d = recipe.data
    batches = Batches(
        found.source, model.collator, recipe.seed,
        d.batch_images, d.accumulate, d.expressions_per_image, d.dialogue_share, d.flip,
        d.compose_dialogues,
    )  # fmt: skip
    extra = {
        "templates": {
            "training": list(model.collator.question_templates),
            "evaluation": model.question_template,
        },
        "training_data": found.about,
    }
    picture = (lambda step: overlay(model, found.shown, step)) if found.shown else None
    data_log = DataLog(found.source.shares, d.batch_images * d.accumulate, d.max_bad_fraction)
    counter = cost_counter(model, recipe.model) if isinstance(recipe.model, UniRESPlusPlusConfig) else None
    validate = open_validation(recipe.eval, model, data)
    messages = _guard_lines(found.about) + level_lines
    return Job(
        model, batches, picture, found.fingerprint, extra, data_log, validate, counter, messages, recipe.model,
        newest, continued is not None,
    )  # fmt: skip


def _has_model(folder: Path, config: Any) -> bool:
    """Whether a checkpoint is of the UniRES++ model with this config."""
    try:
        return bool(UniRESPlusPlusConfig.from_dict(read_json(folder / CONFIG)) == config)
    except InputError:
        return False


def _learns_boxes(recipe: Recipe) -> bool:
    return isinstance(recipe.model, UniRESPlusPlusConfig) and recipe.model.boxes == "learned"


def _with_box_levels(recipe: Recipe, source: Source) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with the levels of its box head that the data has boxes of, and a line for each other level.

    Raises InputError where the recipe names a level that has none.
    """
    if not _learns_boxes(recipe):
        return recipe, ()
    config = recipe.model
    named, known = config.box_head.levels, source.box_levels
    missing = [level for level in config.box_head.active_levels if level not in known]
    if missing and named is not None:
        raise InputError(
            f"--model.box_head.levels {' '.join(named)}: the training data has no {missing[0]} boxes; leave the "
            "option out to switch that level off, or add data with them"
        )
    levels = tuple(level for level in config.box_head.active_levels if level in known)
    model = replace(config, box_head=replace(config.box_head, levels=levels))
    line = "box head: the {} level is off, and there are no {} tokens: the training data has no boxes of it"
    return replace(recipe, model=model), tuple(line.format(level, level) for level in missing)


def _guard_lines(about: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Lines on what the leak guard removed and which lists are missing, each once; none for drawn pictures."""
    reports = [item["guard"] for item in about if item["guard"]["mode"] != "drawn"]
    return tuple(dict.fromkeys(line for report in reports for line in lines_of_report(report)))


@dataclass(frozen=True)
class _Data:
    """Training images, pictures for the overlay, text for the vocabulary, fingerprint, and facts for recipe.json.

    `about` has an entry for each data set: its share of the expressions, its fingerprint, the guard's report.
    """

    source: Source
    shown: list[ImageRecord]
    texts: list[str]
    fingerprint: str
    about: list[dict[str, Any]]


def _open_data(recipe: Recipe, data: Path | None, all_boxes: bool) -> _Data:
    d, seed = recipe.data, recipe.seed
    parts = mixture_named(d.mixture) if d.mixture else d.parts
    if not parts and d.source in SCENES:
        shown = [scene_record(d.source, "val", index) for index in range(SHOWN)]
        source = SceneSource(d.source, seed, d.first_preset, d.first_images, d.warmup_images, d.pair_images)
        texts = [*text_corpus(d.source, CORPUS_LINES), *COLOUR_TEMPLATES, *SIDE_TEMPLATES]
        about = [{"data": f"{d.source}/train", "share": 1.0, "guard": {"mode": "drawn"}}]
        drawn = _digest([scene_record(d.source, d.split, index, seed) for index in range(SHOWN)])
        return _Data(source, shown, texts, f"{d.source}/{d.split}, seed {seed}, drawn {drawn[:16]}", about)
    images = None if d.images is None else Path(d.images)
    mixture = open_mixture(
        parts or (MixturePart(d.source, d.split),), d.expressions_per_image, seed,
        data, images, d.guard, all_boxes,
    )  # fmt: skip
    pools = {id(pool.records): pool for pool in mixture.parts}.values()  # parts may share a data set
    texts = [text for pool in pools for text in texts_of(pool.records, CORPUS_TEXTS)]
    about = [
        {"data": pool.label, "share": mixture.shares[pool.label], **pool.about} for pool in mixture.parts
    ]
    return _Data(mixture, _readable(mixture), texts, _fingerprint(mixture), about)


def _fingerprint(mixture: Mixture) -> str:
    """Identifies the content of every part: the fingerprint of its store, else of its expressions."""
    found = [str(p.about.get("fingerprint") or _digest(p.records)) for p in mixture.parts]
    return found[0] if len(found) == 1 else sha256("\n".join(found).encode()).hexdigest()


def _digest(records: Sequence[ImageRecord]) -> str:
    digest = sha256()
    for record in records:
        for e in record.expressions:
            digest.update(f"{e.expression_id}\0{e.text}\0{e.granularity}\0{e.rle}\n".encode())
        if not record.expressions:
            digest.update("\0".join([record.image_id, *texts_of_record(record), "\n"]).encode())
    return digest.hexdigest()


def _readable(mixture: Mixture) -> list[ImageRecord]:
    """A few records of the first part whose photograph can be shown, with expressions."""
    pool, shown = mixture.parts[0], []
    for row in pool.rows[: 10 * SHOWN]:
        try:
            record = pool.record(int(row))
            photo_of(record)
        except InputError:
            continue
        if record.expressions:
            shown.append(record)
        if len(shown) == SHOWN:
            break
    return shown


def overlay(model: Segmenter, records: Sequence[ImageRecord], step: int) -> Image.Image:
    """For a few expressions of each picture, a row per picture: the truth, and the model's answer beside it."""
    cards: list[Image.Image] = []
    for record in records:
        photo = photo_of(record)
        chosen = record.expressions[:: max(1, len(record.expressions) // SHOWN_TEXTS)][:SHOWN_TEXTS]
        decoding = Decoding(template=model.question_template)
        answers = model.answer(encode_records(model, [record]), [[e.text for e in chosen]], decoding)
        cards += [_card(photo, e, a.mask) for e, a in zip(chosen, answers, strict=True)]
        cards += [Image.new("RGB", cards[-1].size, PAPER)] * (SHOWN_TEXTS - len(chosen))
    sheet = in_columns(cards, SHOWN_TEXTS, gap=16, margin=16)
    title = Line(f"step {step}: each expression with the truth on the left, the answer on the right")
    return stacked([draw_lines([title], sheet.width, 24), sheet])


def _card(photo: np.ndarray, expression: Expression, answer: np.ndarray | None) -> Image.Image:
    """Truth and answer beside one another, the words below, with the IoU where there is a target."""
    truth = None if expression.rle is None else decode(expression.rle)
    pair = in_columns([tile(photo, truth, PALETTE[3], TILE), tile(photo, answer, PALETTE[0], TILE)], 2, gap=4)
    if truth is None:
        tail = "not there"
    else:
        found = np.zeros_like(truth) if answer is None else answer
        tail = f"IoU {np.count_nonzero(truth & found) / np.count_nonzero(truth | found):.2f}"
    return stacked([pair, draw_lines([Line(expression.text, tail)], pair.width, 16)])
