"""The store: what was kept of each picture, as records that training reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_engine.records import Item, Picture
from data_engine.run import Job, pictures_of
from data_engine.steps.base import digest
from uniresxx.data.guard import OWN_DATA
from uniresxx.data.store.preparation import Preparation
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import write_store
from uniresxx.files import safe_name
from uniresxx.imaging import masks
from uniresxx.types import Expression, Granularity, ImageRecord

SPLIT = "train"
Said = Callable[[str, int, int], None]


def make_store(job: Job, finished: Sequence[Path], fresh: bool, progress: Said) -> Store:
    """Write the store of a finished run; InputError where another run's store is in its place."""
    counts: Counter[str] = Counter()
    for path in finished:
        for picture in pictures_of(path):
            counts["pictures"] += 1
            counts["pictures without an expression"] += not kept_items(picture)

    def load() -> tuple[Iterable[ImageRecord], Mapping[str, Any]]:
        return _records(job, finished), {}

    recipe = digest([step.identity() for step in job.recipe.steps])
    work = Preparation(
        job.recipe.name,
        {SPLIT: load},
        image_root=job.images,
        inputs={"recipe": recipe, "shards": digest([path.stem for path in finished])},
        about={
            "guard": {"mode": OWN_DATA},
            "engine": {"steps": [step.identity() for step in job.recipe.steps], "counts": dict(counts)},
        },
    )
    return write_store(job.out, work, fresh, progress)


def _records(job: Job, finished: Sequence[Path]) -> Iterator[ImageRecord]:
    for path in finished:
        for picture in pictures_of(path):
            record = record_of(picture, job.recipe.name, job.images)
            if record.expressions:
                yield record


def kept_items(picture: Picture) -> list[Item]:
    """What the store has of a picture: nothing of one that failed."""
    return [] if picture.failed is not None else picture.kept(*Granularity)


def record_of(picture: Picture, name: str, images: Path) -> ImageRecord:
    """A picture as training reads it; ids are `<name>/train/<picture>-<8 digits of its sha256>_<item>`."""
    start = f"{name}/{SPLIT}/{safe_name(Path(picture.name).stem)}-{picture.sha256[:8]}"
    rles = {item.item_id: item.rle for item in picture.items}
    source: dict[str, Any] = {
        "licence": f"photo {picture.licence}; annotations: made by uniresxx data_engine"
    }
    source |= {"origin": picture.origin} if picture.origin else {}
    source |= {"caption": picture.caption} if picture.caption else {}
    expressions = []
    for item in kept_items(picture):
        members = [rle for name in item.members if (rle := rles.get(name)) is not None]
        expressions.append(
            Expression(
                f"{start}_{item.item_id}", item.text, item.granularity, item.rle,
                0 if item.rle is None else masks.area(item.rle), source=_source(item),
                instances=tuple(members) or None,
            )
        )  # fmt: skip
    return ImageRecord(
        picture.name,
        picture.height,
        picture.width,
        tuple(expressions),
        path=str(images / picture.name),
        source=source,
    )


def _source(item: Item) -> dict[str, Any]:
    known = {
        "category": item.category, "part": item.part, "parent": item.parent, "slot": item.slot,
        "negative_of": item.negative_of, "scores": dict(item.scores),
    }  # fmt: skip
    return {key: value for key, value in known.items() if value}
