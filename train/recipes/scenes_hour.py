"""Recipe of one hour on full `scenes`; its blind controls are the same recipe with an option."""

from __future__ import annotations

from mllm.config import MLLMConfig, tiny_llama
from mllm.tower_families import convnext
from train.recipe import DataConfig, EngineConfig, EvalConfig, LogConfig, OptimConfig, Recipe
from uniresxx.data.scenes import SPLITS, dense_classes
from uniresxx.model.config import LossConfig, PyramidHeadConfig, UniRESPlusPlusConfig


def scenes_hour() -> Recipe:
    """python -m train scenes_hour --out runs/scenes_hour

    Controls: `--model.mllm.blind_to_text True`, `--model.mllm.blind_to_image True`; the FiLM-UNet is the recipe
    film_unet_scenes. Hardware: 1 CPU core. Time: 60 minutes, with easy pictures first (`data.first_images`) and
    colours and sides alone first (`data.warmup_images`). Expected: docs/results.md.
    """
    return Recipe(
        name="scenes_hour",
        model=UniRESPlusPlusConfig(
            mllm=MLLMConfig(
                high=convnext(patch=4), high_size=128, max_objects=16,
                llm=tiny_llama(num_hidden_layers=2, intermediate_size=256),
            ),
            head=PyramidHeadConfig(paint_regions=True),
            loss=LossConfig(mask=4.0, dice=2.0, dense=1.5),
            dense_classes=dense_classes("scenes"),
        ),
        data=DataConfig(
            source="scenes", batch_images=12, expressions_per_image=12,
            first_preset="scenes_easy", first_images=12 * 700, warmup_images=12 * 350,
        ),
        optim=OptimConfig(steps=2600, lr=1.3e-3, warmup_steps=60, weight_decay=0.01, max_minutes=60.0),
        engine=EngineConfig(threads=1),
        log=LogConfig(save_every=200, overlay_every=500),
        eval=EvalConfig(benchmarks=tuple(f"scenes/{split}" for split in SPLITS[1:])),
    )  # fmt: skip
