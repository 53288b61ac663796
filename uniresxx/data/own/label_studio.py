"""Label Studio's JSON export, in full or as JSON-MIN.

A region is all results of one id: its outline, its labels and its textarea. Coordinates are percent of the photo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniresxx.data.own.annotations import Annotation, AnnotationFile, Draw, PhotoName, Size
from uniresxx.data.own.shapes import (
    brush,
    coco_outline,
    ellipse,
    no_area,
    points_to_polygon,
    polygons,
    unreadable,
)
from uniresxx.data.own.values import id_of, names_part, number_of, own_texts, size_of, text_of, texts_of
from uniresxx.errors import InputError
from uniresxx.imaging.formats import SUFFIXES
from uniresxx.types import RLE

KIND = "Label Studio"
PERCENT = 100.0
PHOTO_KEYS = ("image", "img", "photo", "picture", "url")
Result = Mapping[str, Any]


def is_label_studio(content: Any) -> bool:
    """Whether the content of a JSON file is of Label Studio."""
    tasks = content if isinstance(content, list) else [content]
    return bool(tasks) and all(isinstance(task, dict) for task in tasks) and any(map(_is_task, tasks))


def _is_task(task: Mapping[str, Any]) -> bool:
    full = isinstance(task.get("data"), dict) and any(
        isinstance(task.get(key), list) for key in ("annotations", "completions", "predictions")
    )
    return full or any("original_width" in item for item in _plain_results(task))


def read_label_studio(path: Path, content: Any) -> AnnotationFile:
    """The annotations of all tasks; those that were cancelled, and predictions, do not count."""
    images: dict[str, PhotoName] = {}
    found: list[Annotation] = []
    for index, task in enumerate(content if isinstance(content, list) else [content]):
        name, task_id = _photo_name(task), id_of(task.get("id")) or f"[{index}]"
        photo = PhotoName(name, path.parent) if name else None
        if photo is not None:
            images.setdefault(task_id, photo)
        for results in _results(task):
            found += _regions(results, photo, f"{path}: task {task_id}")
    return AnnotationFile(KIND, path, images, found)


def _photo_name(task: Mapping[str, Any]) -> str:
    data = task["data"] if isinstance(task.get("data"), dict) else task
    named = [data[key] for key in PHOTO_KEYS if isinstance(data.get(key), str) and data[key].strip()]
    texts = [value for value in data.values() if isinstance(value, str)]
    looking = [text for text in texts if text.partition("?")[0].lower().endswith(SUFFIXES)]
    upload = task.get("file_upload")
    return next(iter((*named, *looking, *([upload] if isinstance(upload, str) else []))), "")


def _results(task: Mapping[str, Any]) -> Iterator[list[Result]]:
    """The results of every annotation of a task that counts."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        yield [{"value": item, **item} for item in _plain_results(task)]
        return
    for annotation in annotations:
        if isinstance(annotation, Mapping) and not annotation.get("was_cancelled"):
            results = annotation.get("result")
            if isinstance(results, list):
                yield [item for item in results if isinstance(item, Mapping)]


def _plain_results(task: Mapping[str, Any]) -> list[Result]:
    """The results of JSON-MIN: lists of values under the names of the tags."""
    lists = [value for value in task.values() if isinstance(value, list)]
    return [item for items in lists for item in items if isinstance(item, Mapping)]


def _regions(results: Sequence[Result], photo: PhotoName | None, who: str) -> Iterator[Annotation]:
    groups: dict[str, list[Result]] = {}
    for index, result in enumerate(results):
        groups.setdefault(id_of(result.get("id")) or f"[{index}]", []).append(result)
    for region_id, group in groups.items():
        drawn = next((item for item in group if _has_outline(_value(item))), None)
        if drawn is None:
            continue  # says something of the whole photo, or of another result
        try:
            yield _region(group, drawn, photo, f"{who}: region {region_id}", region_id)
        except InputError as error:
            yield Annotation(f"{who}: region {region_id}", photo, native_id=region_id, problem=str(error))


def _region(
    group: Sequence[Result], drawn: Result, photo: PhotoName | None, who: str, region_id: str
) -> Annotation:
    try:
        draw, has_box = _outline(_value(drawn))
    except InputError as error:
        draw, has_box = unreadable(error), False
    texts = tuple(text for item in group if "text" in _value(item) for text in texts_of(_value(item)["text"]))
    labels = [
        text_of(label)
        for item in group
        for key, value in _value(item).items()
        if key.endswith("labels") and isinstance(value, list)
        for label in value
    ]
    return Annotation(
        who, photo, draw, has_box, size_of(drawn.get("original_height"), drawn.get("original_width")),
        "rle" not in _value(drawn), next(filter(None, labels), ""), texts or own_texts(drawn),
        any(map(names_part, group)), region_id,
    )  # fmt: skip


def _value(result: Result) -> Mapping[str, Any]:
    value = result.get("value")
    return value if isinstance(value, Mapping) else {}


def _has_outline(value: Mapping[str, Any]) -> bool:
    return "rle" in value or "points" in value or ("x" in value and "y" in value)


def _outline(value: Mapping[str, Any]) -> tuple[Draw | None, bool]:
    """(how to draw a region, whether it is a box with area); a rectangle has no outline, as in its COCO export."""
    if "rle" in value:
        code = value["rle"]
        return (brush(code), False) if isinstance(code, list) else (coco_outline(code)[0], False)
    if "points" in value:
        return polygons([points_to_polygon(value["points"])], PERCENT), False
    if "radiusX" in value:
        return _ellipse(value), False
    if "width" in value and "height" in value:
        return None, min(number_of(value["width"]), number_of(value["height"])) > 0
    return no_area, False


def _ellipse(value: Mapping[str, Any]) -> Draw:
    x, y, rx, ry = (number_of(value.get(key)) / PERCENT for key in ("x", "y", "radiusX", "radiusY"))
    degrees = number_of(value.get("rotation", 0))

    def draw(size: Size) -> RLE:
        height, width = size
        return polygons([ellipse(x * width, y * height, rx * width, ry * height, degrees)])(size)

    return draw
