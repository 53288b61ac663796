"""The one place that assembles the model: from a config and a vocabulary, or from a checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from mllm.tokens import Vocabulary
from uniresxx.checkpoint import CONFIG, TOKENIZER, load_weights, read_json
from uniresxx.errors import InputError
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlus

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)


def build_model(config: UniRESPlusPlusConfig, vocabulary: Vocabulary) -> UniRESPlusPlus:
    """A freshly initialised model; the caller seeds torch."""
    return UniRESPlusPlus(config, vocabulary)


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
    build: Callable[[Config, Vocabulary], Model],
) -> Model:
    """The model of a `from_pretrained` folder, in evaluation mode; InputError says what does not fit."""
    config = read_config(read_json(folder / CONFIG))
    vocabulary = load_vocabulary(folder)
    try:
        model = build(config, vocabulary)
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    load_weights(model, folder)
    return model.eval()


def load_model(folder: Path) -> UniRESPlusPlus:
    """`load_with` for UniRES++."""
    return load_with(folder, UniRESPlusPlusConfig.from_dict, build_model)
