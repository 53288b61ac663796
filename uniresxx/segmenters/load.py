"""Which class a checkpoint folder holds: read from `model_type` of its config, through one plain table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from uniresxx.checkpoints.folders import Log
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.tensors import CONFIG, read_json, weight_files
from uniresxx.errors import InputError
from uniresxx.segmenters.base import Segmenter


def _load_uniresxx(folder: Path) -> Segmenter:
    from uniresxx.model.build import load_model

    return load_model(folder)


def _load_film_unet(folder: Path) -> Segmenter:
    from uniresxx.segmenters.film_unet.modeling import load_film_unet

    return load_film_unet(folder)


# model_type of the config -> loader of the folder
LOADERS: dict[str, Callable[[Path], Segmenter]] = {"uniresxx": _load_uniresxx, "film_unet": _load_film_unet}


def load_segmenter(path: str | os.PathLike[str], log: Log | None = None) -> Segmenter:
    """Load the model of a checkpoint, in evaluation mode, on the CPU.

    Args:
        path: a run folder (its best, else its newest verified checkpoint), a `from_pretrained` folder, or
            `hub:OWNER/NAME`.
        log: gets a line for each damaged checkpoint that is skipped; None: a warning each.

    Raises:
        InputError: `path` holds no complete checkpoint of a known kind.
    """
    folder = resolve(path, log or _warn)
    kind = read_json(folder / CONFIG).get("model_type")
    loader = LOADERS.get(kind) if isinstance(kind, str) else None
    if loader is None:
        raise InputError(
            f"{folder / CONFIG} has model_type {kind!r}; known: {', '.join(sorted(LOADERS))}: "
            "give a checkpoint trained or converted by this project"
        )
    weight_files(folder)  # refuses an incomplete folder before anything is built
    return loader(folder)


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)
