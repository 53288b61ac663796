"""What a recipe trains: model, batches, and what the loop calls on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from train.step import Batches
from train.throughput import Cost
from train.validation import ValidationResult
from uniresxx.data.mixture.data_log import DataLog
from uniresxx.evaluation.ranks import Processes


@dataclass(frozen=True)
class Job:
    """What a recipe trains.

    Attributes:
        model: nn.Module with `forward(batch)`, `loss(output, batch) -> LossTerms`, `config` and `tokenizer` (see
            checkpoint.Saveable), and `counts(batch) -> dict[str, int]`, the denominator of each loss term.
        batches: pure function (step, micro) -> Batch, step from 0, micro < data.accumulate. It uses no global state,
            because `data.workers` processes call it. For several ranks it has `for_rank(rank, world_size)`, which
            returns the function of that rank's share; all shares together are the same micro-batch.
        overlay: (step) -> picture of the model's answers; called in eval mode without gradients.
        fingerprint: identifies the data by content; a run continues only on the same data.
        extra: saved in recipe.json and not compared (prompt templates, …).
        data_log: counts the samples, and the bad ones among them.
        validate: (step, folder, ranks) -> ValidationResult; writes into the folder. Every rank calls it, in eval
            mode, at every `eval.every`-th step and the last, and gets the same result; they share the batches. After
            a step that is not finite it waits for the next one that is. A checkpoint is saved then, and the best one
            is kept and marked.
        cost: tokens and FLOPs of a micro-batch, for the log.
        messages: lines about the data, printed before the first step.
        newest: the newest undamaged checkpoint of the run folder, where it was looked up already.
        loaded: whether the model holds the weights of `newest`.
        model_config: `recipe.model` with what the data decided (levels of the box head); it is saved and compared.
            None: as the recipe has it.
    """

    model: Any
    batches: Batches
    overlay: Callable[[int], Image.Image] | None = None
    fingerprint: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    data_log: DataLog | None = None
    validate: Callable[[int, Path, Processes], ValidationResult] | None = None
    cost: Callable[[Any], Cost] | None = None
    messages: tuple[str, ...] = ()
    model_config: Any = None
    newest: Path | None = None
    loaded: bool = False
