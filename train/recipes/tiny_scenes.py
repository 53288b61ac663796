"""Recipe of `make demo`: the tiny model on the easy scenes."""

from __future__ import annotations

from mllm.config import MLLMConfig, tiny_llama
from train.recipe import DataConfig, EvalConfig, LogConfig, OptimConfig, Recipe
from uniresxx.data.scenes import dense_classes
from uniresxx.model.config import LossConfig, PyramidHeadConfig, UniRESPlusPlusConfig


def tiny_scenes() -> Recipe:
    """python -m train tiny_scenes --out runs/demo

    Hardware: 2 CPU cores. Time: at most 9.5 minutes (`optim.max_minutes`; the decay ends in time).
    Expected on scenes_easy/val: part 74, object 82 to 84, multi 89 to 90, N-acc 94 to 95, T-acc 97 to 98 (three
    seeds, quiet machine). The model of the package: 3,000 steps with `loss.contrast` 1 and `data.pair_images` 2400
    5400 6600; 81, 93, 92, 97, 97 (docs/results.md).
    """
    return Recipe(
        name="tiny_scenes",
        model=UniRESPlusPlusConfig(
            mllm=MLLMConfig(llm=tiny_llama(num_hidden_layers=2, intermediate_size=256, vocab_size=768)),
            head=PyramidHeadConfig(paint_regions=True),
            # mask and dice rebalanced: small masks are learned late otherwise
            loss=LossConfig(mask=4.0, dice=2.0, presence=1.0, words=0.1, dense=1.5),
            dense_classes=dense_classes("scenes_easy"),
        ),
        data=DataConfig(
            source="scenes_easy",
            batch_images=12,
            expressions_per_image=10,
            warmup_images=12 * 350,
        ),
        optim=OptimConfig(steps=1500, lr=1.3e-3, warmup_steps=60, weight_decay=0.01, max_minutes=9.5),
        log=LogConfig(save_every=200, overlay_every=200),
        eval=EvalConfig(benchmarks=("scenes_easy/val",)),
    )
