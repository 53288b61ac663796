"""Does a model still say that something is not there? The pictures that tell, and N-acc and T-acc on them.

The pictures are of the data that the model was trained on, because other pictures say little of it. A model that was
finetuned keeps what it refuses from before, so the data of its start counts as well. Where none of these can be
opened, or asks for something absent, the drawn scenes stand in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from train.log import print_line
from train.recipe import DataConfig, Recipe
from train.run_folder import REFUSAL, RESULT
from uniresxx.checkpoints.folders import RECIPE, checkpoint_identity
from uniresxx.checkpoints.resolve import HUB, resolve
from uniresxx.checkpoints.tensors import read_json
from uniresxx.data.catalog import SCENES, find_store
from uniresxx.data.mixture.batches import SceneSource, Source
from uniresxx.data.mixture.open import open_mixture
from uniresxx.data.mixture.parts import MixturePart, mixture_named
from uniresxx.data.scenes import benchmark_records
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.evaluation.run import evaluate
from uniresxx.files import write_json
from uniresxx.segmenters.base import Segmenter
from uniresxx.segmenters.lisa.config import LisaConfig
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding, ImageRecord

STAND_IN = "scenes_easy"
# Our choices.
PICTURES = 60  # of a measurement of `calibrate-presence`; `finetune` has an option
ASKED = 4  # expressions of each kind of a picture, at most
FEWEST = 20  # expressions of each kind, without which a data set does not tell
SEARCHED = 40  # pictures that are looked at for each one wanted
LOST = 10.0  # points of N-acc
_UNSEEN = 1_000_003  # seed of drawn pictures that no recipe trains on
_LONGEST_CHAIN = 8  # of finetuned models


@dataclass(frozen=True)
class TrainingData:
    """The training data of a checkpoint, opened."""

    name: str
    source: Source
    expressions_per_image: int

    @property
    def scenes(self) -> str | None:
        """The preset, where it is drawn scenes."""
        return self.source.preset if isinstance(self.source, SceneSource) else None


@dataclass(frozen=True)
class Measured:
    """N-acc and T-acc in percent on named pictures; None where nothing of that kind is asked."""

    pictures: str
    n_acc: float | None
    t_acc: float | None


def drawn(preset: str) -> TrainingData:
    """Drawn scenes that no recipe trains on."""
    return TrainingData(preset, SceneSource(preset, _UNSEEN), DataConfig().expressions_per_image)


def store_data(store: str) -> TrainingData:
    """The train split of a prepared store, or the split behind its path. Raises InputError."""
    folder, split = find_store(store, None) or (Path(store), None)
    return _opened(DataConfig(source=str(folder), split=split or "train"), 0, None)


def training_data(checkpoint: Path, root: Path | None) -> Iterator[TrainingData]:
    """The training data of a checkpoint folder, then of what it started from, as far as they can be opened.

    Args:
        checkpoint: a folder with weights; its recipe.json says what they were trained on.
        root: of native layouts.
    """
    folder: Path | None = checkpoint
    for _ in range(_LONGEST_CHAIN):
        if folder is None or not (folder / RECIPE).is_file():
            return
        recipe = read_json(folder / RECIPE).get("recipe", {})
        with suppress(InputError, TypeError):  # it is not here any more, or of a version with other options
            yield _opened(_data_config(recipe.get("data", {})), recipe.get("seed", 0), root)
        folder = _start_of(recipe)


def _data_config(values: dict[str, Any]) -> DataConfig:
    known = {item.name for item in fields(DataConfig)}
    parts = tuple(MixturePart(**part) for part in values.get("parts", ()))
    return replace(DataConfig(**{k: v for k, v in values.items() if k in known}), parts=parts)


def _start_of(recipe: dict[str, Any]) -> Path | None:
    """The folder that a run started from; None where there is none, or it is gone."""
    model = recipe.get("model", {})
    start = model.get("weights", {}).get("start") or model.get("start")
    if not start or str(start).startswith(HUB):
        return None
    try:
        return resolve(start, lambda line: None)
    except InputError:
        return None


def _opened(d: DataConfig, seed: int, root: Path | None) -> TrainingData:
    parts = mixture_named(d.mixture) if d.mixture else d.parts
    if not parts and d.source in SCENES:
        return replace(drawn(d.source), expressions_per_image=d.expressions_per_image)
    images = None if d.images is None else Path(d.images)
    mixture = open_mixture(
        parts or (MixturePart(d.source, d.split),), d.expressions_per_image, seed, root, images, d.guard
    )
    return TrainingData(", ".join(part.label for part in mixture.parts), mixture, d.expressions_per_image)


def refusal_pictures(checkpoint: Path, root: Path | None, count: int) -> tuple[str, list[ImageRecord]]:
    """Name and records of the pictures on which a checkpoint's refusal is measured: the same every time.

    Of drawn scenes they are the val split's; of other data, pictures that were trained on.
    """
    for data in training_data(checkpoint, root):
        if data.scenes is not None:
            return scene_pictures(data.scenes, count)
        found = chosen(data, count)
        if tells(found):
            return data.name, found
    return scene_pictures(STAND_IN, count)


def scene_pictures(preset: str, count: int) -> tuple[str, list[ImageRecord]]:
    """Pictures of the val split of drawn scenes."""
    return f"{preset}/val", _asked(benchmark_records(preset, "val"), count)


def chosen(data: TrainingData, count: int) -> list[ImageRecord]:
    """The first pictures of the data that ask for something absent, or for something present, as many of each."""
    return _asked((data.source(slot) for slot in range(SEARCHED * count)), count)


def tells(records: Sequence[ImageRecord]) -> bool:
    """Whether enough is absent and present in these pictures."""
    absent = sum(e.rle is None for record in records for e in record.expressions)
    return absent >= FEWEST and sum(len(r.expressions) for r in records) - absent >= FEWEST


def _asked(records: Iterable[ImageRecord], count: int) -> list[ImageRecord]:
    """At most `count` pictures and about 2 `count` expressions of each kind."""
    found: dict[str, ImageRecord] = {}
    left = {True: 2 * count, False: 2 * count}  # by whether something is there
    for record in records:
        kept = []
        for there in (True, False):
            kind = [e for e in record.expressions if (e.rle is not None) == there]
            kept += kind[: min(ASKED, left[there])]
        if not kept or record.image_id in found or not _readable(record):
            continue
        for e in kept:
            left[e.rle is not None] -= 1
        found[record.image_id] = replace(record, expressions=tuple(kept), dialogues=())
        if len(found) == count or not any(left.values()):
            break
    return list(found.values())


def _readable(record: ImageRecord) -> bool:
    try:
        photo_of(record)
    except InputError:
        return False
    return True


def measure(
    segmenter: Segmenter, folder: Path, pictures: tuple[str, Sequence[ImageRecord]], out: Path
) -> Measured:
    """Ask a model for everything and score it; the answers are in `out`.

    Args:
        segmenter: the model.
        folder: of its weights.
        pictures: as of `refusal_pictures`.
        out: a folder of this measurement alone.
    """
    name, records = pictures
    decoding = Decoding(template=segmenter.question_template)
    path = evaluate(
        segmenter, records, "refusal/val", decoding, out, checkpoint=checkpoint_identity(folder), fresh=True
    )
    overall = score_file(path, records, "refusal/val")["overall"]
    return Measured(name, overall["N-acc"], overall["T-acc"])


def report(recipe: Recipe, out: Path, root: Path | None, count: int) -> None:
    """Measure the start of a finetuned run and the run itself, and print both, with a warning where refusal is lost.

    A checkpoint that was measured already is not measured again.

    Args:
        recipe: of the run.
        out: the run folder; the answers and numbers go into its folder REFUSAL.
        root: of native layouts.
        count: pictures.

    Raises:
        InputError: the start is gone, or nothing can be asked.
    """
    tuned = resolve(out, print_line)
    result = out / REFUSAL / RESULT
    if result.is_file() and read_json(result).get("checkpoint") == tuned.name:
        return
    has_presence = not isinstance(recipe.model, LisaConfig)
    start = resolve(recipe.model.weights.start if has_presence else recipe.model.start, print_line)
    pictures = refusal_pictures(start, root, count)
    found = []
    for name, folder in (("before", start), ("after", tuned)):
        segmenter = load_segmenter(folder, device=recipe.engine.device)
        found.append(measure(segmenter, folder, pictures, out / REFUSAL / name))
        del segmenter  # before the other one is loaded
    before, after = found
    line = compared(before, after)
    if is_lost(before, after):
        remedy = f": python -m train calibrate-presence --from {out} --out {out}-calibrated" * has_presence
        line = f"warning: refusal is lost: {line.removeprefix('refusal ')}{remedy}"
    write_json(result, {"checkpoint": tuned.name, "before": asdict(before), "after": asdict(after)})
    print_line(line)


def compared(before: Measured, after: Measured) -> str:
    """Both measurements in one line."""
    return (
        f"refusal on {after.pictures}: N-acc {_shown(before.n_acc)} -> {_shown(after.n_acc)}, "
        f"T-acc {_shown(before.t_acc)} -> {_shown(after.t_acc)}"
    )


def _shown(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.1f}"


def is_lost(before: Measured, after: Measured) -> bool:
    """Whether N-acc fell by more than LOST points."""
    return before.n_acc is not None and after.n_acc is not None and before.n_acc - after.n_acc > LOST
