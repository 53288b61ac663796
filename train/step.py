"""One update, and the micro-batches it is computed from. A model is `forward`, `loss` and `counts`."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from train.distributed import Ranks
from train.engines.base import Engine
from train.recipe import Recipe
from uniresxx.data.mixture.data_log import DataError
from uniresxx.errors import InputError

Batches = Callable[[int, int], Any]  # (step, micro) -> batch


class TrainingError(RuntimeError):
    """Training cannot go on; programs exit with 1."""


class _Numbered(Dataset[Any]):
    """Micro-batches by their number over the whole run."""

    def __init__(self, batches: Batches, accumulate: int) -> None:
        self.batches, self.accumulate = batches, accumulate

    def __getitem__(self, index: int) -> Any:
        try:
            return self.batches(index // self.accumulate, index % self.accumulate)
        except (InputError, DataError) as error:
            return error  # raised again by `prefetch`: a worker would wrap it into a page of traceback


def _start_worker(index: int) -> None:
    """Workers ignore the signals that Ctrl-C sends to the whole group; the training process ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def prefetch(
    batches: Batches, recipe: Recipe, start: int, pin: bool = False
) -> Generator[list[Any], None, None]:
    """The micro-batches of each step from `start` on, prepared ahead by `data.workers` processes.

    `pin`: in page-locked memory, from which a GPU copies them while the host goes on.
    """
    accumulate, workers = recipe.data.accumulate, recipe.data.workers
    loader: DataLoader[Any] = DataLoader(
        _Numbered(batches, accumulate),
        batch_size=None,
        sampler=range(start * accumulate, recipe.optim.steps * accumulate),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_start_worker if workers else None,
        prefetch_factor=2 * accumulate if workers else None,
        generator=torch.Generator(),  # without one the loader would draw from torch's global random state
    )
    stream = iter(loader)
    try:
        while micro := list(islice(stream, accumulate)):
            for batch in micro:
                if isinstance(batch, InputError):
                    raise batch
                if isinstance(batch, DataError):
                    raise TrainingError(str(batch))
            yield micro
    finally:
        del stream  # ends the workers now, even where an exception still holds this frame


@dataclass(frozen=True)
class StepResult:
    """One update of all ranks.

    `terms` are unweighted means over the step. `bad_ids` are the expressions of a step that is not finite.
    """

    loss: float
    terms: dict[str, float]
    grad_norm: float
    lr: float
    expressions: int
    skipped: bool
    bad_ids: list[str]


def do_step(
    engine: Engine,
    model: Any,
    micro: Sequence[Any],
    step: int,
    time_used: float = 0.0,
    spike: Callable[[float], bool] = lambda norm: False,
) -> StepResult:
    """One update from this rank's micro-batches; how the samples are cut into them changes nothing.

    Args:
        engine: computes and applies the gradient.
        model: what `engine` trains.
        micro: this rank's micro-batches.
        step: number of the update, from 0.
        time_used: fraction of `optim.max_minutes`, for the learning rate.
        spike: whether to skip a gradient of this norm.
    """
    counts: dict[str, int] = {}
    for batch in micro:
        for name, value in model.counts(batch).items():
            counts[name] = counts.get(name, 0) + int(value)
    counts = engine.reduce(counts)
    losses: list[torch.Tensor] = []
    sums: dict[str, list[torch.Tensor]] = {}
    for number, batch in enumerate(micro, start=1):
        with engine.accumulating(last=number == len(micro)):
            placed = engine.place(batch)
            terms = model.loss(engine.forward(placed), placed)
            loss = terms.total(counts)
            engine.backward(loss)
        losses.append(loss.detach())
        for name, value in terms.sums.items():
            sums.setdefault(name, []).append(value.detach())
    found = torch.stack([*losses, *(value for values in sums.values() for value in values)]).tolist()
    local_losses = found[: len(micro)]  # the host waits for the device once
    rest = iter(found[len(micro) :])
    local_sums = {name: sum(islice(rest, len(values))) for name, values in sums.items()}
    local = [sum(local_losses), sum(len(batch.expression_ids) for batch in micro)]
    local += [local_sums.get(name, 0.0) for name in counts]
    total, expressions, *term_sums = engine.ranks.sum(local)
    update = engine.update(
        step, time_used, lambda norm: math.isfinite(total) and math.isfinite(norm) and not spike(norm)
    )
    finite = math.isfinite(total) and math.isfinite(update.grad_norm)
    return StepResult(
        loss=total,
        terms={name: value / max(counts[name], 1) for name, value in zip(counts, term_sums, strict=True)},
        grad_norm=update.grad_norm,
        lr=update.lr if update.applied else 0.0,
        expressions=round(expressions),
        skipped=not update.applied,
        bad_ids=[] if finite else _bad_ids(engine.ranks, micro, local_losses),
    )


def _bad_ids(ranks: Ranks, micro: Sequence[Any], losses: Sequence[float]) -> list[str]:
    """Expressions, on any rank, of the micro-batches whose loss is not finite; all of them where every loss is."""
    bad = [batch for batch, loss in zip(micro, losses, strict=True) if not math.isfinite(loss)]
    found = ranks.gather([name for batch in bad for name in batch.expression_ids])
    if not any(found):
        found = ranks.gather([name for batch in micro for name in batch.expression_ids])
    return [name for names in found for name in names]
