"""Assembles UniRES: from a folder of CLIP or a checkpoint for training, or from a checkpoint for use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mllm.loading import OWN_RULES, folder_of, load_part
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.tensors import CONFIG, TOKENIZER, read_json
from uniresxx.errors import InputError
from uniresxx.model.from_folder import as_input, load_with
from uniresxx.model.placement import Placement
from uniresxx.segmenters.unires.clip_folder import load_clip
from uniresxx.segmenters.unires.config import UniresConfig
from uniresxx.segmenters.unires.modeling import Unires
from uniresxx.segmenters.unires.vocabulary import ClipVocabulary

Log = Callable[[str], None]


def load_unires(folder: Path, placement: Placement) -> Unires:
    """The model of a folder; InputError for an attention backend, of which it has one."""
    if placement.attention is not None:
        raise InputError(f"attention {placement.attention!r}: the UniRES of {folder} has one, leave it out")
    vocabulary = partial(_vocabulary_of, folder)
    return load_with(folder, UniresConfig.from_dict, Unires, placement, vocabulary)


def open_unires_vocabulary(config: UniresConfig, corpus: Sequence[str]) -> ClipVocabulary:
    """The tokenizer of `config.start` or `config.clip`, else one trained on `corpus`.

    Raises InputError where training has to start from one of them and none is named.
    """
    if config.start is not None:
        return ClipVocabulary.load(resolve(config.start, print) / TOKENIZER)
    if config.clip is not None:
        source = config.clip
        return ClipVocabulary.load(as_input(lambda: folder_of(source), "--model.clip") / TOKENIZER)
    if config.pretrained:
        raise InputError(
            "this recipe starts from pretrained weights and downloads only what you name: give --model.clip "
            "FOLDER_OR_HUB_ID, or --model.start RUN"
        )
    return ClipVocabulary.train(corpus, int(config.text_config.to_dict()["vocab_size"]))


def build_unires_for_training(config: UniresConfig, vocabulary: ClipVocabulary, log: Log = print) -> Unires:
    """The model, with the weights of `config.start`, else the encoders of `config.clip`, else random.

    Raises:
        InputError: sizes do not fit together, or a folder does not fit them.
    """
    model = as_input(lambda: Unires(config, vocabulary), "--model")
    if config.start is not None:
        folder = resolve(config.start, log)
        UniresConfig.from_dict(read_json(folder / CONFIG))  # refuses a checkpoint of another kind
        report = as_input(lambda: load_part(model, str(folder), OWN_RULES), "--model.start")
        log(report.line("model"))
    elif config.clip is not None:
        source = config.clip
        for part, report in as_input(lambda: load_clip(model, source), "--model.clip").items():
            log(report.line(part))
    return model


def _vocabulary_of(folder: Path, config: UniresConfig) -> ClipVocabulary:
    return ClipVocabulary.load(folder / TOKENIZER)
