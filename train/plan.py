"""`python -m train plan RECIPE`: the memory of a recipe per GPU, predicted without loading weights.

Weights, gradients and optimizer follow from the number of parameters, the ZeRO stage and the number of processes;
activations come from `train.memory_estimate`. All figures are bytes unless a name says otherwise; GB are 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import nn

from mllm.quantization import parameter_counts
from train.engines.zero import deepspeed_config
from train.host_memory import host_memory
from train.memory_estimate import (
    ActivationMemory,
    Sizes,
    estimate_activations,
    model_without_memory,
    parameter_bytes,
)
from train.memory_unires import estimate_unires, unires_without_memory
from train.recipe import Recipe, share_of
from uniresxx.data.catalog import SCENES
from uniresxx.errors import InputError
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.segmenters.unires.config import UniresConfig

FP32 = 4
CONTEXT = 800_000_000  # CUDA context, cuBLAS and cuDNN workspaces: our choice, not measured
PER_JOB = 500_000_000  # NCCL's buffers with more than one process: our choice, not measured
FRAGMENTED = 0.05  # of activations, lost to the allocator: our choice, not measured
TOKENS, SCENE_TOKENS = 32, 14  # of an expression with its question: LLaVA's words (25 to 30); drawn scenes
CAPTION_TOKENS = 48  # of a caption with its question: our choice
CAPTION_LABELS = 16  # of the caption alone: our choice
PHRASES = 1.9  # expressions of a conversation in the scenes, counted
GB = 1e9


class Estimator(NamedTuple):
    """How the memory of one kind of model is predicted; both functions get its config."""

    model: Callable[[Any], nn.Module]  # without memory
    activations: Callable[
        [Any, Sizes, bool], ActivationMemory
    ]  # of a micro-batch; True: under autocast to bf16


# What `recipe.model` may be.
ESTIMATORS: dict[type, Estimator] = {
    UniRESPlusPlusConfig: Estimator(model_without_memory, estimate_activations),
    UniresConfig: Estimator(unires_without_memory, estimate_unires),
}


@dataclass(frozen=True)
class Model:
    """Parameters of a model, and the bytes in which the frozen ones (with buffers) are kept."""

    parameters: int
    trained: int
    frozen_bytes: int
    largest: int = 0  # numbers of the largest one

    @classmethod
    def of(cls, model: nn.Module) -> Model:
        """Count the parameters of a model, which may be without memory."""
        counts = parameter_counts(model)
        trained = sum(counts[name] for name, value in model.named_parameters() if value.requires_grad)
        frozen_bytes = parameter_bytes(model, trained=False)
        return cls(sum(counts.values()), trained, frozen_bytes, max(counts.values()))


@dataclass(frozen=True)
class States:
    """Bytes on a GPU between two micro-batches, by purpose, and `host`, the bytes moved to CPU memory.

    `start` is the whole model, which every process loads before ZeRO divides it.
    """

    weights: int
    gradients: int
    optimizer: int
    communication: int
    host: int
    start: int


@dataclass(frozen=True)
class Plan:
    """The prediction of one recipe on `gpus` processes; `saved` is the part of activations kept for backward.

    `host` is offloaded to the CPU's memory; the other figures of that memory are those of `HostMemory`.
    """

    recipe: str
    gpus: int
    zero_stage: int
    offload: str
    precision: str
    quantization: str
    images_per_gpu: int
    accumulate: int
    expressions_per_image: int
    decisions_per_image: int
    tokens_per_decision: int
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    communication: int
    activations: int
    saved: int
    context: int
    peak: int
    host: int
    host_start: int
    host_save: int
    host_export: int
    machine_start: int
    machine_save: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def line(self) -> str:
        """The prediction in one sentence."""
        return (
            f"plan predicts {self.peak / GB:.1f} GB per GPU: weights {self.weights / GB:.1f}, gradients "
            f"{self.gradients / GB:.1f}, optimizer {self.optimizer / GB:.1f}, activations "
            f"{self.activations / GB:.1f}, the rest {(self.communication + self.context) / GB:.1f}"
        )


def plan(
    recipe: Recipe, gpus: int = 1, tokens: int | None = None, activations: ActivationMemory | None = None
) -> Plan:
    """Predict the memory of a recipe.

    Args:
        recipe: of a UniRES++ or UniRES model.
        gpus: processes of the job, one per GPU.
        tokens: of one expression with its question and answer; None: `sizes_of` decides.
        activations: of an earlier plan with as many images per process, which saves estimating them again.

    Raises:
        InputError: sizes do not fit together, the batch does not divide, or the model has no plan.
    """
    config = recipe.model
    estimator = ESTIMATORS.get(type(config))
    if estimator is None:
        raise InputError(
            f"{recipe.name}: plan works for UniRES++ and UniRES, not for {type(config).__name__}"
        )
    sizes = sizes_of(recipe, gpus, tokens)
    try:
        model = Model.of(estimator.model(config))
        found = activations or estimator.activations(config, sizes, recipe.engine.precision != "fp32")
    except ValueError as error:
        raise InputError(str(error)) from error
    states = states_of(model, recipe, gpus)
    host = host_memory(recipe, model.trained, model.frozen_bytes, model.largest, states.host, gpus)
    temporary = round(found.peak * (1 + FRAGMENTED))
    context = CONTEXT + PER_JOB * (gpus > 1)
    running = states.weights + states.gradients + states.optimizer + states.communication + temporary
    return Plan(
        recipe=recipe.name,
        gpus=gpus,
        zero_stage=recipe.engine.zero_stage,
        offload=recipe.engine.offload,
        precision=recipe.engine.precision,
        quantization=config.tuning.quantization if isinstance(config, UniRESPlusPlusConfig) else "none",
        images_per_gpu=sizes.images,
        accumulate=recipe.data.accumulate,
        expressions_per_image=recipe.data.expressions_per_image,
        decisions_per_image=sizes.expressions,
        tokens_per_decision=sizes.tokens,
        parameters=model.parameters,
        trained=model.trained,
        **{key: size for key, size in asdict(states).items() if key != "start"},
        activations=temporary,
        saved=found.saved,
        context=context,
        peak=max(running, states.start) + context,
        host_start=host.start,
        host_save=host.save,
        host_export=host.export,
        machine_start=host.machine_start,
        machine_save=host.machine_save,
    )


def sizes_of(recipe: Recipe, gpus: int, tokens: int | None = None) -> Sizes:
    """A process's micro-batch. Conversations come beside expressions, at `data.dialogue_share`, where there are any.

    Where no term of the loss needs masks, captions are asked instead of expressions.
    """
    d = recipe.data
    if not recipe.model.loss.teaches_masks:
        return Sizes(share_of(d, gpus), d.expressions_per_image, tokens or CAPTION_TOKENS, CAPTION_LABELS)
    drawn = d.source in SCENES and not (d.mixture or d.parts)
    talks = drawn or d.compose_dialogues
    dialogues = d.expressions_per_image * d.dialogue_share / (1 - d.dialogue_share) if talks else 0.0
    decisions = round(d.expressions_per_image + PHRASES * dialogues)
    return Sizes(share_of(d, gpus), decisions, tokens or (SCENE_TOKENS if drawn else TOKENS))


def states_of(model: Model, recipe: Recipe, gpus: int) -> States:
    """Bytes per process for T trained parameters on N processes, by stage.

    Trained weights are fp32 in every stage; AdamW keeps two fp32 moments. Rajbhandari et al. 2020 (ZeRO), figure 1:
    stage 1 divides the optimizer's state, 2 gradients as well, 3 weights as well. What DeepSpeed adds for fp32
    weights (deepspeed:runtime/zero/stage_1_and_2.py, stage3.py): a master copy of each process's part (4T/N), the
    part of the gradient that it keeps (4T/N; stage 1 holds the whole gradient beside it), reduction buckets of
    `reduce_bucket_size` numbers each, two with `overlap_comm`, and in stage 3 at most `stage3_max_live_parameters`
    gathered numbers. DistributedDataParallel keeps a second copy of the gradients in its buckets.
    """
    T, N, stage = FP32 * model.trained, gpus, recipe.engine.zero_stage
    whole = model.frozen_bytes + T
    if stage == 0:
        return States(whole, T, 2 * T, T if N > 1 else 0, 0, whole)
    zero: Mapping[str, Any] = deepspeed_config(recipe)["zero_optimization"]
    bucket = FP32 * int(zero["reduce_bucket_size"])
    part = -(-T // N)
    weights = whole if stage < 3 else -(-whole // N)
    gradients = part + (T if stage == 1 else 0)
    communication = bucket * (2 if stage < 3 and zero["overlap_comm"] else 1)
    if stage == 3:
        share = whole / model.parameters  # bytes of a parameter, on average
        live = int(zero["stage3_max_live_parameters"]) + int(zero["stage3_prefetch_bucket_size"])
        communication += min(whole, round(share * live))
    optimizer, host = 3 * part, 0
    if recipe.engine.offload != "none":
        host, optimizer = optimizer + part, 0
        gradients -= part
    if recipe.engine.offload == "all":
        host, weights = host + weights, 0
    return States(weights, gradients, optimizer, communication, host, whole)


def table(found: Plan) -> str:
    """The plan as a table of GB per GPU."""
    from rich.console import Console
    from rich.table import Table

    title = (
        f"{found.recipe}: {found.gpus} GPU{'s' * (found.gpus > 1)}, ZeRO stage {found.zero_stage}, offload "
        f"{found.offload}, {found.precision}, per GPU {found.images_per_gpu} images x "
        f"{found.decisions_per_image} expressions x {found.tokens_per_decision} tokens, "
        f"{found.accumulate} micro-batches a step"
    )
    shown = Table(title=title, title_justify="left")
    shown.add_column("per GPU")
    shown.add_column("GB", justify="right")
    shown.add_column("what it is")
    counted = f"{found.parameters / 1e6:,.1f} M parameters, {found.trained / 1e6:,.1f} M trained"
    if found.quantization != "none":
        counted += f"; matrices of the LLM in {found.quantization}"
    rows = (
        ("weights", found.weights, counted),
        ("gradients", found.gradients, "of trained parameters, fp32"),
        ("optimizer", found.optimizer, "AdamW's moments; ZeRO's master copy"),
        ("activations", found.activations, f"{found.saved / GB:.2f} GB of them kept for the backward pass"),
        ("communication", found.communication, "buckets and gathered weights"),
        ("context", found.context, "CUDA, libraries: a constant"),
        ("peak", found.peak, "at once; at least the whole model: it is loaded before it is divided"),
        ("CPU memory, start", found.host_start, f"of a process; {_on_machine(found, found.machine_start)}"),
        ("CPU memory, save", found.host_save, f"of a process; {_on_machine(found, found.machine_save)}"),
        (
            "CPU memory, export",
            found.host_export,
            "of export --merge, most of it pages of the checkpoint's files",
        ),
    )
    for name, size, what in rows:
        shown.add_row(name, f"{size / GB:,.2f}", what)
    console = Console(width=110)
    with console.capture() as captured:
        console.print(shown)
    return captured.get() + "Predicted, not measured on a GPU.\n"


def _on_machine(found: Plan, size: int) -> str:
    offloaded = f", {found.host / GB:,.2f} GB of each offloaded" if found.host else ""
    return f"{size / GB:,.2f} GB with {found.gpus} on one machine{offloaded}"


def forecast(recipe: Recipe, gpus: int) -> str:
    """The prediction for an out-of-memory message; empty where there is no plan."""
    try:
        return plan(recipe, gpus).line()
    except (InputError, RuntimeError, MemoryError):  # the plan needs memory too
        return ""
