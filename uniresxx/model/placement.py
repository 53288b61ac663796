"""Where a model computes: its device, the dtype of its weights, its attention backend, its quantisation."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import nn

from mllm.config import Attention, Quantization
from mllm.quantization import check_quantization, full_precision, quantization_of
from uniresxx.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?|mps")


@dataclass(frozen=True, slots=True)
class Placement:
    """Checked choices; the defaults are the CPU, and everything else as the checkpoint has it."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None  # of all weights; None: fp32, and bf16 for frozen weights trained so
    attention: Attention | None = None
    spread: bool = False  # a model larger than the device: layers of its language model over all GPUs
    quantization: Quantization = "none"  # of the language model; "none": as the checkpoint has it


def placement_of(
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    attention: str | None = None,
    device_map: str | None = None,
    quantization: str | None = None,
) -> Placement:
    """Check where and how a model is to compute.

    Args:
        device: "auto" (a CUDA GPU, else MPS, else the CPU), "cpu", "cuda", "cuda:N" or "mps".
        dtype: "float32" or "bfloat16" for all weights; "auto" or None: as saved.
        attention: backend of the language model; None: that of the config.
        device_map: "auto" spreads a model larger than the GPU over all GPUs, then the host's memory.
        quantization: "int8" or "nf4" of the language model's matrices; None: as saved.

    Raises:
        InputError: a value is unknown, the device is not there, or bitsandbytes is not there for it.
    """
    if attention is not None and attention not in get_args(Attention):
        raise InputError(f"attention {attention!r} is not one of {', '.join(get_args(Attention))}")
    chosen = device_of(device)
    if attention == "flash_attention_2" and chosen.type != "cuda":
        raise InputError(f"attention 'flash_attention_2' needs a CUDA GPU, not {chosen}: use 'sdpa'")
    if device_map not in (None, "auto"):
        raise InputError(f"device_map {device_map!r} is not auto: leave it out for one device")
    if device_map == "auto" and chosen.type != "cuda":
        raise InputError(f"device_map 'auto' spreads a model over CUDA GPUs, not {chosen}: leave it out")
    kind: Any = quantization or "none"
    try:
        check_quantization(kind, chosen)
    except ValueError as error:
        raise InputError(str(error)) from None
    if device_map == "auto" and kind != "none":
        raise InputError(
            f"quantization {kind!r} is for one device, and device_map 'auto' for several: leave one of them out"
        )
    return Placement(chosen, dtype_of(dtype), attention, device_map == "auto", kind)  # type: ignore[arg-type]


def device_of(device: str | torch.device) -> torch.device:
    """The device that a word means; InputError for one that is unknown or not there."""
    name = str(device)
    if not _DEVICE.fullmatch(name):
        raise InputError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N, mps")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if gpus else "mps" if mps else "cpu"
    if name == "cuda" and gpus:
        return torch.device("cuda", torch.cuda.current_device())
    there = ["cpu", *(f"cuda:{index}" for index in range(gpus)), *(["mps"] if mps else [])]
    if name not in there:
        raise InputError(
            f"device {name!r} is not there: torch sees {', '.join(there)}; use one of these or auto"
        )
    return torch.device(name)


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype that a word means, None for "as saved"; InputError for one that the model does not run in."""
    if dtype is None or dtype == "auto":
        return None
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise InputError(f"dtype {dtype} is not one of {', '.join(DTYPES)}, auto")
    return found


def autocast_of(model: nn.Module) -> AbstractContextManager[Any]:
    """Autocast where any weight is in bf16; nothing elsewhere."""
    if any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):
        return torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16)
    return nullcontext()


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`; on the way to a GPU through page-locked memory, while the host goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def wait_for(device: torch.device) -> None:
    """Return once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def computed_on(segmenter: object) -> dict[str, str] | None:
    """A record for JSON: device, dtypes and quantisation of a model's weights; None where it is not torch's."""
    parameters = [*segmenter.parameters()] if isinstance(segmenter, nn.Module) else []
    if not isinstance(segmenter, nn.Module) or not parameters:
        return None
    devices = dict.fromkeys(parameter.device for parameter in parameters)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for _, p in full_precision(segmenter)})
    record = {"device": ", ".join(map(_name_of, devices)), "dtype": ", ".join(dtypes)}
    kind = quantization_of(segmenter)
    return record if kind == "none" else record | {"quantization": kind}


def _name_of(device: torch.device) -> str:
    """cuda:0 with the name of the GPU; a device without one alone. "meta" is the host's memory, lent to a GPU."""
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return "cpu" if device.type == "meta" else f"{device}{name}"
