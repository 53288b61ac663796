"""AdamW's parameter groups, the learning rate of a step, and the optimizer's state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from train.recipe import OptimConfig
from uniresxx.errors import InputError

_TIME_RULES_FROM = 0.2  # of max_minutes: before, start-up costs would disturb the schedule of a fast machine


def lr_factor(step: int, config: OptimConfig, time_used: float = 0.0) -> float:
    """Factor on every learning rate for update number `step` (0-based): linear warm-up, then the decay.

    A pure function of the step, unless `max_minutes` ends the run early: then `time_used` (fraction of
    max_minutes, 0..1) replaces the fraction of steps, so that a slow machine also ends with a small learning
    rate. Such a run is not reproducible bit by bit (our choice).
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.decay == "constant":
        return 1.0
    done = step / config.steps
    if time_used > max(done, _TIME_RULES_FROM):
        done = min(time_used, 1.0)
    start = config.warmup_steps / config.steps
    phase = (done - start) / (1.0 - start) if done < 1.0 else 1.0
    return config.final_lr + (1.0 - config.final_lr) * 0.5 * (1.0 + math.cos(math.pi * max(phase, 0.0)))


def time_used(config: OptimConfig, seconds: float) -> float:
    """Fraction of `max_minutes` after so many seconds of training; 0 without a limit."""
    return 0.0 if config.max_minutes is None else seconds / (60.0 * config.max_minutes)


def longer_run_line(planned: OptimConfig, now: OptimConfig, step: int, seconds: float) -> str:
    """What the schedule does where a run continues after `step` with larger `steps` or `max_minutes`."""
    changes = [
        f"optim.{name} {getattr(planned, name)} -> {getattr(now, name)}"
        for name in ("steps", "max_minutes")
        if getattr(planned, name) != getattr(now, name)
    ]
    if now.decay == "constant":
        return f"{', '.join(changes)}: the learning rate does not depend on them"
    before, after = (
        config.lr * lr_factor(step, config, min(time_used(config, seconds), 1.0)) for config in (planned, now)
    )
    rate = f"is {after:.3g} instead of {before:.3g}" if after != before else f"stays {after:.3g}"
    return (
        f"{', '.join(changes)}: the cosine decay is that of the longer run from here on, so the learning rate of "
        f"step {step + 1} {rate}"
    )


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trained parameters by (learning-rate factor, weight decay), in a fixed order.

    Embeddings and parameters with fewer than two dimensions (norms, biases, scales) do not decay. Each group has
    `names` and `lr_scale`; `lr` is set at every step. Raises InputError where a path of `optim.lr_scale` matches no
    trained parameter, or nothing is trained.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    matched: set[str] = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        paths = [path for path, _ in config.lr_scale if f"{name}.".startswith(path.rstrip(".") + ".")]
        matched.update(paths)
        scale = dict(config.lr_scale)[max(paths, key=len)] if paths else 1.0
        bare = parameter.ndim < 2 or id(parameter) in embeddings
        decay = 0.0 if bare else config.weight_decay
        group = groups.setdefault(
            (scale, decay), {"params": [], "names": [], "lr_scale": scale, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    for path, _ in config.lr_scale:
        if path not in matched:
            raise InputError(f"--optim.lr_scale {path!r} matches no trained parameter of the model")
    if not groups:
        raise InputError("no parameter of the model is trained: unfreeze a part of it")
    return [groups[key] for key in sorted(groups)]


def build_adamw(
    model: nn.Module, config: OptimConfig, kind: type[torch.optim.AdamW] = torch.optim.AdamW
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; the fused kernel, which is one pass over each tensor on CPU and GPU."""
    return kind(parameter_groups(model, config), lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _named(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state as "<parameter>/<slot>" -> tensor (AdamW's slots: step, exp_avg, exp_avg_sq)."""
    return {
        f"{name}/{slot}": value
        for name, parameter in _named(optimizer).items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Restore what `optimizer_tensors` returned; a parameter that has had no gradient yet has no state.

    Raises InputError for tensors of parameters that the model does not train.
    """
    order = {name: index for index, name in enumerate(_named(optimizer))}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if name not in order:
            raise InputError(f"the optimizer state has {key!r}, which the model does not train")
        state.setdefault(order[name], {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
