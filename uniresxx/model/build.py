"""The one place that assembles the model: from a config and a vocabulary, from pretrained parts, or from a checkpoint
folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

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
from uniresxx.model.modeling import UniRESPlusPlus
from uniresxx.model.regions.detector import Owlv2Proposer
from uniresxx.model.tuning import cast_frozen, format_table, parameter_table

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)
Log = Callable[[str], None]


def build_model(config: UniRESPlusPlusConfig, vocabulary: Vocabulary) -> UniRESPlusPlus:
    """A freshly initialised model; the caller seeds torch."""
    return UniRESPlusPlus(config, vocabulary)


def check_sources(config: UniRESPlusPlusConfig) -> None:
    """InputError that names the options of required pretrained parts that were not named."""
    w = config.weights
    given = {"llava": w.llava, "clip": w.clip or w.llava, "convnext": w.convnext, "sam": w.sam}
    required = [*w.required]
    if w.required and config.mask_head != "pyramid" and "sam" not in required:
        required.append("sam")
    missing = [name for name in required if given[name] is None and w.start is None]
    if missing:
        options = " ".join(f"--model.weights.{name} FOLDER_OR_HUB_ID" for name in missing)
        raise InputError(
            f"this recipe starts from pretrained weights, and nothing is downloaded unasked: give {options}"
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
    config: UniRESPlusPlusConfig, vocabulary: Vocabulary, say: Log | None = None
) -> UniRESPlusPlus:
    """A model with the named pretrained parts loaded; `say` gets a line per part and the table of what is trained.

    Raises InputError where a required part is not named or a folder does not fit.
    """
    check_sources(config)
    _as_input(lambda: check_packed(config.mllm.attention), "--model.mllm.attention")
    w = config.weights
    model = UniRESPlusPlus(config, vocabulary, skip_llm_init=w.llava is not None or w.start is not None)
    if config.tuning.frozen_dtype == "bf16":  # before loading: half the memory is never needed
        cast_frozen(model, torch.bfloat16)
    for part, report in load_sources(model):
        if say is not None:
            say(report.line(part))
    if config.boxes == "owlv2":
        attach_detector(model)
    if say is not None and config.tuning != type(config.tuning)():
        say(format_table(parameter_table(model)))
    return model


def load_sources(model: UniRESPlusPlus) -> list[tuple[str, Report]]:
    """Load every source that the config names, in a fixed order; a checkpoint of ours (`start`) comes alone."""
    w, m = model.settings.weights, model.mllm
    if w.start is not None:
        folder = resolve(Path(w.start), print)
        before, start = read_json(folder / CONFIG).get("boxes"), str(folder)
        if before != model.settings.boxes:
            raise InputError(
                f"{folder} was trained with boxes={before!r} and would go on with {model.settings.boxes!r}: "
                "region tokens mean what their boxes are; give the same --model.boxes"
            )
        report = _as_input(lambda: load_part(model, start, OWN_RULES), "--model.weights.start")
        return [("model", report)]
    found: list[tuple[str, Report]] = []
    if w.llava is not None:
        llava = str(w.llava)
        reports = _as_input(lambda: load_llava(m, llava, w.clip is None), "--model.weights.llava")
        found += list(zip(("LLM", "projector", "low tower"), reports, strict=False))
    if w.clip is not None:
        clip = str(w.clip)
        found.append(("low tower", _as_input(lambda: load_clip(m, clip), "--model.weights.clip")))
    if w.convnext is not None:
        trunk = str(w.convnext)
        found.append(("high tower", _as_input(lambda: load_convnext(m, trunk), "--model.weights.convnext")))
    if w.sam is not None:
        sam, head = str(w.sam), model.head
        assert not isinstance(head, PyramidHead)  # check_sources
        found.append(("mask head", _as_input(lambda: load_sam(head.sam, sam), "--model.weights.sam")))
    return found


def attach_detector(model: UniRESPlusPlus) -> None:
    """Open the detector of boxes "owlv2"; it is no part of the model and of no checkpoint."""
    check_sources(model.settings)
    c = model.settings
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


def _to_load(config: UniRESPlusPlusConfig, vocabulary: Vocabulary) -> UniRESPlusPlus:
    """A model whose weights come next, all of them: writing random ones first takes minutes at 7B."""
    model = UniRESPlusPlus(config, vocabulary, skip_llm_init=True)
    if config.tuning.frozen_dtype == "bf16":
        cast_frozen(model, torch.bfloat16)
    return model


def load_model(folder: Path, attention: str | None = None) -> UniRESPlusPlus:
    """`load_with` for UniRES++; `attention` instead of that of the config.

    Frozen weights that were kept in bf16 stay so: answers are those of the training's own evaluations.
    """

    def read(values: dict[str, Any]) -> UniRESPlusPlusConfig:
        if attention is not None and isinstance(values.get("mllm"), dict):
            values = values | {"mllm": values["mllm"] | {"attention": attention}}
        return UniRESPlusPlusConfig.from_dict(values)

    model = load_with(folder, read, _to_load)
    model.source = folder
    if model.settings.boxes == "owlv2":
        attach_detector(model)
    return model
