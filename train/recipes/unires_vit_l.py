"""Recipes of UniRES on CLIP ViT-L/14; everything else as in unires_vit_b.

--model.clip     openai/clip-vit-large-patch14 (both encoders)
"""

from __future__ import annotations

from dataclasses import replace

from mllm.tower_families import clip_vit
from train.recipe import Recipe
from train.recipes.unires_vit_b import PUBLIC, WITHOUT_REFCOCO, finetuned, from_clip, vit_b
from uniresxx.segmenters.unires.config import UniresConfig, clip_text


def vit_l() -> UniresConfig:
    """UniRES on CLIP ViT-L/14 (openai/clip-vit-large-patch14 config.json) at 448 px: 32 x 32 patches."""
    vision, text = clip_vit(1024, 24, 16, 4096, 14), clip_text(768, 12, 12, 3072)
    return replace(vit_b(), vision=vision, text=text)


def unires_vit_l() -> Recipe:
    """python -m train unires_vit_l --model.clip openai/clip-vit-large-patch14 --data DIR --out runs/l

    Parts and objects together, on data that anybody can have. Hardware: 8 GPUs of 40 GB (memory:
    docs/train.md). Hours: not yet measured. Expected: not yet measured.
    """
    return from_clip("unires_vit_l", vit_l(), PUBLIC)


def unires_vit_l_zero_shot() -> Recipe:
    """python -m train unires_vit_l_zero_shot --model.clip openai/clip-vit-large-patch14 --data DIR --out runs/l_0

    The paper's zero-shot protocol, see unires_vit_b_zero_shot. Hours: not yet measured. Expected: not yet measured.
    """
    return from_clip("unires_vit_l_zero_shot", vit_l(), WITHOUT_REFCOCO)


def unires_vit_l_finetuned() -> Recipe:
    """python -m train unires_vit_l_finetuned --model.start runs/l_0 --data DIR --out runs/l_1

    The paper's fine-tuned protocol, see unires_vit_b_finetuned. Hours: not yet measured. Expected: not yet measured.
    """
    return finetuned("unires_vit_l_finetuned", vit_l())
