"""Adapters as files: saved apart from the weights they adapt, merged into them, and taken out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from mllm.config import TuningConfig
from mllm.loading import OWN_RULES, load_part
from mllm.lora import adapter_tensors, load_adapter_tensors, merged_tensors, subtract
from uniresxx.checkpoints.publish import publish
from uniresxx.checkpoints.saveable import Snapshot
from uniresxx.checkpoints.tensors import (
    CONFIG,
    TOKENIZER,
    LazyTensor,
    read_json,
    read_tensors,
    weight_files,
    write_tensors,
)
from uniresxx.errors import InputError
from uniresxx.files import to_json
from uniresxx.model.build import PARTS_OF_FILES
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.from_folder import load_vocabulary
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.tuning import cast_frozen

ADAPTER, ADAPTER_CONFIG = "adapter.safetensors", "adapter.json"


def plain(config: UniRESPlusPlusConfig) -> UniRESPlusPlusConfig:
    """The configuration of the same model without adapters and without rows of its own."""
    none = TuningConfig()
    tuning = replace(
        config.tuning,
        lora_rank=none.lora_rank,
        token_rows=none.token_rows,
        frozen_dtype=none.frozen_dtype,
        quantization=none.quantization,
    )
    return replace(config, tuning=tuning)


def merged(model: UniRESPlusPlusModel, dtype: torch.dtype | None = None) -> Snapshot:
    """The model with its adapters added into the weights and its token rows put in place; `model` stays as it is.

    One tensor at a time is merged, in fp32, when it is read. The result is in `dtype`, or in that of the weight
    (None), which rounds small changes of bf16 weights away. InputError where the model has no adapters and no rows.
    """
    if not adapter_tensors(model):
        raise InputError(
            "the model has no adapters and no token rows of its own: it is what --merge would give"
        )

    def lazy(before: torch.Tensor, merge: Callable[[], torch.Tensor]) -> LazyTensor:
        wanted = dtype if dtype is not None and before.is_floating_point() else before.dtype
        return LazyTensor(wanted, tuple(before.shape), lambda: merge().to(wanted))

    weights = {name: lazy(*parts) for name, parts in merged_tensors(model).items()}
    return Snapshot(plain(model.config), model.tokenizer, weights)


def save_adapter(model: UniRESPlusPlusModel, out: Path) -> list[str]:
    """Write adapters and token rows with their configuration and vocabulary; returns the names of the files."""
    tensors = adapter_tensors(model)
    if not tensors:
        raise InputError("the model has no adapters: it was trained whole, export it without --adapter")
    return publish(
        out,
        {
            ADAPTER: lambda path: write_tensors(path, tensors),
            TOKENIZER: model.tokenizer.to_json().encode(),
            ADAPTER_CONFIG: to_json(model.config.to_dict()),
        },
    )


def unmerged(source: Path, adapter: Path) -> UniRESPlusPlusModel:
    """The model of a merged folder with its adapter apart again; up to rounding, its weights before the merge.

    InputError where the adapter belongs to another model.
    """
    config = UniRESPlusPlusConfig.from_dict(read_json(adapter / ADAPTER_CONFIG))
    given = UniRESPlusPlusConfig.from_dict(read_json(source / CONFIG))
    if plain(config) != given:
        raise InputError(
            f"{adapter} is not the adapter of {source}, or that is not merged: their configs differ"
        )
    vocabulary = load_vocabulary(adapter)
    if vocabulary.to_json() != load_vocabulary(source).to_json():
        raise InputError(
            f"{adapter} and {source} have different vocabularies: the adapter is of another model"
        )
    if config.tuning.quantization != "none":  # merging made every matrix plain, in fp32
        config = replace(config, tuning=replace(config.tuning, quantization="none", frozen_dtype="fp32"))
    model = UniRESPlusPlusModel(config, vocabulary, from_files=PARTS_OF_FILES)
    cast_frozen(model, config.tuning, PARTS_OF_FILES)
    weight_files(source)
    try:
        load_part(model, str(source), OWN_RULES)
        load_adapter_tensors(model, read_tensors(adapter / ADAPTER))
    except ValueError as error:
        raise InputError(str(error)) from error
    with torch.no_grad():
        subtract(model)
    return model.eval()
