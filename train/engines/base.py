"""How gradients are computed and applied.

The loop uses only the methods of `Engine`. One process, data-parallel processes (`ddp.py`) and DeepSpeed's ZeRO
stages (`zero.py`) do the same arithmetic: each loss is divided by the counts of the whole step, and gradients are
summed over micro-batches and ranks. So how a step is cut changes only the rounding. A trained parameter that gets
no gradient in a step has a zero gradient, in every engine.

Checkpoints hold whole tensors by parameter name, the same for every engine and number of ranks. So any engine
continues the run of any other, and no pickle is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from train.distributed import Ranks
from train.optim import build_adamw, load_optimizer_tensors, lr_factor, optimizer_tensors
from train.recipe import EngineConfig, Recipe
from uniresxx.checkpoints.tensors import AnyTensor
from uniresxx.errors import InputError

Value = TypeVar("Value")
Accept = Callable[[float], bool]

# Beside the optimizer's tensors; no parameter path starts like these.
_RNG, _SCALER = "rng/", "scaler/"


class LossTerms(Protocol):
    """Sums of one micro-batch; `total` divides them by the counts of the whole step."""

    @property
    def sums(self) -> Mapping[str, torch.Tensor]: ...
    @property
    def weights(self) -> Mapping[str, float]: ...
    def total(self, counts: Mapping[str, int]) -> torch.Tensor: ...


@dataclass(frozen=True)
class Update:
    """The result of one gradient: its norm before clipping, the learning rate, whether it was applied."""

    grad_norm: float
    lr: float
    applied: bool


class Engine:
    """Single process, one device."""

    optimizer_class = torch.optim.AdamW

    def __init__(self, model: nn.Module, recipe: Recipe, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.config, self.optim = recipe.engine, recipe.optim
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        self.device = device_of(self.config)
        self.model: Any = model.to(self.device)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = build_adamw(self.model, self.optim, self.optimizer_class)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.precision == "fp16")

    def reduce(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts summed over all ranks; every rank has the same names."""
        return dict(zip(counts, map(int, self.ranks.sum(list(counts.values()))), strict=True))

    def place(self, batch: Any) -> Any:
        """The batch on this engine's device."""
        return batch.to(self.device)

    def forward(self, batch: Any) -> Any:
        """The model's output in the precision of the recipe; trained parameters stay fp32."""
        with self.precision():
            return self.model(batch)

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast for bf16 and fp16, nothing for fp32."""
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.config.precision in kinds:
            return torch.autocast(self.device.type, dtype=kinds[self.config.precision])
        return nullcontext()

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one micro-batch; ranks exchange gradients in the `last` only."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-batch; `loss` is already divided by the counts of the whole step."""
        self.scaler.scale(loss).backward()

    def update(self, step: int, time_used: float, accept: Accept) -> Update:
        """Clip the gradient and apply it as update number `step` (0-based) if `accept(norm)` is true.

        The norm is that of the whole gradient, the same on every rank.
        """
        lr = self.set_lr(step, time_used)
        self.scaler.unscale_(self.optimizer)
        for parameter in self.trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = float(nn.utils.clip_grad_norm_(self.trained.values(), self.optim.clip_norm))
        applied = accept(norm)
        if applied:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Update(norm, lr, applied)

    def set_lr(self, step: int, time_used: float) -> float:
        """Set and return the learning rate of update number `step`."""
        lr = self.optim.lr * lr_factor(step, self.optim, time_used)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return lr

    def weights(self) -> Mapping[str, AnyTensor]:
        """The model's whole state_dict; all ranks call it, and read its tensors in the same order."""
        found: Mapping[str, torch.Tensor] = self.model.state_dict()
        return found

    def tensors(self) -> Mapping[str, AnyTensor]:
        """Optimizer, random states and loss scale; all ranks call it, and read its tensors in the same order."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        states = {
            f"{_RNG}{rank}/{kind}": state
            for rank, found in enumerate(self.ranks.gather(random))
            for kind, state in found.items()
        }
        scaler = {
            _SCALER + key: torch.tensor(float(value), dtype=torch.float64)
            for key, value in self.scaler.state_dict().items()
        }
        return {**self.optimizer_tensors(), **states, **scaler}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `tensors` of any engine returned; the model held its weights before this engine was made."""
        self.load_optimizer_tensors(
            {key: value for key, value in tensors.items() if not key.startswith((_RNG, _SCALER))}
        )
        if self.scaler.is_enabled() and _SCALER + "scale" in tensors:
            plain = {key: tensors[_SCALER + key].item() for key in self.scaler.state_dict()}
            self.scaler.load_state_dict(plain | {"_growth_tracker": int(plain["_growth_tracker"])})
        mine = f"{_RNG}{self.ranks.rank}/"
        if mine + "cpu" in tensors:  # an additional rank keeps its own seed
            torch.set_rng_state(tensors[mine + "cpu"])
        if self.device.type == "cuda" and mine + "cuda" in tensors:
            torch.cuda.set_rng_state(tensors[mine + "cuda"], self.device)

    def optimizer_tensors(self) -> Mapping[str, AnyTensor]:
        """The optimizer's whole state by parameter name."""
        return optimizer_tensors(self.optimizer)

    def load_optimizer_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `optimizer_tensors` returned."""
        load_optimizer_tensors(self.optimizer, tensors)

    def in_eval_mode(self, function: Callable[[], Value]) -> Value:
        """Call `function` with the model in eval mode; the random numbers and modes of training do not change."""
        modes = [(module, module.training) for module in self.model.modules()]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            self.model.eval()
            found = self.with_weights(function)
        for module, mode in modes:
            module.training = mode
        return found

    def with_weights(self, function: Callable[[], Value]) -> Value:
        """Call `function`, which uses the model's own methods; all ranks call it, as ZeRO-3 gathers weights."""
        return function()

    def describe(self) -> dict[str, Any]:
        """What changes the rounding of a result, besides the recipe."""
        return {
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "ranks": self.ranks.world_size,
            "zero_stage": self.config.zero_stage,
        }


def device_of(config: EngineConfig) -> torch.device:
    """The device of the recipe; "auto" takes a GPU if there is one. Raises InputError."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise InputError("--engine.device cuda: torch sees no GPU here; use cpu or auto")
    device = torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")
    if config.precision == "fp16" and device.type == "cpu":
        raise InputError("--engine.precision fp16: not possible on a CPU; use fp32 or bf16")
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
