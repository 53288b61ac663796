"""The engine room: how gradients are computed and applied. One process now.

The loop uses only the methods of `Engine`. Another way to compute (data parallel, ZeRO) is another class with
the same methods: `reduce` sums over ranks, `backward` may hold communication back until the last micro-batch,
`clip` returns the norm of the whole gradient on every rank, and `tensors` gathers what a checkpoint needs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from train.optim import build_adamw, load_optimizer_tensors, lr_factor, optimizer_tensors
from train.recipe import EngineConfig, OptimConfig
from uniresxx.errors import InputError

_RNG = "rng/"  # random states lie beside the optimizer's tensors; no parameter path starts like this


class LossTerms(Protocol):
    """Sums of one micro-batch; `total` divides them by the counts of the whole step."""

    @property
    def sums(self) -> Mapping[str, torch.Tensor]: ...
    @property
    def weights(self) -> Mapping[str, float]: ...
    def total(self, counts: Mapping[str, int]) -> torch.Tensor: ...


class Engine:
    """Single process, one device."""

    rank, world_size = 0, 1

    def __init__(self, model: nn.Module, config: EngineConfig, optim: OptimConfig) -> None:
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if config.zero_stage != 0 or ranks > 1:
            raise InputError(
                f"engine.zero_stage {config.zero_stage} on {ranks} processes: only stage 0 in one is built"
            )
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.device = _device(config)
        self.config, self.optim = config, optim
        self.model: Any = model.to(self.device)
        self.optimizer = build_adamw(self.model, optim)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]

    def reduce(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts summed over all ranks."""
        return dict(counts)

    def place(self, batch: Any) -> Any:
        """The batch on this engine's device."""
        return batch.to(self.device)

    def forward(self, batch: Any) -> Any:
        """The model's output in the precision of the recipe; parameters stay fp32."""
        with self.precision():
            return self.model(batch)

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast for bf16, nothing for fp32."""
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-batch; `loss` is already divided by the counts of the whole step."""
        loss.backward()

    def clip(self, max_norm: float) -> float:
        """Scale the gradient down to `max_norm`; its norm before that (not finite: call `skip`)."""
        return float(torch.nn.utils.clip_grad_norm_(self.trained, max_norm))

    def step(self, step: int, time_used: float = 0.0) -> float:
        """Apply the gradient with the learning rate of update number `step` (0-based); returns that rate."""
        lr = self.optim.lr * lr_factor(step, self.optim, time_used)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.step()
        self.skip()
        return lr

    def skip(self) -> None:
        """Throw the gradient away."""
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything but the weights that the next step depends on: optimizer and random states."""
        random = {_RNG + "cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random[_RNG + "cuda"] = torch.cuda.get_rng_state(self.device)
        return optimizer_tensors(self.optimizer) | random

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `tensors` gave (the weights are loaded into the model before)."""
        load_optimizer_tensors(
            self.optimizer, {key: value for key, value in tensors.items() if not key.startswith(_RNG)}
        )
        torch.set_rng_state(tensors[_RNG + "cpu"])
        if self.device.type == "cuda" and _RNG + "cuda" in tensors:
            torch.cuda.set_rng_state(tensors[_RNG + "cuda"], self.device)

    def describe(self) -> dict[str, Any]:
        """What the last bits of a result depend on besides the recipe."""
        return {"device": self.device.type, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _device(config: EngineConfig) -> torch.device:
    """The device of the recipe; "auto" takes a GPU where there is one."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise InputError("--engine.device cuda: torch sees no GPU here; use cpu or auto")
    return torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")
