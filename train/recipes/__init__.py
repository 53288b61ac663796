"""The recipes by name; one file each, whose docstring has command, hardware, hours and expected numbers."""

from __future__ import annotations

from collections.abc import Callable

from train.recipe import Recipe
from train.recipes.film_unet_scenes import film_unet_scenes
from train.recipes.mini_real import mini_real
from train.recipes.scenes_hour import scenes_hour
from train.recipes.scenes_two_hours import scenes_two_hours
from train.recipes.tiny_scenes import tiny_scenes
from train.recipes.unires_tiny_scenes import unires_tiny_scenes
from train.recipes.unires_vit_b import unires_vit_b, unires_vit_b_finetuned, unires_vit_b_zero_shot
from train.recipes.unires_vit_l import unires_vit_l, unires_vit_l_finetuned, unires_vit_l_zero_shot
from train.recipes.uniresxx_7b import uniresxx_7b, uniresxx_7b_align, uniresxx_7b_ground
from train.recipes.uniresxx_7b_24gb import (
    uniresxx_7b_24gb,
    uniresxx_7b_24gb_align,
    uniresxx_7b_24gb_ground,
)
from train.recipes.uniresxx_13b import uniresxx_13b, uniresxx_13b_align, uniresxx_13b_ground
from train.recipes.uniresxx_13b_24gb import (
    uniresxx_13b_24gb,
    uniresxx_13b_24gb_align,
    uniresxx_13b_24gb_ground,
)
from train.recipes.uniresxx_qwen3_4b import (
    uniresxx_qwen3_4b,
    uniresxx_qwen3_4b_align,
    uniresxx_qwen3_4b_ground,
)

KNOWN: dict[str, Callable[[], Recipe]] = {
    "film_unet_scenes": film_unet_scenes,
    "mini_real": mini_real,
    "scenes_hour": scenes_hour,
    "scenes_two_hours": scenes_two_hours,
    "tiny_scenes": tiny_scenes,
    "unires_tiny_scenes": unires_tiny_scenes,
    "unires_vit_b": unires_vit_b,
    "unires_vit_b_finetuned": unires_vit_b_finetuned,
    "unires_vit_b_zero_shot": unires_vit_b_zero_shot,
    "unires_vit_l": unires_vit_l,
    "unires_vit_l_finetuned": unires_vit_l_finetuned,
    "unires_vit_l_zero_shot": unires_vit_l_zero_shot,
    "uniresxx_13b": uniresxx_13b,
    "uniresxx_13b_24gb": uniresxx_13b_24gb,
    "uniresxx_13b_24gb_align": uniresxx_13b_24gb_align,
    "uniresxx_13b_24gb_ground": uniresxx_13b_24gb_ground,
    "uniresxx_13b_align": uniresxx_13b_align,
    "uniresxx_13b_ground": uniresxx_13b_ground,
    "uniresxx_7b": uniresxx_7b,
    "uniresxx_7b_24gb": uniresxx_7b_24gb,
    "uniresxx_7b_24gb_align": uniresxx_7b_24gb_align,
    "uniresxx_7b_24gb_ground": uniresxx_7b_24gb_ground,
    "uniresxx_7b_align": uniresxx_7b_align,
    "uniresxx_7b_ground": uniresxx_7b_ground,
    "uniresxx_qwen3_4b": uniresxx_qwen3_4b,
    "uniresxx_qwen3_4b_align": uniresxx_qwen3_4b_align,
    "uniresxx_qwen3_4b_ground": uniresxx_qwen3_4b_ground,
}
