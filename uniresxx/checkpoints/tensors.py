"""The files of a model: JSON and safetensors, the weights in one file or in shards. No pickle is written or read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from uniresxx.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
INDEX = "model.safetensors.index.json"  # names the shards, in the layout of transformers
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_ALIGNMENT = 8  # bytes, of the values in a file
PIECE = 16_000_000  # elements that are read before a file is closed and opened anew
_SHOWN = 3  # keys named in an error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError where it is missing or something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: give a complete checkpoint folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU; InputError where it is missing or not one."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of a known dtype and shape whose values `read` brings only when they are written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor | LazyTensor) -> LazyTensor:
        """A tensor that is there already, wherever it lies."""
        if isinstance(tensor, LazyTensor):
            return tensor
        return cls(tensor.dtype, tuple(tensor.shape), tensor.detach)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * self.dtype.itemsize


AnyTensor: TypeAlias = "torch.Tensor | LazyTensor"


def write_tensors(path: Path, tensors: Mapping[str, AnyTensor]) -> None:
    """Write a safetensors file, one tensor after another: memory beside `tensors` is that of the largest.

    Raises OSError where the disk is full or refuses.
    """
    write_in_order(path, in_file_order(tensors))


def in_file_order(tensors: Mapping[str, AnyTensor]) -> list[tuple[str, LazyTensor]]:
    """Tensors as safetensors puts them into a file: wide numbers first, which keeps all of them aligned."""
    ranks = {dtype: rank for rank, dtype in enumerate(_dtype_names())}
    found = [(name, LazyTensor.of(value)) for name, value in tensors.items()]
    return sorted(found, key=lambda item: (ranks[item[1].dtype], item[0]))


def write_in_order(
    path: Path, tensors: Sequence[tuple[str, LazyTensor]], read: Callable[..., Any] = iter
) -> None:
    """`write_tensors` for a list of `in_file_order`; `read(tensors)` gives its items one after another.

    The file takes its name when it is complete: the tensors may be memory maps of the file that it replaces.

    The library's own functions need all values at once. The format: https://github.com/huggingface/safetensors.
    """
    import torch

    names, header, offset = _dtype_names(), {}, 0
    for name, lazy in tensors:
        data_offsets = [offset, offset + lazy.nbytes]
        header[name] = {"dtype": names[lazy.dtype], "shape": list(lazy.shape), "data_offsets": data_offsets}
        offset += lazy.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name, lazy in read(tensors):
                value = lazy.read().detach().cpu().contiguous()
                assert (value.dtype, tuple(value.shape)) == (lazy.dtype, lazy.shape), name
                if value.numel():
                    stream.write(value.reshape(-1).view(torch.uint8).numpy())
                del value  # before the next one is read
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _dtype_names() -> dict[torch.dtype, str]:
    """safetensors' names of dtypes in the order of a file."""
    import torch

    return {
        torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64",
        torch.float32: "F32", torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16",
        torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    }  # fmt: skip


def weight_files(folder: Path) -> dict[str, list[str] | None]:
    """Weight files of a folder -> the tensors that the index lists for each (None: there is no index).

    Raises InputError where weights are missing, incomplete or there twice.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"{folder / WEIGHTS} is missing: give a complete checkpoint folder")
        return {WEIGHTS: None}
    if (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has both {WEIGHTS} and {INDEX}: remove the one that is not wanted")
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise InputError(f"{index} is not an index of weights: save the model again")
    files: dict[str, list[str] | None] = {}
    for name in sorted(set(listed.values())):
        if not SHARD.fullmatch(name) or not (folder / name).is_file():
            raise InputError(f"{folder / INDEX} names {name[:80]!r}, which is missing: copy all shards")
        files[name] = [tensor for tensor, file in listed.items() if file == name]
    if not files:
        raise InputError(f"{index} names no weights: save the model again")
    return files


def load_weights(
    model: nn.Module, folder: Path, device: str | torch.device | Callable[[str], torch.device] = "cpu"
) -> None:
    """Fill `model` from the safetensors of `folder`, whole or sharded; every key must match, in name and shape.

    One tensor after another is read and copied into the model's own, in the model's dtype. Those of the model that
    are on the meta device become new ones on `device`, or where it says by their name.

    Raises:
        InputError: names the first few missing, unexpected or differently shaped keys; the model is unchanged then.
    """
    files, wanted = weight_files(folder), model.state_dict(keep_vars=True)
    given: dict[str, tuple[int, ...]] = {}
    path_of: dict[str, Path] = {}
    for name, listed in files.items():
        shapes = _shapes(folder / name)
        if listed is not None and set(listed) != set(shapes):
            raise InputError(f"{folder / name} does not hold what {INDEX} says: copy all files of one save")
        given |= shapes
        path_of |= dict.fromkeys(shapes, folder / name)
    wrong = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{key} {given[key]} instead of {tuple(wanted[key].shape)}"
            for key in sorted(wanted.keys() & given.keys())
            if given[key] != wanted[key].shape
        ],
    }
    problems = [f"{len(keys)} {what}: {_few(keys)}" for what, keys in wrong.items() if keys]
    if problems:
        at = folder / (WEIGHTS if WEIGHTS in files else INDEX)
        raise InputError(f"{at} does not fit its {CONFIG}: {'; '.join(problems)}")
    made: dict[int, torch.Tensor] = {}  # by the tensor that it replaces: tied ones stay tied
    for path, keys in _in_pieces(path_of, given):
        with _opened(path) as file:
            for key in keys:
                old, value = wanted[key], file.get_tensor(key)
                if not old.is_meta:
                    old.detach().copy_(value)
                    continue
                if id(old) not in made:
                    made[id(old)] = _placed(old, value, device(key) if callable(device) else device)
                owner, _, name = key.rpartition(".")
                setattr(model.get_submodule(owner), name, made[id(old)])


def _in_pieces(
    path_of: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[Path, list[str]]]:
    """Tensors of one file that are read while it is open: what was read stays in memory until it closes."""
    for path, keys in groupby(path_of, key=path_of.__getitem__):
        piece: list[str] = []
        elements = 0
        for key in keys:
            piece.append(key)
            elements += prod(shapes[key])
            if elements >= PIECE:
                yield path, piece
                piece, elements = [], 0
        if piece:
            yield path, piece


def _placed(old: torch.Tensor, value: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """`value` as what `old` is, in its dtype, on `device`.

    On the CPU, in the dtype of the file, it stays the file's own memory map (copy on write): processes that load one
    file share its pages, and what they change is theirs alone.
    """
    import torch

    new = value.to(device=device, dtype=old.dtype)
    return torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, from its header."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors of a safetensors file; InputError where it is missing or not one."""
    with _opened(path) as file:
        return list(file.keys())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open; InputError where it is missing or not one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path} is missing: give a complete checkpoint folder") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({one_line(error)})") from None


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")


def one_line(error: BaseException) -> str:
    """An exception as one short line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((text or type(error).__name__).split())[:200]
