"""The store that people's decisions make: alone, or as a new version of the store that they are about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniresxx.data.guard import OWN_DATA
from uniresxx.data.store.preparation import Load, Preparation
from uniresxx.data.store.read import Store
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import Expression, Granularity, ImageRecord

NAME, SPLIT = "corrections", "train"
Line = Mapping[str, Any]  # of corrections.jsonl


def alone(pictures: Path, lines: Sequence[Line], about: Mapping[str, Any]) -> Preparation:
    """A store of the decisions alone, one record for each picture in the folder `pictures`."""
    records = records_of(pictures, lines)
    return Preparation(
        NAME,
        {SPLIT: lambda: (records, {})},
        image_root=pictures,
        inputs={"version": str(about["version"])},
        about={"guard": {"mode": OWN_DATA}, "licence": "own", "corrections": about},
    )


def refuse_another_base(base: Store, began: str | None, lines: Sequence[Line]) -> None:
    """InputError where `base` is not the store that the decisions are about.

    Args:
        base: as it is now.
        began: its fingerprint when the page started.
        lines: the decisions; one that names no base (made without any) is about every base.
    """
    for then in (began, *(line.get("base") for line in lines)):
        if then not in (None, base.fingerprint):
            raise InputError(
                f"{base.path}: its fingerprint is {base.fingerprint[:12]}, but corrections were made about "
                f"{str(then)[:12]}; put that store back, or correct this one with another --out"
            )


def version_of(base: Store, pictures: Path, lines: Sequence[Line], about: Mapping[str, Any]) -> Preparation:
    """All of `base` with the decisions in it.

    A decision about an expression of `base` takes its place: words, granularity, mask, and who decided. The others
    come as records of their own at the end of the split train. `base` is read only.
    """
    decided = {line["key"]: line for line in lines}
    known = {item.expression_id for record in base for item in record.expressions} & decided.keys()
    added = records_of(pictures, [line for line in lines if line["key"] not in known])

    def load(split: str) -> Load:
        own = base.records(split) if split in base.splits else ()
        return lambda: (_corrected(own, decided, added if split == SPLIT else ()), {})

    names = [*base.splits, *([SPLIT] if added and SPLIT not in base.splits else [])]
    of_base = {"name": base.name, "fingerprint": base.fingerprint, "replaced": len(known)}
    kept: dict[str, Any] = {key: base.meta[key] for key in ("guard", "licence") if key in base.meta}
    return Preparation(
        base.name,
        {name: load(name) for name in names},
        image_root=base.image_root,
        inputs={"version": str(about["version"]), "base": base.fingerprint},
        about={**kept, "corrections": {**about, "base": of_base}},
    )


def records_of(pictures: Path, lines: Sequence[Line]) -> list[ImageRecord]:
    """The decisions as records, one for each picture."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line["picture"], []).append(line)
    return [_record(pictures, picture, own) for picture, own in found.items()]


def _corrected(
    records: Iterable[ImageRecord], decided: Mapping[str, Line], added: Sequence[ImageRecord]
) -> Iterator[ImageRecord]:
    for record in records:
        size = (record.height, record.width)
        yield replace(
            record,
            expressions=tuple(
                _expression(item.expression_id, decided[item.expression_id], size, item.source)
                if item.expression_id in decided
                else item
                for item in record.expressions
            ),
        )
    yield from added


def _record(pictures: Path, picture: str, lines: Sequence[Line]) -> ImageRecord:
    stem = re.sub(r"\W", "_", picture.partition(".")[0])
    size = (lines[0]["height"], lines[0]["width"])
    expressions = tuple(
        _expression(f"{NAME}/{SPLIT}/{stem}_{number}", line, size, {}) for number, line in enumerate(lines)
    )
    path = str((pictures / picture).absolute())
    return ImageRecord(picture, *size, expressions, path=path, source={"licence": "own"})


def _expression(
    expression_id: str, line: Line, size: tuple[int, int], source: Mapping[str, Any]
) -> Expression:
    rle = None if line["mask"] is None else masks.validate(line["mask"], size)
    decision = {name: line[name] for name in ("key", "author", "model", "asked", "version")}
    return Expression(
        expression_id,
        line["text"],
        Granularity(line["granularity"]),
        rle,
        area=0 if rle is None else masks.area(rle),
        source={**source, **decision},
    )
