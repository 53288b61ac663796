"""A recipe: everything that decides a training run, as one frozen dataclass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import tyro

from uniresxx.data.catalog import SCENES
from uniresxx.data.mixture.parts import MixturePart, mixture_named
from uniresxx.errors import InputError
from uniresxx.scoring.metrics import SCORE_KEYS
from uniresxx.types import Granularity

# Sections that change no weight: they may differ when a run is continued.
FREE = (
    "log.", "eval.", "data.workers", "data.images", "data.max_bad_fraction",
    "engine.zero_stage", "engine.offload", "engine.device", "engine.threads", "engine.timeout_minutes",
)  # fmt: skip


@dataclass(frozen=True)
class DataConfig:
    """What is learned from. A step sees `batch_images * accumulate` images, over all processes together."""

    source: str = "scenes_easy"  # "scenes_easy" | "scenes" | NAME of a data set | STORE[/SPLIT]
    split: str = "train"
    batch_images: int = 8  # images of one micro-batch, divided over the processes of the job
    accumulate: int = 1  # micro-batches of one step; losses do not depend on how a step is cut
    expressions_per_image: int = 8
    workers: int = 0  # processes that prepare batches ahead; 0: prepared in the training process
    dialogue_share: float = 0.2  # of an image's branches that are conversations, where it offers enough
    first_preset: str | None = None  # curriculum of the scenes: these pictures first …
    first_images: int = 0  # … for so many images
    warmup_images: int = 0  # curriculum of the scenes: so many images also ask for colours and sides alone
    mixture: str = ""  # NAME of several data sets by weight, instead of `source`
    parts: tyro.conf.Fixed[tuple[MixturePart, ...]] = ()  # the same, given by a recipe
    guard: Literal["on", "strict", "published_data"] = "on"  # no training on photos of the benchmarks
    images: str | None = None  # where the photographs of prepared stores lie now
    flip: float = 0.0  # share of pictures mirrored with their words, where the words allow it
    max_bad_fraction: float = 0.001  # of samples that may be replaced because they cannot be prepared


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
    spike_sigmas: float | None = None  # skip a gradient norm so far above those before it (guards.Spikes)
    max_minutes: float | None = None  # of training; the decay hurries to be done then (optim.lr_factor)


@dataclass(frozen=True)
class EngineConfig:
    """How the steps are computed. All but `precision` may change when a run is continued."""

    zero_stage: int = (
        0  # 0: whole on every process; DeepSpeed divides optimizer (1), gradients (2), weights (3)
    )
    offload: Literal["none", "optimizer", "all"] = "none"  # to CPU memory; "all": weights too, with stage 3
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the computation; trained weights stay fp32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None  # of torch; None: torch's choice
    timeout_minutes: float = 30.0  # without a word from another process before the job gives up


@dataclass(frozen=True)
class LogConfig:
    """What is written, and when. Steps, unless the name says seconds."""

    save_every: int = 500
    keep_last: int = 2
    save_async: bool = False  # write checkpoints beside the training, from a copy in CPU memory
    overlay_first_seconds: float = 20.0  # the first picture is due within a minute
    overlay_every: int = 500
    print_every_seconds: float = 10.0  # plain lines where the output is no terminal
    tensorboard: bool = False  # event files in OUT/tensorboard
    tracker: Literal["none", "trackio", "wandb"] = "none"  # log.jsonl is written in any case


@dataclass(frozen=True)
class EvalConfig:
    """What this recipe is measured on, and whether while it trains: the best checkpoint is kept and marked."""

    benchmarks: tuple[str, ...] = ()
    every: int | None = None  # steps, and at the end; None: only by `python -m eval run`
    limit: int | None = 100  # pictures of each benchmark, while training
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
        """Plain JSON values, as they come back from a file."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def check(recipe: Recipe) -> None:
    """Raise InputError for values that cannot be trained with."""
    at_least = {
        "data.batch_images": (recipe.data.batch_images, 1),
        "data.accumulate": (recipe.data.accumulate, 1),
        "data.expressions_per_image": (recipe.data.expressions_per_image, 1),
        "data.workers": (recipe.data.workers, 0),
        "data.first_images": (recipe.data.first_images, 0),
        "data.warmup_images": (recipe.data.warmup_images, 0),
        "optim.steps": (recipe.optim.steps, 1),
        "optim.warmup_steps": (recipe.optim.warmup_steps, 0),
        "optim.weight_decay": (recipe.optim.weight_decay, 0),
        "log.save_every": (recipe.log.save_every, 1),
        "log.keep_last": (recipe.log.keep_last, 1),
        "log.overlay_every": (recipe.log.overlay_every, 1),
        "eval.batch_images": (recipe.eval.batch_images, 1),
    }
    for name, (value, least) in at_least.items():
        if not value >= least:  # so that nan is refused as well
            raise InputError(f"--{name} {value}: must be at least {least}")
    above_zero = {
        "optim.lr": recipe.optim.lr,
        "optim.eps": recipe.optim.eps,
        "optim.clip_norm": recipe.optim.clip_norm,
        "optim.max_minutes": recipe.optim.max_minutes,
        "optim.spike_sigmas": recipe.optim.spike_sigmas,
        "engine.threads": recipe.engine.threads,
        "engine.timeout_minutes": recipe.engine.timeout_minutes,
        "eval.every": recipe.eval.every,
        "eval.limit": recipe.eval.limit,
    }
    for name, number in above_zero.items():
        if number is not None and not number > 0:
            raise InputError(f"--{name} {number}: must be above 0")
    fractions = {
        "optim.final_lr": recipe.optim.final_lr,
        "data.dialogue_share": recipe.data.dialogue_share,
        "data.flip": recipe.data.flip,
        "data.max_bad_fraction": recipe.data.max_bad_fraction,
    }
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise InputError(f"--{name} {fraction}: must be from 0 to 1")
    _check_data(recipe.data)
    if not all(0 <= beta < 1 for beta in recipe.optim.betas):
        first, second = recipe.optim.betas
        raise InputError(f"--optim.betas {first} {second}: each must be at least 0 and below 1")
    _check_engine(recipe.engine)
    _check_eval(recipe.eval)


def _check_eval(config: EvalConfig) -> None:
    """Raise InputError for a measurement that could not be made."""
    granularity, _, key = config.metric.rpartition("/")
    if key not in SCORE_KEYS or granularity not in ("", *Granularity):
        raise InputError(
            f"--eval.metric {config.metric}: unknown; a score ({', '.join(SCORE_KEYS)}), or one of "
            f"{', '.join(Granularity)} with a score, as part/mIoU"
        )
    if config.every is not None and not config.benchmarks:
        raise InputError(
            f"--eval.every {config.every}: name what to measure on by --eval.benchmarks NAME/SPLIT"
        )


def _check_engine(engine: EngineConfig) -> None:
    """Raise InputError for what no engine does."""
    if engine.zero_stage not in (0, 1, 2, 3):
        raise InputError(f"--engine.zero_stage {engine.zero_stage}: must be 0, 1, 2 or 3")
    if engine.offload != "none" and engine.zero_stage == 0:
        raise InputError(f"--engine.offload {engine.offload}: needs --engine.zero_stage 1, 2 or 3")
    if engine.offload == "all" and engine.zero_stage != 3:
        raise InputError("--engine.offload all: needs --engine.zero_stage 3, which divides the weights")
    if engine.precision == "fp16" and engine.zero_stage > 0:
        raise InputError("--engine.precision fp16 with ZeRO is not built: use bf16, or --engine.zero_stage 0")


def share_of(data: DataConfig, ranks: int) -> int:
    """Images of a micro-batch per process. Raises InputError with numbers that work where it does not divide."""
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
    """Raise InputError for options of the data that contradict one another, or that it would silently ignore."""
    if d.dialogue_share == 1:
        raise InputError("--data.dialogue_share 1: leave room for expressions, at most 0.9 makes sense")
    if d.mixture and d.parts:
        raise InputError(f"--data.mixture {d.mixture}: this recipe brings its own parts")
    if d.mixture:
        mixture_named(d.mixture)
    if d.mixture and d.source and d.source not in SCENES:
        raise InputError(
            f"--data.source {d.source}: the mixture {d.mixture} would be trained on instead; "
            "add --data.mixture '' or --data.source ''"
        )
    drawn = d.source in SCENES and not (d.mixture or d.parts)
    if drawn and d.split != "train":
        raise InputError(
            f"--data.split {d.split}: scenes are trained on train only, the other splits measure"
        )
    if drawn and (d.flip or d.images):
        raise InputError("data.flip and data.images are for photographs, not for scenes")
    if not drawn and (d.first_preset or d.first_images or d.warmup_images):
        raise InputError(
            f"data.first_preset, first_images and warmup_images are for scenes, not for {d.mixture or d.source}"
        )
    if bool(d.first_preset) != bool(d.first_images):
        raise InputError("data.first_preset and data.first_images go together: give both or neither")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines "key: saved -> now" for everything that decides the weights."""
    old, new = flatten(saved), flatten(now)
    return [
        f"{key}: {_shown(old, key)} -> {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if not key.startswith(FREE) and _shown(old, key) != _shown(new, key)
    ]


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(absent)"
