"""The files of a published model: its class by `model_type`, its weights, its tokenizer and its image processor.

Nothing is downloaded here, no code of a folder is run, and only safetensors are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from uniresxx.checkpoints.tensors import CONFIG, one_line, read_json
from uniresxx.errors import InputError
from uniresxx.model.placement import Placement

Value = TypeVar("Value")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")  # one of them is in every published folder
_SHOWN = 3  # names in an error


def chosen_by_type(folder: Path, known: Mapping[str, Value], family: str) -> Value:
    """The value of a table for the `model_type` of a folder; InputError for a type that the table does not have."""
    kind = read_json(folder / CONFIG).get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise InputError(
            f"{folder / CONFIG} has model_type {kind!r}, and {family}: takes {', '.join(known)}: name another folder"
        )
    return known[kind]


def check_placement(placement: Placement, family: str) -> None:
    """InputError for what public models do not have: quantisation, and layers on several devices."""
    if placement.quantization != "none":
        raise InputError(
            f"quantization {placement.quantization!r}: {family}: models have none here; leave it out"
        )
    if placement.spread:
        raise InputError(f"device_map 'auto': {family}: models run on one device; leave it out")


def load_model(kind: type[PreTrainedModel], folder: Path, placement: Placement) -> Any:
    """A model in evaluation mode, in fp32, or in bf16 where the files or the placement say so.

    Raises:
        InputError: tensors are missing or of another shape, the files are unreadable, or the model does not have the
            attention backend.
    """
    options: dict[str, Any] = (
        {} if placement.attention is None else {"attn_implementation": placement.attention}
    )
    with _silent():
        model, report = _loaded(
            lambda: kind.from_pretrained(
                folder,
                dtype="auto" if placement.dtype is None else placement.dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            ),
            folder,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        names = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise InputError(
            f"{folder}: {len(missing)} tensors of {kind.__name__} are missing ({names}): "
            "name a folder in the layout of transformers"
        )
    if model.dtype == torch.float16:
        model = model.float()
    return model.to(placement.device).eval()


@contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' table of tensors and its progress bar: what does not fit is one line of ours."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; InputError where there is none, for which transformers makes an empty one."""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise InputError(f"{folder} has no tokenizer ({', '.join(VOCABULARIES)}): copy the whole folder")
    return _loaded(lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True), folder)


def load_image_processor(folder: Path) -> Any:
    """The image processor of a folder, that of Pillow and numpy; InputError where there is none."""
    return _loaded(
        lambda: AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"), folder
    )


def _loaded(work: Callable[[], Value], folder: Path) -> Value:
    """The result of transformers' loader; its errors, whose classes differ from release to release, as InputError."""
    try:
        return work()
    except (
        OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, SafetensorError
    ) as error:  # fmt: skip
        raise InputError(f"{folder} cannot be loaded: {one_line(error)}") from error


def image_inputs(processor: Any, photo: np.ndarray) -> Any:
    """The inputs of an image processor for one photo, uint8 (y, x, 3); InputError for a shape that it refuses."""
    try:
        return processor(photo, return_tensors="pt", input_data_format="channels_last")
    except ValueError as error:
        height, width = photo.shape[:2]
        raise InputError(
            f"the model does not take a photo of {height} x {width} pixels: {one_line(error)}"
        ) from error


def plain(tokenizer: Any, texts: list[str], **options: Any) -> Any:
    """`tokenizer(texts)` as tensors, where special tokens that a text spells are plain text."""
    return tokenizer(texts, split_special_tokens=True, return_tensors="pt", **options)
