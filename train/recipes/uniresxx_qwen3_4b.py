"""Recipes of the full-size model on Qwen3-4B, with SigLIP2 and CLIP ConvNeXt-L as towers; stages as for 7B.

`--model.weights.llm` also takes Qwen/Qwen2.5-7B-Instruct, mistralai/Mistral-7B-Instruct-v0.3 or
meta-llama/Llama-3.1-8B-Instruct, with the sizes that the refusal names and `--model.mllm.chat`; the other options as
for 7B.
"""

from __future__ import annotations

from dataclasses import replace

from mllm.config import MLLMConfig, qwen3_4b
from train.recipe import Recipe
from train.recipes.uniresxx_7b import align, ground, joint, uniresxx_7b
from uniresxx.model.config import WeightsConfig


def qwen3_and_siglip2() -> MLLMConfig:
    """Qwen3-4B and SigLIP2 so400m (google/siglip2-so400m-patch14-384 config.json: 1152/27/16/4304, patch 14).

    378 px give the 27 x 27 positions of its table. Its last layer but one, as LLaVA-OneVision takes SigLIP's. No
    published projector joins the two: stage A trains one from random weights.
    """
    low = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    return replace(
        qwen3_4b(),
        low=low,
        low_size=378,
        low_select_layer=-2,
        low_stats="family",
        activation_checkpointing=True,
    )


def uniresxx_qwen3_4b() -> Recipe:
    """python -m train uniresxx_qwen3_4b --model.weights.start runs/qwen_b --data DIR --out runs/qwen_c

    Stage C (joint), as uniresxx_7b. Hardware: 8 GPUs of 80 GB (launch: docs/train.md).
    Hours: not yet measured. Expected: not yet measured.
    """
    recipe = joint("uniresxx_qwen3_4b", qwen3_and_siglip2(), uniresxx_7b().model.tuning)
    return replace(
        recipe, model=replace(recipe.model, weights=WeightsConfig(required=("llm", "low", "high", "sam")))
    )


def uniresxx_qwen3_4b_ground() -> Recipe:
    """python -m train uniresxx_qwen3_4b_ground --model.weights.start runs/qwen_a --data DIR --out runs/qwen_b

    Stage B (ground). Hardware: 8 GPUs of 80 GB (launch: docs/train.md).
    Hours: not yet measured. Expected: not yet measured.
    """
    return ground("uniresxx_qwen3_4b_ground", uniresxx_qwen3_4b())


def uniresxx_qwen3_4b_align() -> Recipe:
    """python -m train uniresxx_qwen3_4b_align --model.weights.llm Qwen/Qwen3-4B \
    --model.weights.low google/siglip2-so400m-patch14-384 \
    --model.weights.high laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup \
    --model.weights.sam facebook/sam2.1-hiera-large --out runs/qwen_a

    Stage A (align). Hardware: 8 GPUs of 80 GB (launch: docs/train.md).
    Hours: not yet measured. Expected: not yet measured.
    """
    return align("uniresxx_qwen3_4b_align", uniresxx_qwen3_4b())
