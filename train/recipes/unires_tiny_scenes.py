"""Recipe of UniRES with small numbers, on the easy scenes."""

from __future__ import annotations

from train.recipe import DataConfig, EvalConfig, LogConfig, OptimConfig, Recipe
from uniresxx.model.config import LossConfig
from uniresxx.segmenters.unires.config import UniresConfig


def unires_tiny_scenes() -> Recipe:
    """python -m train unires_tiny_scenes --out runs/unires

    The encoders are CLIP's with small numbers and random weights. With the presence score, because a quarter of what
    the scenes ask for is not there.
    Hardware: 2 CPU cores. Time: at most 9.5 minutes (`optim.max_minutes`). Expected on scenes_easy/val: part 57,
    object 59, multi 66, N-acc 55 (seed 0; docs/results.md).
    """
    return Recipe(
        name="unires_tiny_scenes",
        model=UniresConfig(width=64, mixing=False, presence=True, loss=LossConfig(mask=4.0, dice=2.0)),
        data=DataConfig(
            source="scenes_easy", batch_images=8, expressions_per_image=10, dialogue_share=0.0,
            warmup_images=8 * 250,
        ),
        optim=OptimConfig(steps=1500, lr=1.3e-3, warmup_steps=60, weight_decay=0.01, max_minutes=9.5),
        log=LogConfig(save_every=200, overlay_every=200),
        eval=EvalConfig(benchmarks=("scenes_easy/val",)),
    )  # fmt: skip
