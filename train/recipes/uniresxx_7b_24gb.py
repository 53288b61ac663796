"""Recipes of the 7B model for one GPU of 24 GB: narrower trained modules, one image at a time."""

from __future__ import annotations

from dataclasses import replace

from mllm.config import TuningConfig, llava_7b
from train.recipe import Recipe
from train.recipes.uniresxx_7b import align, ground, joint


def uniresxx_7b_24gb() -> Recipe:
    """python -m train uniresxx_7b_24gb --model.weights.start runs/24gb_b --data DIR --out runs/24gb_c

    Stage C (joint). Frozen weights in bf16 (15 GB), LoRA rank 16, MGFE width 512, losses on sampled points, one image
    at a time. SAM 2.1 is Hiera-L here too: frozen it costs 0.4 GB, and the plan stays at 21 of 24 GB.
    `--model.tuning.quantization nf4` in all stages (QLoRA) needs 11.5 GB.
    Hardware: 1 GPU of 24 GB. Hours: not yet measured. Expected: not yet measured.
    """
    tuning = TuningConfig(
        frozen=("low", "high", "mask_encoder"),
        lora_rank=16,
        lora_alpha=32,
        token_rows="new",
        frozen_dtype="bf16",
    )
    mllm = replace(llava_7b(), activation_checkpointing=True, mgfe_width=512)
    full = joint("uniresxx_7b_24gb", mllm, tuning)
    return replace(
        full,
        model=replace(full.model, loss=replace(full.model.loss, resolution="points")),
        data=replace(full.data, batch_images=1, accumulate=80),
    )


def uniresxx_7b_24gb_ground() -> Recipe:
    """python -m train uniresxx_7b_24gb_ground --model.weights.start runs/24gb_a --data DIR --out runs/24gb_b

    Stage B (ground). Hardware: 1 GPU of 24 GB. Hours: not yet measured.
    Expected: not yet measured.
    """
    return ground("uniresxx_7b_24gb_ground", uniresxx_7b_24gb())


def uniresxx_7b_24gb_align() -> Recipe:
    """python -m train uniresxx_7b_24gb_align --model.weights.llava llava-hf/llava-1.5-7b-hf \
    --model.weights.high laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup \
    --model.weights.sam facebook/sam2.1-hiera-large --out runs/24gb_a

    Stage A (align). Hardware: 1 GPU of 24 GB. Hours: not yet measured.
    Expected: not yet measured.
    """
    stage_a = align("uniresxx_7b_24gb_align", uniresxx_7b_24gb())
    return replace(stage_a, data=replace(stage_a.data, batch_images=1, accumulate=256))
