"""How the tensors of a checkpoint are cut into files, and which process of a job writes which file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from uniresxx.checkpoints.publish import Content
from uniresxx.checkpoints.tensors import AnyTensor, LazyTensor, in_file_order, write_in_order
from uniresxx.files import to_json

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5_000_000_000  # of one file, as transformers saves
OPTIMIZER = "optimizer"  # the stem of its files
LEAST_BYTES = 500_000_000  # below, another file for another process costs more than it saves (our choice)

Value = TypeVar("Value")
Files = Mapping[str, Mapping[str, LazyTensor]]  # file name -> its tensors


class Processes(Protocol):
    """The processes of a job, all of which make the same calls in the same order."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    def gather(self, value: Value) -> list[Value]: ...
    def on_rank0(self, function: Callable[[], Value]) -> Value: ...
    def on_all_ranks(self, function: Callable[[], Value]) -> Value: ...


class OneProcess:
    """A job of one process."""

    rank, world_size = 0, 1

    def gather(self, value: Value) -> list[Value]:
        """The value alone."""
        return [value]

    def on_rank0(self, function: Callable[[], Value]) -> Value:
        """The result of the function."""
        return function()

    def on_all_ranks(self, function: Callable[[], Value]) -> Value:
        """The result of the function."""
        return function()


def shards_of(tensors: Mapping[str, AnyTensor], limit: int, stem: str) -> Files:
    """Tensors in files of at most `limit` bytes each, unless a single tensor is larger; their order stays.

    One file is `<stem>.safetensors`, several are `<stem>-00001-of-00002.safetensors`, as in transformers.
    """
    groups: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        lazy = LazyTensor.of(tensor)
        if groups[-1] and size + lazy.nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = lazy
        size += lazy.nbytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def shards_for(tensors: Mapping[str, AnyTensor], processes: int, stem: str) -> Files:
    """`shards_of` with about one file for each process of a job, where that is worth it."""
    total = sum(LazyTensor.of(tensor).nbytes for tensor in tensors.values())
    return shards_of(tensors, min(SHARD_BYTES, max(LEAST_BYTES, -(-total // processes))), stem)


def checkpoint_files(
    weights: Mapping[str, AnyTensor], optimizer: Mapping[str, AnyTensor], processes: int
) -> Files:
    """The files of a run's checkpoint that hold tensors."""
    model = shards_for(weights, processes, "model")
    return {**model, **shards_for(optimizer, processes, OPTIMIZER)}


def index_of(files: Files) -> bytes:
    """The index that transformers reads beside several files of weights."""
    size = sum(lazy.nbytes for tensors in files.values() for lazy in tensors.values())
    where = {name: file for file, tensors in files.items() for name in tensors}
    return to_json({"metadata": {"total_size": size}, "weight_map": where})


def is_mine(number: int, processes: Processes) -> bool:
    """Whether this process writes file number `number` of a checkpoint."""
    return number % processes.world_size == processes.rank


def write_shards(
    folder: Path, files: Files, processes: Processes, write: Callable[[Path, Content], Any]
) -> list[str]:
    """Write the files of this process with `write`; returns their names.

    To read a tensor may need all processes (ZeRO-3 gathers it from them). So each of them reads every tensor, in the
    same order, whether or not it writes it, and also after its disk is full.
    """
    written: list[str] = []
    failure: OSError | None = None
    for number, (name, tensors) in enumerate(files.items()):
        order = in_file_order(tensors)
        waiting = iter(order)
        if failure is None and is_mine(number, processes):
            try:
                write(folder / name, partial(_write, order, waiting))
                written.append(name)
            except OSError as error:
                failure = error
        for _, lazy in waiting:
            lazy.read()
    if failure is not None:
        raise failure
    return written


def _write(
    order: list[tuple[str, LazyTensor]], waiting: Iterator[tuple[str, LazyTensor]], path: Path
) -> None:
    write_in_order(path, order, lambda _: waiting)


def copied(
    weights: Mapping[str, AnyTensor], optimizer: Mapping[str, AnyTensor], processes: Processes
) -> list[dict[str, LazyTensor]]:
    """Both with copies on the CPU, which later training steps do not touch, of what this process will write.

    The others must not be read again: they have no values any more.
    """
    files = list(checkpoint_files(weights, optimizer, processes.world_size).values())
    mine = {name for number, tensors in enumerate(files) if is_mine(number, processes) for name in tensors}
    found: list[dict[str, LazyTensor]] = []
    for tensors in (weights, optimizer):
        found.append({})
        for name, tensor in tensors.items():
            lazy = LazyTensor.of(tensor)
            value = lazy.read()  # by all processes, as in write_shards
            if name in mine:
                found[-1][name] = LazyTensor.of(value.to("cpu", copy=True))
            else:
                found[-1][name] = replace(lazy, read=_no_values)
            del value
    return found


def _no_values() -> torch.Tensor:
    import torch

    return torch.empty(0)
