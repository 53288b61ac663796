"""The polygons of truth masks, read only for a protocol that draws the truth at a size of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniresxx.data.readers.folders import data_file
from uniresxx.data.readers.grefcoco import FOLDERS
from uniresxx.data.readers.instances import Instances
from uniresxx.data.readers.refcoco import REFCOCO
from uniresxx.errors import NotThereError
from uniresxx.types import Expression, ImageRecord


def with_polygons(records: Sequence[ImageRecord], data: Path | None) -> list[ImageRecord]:
    """The records, each expression with its `polygons` where an `instances.json` below `data` has them.

    The data set's name in the expression id names the file, `source["ann_id"]` the annotations. `polygons` stays
    None where one of them is a run-length code, and for data sets of other layouts.
    """
    sets = {e.expression_id.partition("/")[0] for record in records for e in record.expressions}
    annotations = {name: _annotations(name, data) for name in sets}

    def found(e: Expression) -> Expression:
        rows = annotations[e.expression_id.partition("/")[0]]
        return replace(e, polygons=None if e.rle is None else _polygons(e.source.get("ann_id"), rows))

    return [replace(record, expressions=tuple(map(found, record.expressions))) for record in records]


def _annotations(dataset: str, data: Path | None) -> Mapping[int, Mapping[str, Any]]:
    """The annotations of a data set by id; none where it has no `instances.json` below `data`."""
    if data is None or dataset not in (*REFCOCO, "grefcoco"):
        return {}
    folder = REFCOCO[dataset][0] if dataset in REFCOCO else ""
    names = (folder, folder.replace("+", "plus")) if folder else FOLDERS
    try:
        return Instances.load(data_file(data, names, ("instances.json",))).annotations
    except NotThereError:
        return {}


def _polygons(ann_ids: Any, rows: Mapping[int, Mapping[str, Any]]) -> tuple[Sequence[float], ...] | None:
    """All polygons of the annotations, None where one is missing or no list of polygons."""
    found: list[Sequence[float]] = []
    for ann_id in ann_ids if isinstance(ann_ids, list) else [ann_ids]:
        segmentation = rows.get(ann_id, {}).get("segmentation")
        if not isinstance(segmentation, list) or any(isinstance(item, Mapping) for item in segmentation):
            return None
        flat = bool(segmentation) and not isinstance(segmentation[0], list)
        found += [segmentation] if flat else segmentation
    return tuple(found)
