"""Which folder a name means: of a run its best checkpoint, a plain folder, or a repository of the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from uniresxx.checkpoints import folders
from uniresxx.checkpoints.folders import CHECKPOINTS, MANIFEST
from uniresxx.checkpoints.tensors import CONFIG, WEIGHTS
from uniresxx.errors import InputError

HUB = "hub:"  # before the id of a repository, so that a misspelt folder name causes no download


def resolve(name: str | os.PathLike[str], log: folders.Log) -> Path:
    """The folder that holds the weights.

    Args:
        name: a run folder (its best checkpoint, else the newest undamaged one), a folder with weights, or
            `hub:OWNER/NAME[@REVISION]`, which is downloaded.
        log: gets a line for each damaged checkpoint that is passed over.

    Raises:
        InputError: there is nothing to load.
    """
    source = os.fspath(name)
    path = _downloaded(source.removeprefix(HUB)) if source.startswith(HUB) else Path(source)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}: give a run folder or a folder with {CONFIG} and {WEIGHTS}")
    if (path / CONFIG).exists():
        reason = folders.damage(path) if (path / MANIFEST).exists() else None
        if reason is not None:
            raise InputError(f"checkpoint {path} is damaged ({reason}): use another one of the run")
        return path
    if not (path / CHECKPOINTS).is_dir():
        raise InputError(f"{path} is not a checkpoint: it has neither {CONFIG} nor a {CHECKPOINTS} folder")
    best = folders.best_step(path)
    if best is not None:
        folder = folders.step_folder(path, best)
        reason = folders.damage(folder)
        if reason is None:
            return folder
        log(f"the best checkpoint {folder} is damaged ({reason}): taking the newest")
    newest = folders.newest_verified(path, log)
    if newest is None:
        raise InputError(f"{path} has no undamaged checkpoint: train it first, or use another run")
    return newest


def _downloaded(repository: str) -> Path:
    from mllm.loading import folder_of

    try:
        return folder_of(repository)
    except ValueError as error:
        raise InputError(str(error)) from error
