"""Recipes of UniRES on CLIP ViT-B/16: from CLIP on public data, and the two protocols of its paper.

    --model.clip     openai/clip-vit-base-patch16 (both encoders)

Input side, widths, depths, numbers of groups, optimizer and mixtures are our choice: the paper's are not public.
Group tokens are as many as GroupViT's (arXiv 2202.11094): 64 and 8.
"""

from __future__ import annotations

from dataclasses import replace

from mllm.tower_families import clip_vit
from train.recipe import DataConfig, EngineConfig, EvalConfig, LogConfig, OptimConfig, Recipe
from uniresxx.segmenters.unires.config import UniresConfig, clip_text

BENCHMARKS = (
    "refcocom/val_part_only",
    "refcocom/val_object_part",
    "refcoco/val",
    "refcoco+/val",
    "refcocog_umd/val",
)
# Parts 40, objects 60.
PUBLIC = "composed_parts=30,pascal_part[part]=5,partimagenet=5,refcoco=20,refcoco+=20,refcocog_umd=20"
# No sentence of RefCOCO, so no composed_parts. MRES-32M, which the paper trains on, is not public.
WITHOUT_REFCOCO = "paco=30,pascal_part=20,partimagenet=15,partimagenetpp=15,ade20k=10,cocostuff=10"
REFCOCO = "refcoco=1,refcoco+=1,refcocog_umd=1"


def vit_b() -> UniresConfig:
    """UniRES on CLIP ViT-B/16 (openai/clip-vit-base-patch16 config.json) at 448 px: 28 x 28 patches."""
    return UniresConfig(
        vision=clip_vit(768, 12, 12, 3072, 16), text=clip_text(512, 12, 8, 2048), size=448, pixel_stats="clip",
        low_groups=64, high_groups=8, width=512, heads=8, mlp_ratio=4, stage1_layers=3, stage2_layers=3,
        pretrained=True,
    )  # fmt: skip


def from_clip(name: str, model: UniresConfig, mixture: str) -> Recipe:
    """Training from published encoders, which learn at a tenth of the rate; 64 images x 8 expressions a step."""
    return Recipe(
        name=name,
        model=model,
        data=DataConfig(
            source="", mixture=mixture, batch_images=64, expressions_per_image=8, dialogue_share=0.0, workers=4
        ),
        optim=OptimConfig(
            steps=50_000, lr=1e-4, warmup_steps=1500, weight_decay=0.01,
            lr_scale=(("vision.clip", 0.1), ("text", 0.1)),
        ),
        engine=EngineConfig(precision="bf16"),
        log=LogConfig(save_every=1000),
        eval=EvalConfig(benchmarks=BENCHMARKS),
    )  # fmt: skip


def finetuned(name: str, model: UniresConfig) -> Recipe:
    """Training on RefCOCO, RefCOCO+ and RefCOCOg together, from `model.start`; a fifth of the steps."""
    recipe = from_clip(name, model, REFCOCO)
    return replace(recipe, optim=replace(recipe.optim, steps=10_000, lr=5e-5, warmup_steps=500))


def unires_vit_b() -> Recipe:
    """python -m train unires_vit_b --model.clip openai/clip-vit-base-patch16 --data DIR --out runs/b

    Parts and objects together, on data that anybody can have. Hardware: 4 GPUs of 40 GB (memory:
    docs/train.md). Hours: not yet measured. Expected: not yet measured.
    """
    return from_clip("unires_vit_b", vit_b(), PUBLIC)


def unires_vit_b_zero_shot() -> Recipe:
    """python -m train unires_vit_b_zero_shot --model.clip openai/clip-vit-base-patch16 --data DIR --out runs/b_0

    The paper's zero-shot protocol: no sentence of RefCOCO is trained on. It trains on MRES-32M, which is not public;
    `--data.mixture` adds a store like it. Hardware, hours: as unires_vit_b. Expected: not yet measured.
    """
    return from_clip("unires_vit_b_zero_shot", vit_b(), WITHOUT_REFCOCO)


def unires_vit_b_finetuned() -> Recipe:
    """python -m train unires_vit_b_finetuned --model.start runs/b_0 --data DIR --out runs/b_1

    The paper's fine-tuned protocol: from the zero-shot model, on RefCOCO, RefCOCO+ and RefCOCOg. Hardware: as
    unires_vit_b. Hours: not yet measured. Expected: not yet measured.
    """
    return finetuned("unires_vit_b_finetuned", vit_b())
