"""`--model.sam huge`, `--model.sam2 large`: the sizes of a published SAM in one word of the command line."""

from __future__ import annotations

from dataclasses import replace

from train.recipe import Recipe
from uniresxx.errors import InputError
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.sam_sizes import SamKind, resized

OPTIONS: dict[str, SamKind] = {"--model.sam": "sam", "--model.sam2": "sam2"}


def with_sam_sizes(arguments: list[str], recipe: Recipe) -> tuple[list[str], Recipe]:
    """The other arguments, and the recipe with the sizes that these options name.

    Options of single fields (`--model.sam.region_memory False`) are applied after them, wherever they stand.

    Raises:
        InputError: an option without a word, or a word that names nothing.
    """
    model = recipe.model
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in OPTIONS or not isinstance(model, UniRESPlusPlusConfig):
            others.append(word)
            continue
        if not equals:
            value = next(words, "")
        try:
            model = resized(model, OPTIONS[option], value)
        except ValueError as error:
            raise InputError(f"{option}: {error}") from error
    return others, replace(recipe, model=model)
