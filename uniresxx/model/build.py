"""The one place that assembles the model: from a config and a vocabulary, from pretrained parts, or from a checkpoint
folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mllm.config import TuningConfig
from mllm.loading import (
    OWN_RULES,
    Report,
    llava_vocabulary,
    load_clip,
    load_convnext,
    load_llava,
    load_part,
    load_sam,
)
from mllm.prefix import check_packed
from mllm.tokens import Vocabulary
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.tensors import CONFIG, TOKENIZER, load_weights, read_json
from uniresxx.errors import InputError
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.heads.pyramid import PyramidHead
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.placement import Placement, parameters_without_memory
from uniresxx.model.regions.detector import Owlv2Proposer
from uniresxx.model.tuning import cast, cast_frozen, format_table, parameter_table

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)
AnyVocabulary = TypeVar("AnyVocabulary")  # a model's vocabulary
Log = Callable[[str], None]


def check_sources(config: UniRESPlusPlusConfig) -> None:
    """InputError where required pretrained parts are not named, with the options that name them."""
    w = config.weights
    given = {"llava": w.llava, "clip": w.clip or w.llava, "convnext": w.convnext, "sam": w.sam}
    required = [*w.required]
    if w.required and config.mask_head != "pyramid" and "sam" not in required:
        required.append("sam")
    missing = [name for name in required if given[name] is None and w.start is None]
    if missing:
        options = " ".join(f"--model.weights.{name} FOLDER_OR_HUB_ID" for name in missing)
        raise InputError(
            f"this recipe starts from pretrained weights and downloads only what you name: give {options}"
        )
    if w.sam is not None and config.mask_head == "pyramid":
        raise InputError("--model.weights.sam is for --model.mask_head sam or sam2")
    if config.boxes == "owlv2" and w.owlv2 is None:
        raise InputError("boxes='owlv2' needs its detector: give --model.weights.owlv2 FOLDER_OR_HUB_ID")


def open_vocabulary(config: UniRESPlusPlusConfig, corpus: Sequence[str]) -> Vocabulary:
    """The tokenizer of the named LLaVA with our special tokens, else one trained on `corpus`."""
    w = config.weights
    if w.start is not None:
        return load_vocabulary(resolve(Path(w.start), print))
    if w.llava is not None:
        return _as_input(lambda: llava_vocabulary(str(w.llava)), "--model.weights.llava")
    return Vocabulary.train(corpus, config.mllm.vocabulary)


def build_for_training(
    config: UniRESPlusPlusConfig, vocabulary: Vocabulary, log: Log = print
) -> UniRESPlusPlusModel:
    """A model with the named pretrained parts loaded.

    Args:
        config: `weights` names the pretrained parts, `tuning` what is trained.
        vocabulary: as of `open_vocabulary`.
        log: gets a line per loaded part, and the table of what is trained where `tuning` is not the default.

    Raises:
        InputError: a required part is not named, or a folder does not fit.
    """
    check_sources(config)
    _as_input(lambda: check_packed(config.mllm.attention), "--model.mllm.attention")
    w = config.weights
    all_loaded = w.llava is not None or w.start is not None
    model = UniRESPlusPlusModel(config, vocabulary, skip_llm_init=all_loaded)
    if config.tuning.frozen_dtype == "bf16":  # before loading: half the memory is never needed
        cast_frozen(model, torch.bfloat16)
    load_sources(model, log)
    if config.boxes == "owlv2":
        attach_detector(model)
    if config.tuning != TuningConfig():
        log(format_table(parameter_table(model)))
    return model


def load_sources(model: UniRESPlusPlusModel, log: Log) -> None:
    """Load the pretrained parts that the config names; with `start`, a checkpoint of this project, no other."""
    w, mllm, head = model.config.weights, model.mllm, model.head

    def load(option: str, parts: Sequence[str], reports: Callable[[], Report | list[Report]]) -> None:
        found = _as_input(reports, f"--model.weights.{option}")
        for part, report in zip(parts, found if isinstance(found, list) else [found], strict=False):
            log(report.line(part))

    if w.start is not None:
        folder = resolve(Path(w.start), log)
        before = UniRESPlusPlusConfig.from_dict(read_json(folder / CONFIG))
        if before.boxes != model.config.boxes:
            raise InputError(
                f"{folder} was trained with boxes={before.boxes!r} and would go on with {model.config.boxes!r}: "
                "region tokens mean what their boxes are; give the same --model.boxes"
            )
        if model.box_head is not None:
            for level in model.config.box_head.active_levels:
                if level not in before.box_head.active_levels:
                    log(
                        f"box head: the {level} level, off in {folder}, is on: the training data has boxes of it"
                    )
        load("start", ["model"], partial(load_part, model, str(folder), OWN_RULES))
        return
    if w.llava is not None:
        parts = ["LLM", "projector", "low tower"]
        load("llava", parts, partial(load_llava, mllm, w.llava, w.clip is None))
    if w.clip is not None:
        load("clip", ["low tower"], partial(load_clip, mllm, w.clip))
    if w.convnext is not None:
        load("convnext", ["high tower"], partial(load_convnext, mllm, w.convnext))
    if w.sam is not None:
        assert not isinstance(head, PyramidHead)  # check_sources
        load("sam", ["mask head"], partial(load_sam, head.sam, w.sam))


def attach_detector(model: UniRESPlusPlusModel) -> None:
    """Open the detector of boxes "owlv2"; it belongs neither to the model nor to its checkpoints."""
    check_sources(model.config)
    c = model.config
    source = str(c.weights.owlv2)
    model.detector = _as_input(
        lambda: Owlv2Proposer(source, c.mllm.max_objects, c.mllm.max_parts), "--model.weights.owlv2"
    )


Value = TypeVar("Value")


def _as_input(work: Callable[[], Value], option: str) -> Value:
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
) -> Model:
    """The model of a `from_pretrained` folder, in evaluation mode; InputError where files do not fit.

    Weights are built without memory and go from the file to the device one by one, so that host memory never holds
    a second copy of them.
    """
    config = read_config(read_json(folder / CONFIG))
    vocabulary = read_vocabulary(config)
    try:
        with parameters_without_memory():
            model = build(config, vocabulary)
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    if placement.dtype is not None:
        cast(model.parameters(), placement.dtype)
    load_weights(model, folder, placement.device)
    return model.to(placement.device).eval()  # buffers are still on the CPU


def _with_frozen_dtype(config: UniRESPlusPlusConfig, vocabulary: Vocabulary) -> UniRESPlusPlusModel:
    """A model whose frozen weights have the dtype in which they were trained."""
    model = UniRESPlusPlusModel(config, vocabulary)
    if config.tuning.frozen_dtype == "bf16":
        cast_frozen(model, torch.bfloat16)
    return model


def load_model(folder: Path, placement: Placement | None = None) -> UniRESPlusPlusModel:
    """The UniRES++ of a `from_pretrained` folder, in evaluation mode.

    Frozen weights that were trained in bf16 stay in it: answers equal those of the evaluations during training.

    Args:
        folder: config.json, weights and tokenizer.json.
        placement: device, and dtype and attention to use instead of those of the checkpoint; None: on the CPU.

    Raises:
        InputError: files are missing or do not fit together.
    """
    placement = placement or Placement()
    attention = placement.attention

    def read(values: dict[str, Any]) -> UniRESPlusPlusConfig:
        if attention is not None and isinstance(values.get("mllm"), dict):
            values = values | {"mllm": values["mllm"] | {"attention": attention}}
        return UniRESPlusPlusConfig.from_dict(values)

    model = load_with(folder, read, _with_frozen_dtype, placement, lambda _: load_vocabulary(folder))
    if model.config.boxes == "owlv2":
        attach_detector(model)
    return model
