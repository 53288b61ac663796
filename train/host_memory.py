"""The CPU memory of a job: of one process, and of a machine with all of them. All figures are bytes."""

from __future__ import annotations

from dataclasses import dataclass

from train.recipe import Recipe

FP32 = 4
LIBRARIES = 500_000_000  # Python with torch, transformers, peft: measured on Linux without a GPU
CUDA = 2_500_000_000  # what CUDA and its libraries hold in CPU memory: our choice, not measured
COPIES = 3  # fp32 copies of one tensor at a time: a weight, what is added to it, the sum


@dataclass(frozen=True)
class HostMemory:
    """The most that a process needs while it starts, saves, and exports merged weights; data workers are extra.

    `machine_start` and `machine_save` are those of all processes on one machine, in which mapped weights
    (pages of their files) are there once.
    """

    start: int
    save: int
    export: int
    machine_start: int
    machine_save: int


def host_memory(
    recipe: Recipe, trained: int, frozen_bytes: int, largest: int, offloaded: int, processes: int
) -> HostMemory:
    """Predict the CPU memory of a recipe.

    On a GPU weights go from their files to the device one by one. On a CPU frozen ones that come from files stay
    memory maps of these, and trained ones with the optimizer's state are each process's own. A save reads one tensor
    after another; `log.save_async` first copies what the process will write. An export maps the checkpoint.

    Args:
        recipe: names device and saving.
        trained: parameters that are trained, in fp32.
        frozen_bytes: of the other weights and the buffers.
        largest: numbers of the largest tensor.
        offloaded: bytes that ZeRO moves to a process's CPU memory.
        processes: of the job, all on one machine.
    """
    weights, moments = FP32 * trained, 2 * FP32 * trained
    one = COPIES * FP32 * largest
    if recipe.engine.device == "cpu":
        own, shared, base = weights, frozen_bytes, LIBRARIES
        kept = own + moments
    else:
        own, shared, base = 0, 0, LIBRARIES + CUDA
        kept = offloaded
    written = -(-(frozen_bytes + weights + moments) // processes) if recipe.log.save_async else 0
    start, save = base + own + one, base + kept + written + one
    return HostMemory(
        start=start + shared,
        save=save + shared,
        export=LIBRARIES + frozen_bytes + weights + one,
        machine_start=processes * start + shared,
        machine_save=processes * save + shared,
    )
