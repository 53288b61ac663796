"""Data-parallel training: the same model on every rank, gradients summed by torch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train.distributed import Ranks
from train.engines.base import Engine
from train.recipe import Recipe


class DataParallel(Engine):
    """The same model on every rank; torch's DistributedDataParallel sums the gradients."""

    def __init__(self, model: nn.Module, recipe: Recipe, ranks: Ranks) -> None:
        super().__init__(model, recipe, ranks)
        # A rank may use only a part of the model in a step. Looking for unused parameters also keeps the
        # buckets, and so the order of summation, the same before and after a restart.
        self.wrapped = DistributedDataParallel(self.model, find_unused_parameters=True)

    def forward(self, batch: Any) -> Any:
        """As in one process, through the wrapper that collects the gradients."""
        with self.precision():
            return self.wrapped(batch)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """No communication before the last micro-batch."""
        return nullcontext() if last else self.wrapped.no_sync()

    def backward(self, loss: torch.Tensor) -> None:
        """The wrapper averages over ranks; a step is a sum."""
        super().backward(loss * self.ranks.world_size)
