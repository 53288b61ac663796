"""ZeRO: optimizer state (stage 1), gradients (2) and parameters (3) divided over the ranks, by DeepSpeed.

Only this file imports deepspeed, and only if `engine.zero_stage` is above 0. For a checkpoint, DeepSpeed's flat
partitions are collected by parameter name; when a run continues they are scattered again. DeepSpeed's own
checkpoints, pickles that fit one stage and one number of ranks, are not used.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import nn

from train.distributed import Ranks
from train.engines.base import Accept, Engine, Update, Value
from train.recipe import Recipe
from uniresxx.checkpoints.tensors import AnyTensor, LazyTensor
from uniresxx.errors import InputError

_MOMENTS = ("exp_avg", "exp_avg_sq")


class _AdamW(torch.optim.AdamW):
    """AdamW that calls `accept` first: DeepSpeed computes the gradient's norm inside its own step."""

    accept: Callable[[], bool] = staticmethod(lambda: False)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the partition in the groups, if the gradient is accepted."""
        return super().step(closure) if self.accept() else None


def deepspeed_config(recipe: Recipe) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe."""
    engine, stage = recipe.engine, recipe.engine.zero_stage
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": stage > 1, "reduce_bucket_size": 50_000_000}
    if stage > 1:
        zero["contiguous_gradients"] = True
    if stage == 3:
        zero |= {"stage3_max_live_parameters": 1_000_000_000, "stage3_prefetch_bucket_size": 50_000_000}
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if engine.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,  # for DeepSpeed's own bookkeeping; the loop cuts the batches
        "gradient_accumulation_steps": recipe.data.accumulate,
        "gradient_clipping": recipe.optim.clip_norm,
        "torch_autocast": {"enabled": engine.precision == "bf16", "dtype": "bfloat16"},
        "zero_allow_untested_optimizer": True,  # AdamW, in a subclass
        "zero_force_ds_cpu_optimizer": False,  # offloaded state is updated by torch's fused AdamW too
        "steps_per_print": None,
    }


class Zero(Engine):
    """DeepSpeed's engine behind ours."""

    optimizer_class = _AdamW
    optimizer: _AdamW

    def __init__(self, model: nn.Module, recipe: Recipe, ranks: Ranks) -> None:
        super().__init__(model, recipe, ranks)
        deepspeed = _import_deepspeed(self.device.type)
        # DeepSpeed's own groups would wait for torch's default, half an hour
        timeout = timedelta(minutes=self.config.timeout_minutes)
        deepspeed.comm.comm.cdb.new_group = partial(torch.distributed.new_group, timeout=timeout)
        self.stage = recipe.engine.zero_stage
        self.wrapped, self.zero, _, _ = deepspeed.initialize(
            model=self.model,
            optimizer=self.optimizer,
            config=deepspeed_config(recipe),
            dist_init_required=False,
        )
        self.tools = deepspeed
        self._make_states()

    def _make_states(self) -> None:
        """Zero moments for every partition: AdamW would make them at its first update, too late to load them."""
        flat = self.zero.fp32_partitioned_groups_flat if self.stage == 3 else None
        for part in flat or self.zero.single_partition_of_fp32_groups:
            self.optimizer.state[part] = {
                "step": torch.zeros((), dtype=torch.float32, device=part.device),
                **{name: torch.zeros_like(part) for name in _MOMENTS},
            }
        if self.stage < 3:
            self.zero._lazy_init_hp_params_optimizer_state()

    def forward(self, batch: Any) -> Any:
        """Through DeepSpeed, which gathers parameters (stage 3) and casts (bf16)."""
        return self.wrapped(batch)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Tell DeepSpeed whether the step ends with this micro-batch."""

        @contextmanager
        def boundary() -> Iterator[None]:
            self.wrapped.set_gradient_accumulation_boundary(last)
            yield

        return boundary()

    def backward(self, loss: torch.Tensor) -> None:
        """DeepSpeed averages over ranks; a step is a sum."""
        self.wrapped.backward(loss * self.ranks.world_size, scale_wrt_gas=False)

    def update(self, step: int, time_used: float, accept: Accept) -> Update:
        """As in one process. Steps that DeepSpeed itself skips (overflow) count as not applied."""
        lr = self.set_lr(step, time_used)
        skipped = self.wrapped.skipped_steps
        self.optimizer.accept = lambda: accept(float(self.zero._global_grad_norm))
        self.wrapped.step()
        norm = float(self.zero._global_grad_norm)
        return Update(norm, lr, accept(norm) and self.wrapped.skipped_steps == skipped)

    def weights(self) -> Mapping[str, AnyTensor]:
        """Stage 3 gathers each tensor when it is read."""
        if self.stage < 3:
            return super().weights()
        return {
            name: LazyTensor(value.dtype, self._whole_shape(value), partial(self._whole, value))
            for name, value in self.model.state_dict(keep_vars=True).items()
        }

    def _whole(self, value: torch.Tensor) -> torch.Tensor:
        """A parameter or buffer, on every rank."""
        with self.tools.zero.GatheredParameters([value] if isinstance(value, nn.Parameter) else []):
            return value.detach().clone()

    def _whole_shape(self, value: Any) -> tuple[int, ...]:
        """The shape before stage 3 divided a parameter."""
        divided = self.stage == 3 and isinstance(value, nn.Parameter)
        return tuple(value.ds_shape if divided else value.shape)

    def optimizer_tensors(self) -> Mapping[str, AnyTensor]:
        """Whole moments by name, each collected when it is read."""
        found: dict[str, AnyTensor] = {}
        count = next(iter(self.optimizer.state.values()))["step"].cpu().clone()
        collect = self.tools.utils.safe_get_full_optimizer_state
        for name, parameter in self.trained.items():
            for moment in _MOMENTS:
                shape = self._whole_shape(parameter)
                found[f"{name}/{moment}"] = LazyTensor(
                    torch.float32, shape, partial(collect, parameter, moment)
                )
            found[f"{name}/step"] = count
        return found

    def load_optimizer_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Each rank keeps its part of the whole tensors."""
        names = {key.rpartition("/")[0] for key in tensors}
        for name in sorted(names - self.trained.keys()):
            raise InputError(f"the optimizer state has {name!r}, which the model does not train")
        counts = {float(value) for key, value in tensors.items() if key.endswith("/step")}
        if len(counts) > 1:
            raise InputError(
                "the optimizer state counts different updates per parameter: use --engine.zero_stage 0"
            )
        for name in names:
            parameter = self.trained[name]
            for moment in _MOMENTS:
                self._scatter(parameter, moment, tensors[f"{name}/{moment}"].to(self.device))
        for state in self.optimizer.state.values():
            state["step"].fill_(next(iter(counts), 0.0))

    def _scatter(self, parameter: Any, moment: str, value: torch.Tensor) -> None:
        """This rank's part of a moment. Stage 3 pads each parameter at its end, which DeepSpeed's setter of whole
        values forgets where the size does not divide over the ranks."""
        if self.stage < 3:
            self.tools.utils.safe_set_full_optimizer_state(parameter, value, moment)
            return
        size = parameter.ds_tensor.ds_numel
        padded = nn.functional.pad(value.flatten(), (0, size * self.ranks.world_size - value.numel()))
        mine = padded[size * self.ranks.rank :][:size]
        self.tools.utils.safe_set_local_optimizer_state(parameter, mine, moment)

    def with_weights(self, function: Callable[[], Value]) -> Value:
        """Stage 3 gathers parameters around a module's forward pass, so `function` runs as the model's."""
        if self.stage < 3:
            return function()
        found: list[Value] = []
        before = vars(self.model).get("forward")
        self.model.forward = lambda: found.append(function())
        try:
            self.model()
        finally:
            del self.model.forward
            if before is not None:
                self.model.forward = before
        return found[0]

    def describe(self) -> dict[str, Any]:
        """With DeepSpeed's version."""
        return super().describe() | {"deepspeed": self.tools.__version__}


def _import_deepspeed(device: str) -> Any:
    """deepspeed, quiet, and without its shared-memory extension, which would need a compiler."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    try:
        import deepspeed
        from deepspeed.ops import __compatible_ops__
        from deepspeed.utils import logger
    except ImportError as error:
        raise InputError(
            f"--engine.zero_stage needs deepspeed ({error}): pip install -e '.[engine]', or use stage 0"
        ) from None
    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of its calls
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=None)
    return deepspeed
