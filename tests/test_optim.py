"""Learning rate of a step, parameter groups, AdamW against a plain reference, state by name."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from train.optim import (
    build_adamw,
    load_optimizer_tensors,
    lr_factor,
    optimizer_tensors,
    parameter_groups,
)
from train.recipe import OptimConfig
from uniresxx.errors import InputError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(6, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.query = nn.Parameter(torch.randn(2, 4))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.tied = nn.Linear(4, 6, bias=False)
        self.tied.weight = self.words.weight
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)

    def loss(self, ids):
        hidden = self.body(self.frozen(self.words(ids))) + self.query.sum(0)
        return self.tied(hidden * self.scale).square().mean()


@given(st.integers(1, 300), st.integers(0, 300), st.floats(0, 1))
def test_lr_rises_then_falls_and_stays_within_bounds(steps, warmup, final):
    config = OptimConfig(steps=steps, warmup_steps=warmup, final_lr=final)
    factors = [lr_factor(step, config) for step in range(steps)]
    assert all(0 <= f <= 1 + 1e-12 for f in factors)
    assert factors[: min(warmup, steps)] == sorted(factors[: min(warmup, steps)])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if warmup < steps:
        assert factors[warmup] == pytest.approx(1.0)
        assert lr_factor(steps, config) == pytest.approx(final)


def test_golden_rates():
    """By hand: steps 12, warm-up 2; half way through the decay (step 7) the cosine is at one half."""
    config = OptimConfig(steps=12, warmup_steps=2)
    assert [round(lr_factor(s, config), 4) for s in (0, 1, 2, 7, 12)] == [0.3333, 0.6667, 1.0, 0.5, 0.0]
    assert lr_factor(11, OptimConfig(steps=12, warmup_steps=2, decay="constant")) == 1.0


def test_time_replaces_steps_only_where_it_is_ahead():
    config = OptimConfig(steps=100, warmup_steps=10, max_minutes=1.0)
    assert lr_factor(50, config, 0.4) == lr_factor(50, config)
    assert lr_factor(15, config, 0.19) == lr_factor(15, config)  # start-up costs do not count
    assert lr_factor(50, config, 0.8) == lr_factor(80, config)
    assert lr_factor(50, config, 1.0) == 0.0
    assert lr_factor(5, config, 0.9) == lr_factor(5, config)  # warm-up is by steps


def test_groups_hold_every_trained_parameter_once():
    config = OptimConfig(weight_decay=0.1, lr_scale=(("body", 0.5), ("body.1", 0.1)))
    groups = {(g["lr_scale"], g["weight_decay"]): sorted(g["names"]) for g in parameter_groups(Net(), config)}
    assert groups == {
        (0.1, 0.0): ["body.1.bias", "body.1.weight"],
        (0.5, 0.0): ["body.0.bias"],
        (0.5, 0.1): ["body.0.weight"],
        (1.0, 0.0): ["scale", "words.weight"],  # the tied head is the embedding
        (1.0, 0.1): ["query"],
    }


@pytest.mark.parametrize("path", ["bod", "frozen", "nothing"])
def test_a_path_that_matches_nothing_is_refused(path):
    with pytest.raises(InputError, match=path):
        parameter_groups(Net(), OptimConfig(lr_scale=((path, 0.1),)))


def test_nothing_to_train_is_refused():
    with pytest.raises(InputError, match="no parameter of the model is trained"):
        parameter_groups(Net().requires_grad_(False), OptimConfig())


def test_adamw_equals_the_formula():
    """Loshchilov & Hutter 2019, algorithm 2, in float64 on one tensor."""
    config = OptimConfig(lr=0.05, betas=(0.9, 0.95), weight_decay=0.2)
    model = nn.Linear(3, 2, bias=False)
    weight = model.weight.detach().double().clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    optimizer = build_adamw(model, config)
    for step in range(1, 6):
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        model.weight.grad = gradient.clone()
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.95 * second + 0.05 * gradient.double() ** 2
        weight -= config.lr * config.weight_decay * weight
        update = (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + config.eps)
        weight -= config.lr * update
    assert torch.allclose(model.weight.double(), weight, atol=1e-6)


def run(model, optimizer, steps):
    for step in steps:
        model.loss(torch.tensor([step % 6, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_state_by_name_continues_exactly():
    config = OptimConfig(weight_decay=0.1)
    whole, cut, again = Net(), Net(), Net()
    run(whole, build_adamw(whole, config), range(8))
    optimizer = build_adamw(cut, config)
    run(cut, optimizer, range(5))
    tensors = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
    assert {"words.weight/exp_avg", "words.weight/exp_avg_sq", "words.weight/step"} <= tensors.keys()
    again.load_state_dict(cut.state_dict())
    restored = build_adamw(again, config)
    load_optimizer_tensors(restored, tensors)
    run(again, restored, range(5, 8))
    for (name, left), right in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right), name


def test_state_of_a_frozen_parameter_is_refused():
    with pytest.raises(InputError, match=r"frozen\.weight/exp_avg"):
        load_optimizer_tensors(
            build_adamw(Net(), OptimConfig()), {"frozen.weight/exp_avg": torch.zeros(4, 4)}
        )


def test_no_state_before_the_first_step():
    optimizer = build_adamw(Net(), OptimConfig())
    assert optimizer_tensors(optimizer) == {}
    load_optimizer_tensors(optimizer, {})
    assert math.isfinite(optimizer.param_groups[0]["lr"])
