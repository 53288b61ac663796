"""Recipe of the plain baseline: a FiLM-UNet on the same pictures and questions as `scenes_hour`."""

from __future__ import annotations

from dataclasses import replace

from train.recipe import Recipe
from train.recipes.scenes_hour import scenes_hour
from uniresxx.segmenters.film_unet.config import FilmUNetConfig


def film_unet_scenes() -> Recipe:
    """python -m train film_unet_scenes --out runs/film_unet_scenes

    Everything but the model as in scenes_hour, parameters within 10 %; dense labels are not used.
    Hardware and time: those of scenes_hour. Expected: docs/results.md.
    """
    compared = scenes_hour()
    model = FilmUNetConfig(inputs=compared.model, loss=replace(compared.model.loss, dense=0.0))
    return replace(compared, name="film_unet_scenes", model=model)
