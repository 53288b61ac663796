"""The engine of a recipe: one process, DDP or ZeRO."""

from __future__ import annotations

from torch import nn

from train.distributed import Ranks, join
from train.engines.base import Engine, device_of
from train.engines.ddp import DataParallel
from train.engines.zero import Zero
from train.recipe import EngineConfig, Recipe


def join_ranks(config: EngineConfig) -> Ranks:
    """The processes of this job, as the launcher started them."""
    return join(device_of(config), config.timeout_minutes, always=config.zero_stage > 0)


def build_engine(model: nn.Module, recipe: Recipe, ranks: Ranks) -> Engine:
    """The engine of the recipe and the launcher; the model holds its starting weights already."""
    if recipe.engine.zero_stage > 0:
        return Zero(model, recipe, ranks)
    return DataParallel(model, recipe, ranks) if ranks.world_size > 1 else Engine(model, recipe, ranks)
