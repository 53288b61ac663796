"""What waits for a person's eye: sentences about pictures with a model's answers, the least sure first."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chat_demo.web.alike import alike, iou_of
from chat_demo.web.models import Model, Photo, photo_of
from uniresxx.cli.data.export_scenes import SENTENCES
from uniresxx.cli.segment.tables import read_table
from uniresxx.conversation.nouns import is_plural
from uniresxx.data.catalog import find_store, open_benchmark
from uniresxx.data.store.photos import photo_of as pixels_of_record
from uniresxx.errors import InputError
from uniresxx.evaluation.files import read_about
from uniresxx.files import png_bytes
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import sizes_of, stream_predictions
from uniresxx.scoring.problems import Problems
from uniresxx.types import RLE, Expression, Granularity, ImageRecord

MOST_ITEMS = 5000
_PART = re.compile(r"\b(?:of|on) (?:the|an?|its?|this|that)\b|'s ", re.IGNORECASE)
_ALL = re.compile(r"^(?:all|both|the (?:two|three|four|five)|every)\b", re.IGNORECASE)
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Item:
    """A sentence about a picture, and what a model answered."""

    key: str  # names it in the corrections
    photo: Path | ImageRecord  # where its pixels are
    name: str  # of the picture
    text: str
    granularity: Granularity
    rle: RLE | None = None  # None: not there
    score: float | None = None
    p_absent: float | None = None
    model: str = ""

    def load(self) -> Photo:
        """Its picture. InputError: it is gone, or no picture."""
        if isinstance(self.photo, Path):
            try:
                return photo_of(self.photo.read_bytes(), self.name)
            except OSError as error:
                raise InputError(f"{self.name}: {error.strerror or error}") from None
        return photo_of(
            png_bytes(Image.fromarray(np.ascontiguousarray(pixels_of_record(self.photo)))), self.name
        )

    @property
    def certainty(self) -> float:
        """By which the queue is ordered: predicted IoU of a mask, probability of absence of a rejection, 0..1."""
        known = self.p_absent if self.rle is None else self.score
        return 0.0 if known is None else float(known)


def queue_of(
    source: Path, data: Path | None, model: Model, log: Log, against: Path | None = None
) -> list[Item]:
    """The queue of `--review`, the least certain first; of two runs, the questions that they answer differently.

    Args:
        source: a predictions.jsonl of `eval run`; a folder with pictures and a sentences.json, as `uniresxx data
            export-scenes` writes it; a prepared store, with /SPLIT behind it where it has several; or a CSV or JSON
            lines file with the columns photo and sentence.
        data: root of the native layouts that the predictions are about.
        model: answers sentences that have no answer yet.
        log: hears what takes long.
        against: another run's predictions.jsonl of the same questions; the largest difference comes first.

    Raises:
        InputError: nothing there can be reviewed.
    """
    if against is not None:
        return _limited(source, list(_of_differences(source, against, data)))
    if source.name.endswith("predictions.jsonl"):
        items = list(_of_predictions(source, data))
    elif find_store(str(source), data) is not None:
        items = list(_answered(_of_store(source, data), model, log))
    elif source.is_dir() or source.name == SENTENCES:
        items = list(_answered(_of_sentences(source if source.is_dir() else source.parent), model, log))
    elif source.is_file():
        items = list(_answered(_of_table(source), model, log))
    else:
        raise InputError(f"--review {source}: no such file or folder")
    return sorted(_limited(source, items), key=lambda item: item.certainty)


def _limited(source: Path, items: list[Item]) -> list[Item]:
    if not items:
        raise InputError(f"--review {source}: holds no sentence about a picture, or none to look at")
    if len(items) > MOST_ITEMS:
        raise InputError(
            f"--review {source}: {len(items)} sentences, at most {MOST_ITEMS}; give a part of them"
        )
    return items


def base_of(source: Path, data: Path | None) -> Path | None:
    """The prepared store that the queue of `--review` is about; None where it is about none."""
    name = str(source)
    if source.name.endswith("predictions.jsonl"):
        name = _evaluated(source)["benchmark"]
    found = find_store(name, data)
    return None if found is None else found[0]


def guessed(text: str) -> Granularity:
    """What a sentence probably means; a person can say otherwise."""
    if _PART.search(text):
        return Granularity.PART
    return Granularity.MULTI if _ALL.match(text) or is_plural(text) else Granularity.OBJECT


def meant_by(text: str, truth: Granularity) -> Granularity:
    """What a sentence means, where the truth says at most that it means nothing."""
    return guessed(text) if truth is Granularity.NONE else truth


def answered_item(item: Item, prediction: Prediction, model: str) -> Item:
    """The item with a model's answer; what the sentence means stays where it is known."""
    rle = None if prediction.rejected else prediction.rle
    return replace(item, rle=rle, score=prediction.score, p_absent=prediction.p_absent, model=model)


def _evaluated(path: Path) -> Mapping[str, Any]:
    """What the evaluation says of itself that wrote these predictions."""
    about = read_about(path.parent)
    if about is None:
        raise InputError(
            f"{path.parent}: has no evaluation.json that names the data; give a folder of `eval run`"
        )
    return about


def _of_predictions(path: Path, data: Path | None) -> Iterator[Item]:
    about = _evaluated(path)
    records = open_benchmark(about["benchmark"], data)
    found = dict(stream_predictions(path, sizes_of(records), Problems()))
    for record in records:
        for item in record.expressions:
            if item.expression_id in found:
                own = _item_of(record, item)
                yield answered_item(own, found[item.expression_id], str(about.get("checkpoint", "")))


def _of_differences(path: Path, against: Path, data: Path | None) -> list[Item]:
    """What the first run answered where the second one answered otherwise, the smallest IoU of both first."""
    benchmark, other = _evaluated(path)["benchmark"], _evaluated(against)["benchmark"]
    if benchmark != other:
        raise InputError(f"--review {path} is about {benchmark}, --against {against} about {other}")
    sizes = sizes_of(open_benchmark(benchmark, data))
    first, second = (dict(stream_predictions(one, sizes, Problems())) for one in (path, against))
    shared = {
        name: iou_of(one, second[name])
        for name, one in first.items()
        if name in second and not alike(one, second[name])
    }
    items = [item for item in _of_predictions(path, data) if item.key in shared]
    return sorted(items, key=lambda item: shared[item.key] or 0.0)


def _of_store(source: Path, data: Path | None) -> Iterator[Item]:
    for record in open_benchmark(str(source), data):
        for item in record.expressions:
            yield _item_of(record, item)


def _item_of(record: ImageRecord, item: Expression) -> Item:
    meant = meant_by(item.text, item.granularity)
    return Item(item.expression_id, record, record.image_id, item.text, meant)


def _of_sentences(folder: Path) -> Iterator[Item]:
    path = folder / SENTENCES
    try:
        pictures: Sequence[dict[str, Any]] = json.loads(path.read_bytes())["pictures"]
        for picture in pictures:
            name = Path(picture["picture"]).name
            for item in picture["expressions"]:
                meant = meant_by(item["text"], Granularity(item["granularity"]))
                yield Item(item["expression_id"], folder / name, name, item["text"], meant)
    except OSError:
        raise InputError(
            f"--review {folder}: has no {SENTENCES}; give a CSV with the columns photo and sentence instead"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{path}: is not what `uniresxx data export-scenes` writes") from None


def _of_table(path: Path) -> Iterator[Item]:
    for number, (photo, text, native) in enumerate(read_table(path), start=1):
        place = Path(photo)
        yield Item(
            native or f"{place.name}_{number}",
            place,
            place.name,
            text,
            guessed(text),
        )


def _answered(items: Iterator[Item], model: Model, log: Log) -> Iterator[Item]:
    """The items with the model's answers; pictures that cannot be used are named and left out."""
    last: tuple[Path | ImageRecord, Photo] | None = None
    for number, item in enumerate(items, start=1):
        if number % 50 == 1:
            log(f"asking the model about the pictures to review: sentence {number} …")
        try:
            if last is None or last[0] != item.photo:
                last = (item.photo, item.load())
            reply = model.answer(last[1], item.text)
        except InputError as error:
            log(f"left out: {error}")
            continue
        yield answered_item(item, reply.prediction, model.name)
