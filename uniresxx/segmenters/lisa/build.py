"""Assembles LISA, GSVA and M2SA: from a converted or trained folder, for use or for training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mllm.config import TuningConfig
from mllm.language import enable_activation_checkpointing
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.tensors import CONFIG, TOKENIZER, read_json
from uniresxx.errors import InputError
from uniresxx.model.from_folder import load_with
from uniresxx.model.placement import Placement
from uniresxx.model.tuning import apply_tuning, cast, cast_frozen, format_table, parameter_table
from uniresxx.segmenters.lisa.config import PARTS, LisaConfig
from uniresxx.segmenters.lisa.modeling import Lisa
from uniresxx.segmenters.lisa.prompts import LisaVocabulary

Log = Callable[[str], None]
ADAPTER_FIELDS = ("lora_rank", "lora_alpha", "lora_targets", "token_rows")


def load_lisa(folder: Path, placement: Placement) -> Lisa:
    """The model of a folder; InputError for an attention backend that cannot hide branches."""
    if placement.attention not in (None, "sdpa", "eager"):
        raise InputError(
            f"attention {placement.attention!r}: the model of {folder} answers the expressions of a photo together, "
            "which needs 'sdpa' or 'eager'"
        )

    def build(config: LisaConfig, vocabulary: LisaVocabulary) -> Lisa:
        model = _build(config, vocabulary)
        if placement.attention is not None:
            model.llm.set_attn_implementation(placement.attention)
        return model

    vocabulary = partial(_vocabulary, folder)
    return load_with(folder, LisaConfig.from_dict, build, placement, vocabulary, lambda model: model.llm)


def open_lisa_vocabulary(config: LisaConfig) -> LisaVocabulary:
    """The tokenizer of the checkpoint that training starts from."""
    return _vocabulary(resolve(config.start, print), config)


def build_lisa_for_training(config: LisaConfig, vocabulary: LisaVocabulary, log: Log = print) -> Lisa:
    """The model of `config.start`, of which `config.tuning` says what is trained.

    Args:
        config: that of the checkpoint, with another `tuning`, `loss` or `activation_checkpointing`.
        vocabulary: as of `open_lisa_vocabulary`.
        log: gets the table of what is trained.

    Raises:
        InputError: other fields were changed, or the checkpoint has adapters and `tuning` names others.
    """
    folder = resolve(config.start, log)
    before = LisaConfig.from_dict(read_json(folder / CONFIG))
    _check_start(config, before, folder)
    adapted = _has_adapters(before.tuning)

    def read(values: dict[str, Any]) -> LisaConfig:
        return config if adapted else before

    model = load_with(folder, read, _build, Placement(), lambda _: vocabulary)
    if not adapted:
        model.config = config
        model.requires_grad_(True)
        apply_tuning(model, model.llm, vocabulary.special, config.tuning, PARTS)
        _set_dtypes(model)
    if config.activation_checkpointing:
        enable_activation_checkpointing(model.llm)
    log(format_table(parameter_table(model, PARTS)))
    return model


def _build(config: LisaConfig, vocabulary: LisaVocabulary) -> Lisa:
    model = Lisa(config, vocabulary)
    _set_dtypes(model)
    return model


def _set_dtypes(model: Lisa) -> None:
    """Trained weights in fp32, frozen ones as `tuning` says."""
    cast((p for p in model.parameters() if p.requires_grad), torch.float32)
    if model.config.tuning.frozen_dtype == "fp32":
        cast((p for p in model.parameters() if not p.requires_grad), torch.float32)
    cast_frozen(model, model.config.tuning, parts=PARTS)


def _vocabulary(folder: Path, config: LisaConfig) -> LisaVocabulary:
    return LisaVocabulary.load(folder / TOKENIZER, config.peer)


def _has_adapters(tuning: TuningConfig) -> bool:
    return bool(tuning.lora_rank) or tuning.token_rows == "new"


def _check_start(config: LisaConfig, before: LisaConfig, folder: Path) -> None:
    """InputError where `config` is not that of the checkpoint, or its adapters are others."""
    free = {name: getattr(before, name) for name in ("tuning", "loss", "activation_checkpointing", "start")}
    if replace(config, **free) != before:
        raise InputError(
            f"--model: sizes, photos and wording are those of {folder}: change only --model.tuning, --model.loss and "
            "--model.activation_checkpointing"
        )
    adapters, now = ({n: getattr(t, n) for n in ADAPTER_FIELDS} for t in (before.tuning, config.tuning))
    if _has_adapters(before.tuning) and adapters != now:
        adapters["lora_targets"] = " ".join(before.tuning.lora_targets)
        options = " ".join(f"--model.tuning.{name} {value}" for name, value in adapters.items())
        raise InputError(f"{folder} has adapters, which are trained on as they are: give {options}")
