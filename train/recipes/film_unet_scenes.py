"""Recipe of the plain baseline: a FiLM-UNet on the same pictures and questions as the tiny model."""

from __future__ import annotations

from dataclasses import replace

from train.recipe import Recipe
from train.recipes.tiny_scenes import tiny_scenes
from uniresxx.film_unet.config import FilmUNetConfig


def film_unet_scenes() -> Recipe:
    """python -m train film_unet_scenes --out runs/film_unet_scenes

    Everything but the model as in tiny_scenes, parameters within 10 %; dense labels are not used.
    Hardware: 2 CPU cores. Time: that of tiny_scenes. Expected on scenes_easy/val: see docs/results.md.
    """
    compared = tiny_scenes()
    model = FilmUNetConfig(inputs=compared.model, loss=replace(compared.model.loss, dense=0.0))
    return replace(compared, name="film_unet_scenes", model=model)
