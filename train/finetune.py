"""`python -m train finetune`: a recipe that starts from a checkpoint, on the user's own data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from train.recipe import DataConfig, EngineConfig, LogConfig, OptimConfig, Recipe
from uniresxx.errors import InputError
from uniresxx.model.config import MODEL_TYPE, UniRESPlusPlusConfig, WeightsConfig
from uniresxx.segmenters.lisa.config import MODEL_TYPE as LISA
from uniresxx.segmenters.lisa.config import PUBLISHED_TUNING, LisaConfig
from uniresxx.segmenters.unires.config import MODEL_TYPE as UNIRES
from uniresxx.segmenters.unires.config import UniresConfig


def finetune() -> Recipe:
    """python -m train finetune --from CKPT --data STORE --out DIR

    Trains a checkpoint, or a converted LISA, GSVA or M2SA, on a prepared store, or on NAME below a root of native
    layouts (`--data.source NAME`). Model, vocabulary and proposals are those of the checkpoint. Defaults
    (our choice, not tuned): 500 steps of 8 images, a tenth to a fifth of the learning rates of the recipes (a third
    of LISA's). Expected: depends on the data.
    """
    return recipe_for(UniRESPlusPlusConfig(), "")


def recipe_for(config: UniRESPlusPlusConfig, start: str) -> Recipe:
    """The recipe of `finetune` for a model that starts from the checkpoint `start`.

    Frozen weights in bf16 need autocast, so their dtype decides the precision. The new data decides which levels of
    the box head are on.
    """
    weights = WeightsConfig(start=start, owlv2=config.weights.owlv2)
    mixed = config.tuning.frozen_dtype == "bf16"
    return Recipe(
        name="finetune",
        model=replace(config, weights=weights, box_head=replace(config.box_head, levels=None)),
        data=DataConfig(source="", batch_images=8),
        optim=OptimConfig(steps=500, lr=2e-4, warmup_steps=20),
        engine=EngineConfig(precision="bf16" if mixed else "fp32"),
        log=LogConfig(save_every=100, overlay_every=100),
    )


def lisa_recipe_for(config: LisaConfig, start: str) -> Recipe:
    """The recipe of `finetune` for a LISA, GSVA or M2SA that starts from the checkpoint `start`.

    What is trained, expressions of a photo and optimizer are those of LISA's train_ds.py, with a third of its
    learning rate (our choice, not tuned).
    """
    tuning = replace(PUBLISHED_TUNING, frozen_dtype=config.tuning.frozen_dtype)
    if config.tuning.lora_rank or config.tuning.token_rows == "new":
        tuning = config.tuning
    mixed = tuning.frozen_dtype == "bf16"
    return Recipe(
        name="finetune",
        model=replace(config, tuning=tuning, activation_checkpointing=True, start=start),
        data=DataConfig(source="", batch_images=8, expressions_per_image=3),
        optim=OptimConfig(steps=500, lr=1e-4, warmup_steps=20),
        engine=EngineConfig(precision="bf16" if mixed else "fp32"),
        log=LogConfig(save_every=100, overlay_every=100),
    )


def unires_recipe_for(config: UniresConfig, start: str) -> Recipe:
    """The recipe of `finetune` for a UniRES that starts from the checkpoint `start`: it has no conversations."""
    recipe = recipe_for(UniRESPlusPlusConfig(), "")
    model = replace(config, pretrained=True, clip=None, start=start)
    return replace(recipe, model=model, data=replace(recipe.data, dialogue_share=0.0))


def recipe_of(checkpoint: str, out: Path | None = None) -> Recipe:
    """The recipe for a run folder (its best, else newest checkpoint), a `from_pretrained` folder or a hub id.

    The recipe has the folder's full path, because a run continues only from the same start. Where `out` holds a run
    that started from there, the recipe is that of this run, and nothing is looked up: the start may be gone.

    Raises InputError.
    """
    from uniresxx.checkpoints.folders import RECIPE
    from uniresxx.checkpoints.resolve import HUB, resolve
    from uniresxx.checkpoints.tensors import CONFIG, read_json

    hub = checkpoint.startswith(HUB)
    if out is not None and (out / RECIPE).is_file():
        model = read_json(out / RECIPE).get("recipe", {}).get("model", {})
        start = str(model.get("weights", {}).get("start"))
        gone = not hub and not Path(checkpoint).exists()
        if start == checkpoint or (gone and Path(start).is_relative_to(Path(checkpoint).resolve())):
            return recipe_for(UniRESPlusPlusConfig.from_dict({"model_type": MODEL_TYPE, **model}), start)
    folder = resolve(checkpoint, print)
    values = read_json(folder / CONFIG)
    kind = values.get("model_type")
    if kind == "film_unet":
        raise InputError(
            f"{folder} is a FiLM-UNet, the baseline: give a UniRES++ checkpoint, or a converted model"
        )
    if kind == LISA:
        return lisa_recipe_for(LisaConfig.from_dict(values), str(folder.resolve()))
    if kind == UNIRES:
        return unires_recipe_for(UniresConfig.from_dict(values), str(folder.resolve()))
    config = UniRESPlusPlusConfig.from_dict(values)
    if not config.loss.teaches_masks:
        raise InputError(
            f"{folder} is of an align stage, which trains no masks: give a checkpoint of a later stage"
        )
    return recipe_for(config, checkpoint if hub else str(folder.resolve()))


def with_data(recipe: Recipe, data: Path | None) -> tuple[Recipe, Path | None]:
    """The recipe with `data` as its source if that is a store, and the root for `data.source`. Raises InputError."""
    from uniresxx.data.catalog import find_store

    d = recipe.data
    store = None if data is None else find_store(str(data), None)
    if store is None:
        if d.source or d.mixture:
            return recipe, data
        problem = "--data is missing" if data is None else f"--data {data} is no prepared store"
        raise InputError(
            f"{problem}: give one (uniresxx data prepare), or a root of native layouts with --data.source NAME"
        )
    if d.source or d.mixture:
        raise InputError(f"--data {data} is a store: leave out --data.source and --data.mixture")
    folder, split = store
    return replace(recipe, data=replace(d, source=str(folder.resolve()), split=split or d.split)), None
