"""Recipes of the full-size model on LLaVA-1.5-7B: three stages, each starting from the one before."""

from __future__ import annotations

from dataclasses import replace

from mllm.config import MLLMConfig, TuningConfig, llava_7b
from train.recipe import DataConfig, EngineConfig, EvalConfig, LogConfig, OptimConfig, Recipe
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig, WeightsConfig

BENCHMARKS = (
    "refcocom/val_part_only", "refcocom/val_object_part", "grefcoco/val", "refcoco/val", "refcoco+/val",
    "refcocog_umd/val",
)  # fmt: skip


def full_model(mllm: MLLMConfig, tuning: TuningConfig) -> UniRESPlusPlusConfig:
    """UniRES++ around an LLM, as docs/method.md describes it: learned boxes, pyramid head, decision by the token."""
    return UniRESPlusPlusConfig(
        mllm=mllm,
        head=PyramidHeadConfig(width=256, heads=8),
        boxes="learned",
        decision_rule="token",
        tuning=tuning,
        weights=WeightsConfig(required=("llava", "convnext")),
    )


def joint(name: str, mllm: MLLMConfig, tuning: TuningConfig) -> Recipe:
    """Stage C. LoRA and heads 2e-4, the high tower 2e-5; 80 images x 8 expressions a step, 2 images per GPU of 8.

    The mixture `joint` has all granularities (docs/data.md); `--data.mixture` takes another, written or named.
    """
    return Recipe(
        name=name,
        model=full_model(mllm, tuning),
        data=DataConfig(
            source="",
            mixture="joint",
            batch_images=16,
            accumulate=5,
            expressions_per_image=8,
            workers=4,
        ),
        optim=OptimConfig(steps=5000, lr=2e-4, lr_scale=(("mllm.high", 0.1),), warmup_steps=150),
        engine=EngineConfig(precision="bf16"),
        log=LogConfig(save_every=500),
        eval=EvalConfig(benchmarks=BENCHMARKS),
    )


def ground(name: str, stage_c: Recipe) -> Recipe:
    """Stage B from stage C: part and object grounding at scale, lr 3e-4; the high tower keeps its own rate."""
    lr = 3e-4
    scale = tuple((path, factor * stage_c.optim.lr / lr) for path, factor in stage_c.optim.lr_scale)
    return replace(
        stage_c,
        name=name,
        data=replace(stage_c.data, mixture="ground"),
        optim=replace(stage_c.optim, lr=lr, lr_scale=scale),
    )


def align(name: str, stage_c: Recipe) -> Recipe:
    """Stage A from stage C: only fusion, projector, region tokens, MGFE, box head and new token rows; 256 images.

    The box head is trained too (our choice): region tokens of untrained boxes have no meaning to align.
    """
    tuning = TuningConfig(frozen=("low", "high", "llm", "head"), token_rows="new", frozen_dtype="bf16")
    return replace(
        stage_c,
        name=name,
        model=replace(stage_c.model, tuning=tuning),
        data=replace(stage_c.data, batch_images=16, accumulate=16),
        optim=replace(stage_c.optim, lr=1e-3, lr_scale=()),
    )


def uniresxx_7b() -> Recipe:
    """python -m train uniresxx_7b --model.weights.start runs/7b_b --data DIR --out runs/7b_c

    Stage C (joint). Without stages A and B: --model.weights.llava and --model.weights.convnext instead of start.
    Hardware: 8 GPUs of 80 GB (launch: docs/train.md). Hours: not yet measured. Expected: not yet measured.
    """
    tuning = TuningConfig(frozen=("low",), lora_rank=64, token_rows="new", frozen_dtype="bf16")
    return joint("uniresxx_7b", replace(llava_7b(), activation_checkpointing=True), tuning)


def uniresxx_7b_ground() -> Recipe:
    """python -m train uniresxx_7b_ground --model.weights.start runs/7b_a --data DIR --out runs/7b_b

    Stage B (ground): adds LoRA, mask head and high tower. Hardware: 8 GPUs of 80 GB (launch: docs/train.md).
    Hours: not yet measured. Expected: not yet measured.
    """
    return ground("uniresxx_7b_ground", uniresxx_7b())


def uniresxx_7b_align() -> Recipe:
    """python -m train uniresxx_7b_align --model.weights.llava DIR --model.weights.convnext DIR --out runs/7b_a

    Stage A (align). Hardware: 8 GPUs of 80 GB (launch: docs/train.md).
    Hours: not yet measured. Expected: not yet measured.
    """
    return align("uniresxx_7b_align", uniresxx_7b())
