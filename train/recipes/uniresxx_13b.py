"""Recipes of the full-size model on LLaVA-1.5-13B; stages as for 7B.

`--model.weights.llava` takes llava-hf/llava-1.5-13b-hf, llava-hf/llava-v1.6-vicuna-13b-hf, or converted
liuhaotian/llava-v1.5-13b (with low); the other options as for 7B.
"""

from __future__ import annotations

from dataclasses import replace

from mllm.config import llava_13b
from train.recipe import Recipe
from train.recipes.uniresxx_7b import align, ground, joint, uniresxx_7b


def uniresxx_13b() -> Recipe:
    """python -m train uniresxx_13b --model.weights.start runs/13b_b --data DIR --out runs/13b_c

    Stage C (joint), as uniresxx_7b. Hardware: 8 GPUs of 80 GB (launch: docs/train.md).
    Hours: not yet measured. Expected: not yet measured.
    """
    tuning = uniresxx_7b().model.tuning
    return joint("uniresxx_13b", replace(llava_13b(), activation_checkpointing=True), tuning)


def uniresxx_13b_ground() -> Recipe:
    """python -m train uniresxx_13b_ground --model.weights.start runs/13b_a --data DIR --out runs/13b_b

    Stage B (ground). Hardware: 8 GPUs of 80 GB (launch: docs/train.md).
    Hours: not yet measured. Expected: not yet measured.
    """
    return ground("uniresxx_13b_ground", uniresxx_13b())


def uniresxx_13b_align() -> Recipe:
    """python -m train uniresxx_13b_align --model.weights.llava llava-hf/llava-1.5-13b-hf \
    --model.weights.high laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup \
    --model.weights.sam facebook/sam2.1-hiera-large --out runs/13b_a

    Stage A (align). Hardware: 8 GPUs of 80 GB (launch: docs/train.md).
    Hours: not yet measured. Expected: not yet measured.
    """
    return align("uniresxx_13b_align", uniresxx_13b())
