"""A recipe: everything that decides a training run, as one frozen dataclass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import tyro

from uniresxx.data.catalog import SCENES
from uniresxx.data.mixture.parts import MixturePart, mixture_named
from uniresxx.data.scenes.pairs import PAIR_STAGES
from uniresxx.errors import InputError
from uniresxx.scoring.metrics import SCORE_KEYS
from uniresxx.types import Granularity


@dataclass(frozen=True)
class DataConfig:
    """The training data. A step has `batch_images * accumulate` images, over all processes together."""

    source: str = "scenes_easy"  # "scenes_easy" | "scenes" | NAME of a data set | STORE[/SPLIT]
    split: str = "train"
    batch_images: int = 8  # images of one micro-batch, divided over the processes of the job
    accumulate: int = 1  # micro-batches of one step; losses do not depend on it
    expressions_per_image: int = 8
    workers: int = 0  # processes that prepare batches ahead; 0: prepared in the training process
    dialogue_share: float = 0.2  # share of an image's branches that are conversations, if it has enough
    compose_dialogues: bool = False  # compose conversations of the expressions of images that bring none
    first_preset: str | None = None  # curriculum of the scenes: the preset of the first pictures
    first_images: int = 0  # how many of them
    warmup_images: int = 0  # curriculum of the scenes: first images that also ask for colours and sides alone
    # curriculum of the scenes: images from which on both of two like things are asked for: by side; in every second
    # picture by size; in every third a part of both
    pair_images: tuple[int, ...] = ()
    mixture: str = ""  # instead of `source`: NAME of a mixture, or NAME=WEIGHT,NAME[part]=WEIGHT,…
    parts: tyro.conf.Fixed[tuple[MixturePart, ...]] = ()  # a mixture that the recipe defines
    guard: Literal["on", "strict", "published_data"] = "on"  # against training on photos of the benchmarks
    images: str | None = None  # where the photographs of prepared stores lie now
    flip: float = 0.0  # share of pictures mirrored with their words, if the words allow it
    max_bad_fraction: float = 0.001  # of the samples, unreadable and replaced, before the run stops


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and decay."""

    steps: int = 1000
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0  # never on norms, biases and embeddings
    lr_scale: tuple[tuple[str, float], ...] = ()  # (module path, factor on lr); the longest match counts
    warmup_steps: int = 50
    decay: Literal["cosine", "constant"] = "cosine"
    final_lr: float = 0.0  # fraction of lr at the end of the decay
    clip_norm: float = 1.0
    spike_sigmas: float | None = None  # skip gradient norms so far above the mean of the last 128
    max_minutes: float | None = None  # of training; the decay ends in time


@dataclass(frozen=True)
class EngineConfig:
    """How the steps are computed. All but `precision` may change when a run continues."""

    zero_stage: int = 0  # DeepSpeed divides the optimizer (1), also gradients (2), also weights (3)
    offload: Literal["none", "optimizer", "all"] = "none"  # to CPU memory; "all": weights too, with stage 3
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the computation; trained weights stay fp32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None  # of torch; None: torch's choice
    timeout_minutes: float = 30.0  # that a process waits for another before the job ends


@dataclass(frozen=True)
class LogConfig:
    """What is written, and when: in steps, unless the name says seconds."""

    save_every: int = 500
    keep_last: int = 2
    save_async: bool = False  # write checkpoints in the background, from a copy in CPU memory
    overlay_first_seconds: float = 20.0  # until the first picture
    overlay_every: int = 500
    print_every_seconds: float = 10.0  # between progress lines, if the output is no terminal
    tensorboard: bool = False  # event files in OUT/tensorboard
    tracker: Literal["none", "trackio", "wandb"] = "none"  # log.jsonl is written in any case


@dataclass(frozen=True)
class EvalConfig:
    """The benchmarks of the recipe. With `every`, they choose the best checkpoint during training."""

    benchmarks: tuple[str, ...] = ()
    every: int | None = None  # steps, and at the end; None: not during training
    limit: int | None = 100  # pictures of each benchmark, during training
    metric: str = "mIoU"  # chooses the best: a score of metrics.json, or GRANULARITY/score
    batch_images: int = 8


@dataclass(frozen=True)
class Recipe:
    """One training run. `model` is the model's own config dataclass."""

    name: tyro.conf.Fixed[str]  # not an option of the command line
    model: Any
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as read from a file."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


# What a number must be -> the test, and the fields that it is for. None is always allowed, NaN never.
_RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "at least 1": (
        lambda value: value >= 1,
        (
            "data.batch_images", "data.accumulate", "data.expressions_per_image", "optim.steps", "log.save_every",
            "log.keep_last", "log.overlay_every", "eval.batch_images",
        ),
    ),
    "at least 0": (
        lambda value: value >= 0,
        (
            "data.workers", "data.first_images", "data.warmup_images", "optim.warmup_steps", "optim.weight_decay",
        ),
    ),
    "above 0": (
        lambda value: value > 0,
        (
            "optim.lr", "optim.eps", "optim.clip_norm", "optim.max_minutes", "optim.spike_sigmas", "engine.threads",
            "engine.timeout_minutes", "eval.every", "eval.limit",
        ),
    ),
    "from 0 to 1": (
        lambda value: 0 <= value <= 1,
        ("optim.final_lr", "data.dialogue_share", "data.flip", "data.max_bad_fraction"),
    ),
    "0, 1, 2 or 3": (lambda value: value in (0, 1, 2, 3), ("engine.zero_stage",)),
}  # fmt: skip


def check(recipe: Recipe) -> None:
    """Raise InputError for values that cannot be trained with."""
    for rule, (holds, names) in _RANGES.items():
        for name in names:
            section, _, field_name = name.partition(".")
            value = getattr(getattr(recipe, section), field_name)
            if value is not None and not holds(value):
                raise InputError(f"--{name} {value}: must be {rule}")
    if not all(0 <= beta < 1 for beta in recipe.optim.betas):
        first, second = recipe.optim.betas
        raise InputError(f"--optim.betas {first} {second}: each must be at least 0 and below 1")
    _check_data(recipe.data)
    _check_engine(recipe.engine)
    _check_eval(recipe.eval)


def _check_eval(config: EvalConfig) -> None:
    """Raise InputError for a validation that is not possible."""
    granularity, _, key = config.metric.rpartition("/")
    if key not in SCORE_KEYS or granularity not in ("", *Granularity):
        raise InputError(
            f"--eval.metric {config.metric}: unknown; use a score ({', '.join(SCORE_KEYS)}), or one of "
            f"{', '.join(Granularity)} with a score, such as part/mIoU"
        )
    if config.every is not None and not config.benchmarks:
        raise InputError(f"--eval.every {config.every}: name the benchmarks by --eval.benchmarks NAME/SPLIT")


def _check_engine(engine: EngineConfig) -> None:
    """Raise InputError for a combination that no engine supports."""
    if engine.offload != "none" and engine.zero_stage == 0:
        raise InputError(f"--engine.offload {engine.offload}: needs --engine.zero_stage 1, 2 or 3")
    if engine.offload == "all" and engine.zero_stage != 3:
        raise InputError("--engine.offload all: needs --engine.zero_stage 3, which divides the weights")
    if engine.precision == "fp16" and engine.zero_stage > 0:
        raise InputError(
            "--engine.precision fp16: not possible with ZeRO; use bf16, or --engine.zero_stage 0"
        )


def share_of(data: DataConfig, ranks: int) -> int:
    """Images of a micro-batch per process. Raises InputError if they do not divide, with numbers that do."""
    if data.batch_images % ranks == 0:
        return data.batch_images // ranks
    fitting = ", ".join(str(n) for n in range(1, data.batch_images + 1) if data.batch_images % n == 0)
    below, above = data.batch_images // ranks * ranks, (data.batch_images // ranks + 1) * ranks
    sizes = f"{below} or {above}" if below else f"{above}"
    raise InputError(
        f"--data.batch_images {data.batch_images} does not divide over {ranks} processes: "
        f"start {fitting} processes, or use --data.batch_images {sizes}"
    )


def _check_data(d: DataConfig) -> None:
    """Raise InputError for data options that contradict one another, or would have no effect."""
    if d.dialogue_share == 1:
        raise InputError("--data.dialogue_share 1: leaves no expressions; use at most 0.9")
    if d.mixture and d.parts:
        raise InputError(
            f"--data.mixture {d.mixture}: this recipe has data.parts of its own; leave the option out"
        )
    if d.mixture:
        mixture_named(d.mixture)
    if d.mixture and d.source and d.source not in SCENES:
        raise InputError(
            f"--data.source {d.source}: the recipe also has the mixture {d.mixture}; "
            "add --data.mixture '' or --data.source ''"
        )
    drawn = d.source in SCENES and not (d.mixture or d.parts)
    if drawn and d.split != "train":
        raise InputError(f"--data.split {d.split}: the other splits of scenes are for evaluation; use train")
    if drawn and (d.flip or d.images):
        raise InputError("--data.flip, --data.images: only for photographs, not for scenes; leave them out")
    curriculum = {"first_preset": " None", "first_images": " 0", "warmup_images": " 0", "pair_images": ""}
    given = [name for name in curriculum if getattr(d, name)]
    if not drawn and given:
        away = " ".join(f"--data.{name}{curriculum[name]}" for name in given)
        raise InputError(f"the curriculum of the scenes does not fit {d.mixture or d.source}: add {away}")
    if bool(d.first_preset) != bool(d.first_images):
        raise InputError("--data.first_preset, --data.first_images: give both or neither")
    if len(d.pair_images) > PAIR_STAGES or list(d.pair_images) != sorted(d.pair_images):
        raise InputError(
            f"--data.pair_images {' '.join(map(str, d.pair_images))}: at most {PAIR_STAGES} numbers, each at least "
            "the one before"
        )
