"""The folder of a run: what is continued, what is compared, what is removed when a run starts over.

OUT holds recipe.json, log.jsonl, curve.png, overlays/, eval/, checkpoints/, data.json and quarantine.jsonl of the
training data, and refusal/ of a finetuned model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image

from train.engines.base import Engine
from train.log import print_line, trim_log
from train.recipe_changes import differences, recipe_differences
from train.trackers import TENSORBOARD
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints.shards import OPTIMIZER
from uniresxx.checkpoints.tensors import read_tensors
from uniresxx.data.mixture.data_log import DATA, QUARANTINE
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic

LOG, CURVE, OVERLAYS, EVAL, LOCK = "log.jsonl", "curve.png", "overlays", "eval", ".lock"
REFUSAL, RESULT = (
    "eval/refusal",
    "refusal.json",
)  # the answers, and N-acc and T-acc before and after finetuning
FILES = (LOG, CURVE, QUARANTINE, DATA, checkpoint.RECIPE)
_CHECKPOINT_FILES = (
    checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TOKENIZER, f"{OPTIMIZER}.safetensors", checkpoint.STATE,
    checkpoint.RECIPE, checkpoint.MANIFEST,
)  # fmt: skip
_EVAL_FILES = (
    "overlay.png", "metrics.json", "evaluation.json", "predictions.jsonl", "images.jsonl", "dialogues.jsonl",
    "chats.jsonl", LOCK,
)  # fmt: skip
_STEP = re.compile(r"step_\d{8,}(\.png)?")
_WORDS_SHOWN, _LONGEST = 4, 100  # entries of a vocabulary's diff, characters of each


@dataclass
class State:
    """Where a run is; saved as state.json."""

    step: int = 0  # updates done (skipped ones count)
    seconds: float = 0.0  # of training, over all restarts
    expressions: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0  # not finite, one after the other
    spikes: int = 0  # of the skipped steps
    norms: list[float] = field(default_factory=list)  # the window of guards.is_spike
    best: dict[str, Any] | None = None  # checkpoint.mark_best's file
    finished: bool = False


@dataclass(frozen=True)
class Previous:
    """The run to continue: its newest verified checkpoint, and the length that it was planned for."""

    checkpoint: Path
    steps: int
    max_minutes: float | None


def previous_run(
    out: Path, about: Mapping[str, Any], tokenizer: Any, newest: Path | None = None
) -> Previous | None:
    """The run in `out` that goes on; None where there is no checkpoint. Writes nothing.

    Args:
        out: the run folder.
        about: the recipe.json of the run that starts now.
        tokenizer: of its model, or None.
        newest: the newest undamaged checkpoint in `out`; None: it is looked for.

    Raises:
        InputError: `out` holds another recipe, data set or vocabulary (with a diff), or somebody else's files.
    """
    check_owner(out)
    folder = newest or checkpoint.newest_verified(out, print_line)
    path = (folder or out) / checkpoint.RECIPE
    saved = checkpoint.read_json(path) if path.exists() else None
    changes = [] if saved is None else recipe_differences(saved, about)
    if changes:
        raise InputError(
            f"{out} was trained with another recipe or data set ({'; '.join(changes)}): "
            "use another --out, the old values, or --fresh to start over"
        )
    if folder is None or saved is None:
        return None
    if tokenizer is not None:
        changes = _word_changes((folder / checkpoint.TOKENIZER).read_bytes(), tokenizer.to_json().encode())
        if changes:
            raise InputError(
                f"{folder / checkpoint.TOKENIZER} is not the vocabulary of this recipe and data "
                f"({'; '.join(changes)}): use another --out, the old data, or --fresh to start over"
            )
    optim = saved["recipe"]["optim"]
    return Previous(folder, optim["steps"], optim["max_minutes"])


def check_owner(out: Path) -> None:
    """Raise InputError where `out` is no run folder and has files that a run would overwrite."""
    if _is_run(out):
        return
    found = [name for name in FILES if (out / name).exists()]
    if found:
        raise InputError(
            f"{out} is no run folder, and a run would overwrite its {', '.join(found)}: use another --out"
        )


def _is_run(out: Path) -> bool:
    """recipe.json is the first file that a run writes."""
    with suppress(InputError):
        if {"format", "recipe", "data"} <= checkpoint.read_json(out / checkpoint.RECIPE).keys():
            return True
    return any((out / checkpoint.CHECKPOINTS).glob(f"step_*/{checkpoint.MANIFEST}"))


def restore(folder: Path, engine: Engine) -> State:
    """Load optimizer and random state into the engine; returns where the run was."""
    tensors = [read_tensors(path) for path in sorted(folder.glob(f"{OPTIMIZER}*.safetensors"))]
    engine.load({name: value for found in tensors for name, value in found.items()})
    saved = checkpoint.read_json(folder / checkpoint.STATE)
    changes = differences(saved["engine"], engine.describe())
    if changes:
        print_line(f"note: the last bits may differ from an undisturbed run ({'; '.join(changes)})")
    return State(**{item.name: saved[item.name] for item in fields(State) if item.name in saved})


def begin(out: Path, about: Mapping[str, Any], state: State, fresh: bool) -> None:
    """Prepare `out` for the next step, after all checks have passed: the first function that writes there.

    `fresh` removes the earlier run. Otherwise what a killed process left unfinished is completed or removed.
    """
    if fresh:
        start_over(out)
    if (out / checkpoint.CHECKPOINTS).is_dir():
        checkpoint.remove_leftovers(out / checkpoint.CHECKPOINTS)
    write_atomic(out / checkpoint.RECIPE, checkpoint.to_json(dict(about)))
    trim_log(out / LOG, state.step)
    if state.best is not None:
        checkpoint.mark_best(out, state.best)


def start_over(out: Path) -> None:
    """Remove the files that an earlier run wrote in `out`, and the folders that are empty then."""
    for folder in _steps(out / checkpoint.CHECKPOINTS):
        shards = [path.name for path in folder.glob("*-*-of-*.safetensors")]
        _remove(folder, {*_CHECKPOINT_FILES, checkpoint.INDEX, *shards})
    for folder in (*_steps(out / EVAL), out / REFUSAL):
        parts = [path.name for path in folder.rglob("*.part-*.jsonl")]  # of ranks that did not end
        _remove(folder, {*_EVAL_FILES, RESULT, *parts})
    for path in (*_steps(out / OVERLAYS), *(out / TENSORBOARD).glob("events.out.tfevents.*")):
        path.unlink()
    for name in (f"{checkpoint.CHECKPOINTS}/{checkpoint.BEST}", *FILES):
        (out / name).unlink(missing_ok=True)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG whole or not at all; its folder is made."""
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, png_bytes(picture))


def _steps(folder: Path) -> list[Path]:
    """What a run names after a step."""
    return [path for path in folder.glob("step_*") if _STEP.fullmatch(path.name)]


def _remove(folder: Path, names: Collection[str]) -> None:
    """Remove the files of these names below `folder`, and every folder that is empty then."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside a folder comes before it
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        elif path.name in names:
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def _word_changes(old: bytes, new: bytes) -> list[str]:
    """The first few entries in which two tokenizer files differ."""
    if old == new:
        return []
    found = differences(json.loads(old), json.loads(new)) or ["the order of entries"]
    shown = [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…" for line in found[:_WORDS_SHOWN]]
    return [*shown, f"{len(found)} changes in all"] if len(found) > _WORDS_SHOWN else shown
