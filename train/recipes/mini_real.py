"""Recipe that overfits a few real photographs: it tests the pipeline, not the quality of a model."""

from __future__ import annotations

from mllm.config import MLLMConfig, tiny_llama
from mllm.tower_families import clip_vit, convnext
from train.recipe import DataConfig, EvalConfig, LogConfig, OptimConfig, Recipe
from uniresxx.model.config import LossConfig, PyramidHeadConfig, UniRESPlusPlusConfig


def mini_real() -> Recipe:
    """python -m train mini_real --data ../shared/mini_real --out runs/mini_real

    Hardware: 2 CPU cores. Time: 13 minutes on a busy machine, at most 18. It overfits on purpose.
    Expected on mini_real/train: mIoU 92, part 94, N-acc 100 (docs/results.md).
    """
    return Recipe(
        name="mini_real",
        model=UniRESPlusPlusConfig(
            mllm=MLLMConfig(
                low=clip_vit(patch=16),
                low_size=128,
                high=convnext(patch=4),
                high_size=320,
                llm=tiny_llama(num_hidden_layers=2, intermediate_size=256, vocab_size=512),
            ),
            head=PyramidHeadConfig(paint_regions=True),
            loss=LossConfig(mask=4.0, dice=2.0),
        ),
        data=DataConfig(source="mini_real", batch_images=4, expressions_per_image=12),
        optim=OptimConfig(steps=1000, lr=1e-3, warmup_steps=60, max_minutes=18.0),
        log=LogConfig(save_every=200, overlay_every=200),
        eval=EvalConfig(benchmarks=("mini_real/train",)),
    )
