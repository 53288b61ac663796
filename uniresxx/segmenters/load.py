"""Which class a model has: of a checkpoint folder by `model_type` of its config, of a public model by its family;
two plain tables."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uniresxx.checkpoints.folders import Log
from uniresxx.checkpoints.resolve import Source, find
from uniresxx.checkpoints.tensors import CONFIG, read_json, weight_files
from uniresxx.errors import InputError
from uniresxx.segmenters.base import Segmenter

if TYPE_CHECKING:
    import torch

    from uniresxx.model.placement import Placement


def _load_uniresxx(folder: Path, placement: Placement) -> Segmenter:
    from uniresxx.model.build import load_model

    return load_model(folder, placement)


def _load_film_unet(folder: Path, placement: Placement) -> Segmenter:
    from uniresxx.segmenters.film_unet.modeling import load_film_unet

    return load_film_unet(folder, placement)


def _load_lisa(folder: Path, placement: Placement) -> Segmenter:
    from uniresxx.segmenters.lisa.build import load_lisa

    return load_lisa(folder, placement)


def _load_unires(folder: Path, placement: Placement) -> Segmenter:
    from uniresxx.segmenters.unires.build import load_unires

    return load_unires(folder, placement)


def _load_clipseg(folders: Sequence[Path], placement: Placement) -> Segmenter:
    from uniresxx.segmenters.public.clipseg import load

    return load(folders, placement)


def _load_detect(folders: Sequence[Path], placement: Placement) -> Segmenter:
    from uniresxx.segmenters.public.detect import load

    return load(folders, placement)


def _load_florence2(folders: Sequence[Path], placement: Placement) -> Segmenter:
    from uniresxx.segmenters.public.florence2 import load

    return load(folders, placement)


def _load_qwenvl(folders: Sequence[Path], placement: Placement) -> Segmenter:
    from uniresxx.segmenters.public.qwenvl import load

    return load(folders, placement)


def _load_sam3(folders: Sequence[Path], placement: Placement) -> Segmenter:
    from uniresxx.segmenters.public.sam3 import load

    return load(folders, placement)


Loader = Callable[[Path, "Placement"], Segmenter]
# model_type of the config -> loader of the folder
LOADERS: dict[str, Loader] = {
    "uniresxx": _load_uniresxx,
    "film_unet": _load_film_unet,
    "lisa": _load_lisa,
    "unires": _load_unires,
}
# family of `checkpoints.resolve.FAMILIES` -> loader of its folders
PUBLIC: dict[str, Callable[[Sequence[Path], Placement], Segmenter]] = {
    "clipseg": _load_clipseg,
    "detect": _load_detect,
    "florence2": _load_florence2,
    "qwenvl": _load_qwenvl,
    "sam3": _load_sam3,
}


def load_segmenter(
    path: str | os.PathLike[str] | None = None,
    log: Log | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    attention: str | None = None,
    device_map: str | None = None,
    quantization: str | None = None,
) -> Segmenter:
    """Load the model of a checkpoint, in evaluation mode. Its weights go from the file to the device one by one.

    Args:
        path: a run folder (its best, else its newest verified checkpoint), a `from_pretrained` folder,
            `hub:OWNER/NAME`, or `FAMILY:DIR_OR_HUB_ID` of a public model (docs/public_models.md); None: the model
            that comes with the package.
        log: gets a line for each damaged checkpoint that is skipped; None: a warning each.
        device: "auto" (a CUDA GPU, else MPS, else the CPU), "cpu", "cuda", "cuda:N" or "mps".
        dtype: "float32" or "bfloat16" for all weights; None: fp32, and bf16 for frozen weights trained so.
        attention: backend of the language model, such as "sdpa"; None: that of the checkpoint.
        device_map: "auto": a model larger than one GPU is spread over all of them and the host's memory, see
            docs/use.md; None: one device.
        quantization: "int8" or "nf4" (4 bits): of the language model's matrices, by bitsandbytes; None: as saved.

    Raises:
        InputError: `path` holds no complete checkpoint of a known kind, the device is not there, or a value is
            unknown.
    """
    from uniresxx.model.placement import placement_of

    placement = placement_of(device, dtype, attention, device_map, quantization)
    return load_source(find(path, log or _warn), placement)


def load_source(source: Source, placement: Placement) -> Segmenter:
    """As `load_segmenter`, of what `find` returned, here or in another process."""
    if source.family is None:
        return load_folder(source.folders[0], placement)
    return PUBLIC[source.family](source.folders, placement)


def load_folder(folder: Path, placement: Placement) -> Segmenter:
    """As `load_segmenter`, of a folder that `resolve` returned, here or in another process."""
    kind = read_json(folder / CONFIG).get("model_type")
    loader = LOADERS.get(kind) if isinstance(kind, str) else None
    if loader is None:
        raise InputError(
            f"{folder / CONFIG} has model_type {kind!r}; known: {', '.join(sorted(LOADERS))}: "
            "give a checkpoint trained or converted by this project"
        )
    weight_files(folder)  # refuses an incomplete folder before anything is built
    return loader(folder, placement)


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=5)
