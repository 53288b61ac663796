"""The presence head alone: what it reads of a model that stays as it is, and weights fitted to that.

After training on data in which everything asked for is there, a model takes everything for there. What its layers
compute still tells the two apart, so that the last layers, fitted anew, restore it.

Shapes: E expressions of a batch, N expressions in all, C width of what the presence layers read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniresxx.errors import InputError
from uniresxx.model.heads.base import PresenceLayers
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.placement import autocast_of
from uniresxx.types import Batch

# Our choices.
FIRM = 1e-4  # how much a squared change of a weight costs, in the unit of the loss
ROUNDS, STEPS = 20, 10  # of L-BFGS; after each round the held-out expressions are looked at
HELD_OUT = 5  # every so many-th batch is held out
FEWEST = 20  # expressions of each kind without which nothing is fitted


@dataclass(frozen=True, slots=True)
class Seen:
    """What the presence layers read for each expression, and whether its target is there; fp32, on the CPU."""

    inputs_NC: Tensor
    present_N: Tensor  # bool
    held_out_N: Tensor  # bool: not fitted, only looked at

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """Those of several data sets."""
        return cls(
            torch.cat([part.inputs_NC for part in parts]),
            torch.cat([part.present_N for part in parts]),
            torch.cat([part.held_out_N for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """Balanced cross-entropy of the held-out expressions before and after, nats."""

    before: float
    after: float


def layers_of(model: UniRESPlusPlusModel) -> PresenceLayers:
    """The presence layers of a model. InputError where it has none of its own."""
    if model.instances is not None:
        raise InputError(
            "this model has instance queries, whose presence chooses instances as well: it cannot be fitted alone"
        )
    if not model.config.loss.presence:
        raise InputError(
            "this model was trained without a loss on its presence head: train it with one first"
        )
    return model.head.presence_layers


@torch.no_grad()
def look(model: UniRESPlusPlusModel, batches: Iterable[Batch]) -> Seen:
    """What the presence layers read for the expressions of these batches. The model stays in evaluation mode."""
    inputs: list[Tensor] = []
    present: list[Tensor] = []
    held_out: list[Tensor] = []
    device = next(model.parameters()).device
    layers = layers_of(model).layers
    hook = layers.register_forward_pre_hook(
        lambda _, given: inputs.append(given[0].detach().float().flatten(0, -2).cpu())
    )
    model.eval()
    try:
        for number, batch in enumerate(batches):
            if not len(batch.present_E):
                continue
            present.append(batch.present_E.cpu())
            held_out.append(torch.full_like(present[-1], number % HELD_OUT == HELD_OUT - 1))
            with autocast_of(model):
                model(batch.to(device))
    finally:
        hook.remove()
    if not inputs:
        return Seen(torch.zeros(0, 0), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.bool))
    return Seen(torch.cat(inputs), torch.cat(present), torch.cat(held_out))


def fit(presence: PresenceLayers, seen: Seen) -> Fit:
    """Fit the presence layers in place; present and absent expressions count equally, however many there are.

    L-BFGS on the cross-entropy over all expressions, drawn towards the weights as they were (FIRM), with the weights
    of the round that is best on the held-out expressions. Where no round is better, nothing changes.

    Raises:
        InputError: there are too few expressions of a kind, fitted or held out.
    """
    for kept in (~seen.held_out_N, seen.held_out_N):
        for kind, there in (("something there", seen.present_N), ("something absent", ~seen.present_N)):
            found = int((there & kept).sum())
            if found < FEWEST:
                raise InputError(
                    f"the data asks {found} times for {kind} (fitted and held out apart), at least {FEWEST} are "
                    "needed: name other data with --data, or more of it with --pictures"
                )
    own = _with_one_output(presence)
    start = [parameter.detach().clone() for parameter in own.parameters()]
    best = [value.clone() for value in start]
    with torch.enable_grad():
        before = least = float(_loss(own, seen, seen.held_out_N).detach())
        optimizer = torch.optim.LBFGS(own.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            moved = sum((p - s).square().sum() for p, s in zip(own.parameters(), start, strict=True))
            loss = _loss(own, seen, ~seen.held_out_N) + FIRM * moved
            loss.backward()
            return loss

        for _ in range(ROUNDS):
            optimizer.step(closure)
            loss = float(_loss(own, seen, seen.held_out_N).detach())
            if loss < least:
                least, best = loss, [parameter.detach().clone() for parameter in own.parameters()]
    _put_back(presence, best)
    return Fit(before, least)


def _with_one_output(presence: PresenceLayers) -> nn.Module:
    """A copy on the CPU, in fp32, that computes the presence logit (N, 1) alone."""
    copy = deepcopy(presence.layers).cpu().float().requires_grad_(True)
    if isinstance(copy, nn.Linear) and copy.out_features > 1:
        rows = slice(presence.row, presence.row + 1)
        alone = nn.Linear(copy.in_features, 1)
        alone.weight = nn.Parameter(copy.weight[rows].detach())
        alone.bias = nn.Parameter(copy.bias[rows].detach())
        return alone
    return copy


@torch.no_grad()
def _put_back(presence: PresenceLayers, values: Sequence[Tensor]) -> None:
    layers = presence.layers
    one_row = isinstance(layers, nn.Linear) and layers.out_features > 1
    for parameter, value in zip(layers.parameters(), values, strict=True):
        if one_row:
            parameter[presence.row : presence.row + 1].copy_(value)
        else:
            parameter.copy_(value)


def _loss(layers: nn.Module, seen: Seen, kept_N: Tensor) -> Tensor:
    """Mean of the cross-entropies of present and of absent expressions."""
    logits_N = layers(seen.inputs_NC[kept_N])[:, 0]
    present_N = seen.present_N[kept_N]
    losses_N = F.binary_cross_entropy_with_logits(logits_N, present_N.float(), reduction="none")
    return (losses_N[present_N].mean() + losses_N[~present_N].mean()) / 2
