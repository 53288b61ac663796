"""A model from a checkpoint folder: built without memory, its weights from the file to the device one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mllm.language import parameters_without_memory
from mllm.lora import base_matrices
from mllm.quantization import full_precision, quantization_of, quantize
from mllm.tokens import Vocabulary
from uniresxx.checkpoints.tensors import CONFIG, TOKENIZER, load_weights, read_json
from uniresxx.errors import InputError
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.placement import Placement
from uniresxx.model.spread import connect, device_by_name, free_memory, spread_layers
from uniresxx.model.tuning import cast

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)
AnyVocabulary = TypeVar("AnyVocabulary")  # a model's vocabulary
Value = TypeVar("Value")


def as_input(work: Callable[[], Value], option: str) -> Value:
    """The result of `work`; its ValueError becomes an InputError that names the option."""
    try:
        return work()
    except ValueError as error:
        raise InputError(f"{option}: {error}") from error


def load_vocabulary(folder: Path) -> Vocabulary:
    """`folder/tokenizer.json`; InputError where it is missing or not one."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise InputError(f"{path} is missing: give a complete checkpoint folder")
    try:
        return Vocabulary.load(path)
    except Exception as error:
        raise InputError(f"{path} is not a tokenizer of this project ({error})") from error


def load_with(
    folder: Path,
    read_config: Callable[[dict[str, Any]], Config],
    build: Callable[[Config, AnyVocabulary], Model],
    placement: Placement,
    read_vocabulary: Callable[[Config], AnyVocabulary],
    language_model: Callable[[Model], nn.Module] | None = None,
) -> Model:
    """The model of a `from_pretrained` folder, in evaluation mode; InputError where files do not fit.

    Weights are built without memory and go from the file to the device one by one, so that host memory never holds
    a second copy of them. `language_model` gives the part that a placement can quantise.
    """
    if placement.quantization != "none" and language_model is None:
        raise InputError(
            f"quantization {placement.quantization!r}: the model of {folder} has no language model; leave it out"
        )
    config = read_config(read_json(folder / CONFIG))
    vocabulary = read_vocabulary(config)
    try:
        with parameters_without_memory():
            model = build(config, vocabulary)
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    if placement.dtype is not None:
        cast((parameter for _, parameter in full_precision(model)), placement.dtype)
    if placement.spread:
        return spread(model, folder, placement.device).eval()
    if placement.quantization != "none" and language_model is not None:
        load_quantized(model, language_model(model), folder, placement)
    else:
        load_weights(model, folder, placement.device)
    return model.to(placement.device).eval()  # buffers are still on the CPU


def load_quantized(model: nn.Module, llm: nn.Module, folder: Path, placement: Placement) -> None:
    """Load weights, and quantise the language model's matrices one by one on their way to the device.

    Raises:
        InputError: the folder holds them quantised otherwise, or there are none.
    """
    stored = quantization_of(llm)
    if stored not in ("none", placement.quantization):
        raise InputError(
            f"{folder} holds its language model in {stored}: leave quantization {placement.quantization!r} out"
        )
    matrices = base_matrices(llm) if stored == "none" else {}
    wanted = {id(linear.weight) for linear in matrices.values()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in wanted}
    host = torch.device("cpu")
    load_weights(model, folder, lambda name: host if name in names else placement.device)
    if stored == "none":
        work = partial(quantize, llm, matrices, placement.quantization, placement.device)
        as_input(work, str(folder))


def spread(model: Model, folder: Path, main: torch.device) -> Model:
    """Load weights, the layers of the language model onto several GPUs where one is too small.

    Raises:
        InputError: the model has no language model, or is larger than all of them.
    """
    if not isinstance(model, UniRESPlusPlusModel):
        raise InputError(f"device_map='auto': the model of {folder} fits on one device; leave it out")
    decoder: nn.Module = model.mllm.llm.model
    places = spread_layers(model, decoder, free_memory(main))
    load_weights(model, folder, device_by_name("mllm.llm.model", places, main))
    if set(places.values()) == {main}:
        return model.to(main)
    connect(model, decoder, places, main)
    return model
