"""Frozen matrices of a language model in 8 or 4 bits, by bitsandbytes; only this file imports it.

What is quantised is every linear layer inside the decoder layers (`mllm.lora.base_matrices`). Adapters, the token
matrices, norms and biases are not, and neither is anything outside the language model.

A quantised matrix holds its codes and scales as parameters that are never trained, so a checkpoint has them as they
are, and a loaded one gives the same numbers. bitsandbytes' own layer for 4 bits stores them anew at the first forward
pass in eval mode on some CPUs, and gets no gradient past itself from then on; these classes use its functions alone.

Shapes: N rows of inputs, O outputs, I inputs; n = O I numbers of a matrix.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mllm.config import Quantization
from mllm.language import in_compute_dtype

# Dettmers et al. 2023 (QLoRA), section 4: numbers with one scale, and scales with one scale of theirs.
BLOCK, SCALES_BLOCK = 64, 256
# Dettmers et al. 2022 (LLM.int8()), section 3.2: columns with a larger input are multiplied in full precision.
OUTLIERS = 6.0
_INT8_RANGE = 127


class QuantizedMatrix(nn.Module):
    """A linear layer whose matrix is quantised and frozen; the bias is as it was."""

    kind: Quantization

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        """Codes and scales without values, on `device`."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.weight: nn.Parameter

    def _add(self, name: str, dtype: torch.dtype, device: torch.device, *shape: int) -> None:
        value = torch.empty(shape, dtype=dtype, device=device)
        self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def stored(self) -> dict[str, nn.Parameter]:
        """Codes and scales by name."""
        return {name: p for name, p in self.named_parameters(recurse=False) if name != "bias"}

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (…, O) of inputs (…, I), in the dtype of autocast where it is on."""
        x = in_compute_dtype(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._product(x.flatten(0, -2), bias).unflatten(0, x.shape[:-1])

    def _product(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        raise NotImplementedError

    def pack(self, weight_OI: Tensor) -> None:
        """Take the values of a matrix."""
        raise NotImplementedError

    def dequantized(self) -> Tensor:
        """The matrix (O, I) that this layer computes with, in fp32."""
        raise NotImplementedError


class Int8Matrix(QuantizedMatrix):
    """8 bits and one scale for each output; inputs are rounded to 8 bits too, but for outliers (LLM.int8())."""

    kind = "int8"
    scale: nn.Parameter

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__(linear, device)
        self._add("weight", torch.int8, device, self.out_features, self.in_features)
        self._add("scale", torch.float32, device, self.out_features)

    def pack(self, weight_OI: Tensor) -> None:
        """Take the values of a matrix."""
        codes, scale, _ = _bitsandbytes().functional.int8_vectorwise_quant(weight_OI.half())
        self.weight.data, self.scale.data = codes, scale

    def _product(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        library = _bitsandbytes()
        state = library.MatmulLtState()
        state.CB, state.SCB = self.weight.data, self.scale.data
        state.has_fp16_weights, state.threshold, state.is_training = False, OUTLIERS, self.training
        product: Tensor = library.matmul(x_NI, self.weight.data, state=state, bias=bias_O)
        return product

    def dequantized(self) -> Tensor:
        """The matrix (O, I) that this layer computes with, in fp32."""
        return self.weight.float() * (self.scale[:, None] / _INT8_RANGE)


class Nf4Matrix(QuantizedMatrix):
    """4 bits (NormalFloat) with a scale per block, which is quantised to 8 bits itself (double quantisation)."""

    kind = "nf4"
    scale: nn.Parameter
    scale_scale: nn.Parameter
    scale_mean: nn.Parameter

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__(linear, device)
        n = self.out_features * self.in_features
        blocks = -(-n // BLOCK)
        self._add("weight", torch.uint8, device, -(-n // 2), 1)
        self._add("scale", torch.uint8, device, blocks)
        self._add("scale_scale", torch.float32, device, -(-blocks // SCALES_BLOCK))
        self._add("scale_mean", torch.float32, device, 1)

    def pack(self, weight_OI: Tensor) -> None:
        """Take the values of a matrix."""
        packed, state = _bitsandbytes().functional.quantize_4bit(
            weight_OI.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        assert state.state2.blocksize == SCALES_BLOCK, state.state2.blocksize
        self.weight.data, self.scale.data = packed, state.absmax
        self.scale_scale.data, self.scale_mean.data = state.state2.absmax, state.offset.reshape(1)

    def _product(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        state = self._state(x_NI.dtype)
        product: Tensor = _bitsandbytes().matmul_4bit(x_NI, self.weight.data, quant_state=state, bias=bias_O)
        return product

    def dequantized(self) -> Tensor:
        """The matrix (O, I) that this layer computes with, in fp32."""
        state = self._state(torch.float32)
        matrix: Tensor = _bitsandbytes().functional.dequantize_4bit(self.weight.data, state)
        return matrix

    def _state(self, dtype: torch.dtype) -> Any:
        """The scales as bitsandbytes takes them; `dtype` is that of the matrix that comes out."""
        state, mean = _bitsandbytes().functional.QuantState, self.scale_mean.data[0]
        values, scales = _code_tables(self.weight.device)
        second = state(self.scale_scale.data, code=scales, blocksize=SCALES_BLOCK, dtype=torch.float32)
        shape = torch.Size((self.out_features, self.in_features))
        return state(self.scale.data, shape, values, BLOCK, "nf4", dtype, offset=mean, state2=second)


KINDS: dict[Quantization, type[QuantizedMatrix]] = {"int8": Int8Matrix, "nf4": Nf4Matrix}


def check_quantization(kind: Quantization, device: torch.device) -> None:
    """ValueError where bitsandbytes is not there, or does not compute on `device`; nothing for "none"."""
    if kind == "none":
        return
    if kind not in KINDS:
        raise ValueError(f"quantization {kind!r} is not one of none, {', '.join(KINDS)}")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"quantization {kind!r} needs a CUDA GPU or the CPU, not {device}: leave it out")
    _bitsandbytes()


def quantize(
    llm: nn.Module,
    matrices: Mapping[str, nn.Linear],
    kind: Quantization,
    device: torch.device | None = None,
    with_values: bool = True,
) -> None:
    """Replace linear layers of a language model in place.

    Args:
        llm: the language model.
        matrices: those of its layers, by name; on the meta device they stay there.
        kind: "int8" or "nf4".
        device: of the result, where each matrix is quantised in turn; None: where it is.
        with_values: False leaves the result without values, because they are loaded next.

    Raises:
        ValueError: there is no layer to quantise.
    """
    if not matrices:
        raise ValueError(
            f"quantization {kind!r}: the decoder layers of {type(llm).__name__} have no nn.Linear"
        )
    for name, linear in matrices.items():
        here = linear.weight.device
        place = here if here.type == "meta" or device is None else device
        matrix = KINDS[kind](linear, place)
        if with_values and place.type != "meta":
            matrix.pack(linear.weight.detach().to(place))
        matrix.train(linear.training)
        llm.set_submodule(name, matrix)


def quantized_in(model: nn.Module) -> dict[str, QuantizedMatrix]:
    """The quantised layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedMatrix)}


def quantization_of(model: nn.Module) -> Quantization:
    """The kind of a model's quantised layers; "none" where it has none."""
    return next((matrix.kind for matrix in quantized_in(model).values()), "none")


def full_precision(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters whose dtype may change: all but codes and scales."""
    fixed = {id(p) for matrix in quantized_in(model).values() for p in matrix.stored().values()}
    return ((name, p) for name, p in model.named_parameters() if id(p) not in fixed)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Numbers in each parameter by name: of a quantised matrix those that it stands for, and none in its scales."""
    counts = {name: p.numel() for name, p in model.named_parameters()}
    for path, matrix in quantized_in(model).items():
        counts |= {f"{path}.{name}": 0 for name in matrix.stored()}
        counts[f"{path}.weight"] = matrix.in_features * matrix.out_features
    return counts


def silence_bitsandbytes() -> None:
    """Drop its lines on optional kernels, and on casts that are meant; before peft or this file imports it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@cache
def _bitsandbytes() -> Any:
    silence_bitsandbytes()
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(
            f"quantization needs the package bitsandbytes ({error}): pip install -e '.[quant]', or leave it out"
        ) from None
    return bitsandbytes


@cache
def _code_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the 16 codes of a matrix and the 256 codes of its scales stand for."""
    functional = _bitsandbytes().functional
    return functional.get_4bit_type("nf4", device=device), functional.create_dynamic_map().to(device)
