"""The one place that assembles UniRES++: from pretrained parts for training, or from a checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mllm.config import Part, TuningConfig
from mllm.loading import OWN_RULES, Report, folder_of, load_part, load_sam
from mllm.loading_llm import chat_template_of, load_llava, load_llm, pretrained_vocabulary
from mllm.prefix import check_packed
from mllm.quantization import check_quantization
from mllm.tokens import Vocabulary
from mllm.tower_loading import load_high, load_low
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.tensors import CONFIG, read_json
from uniresxx.errors import InputError
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.from_folder import as_input, load_vocabulary, load_with
from uniresxx.model.heads.pyramid import PyramidHead
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.placement import Placement
from uniresxx.model.regions.detector import Owlv2Proposer
from uniresxx.model.sam_sizes import check_sam_sizes
from uniresxx.model.tuning import (
    cast_frozen,
    format_table,
    parameter_table,
    quantize_frozen,
    rounded_parts,
)

Log = Callable[[str], None]
CPU = torch.device("cpu")
PARTS_OF_FILES: tuple[Part, ...] = ("llm", "low", "high", "mask_encoder")  # nearly all of the weights
BOX_HEAD = r"box_head\..*"  # parameters that the align stage does not have


def check_sources(config: UniRESPlusPlusConfig) -> None:
    """InputError where parts do not fit, or required pretrained ones are not named, with the options that help."""
    w, m = config.weights, config.mllm
    as_input(lambda: (m.low_config, m.high_config), "--model.mllm")
    as_input(m.check_llm, "--model.mllm")
    given = {
        "llava": w.llava,
        "llm": w.llm or w.llava,
        "low": w.low or w.llava,
        "high": w.high,
        "sam": w.sam,
    }
    required = [*w.required]
    if w.required and config.mask_head != "pyramid" and "sam" not in required:
        required.append("sam")
    missing = [name for name in required if given[name] is None and w.start is None]
    if missing:
        options = " ".join(f"--model.weights.{name} FOLDER_OR_HUB_ID" for name in missing)
        raise InputError(
            f"this recipe starts from pretrained weights and downloads only what you name: give {options}"
        )
    if w.llm is not None and w.llava is not None:
        raise InputError(
            "--model.weights.llm and --model.weights.llava both bring a language model: name one"
        )
    if w.sam is not None and config.mask_head == "pyramid":
        raise InputError("--model.weights.sam is for --model.mask_head sam or sam2")
    if config.boxes == "owlv2" and w.owlv2 is None:
        raise InputError("boxes='owlv2' needs its detector: give --model.weights.owlv2 FOLDER_OR_HUB_ID")


def open_vocabulary(
    config: UniRESPlusPlusConfig, corpus: Sequence[str], continued: Path | None = None
) -> Vocabulary:
    """The tokenizer of the named language model with our special tokens, else one trained on `corpus`.

    `continued`: the checkpoint of a run that goes on, which has that tokenizer already.
    """
    w = config.weights
    if continued is not None and (w.start or w.llm or w.llava):
        return load_vocabulary(continued)
    if w.start is not None:
        return load_vocabulary(resolve(w.start, print))
    for option, source in (("llm", w.llm), ("llava", w.llava)):
        if source is not None:
            return as_input(partial(pretrained_vocabulary, source), f"--model.weights.{option}")
    return Vocabulary.train(corpus, config.mllm.token_count, config.mllm.chat)


def build_for_training(
    config: UniRESPlusPlusConfig,
    vocabulary: Vocabulary,
    log: Log = print,
    device: torch.device = CPU,
    continued: Path | None = None,
) -> UniRESPlusPlusModel:
    """A model with the named pretrained parts loaded, or with the weights of a checkpoint.

    The CPU's memory never holds a whole copy: weights go from their files to the device one by one, or stay the
    files' own memory maps, which all processes of a machine share, where they are frozen and in the file's dtype.

    Args:
        config: `weights` names the pretrained parts, `tuning` what is trained.
        vocabulary: as of `open_vocabulary`.
        log: gets a line per loaded part, and the table of what is trained where `tuning` is not the default.
        device: where the model is trained.
        continued: the checkpoint of a run with this config that goes on; no pretrained part is opened then.

    Raises:
        InputError: a required part is not named, or a folder does not fit.
    """
    check_sources(config)
    as_input(lambda: check_packed(config.mllm.attention), "--model.mllm.attention")
    _check_quantized_training(config.tuning)
    if continued is not None:
        model = load_with(
            continued, lambda _: config, _with_frozen_dtype, Placement(device), lambda _: vocabulary
        )
        for parameter in model.parameters():
            if parameter.requires_grad and device == CPU:  # no part of a file is trained in place
                parameter.data = parameter.data.clone()
    else:
        quantized = config.tuning.quantization != "none"
        parts = parts_of_files(config)
        model = as_input(lambda: UniRESPlusPlusModel(config, vocabulary, parts), "--model.mllm")
        cast_frozen(model, config.tuning, parts)
        model.to(CPU if quantized else device)
        load_sources(model, log)
        if quantized:  # matrix by matrix on the way to the device, which may be too small for the whole
            as_input(
                lambda: quantize_frozen(model.mllm, config.tuning, device), "--model.tuning.quantization"
            )
            model.to(device)
    if config.boxes == "owlv2":
        attach_detector(model)
    if config.tuning != TuningConfig():
        log(format_table(parameter_table(model)))
    return model


def _check_quantized_training(tuning: TuningConfig) -> None:
    """InputError where the LLM cannot be quantised, or its own matrices are trained."""
    kind = tuning.quantization
    as_input(lambda: check_quantization(kind, CPU), "--model.tuning.quantization")
    if kind != "none" and not tuning.lora_rank and "llm" not in tuning.frozen:
        raise InputError(
            f"--model.tuning.quantization {kind}: quantised matrices are never trained; give "
            "--model.tuning.lora_rank 16 or --model.tuning.frozen llm"
        )


def parts_of_files(config: UniRESPlusPlusConfig) -> list[Part]:
    """The parts whose weights all come from the files that `weights` names."""
    w = config.weights
    files: dict[Part, str | None] = {
        "llm": w.llm or w.llava, "low": w.low or w.llava, "high": w.high, "mask_encoder": w.sam,
    }  # fmt: skip
    return [part for part in PARTS_OF_FILES if files[part] or w.start]


def load_sources(model: UniRESPlusPlusModel, log: Log) -> None:
    """Load the pretrained parts that the config names; with `start`, a checkpoint of this project, no other."""
    w, mllm, head = model.config.weights, model.mllm, model.head

    def load(option: str, parts: Sequence[str], reports: Callable[[], Report | list[Report]]) -> None:
        found = as_input(reports, f"--model.weights.{option}")
        for part, report in zip(parts, found if isinstance(found, list) else [found], strict=False):
            log(report.line(part))

    if w.start is not None:
        folder = resolve(w.start, log)
        before = UniRESPlusPlusConfig.from_dict(read_json(folder / CONFIG))
        _check_start(model, before, folder)
        if before.tuning.quantization != "none":
            quantize_frozen(mllm, before.tuning, with_values=False)
        new = () if before.boxes == "learned" else (BOX_HEAD,)
        if model.box_head is not None and new:
            log(f"box head: new, {folder} has none")
        elif model.box_head is not None:
            for level in model.config.box_head.active_levels:
                if level not in before.box_head.active_levels:
                    log(
                        f"box head: the {level} level, off in {folder}, is on: the training data has boxes of it"
                    )
        load("start", ["model"], partial(load_part, model, str(folder), OWN_RULES, new))
        return
    if w.llava is not None:
        parts = ["LLM", "projector", "low tower"]
        load("llava", parts, partial(load_llava, mllm, w.llava, w.low is None))
    if w.llm is not None:
        load("llm", ["LLM"], partial(load_llm, mllm, w.llm))
        published = as_input(partial(chat_template_of, w.llm), "--model.weights.llm")
        if published is not None and published != model.config.mllm.chat:
            log(f"LLM: its own chat format is {published}, mllm.chat has {model.config.mllm.chat}")
    if w.low is not None:
        load("low", ["low tower"], partial(load_low, mllm, w.low))
    if w.high is not None:
        load("high", ["high tower"], partial(load_high, mllm, w.high))
    if w.sam is not None:
        assert not isinstance(head, PyramidHead)  # check_sources
        source = w.sam
        as_input(lambda: check_sam_sizes(model.config, folder_of(source)), "--model.weights.sam")
        load("sam", ["mask head"], partial(load_sam, head.sam, w.sam))


def _check_start(model: UniRESPlusPlusModel, before: UniRESPlusPlusConfig, folder: Path) -> None:
    """InputError where a run cannot go on from `folder`: other boxes, or rounded weights that it would train."""
    now = model.config
    # The align stage teaches region tokens on boxes that are known, whatever finds boxes later.
    aligned = before.boxes == "truth" and not before.loss.teaches_masks
    if before.boxes != now.boxes and not aligned:
        raise InputError(
            f"{folder} was trained with boxes={before.boxes!r} and would go on with {now.boxes!r}: "
            "region tokens mean what their boxes are; give the same --model.boxes"
        )
    kinds = before.tuning.quantization, now.tuning.quantization
    if kinds[0] not in ("none", kinds[1]):
        raise InputError(
            f"{folder} holds its language model in {kinds[0]}, and this run has {kinds[1]!r}: give "
            f"--model.tuning.quantization {kinds[0]}, or start from `uniresxx export {folder} OUT --merge`"
        )
    rounded = " ".join(rounded_parts(model, before.tuning))
    if rounded:
        raise InputError(
            f"{folder} holds the part(s) {rounded} frozen and rounded to bf16, and this run trains them: train the "
            f"stage before again with --model.tuning.keep_fp32 {rounded}, or freeze them here too "
            "(--model.tuning.frozen)"
        )


def attach_detector(model: UniRESPlusPlusModel) -> None:
    """Open the detector of boxes "owlv2"; it belongs neither to the model nor to its checkpoints."""
    check_sources(model.config)
    c = model.config
    source = str(c.weights.owlv2)
    model.detector = as_input(
        lambda: Owlv2Proposer(source, c.mllm.max_objects, c.mllm.max_parts), "--model.weights.owlv2"
    )


def _with_frozen_dtype(config: UniRESPlusPlusConfig, vocabulary: Vocabulary) -> UniRESPlusPlusModel:
    """A model without memory whose frozen weights have the dtype and the quantisation in which they were trained."""
    model = UniRESPlusPlusModel(config, vocabulary)
    cast_frozen(model, config.tuning)
    quantize_frozen(model.mllm, config.tuning)
    return model


def load_model(folder: Path, placement: Placement | None = None) -> UniRESPlusPlusModel:
    """The UniRES++ of a `from_pretrained` folder, in evaluation mode.

    Frozen weights that were trained in bf16 stay in it: answers equal those of the evaluations during training.

    Args:
        folder: config.json, weights and tokenizer.json.
        placement: device, and dtype, attention and quantisation to use instead of those of the checkpoint; None: on
            the CPU.

    Raises:
        InputError: files are missing or do not fit together.
    """
    placement = placement or Placement()
    attention = placement.attention

    def read(values: dict[str, Any]) -> UniRESPlusPlusConfig:
        if attention is not None and isinstance(values.get("mllm"), dict):
            values = values | {"mllm": values["mllm"] | {"attention": attention}}
        config = UniRESPlusPlusConfig.from_dict(values)
        as_input(lambda: check_quantization(config.tuning.quantization, placement.device), str(folder))
        return config

    model = load_with(
        folder, read, _with_frozen_dtype, placement, lambda _: load_vocabulary(folder),
        lambda built: built.mllm.llm,
    )  # fmt: skip
    if placement.quantization != "none":
        tuning = replace(model.config.tuning, quantization=placement.quantization)
        model.config = replace(model.config, tuning=tuning)
    if model.config.boxes == "owlv2":
        attach_detector(model)
    return model
