"""Retrain the presence head of a checkpoint alone: `python -m train calibrate-presence`.

The head is fitted to pictures that ask for absent things as well. Pictures of the checkpoint's own training data come
along where they ask for nothing absent, so that it still accepts what it was tuned for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from train.command_line import CalibrateCommand
from train.log import print_line
from train.refusal import (
    PICTURES,
    STAND_IN,
    TrainingData,
    chosen,
    compared,
    drawn,
    measure,
    refusal_pictures,
    scene_pictures,
    store_data,
    tells,
    training_data,
)
from train.run_folder import REFUSAL, RESULT
from uniresxx.checkpoints.folders import RECIPE, pretrained_files, publish_model
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.saveable import Snapshot
from uniresxx.checkpoints.tensors import read_json, read_tensors, weight_files
from uniresxx.data.catalog import SCENES, find_store
from uniresxx.data.mixture.batches import Batches
from uniresxx.data.mixture.data_log import DataError
from uniresxx.errors import InputError
from uniresxx.files import to_json, write_json
from uniresxx.model.heads.base import PresenceLayers
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.presence import Fit, Seen, fit, layers_of, look
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Batch

BATCH_IMAGES = 12


@dataclass(frozen=True)
class _Data:
    """Where the head learns what is absent, the checkpoint's own training data beside it, and how it is measured."""

    fitted: tuple[TrainingData, ...]
    root: Path | None
    preset: str | None  # of drawn scenes to measure on; None: as `refusal_pictures` chooses


def calibrate(command: CalibrateCommand) -> None:
    """Write a checkpoint folder whose presence head is fitted anew, with N-acc and T-acc before and after.

    Raises:
        InputError: the checkpoint has no presence head of its own, the data asks for nothing absent, or the folder
            is the checkpoint itself or holds files of another origin.
        OSError: the disk is full or refuses; the model in the folder is as it was.
    """
    folder, out = resolve(command.start, print_line), command.out
    if out.resolve() in (folder.resolve(), Path(command.start).resolve()):
        raise InputError(f"--out {out} is the checkpoint itself: name another folder")
    model = load_segmenter(folder, device=command.device)
    if not isinstance(model, UniRESPlusPlusModel):
        raise InputError(f"{folder}: only a UniRES++ has a presence head to retrain")
    presence = layers_of(model)
    data = _data_of(command, folder)
    asked = (
        refusal_pictures(folder, data.root, PICTURES)
        if data.preset is None
        else scene_pictures(data.preset, PICTURES)
    )
    before = measure(model, folder, asked, out / REFUSAL / "before")
    try:
        seen = Seen.joined([look(model, _batches(item, model, command)) for item in data.fitted])
    except DataError as error:
        raise InputError(str(error)) from None
    found = fit(presence, seen)
    names = " and ".join(item.name for item in data.fitted)
    absent = int((~seen.present_N).sum())
    print_line(
        f"presence head fitted to {len(seen.present_N):,} expressions of {names}, {absent:,} of them absent: "
        f"loss {found.before:.3f} -> {found.after:.3f} on a fifth that was held out"
    )
    if model.config.decision_rule == "token":
        model.config = replace(model.config, decision_rule="token_and_presence")
        print_line("the model decided by its [SEG] and [REJ] alone, and reads its presence head from now on")
    about = read_json(folder / RECIPE) if (folder / RECIPE).is_file() else {}
    about["calibrated"] = _record(command, data, seen, found)
    publish_model(out, {RECIPE: to_json(about)} | pretrained_files(_changed(folder, model, presence)))
    del model  # before the new one is loaded
    after = measure(load_segmenter(out, device=command.device), out, asked, out / REFUSAL / "after")
    write_json(out / REFUSAL / RESULT, {"before": asdict(before), "after": asdict(after)})
    print_line(compared(before, after))
    print_line(f"checkpoint: {out}")


def _changed(folder: Path, model: UniRESPlusPlusModel, presence: PresenceLayers) -> Snapshot:
    """The weights as they lie in the folder, in their own dtypes, with those of the model's presence layers."""
    weights = {
        name: value for file in weight_files(folder) for name, value in read_tensors(folder / file).items()
    }
    fitted = {id(parameter) for parameter in presence.layers.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in fitted:
            weights[name] = parameter.detach().to("cpu", weights[name].dtype)
    return Snapshot(model.config, model.tokenizer, weights)


def _data_of(command: CalibrateCommand, folder: Path) -> _Data:
    """What --data means: drawn scenes, a store, or a root of native layouts for the checkpoint's own data."""
    if command.data in SCENES:
        return _Data(_with_own(drawn(command.data), folder, None), None, command.data)
    root = None if command.data is None else Path(command.data)
    if command.data is not None and find_store(command.data, None) is not None:
        return _Data(_with_own(store_data(command.data), folder, None), None, None)
    if root is not None and not root.is_dir():
        raise InputError(
            f"--data {root}: name a prepared store, {' or '.join(SCENES)}, or a folder of data sets"
        )
    known = (*training_data(folder, root), drawn(STAND_IN))
    telling = next(item for item in known if item.scenes is not None or tells(chosen(item, PICTURES)))
    return _Data(_with_own(telling, folder, root), root, None)


def _with_own(telling: TrainingData, folder: Path, root: Path | None) -> tuple[TrainingData, ...]:
    """The data, and the checkpoint's own training data where that is another and can be opened."""
    own = next(training_data(folder, root), None)
    return (telling,) if own is None or own.name == telling.name else (telling, own)


def _batches(data: TrainingData, model: UniRESPlusPlusModel, command: CalibrateCommand) -> Iterator[Batch]:
    """The pictures as training would show them."""
    batches = Batches(data.source, model.collator, command.seed, BATCH_IMAGES, 1, data.expressions_per_image)
    for step in range(-(-command.pictures // BATCH_IMAGES)):
        batch = batches(step, 0)
        assert isinstance(batch, Batch)
        yield batch


def _record(command: CalibrateCommand, data: _Data, seen: Seen, found: Fit) -> dict[str, object]:
    """What recipe.json says of it."""
    return {
        "data": [item.name for item in data.fitted],
        "pictures": command.pictures,
        "seed": command.seed,
        "expressions": len(seen.present_N),
        "absent": int((~seen.present_N).sum()),
        "held_out_loss": {"before": found.before, "after": found.after},
    }
