"""Public models of transformers from a folder or a hub id: safetensors only, no code of a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_engine.model import Model
from mllm.loading import folder_of
from uniresxx.errors import InputError
from uniresxx.model.placement import device_of, dtype_of


def folder(model: Model) -> Path:
    """The local folder; InputError where there is none and the hub has none."""
    try:
        return folder_of(model.source)
    except ValueError as error:
        raise InputError(f"model {model.kind}: {error}") from None


def load(auto_class: Any, model: Model, path: Path) -> Any:
    """The model in evaluation mode on its device; InputError where the folder holds no such model."""
    try:
        made = auto_class.from_pretrained(
            path, dtype=dtype_of(model.dtype) or torch.float32, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model {model.kind}: {model.source} cannot be loaded ({str(error).splitlines()[0][:200]})"
        ) from None
    return made.eval().to(device_of(model.device))
