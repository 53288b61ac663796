"""Recipes of the 13B model for one GPU of 24 GB: those of 7B, with the language model in 4 bits (QLoRA)."""

from __future__ import annotations

from dataclasses import replace

from mllm.config import llava_13b
from train.recipe import Recipe
from train.recipes.uniresxx_7b import align, ground
from train.recipes.uniresxx_7b_24gb import uniresxx_7b_24gb


def uniresxx_13b_24gb() -> Recipe:
    """python -m train uniresxx_13b_24gb --model.weights.start runs/13b_24gb_b --data DIR --out runs/13b_24gb_c

    Stage C (joint), as uniresxx_7b_24gb, with NF4 and double quantisation (Dettmers et al. 2023).
    Hardware: 1 GPU of 24 GB. Hours: not yet measured. Expected: not yet measured.
    """
    small = uniresxx_7b_24gb()
    mllm = replace(llava_13b(), activation_checkpointing=True, mgfe_width=small.model.mllm.mgfe_width)
    tuning = replace(small.model.tuning, quantization="nf4")
    return replace(small, name="uniresxx_13b_24gb", model=replace(small.model, mllm=mllm, tuning=tuning))


def uniresxx_13b_24gb_ground() -> Recipe:
    """python -m train uniresxx_13b_24gb_ground --model.weights.start runs/13b_24gb_a --data DIR \
    --out runs/13b_24gb_b

    Stage B (ground). Hardware: 1 GPU of 24 GB. Hours: not yet measured.
    Expected: not yet measured.
    """
    return ground("uniresxx_13b_24gb_ground", uniresxx_13b_24gb())


def uniresxx_13b_24gb_align() -> Recipe:
    """python -m train uniresxx_13b_24gb_align --model.weights.llava DIR --model.weights.high DIR \
    --model.weights.sam DIR --out runs/13b_24gb_a

    Stage A (align). Hardware: 1 GPU of 24 GB. Hours: not yet measured.
    Expected: not yet measured.
    """
    stage_a = align("uniresxx_13b_24gb_align", uniresxx_13b_24gb())
    return replace(stage_a, data=replace(stage_a.data, batch_images=1, accumulate=256))
