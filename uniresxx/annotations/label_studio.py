"""Label Studio: tasks with predictions, and the labelling configuration that they need.

A region is a brush mask where masks are exact or have a hole, else a polygon in percent of the photo's sides. A
region and its sentence share an id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from uniresxx.annotations.files import write_compact, write_text, xml_text
from uniresxx.annotations.outlines import as_polygons
from uniresxx.annotations.palette import voc_palette
from uniresxx.annotations.prepare import class_names, class_numbers, prepared
from uniresxx.annotations.records import AnnotatedImage, Export, Options, Photo, Provenance, Shape, rounded
from uniresxx.annotations.runs import brush_code
from uniresxx.imaging import masks

TASKS, CONFIG = "tasks.json", "labeling_config.xml"
LOCAL_FILES = "/data/local-files/?d="  # photos below Label Studio's LOCAL_FILES_DOCUMENT_ROOT


@dataclass(frozen=True, slots=True)
class Tags:
    """The names of the tags in a labelling configuration; without `sentence`, no text is written to a region."""

    image: str = "image"
    brush: str = "brush"
    polygon: str = "polygon"
    sentence: str | None = "sentence"


TAGS = Tags()


def write_label_studio(photos: Iterable[Photo], export: Export, out: Path) -> list[Path]:
    """Write tasks.json and labeling_config.xml."""
    tasks = [
        {
            "data": {"image": LOCAL_FILES + quote(photo.name)},
            "predictions": [prediction(photo, export)],
            "meta": {"source": photo.source},
        }
        for photo in photos
    ]
    names = list(export.names.values())
    return [write_compact(out / TASKS, tasks), write_text(out / CONFIG, labeling_config(names))]


def prediction_of(
    image: AnnotatedImage, provenance: Provenance, options: Options | None = None, tags: Tags = TAGS
) -> dict[str, Any]:
    """What an ML backend answers about a photo: a prediction with a region for each mask."""
    options, numbers = options or Options(), class_numbers([image], None, first=1)
    export = Export(class_names(numbers), provenance, options)
    [photo] = prepared([image], numbers, options, options.overlap)
    return prediction(photo, export, tags)


def prediction(photo: Photo, export: Export, tags: Tags = TAGS) -> dict[str, Any]:
    """What the model says of a photo, as Label Studio takes it from a file or from an ML backend."""
    scores = [shape.answer.score for shape in photo.shapes if shape.answer.score is not None]
    record: dict[str, Any] = {
        "model_version": export.provenance.short,
        "result": [result for shape in photo.shapes for result in _results(photo, shape, export, tags)],
    }
    return record | ({"score": rounded(sum(scores) / len(scores))} if scores else {})


def labeling_config(names: Iterable[str]) -> str:
    """The labelling configuration: brush, polygons and a sentence for each region."""
    palette = voc_palette()
    labels = "".join(
        f"    <Label value={quoteattr(xml_text(name))} background={quoteattr(_hex(palette[place % 255 + 1]))}/>\n"
        for place, name in enumerate(names)
    )
    return (
        "<View>\n"
        f'  <Image name="{TAGS.image}" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="{TAGS.brush}" toName="{TAGS.image}">\n{labels}  </BrushLabels>\n'
        f'  <PolygonLabels name="{TAGS.polygon}" toName="{TAGS.image}">\n{labels}  </PolygonLabels>\n'
        f'  <TextArea name="{TAGS.sentence}" toName="{TAGS.image}" perRegion="true" editable="true"/>\n'
        "</View>\n"
    )


def _hex(rgb: tuple[int, int, int]) -> str:
    return "#" + bytes(rgb).hex()


def _results(photo: Photo, shape: Shape, export: Export, tags: Tags) -> Iterator[dict[str, Any]]:
    """Each region with its sentence."""
    size = {"original_width": photo.width, "original_height": photo.height, "image_rotation": 0}
    score = {} if shape.answer.score is None else {"score": rounded(shape.answer.score)}
    about = [f"{key}: {text}" for key, text in export.attributes(shape.answer).items()]
    for number, (kind, value) in enumerate(_values(photo, shape, export), 1):
        common = {"id": f"m{shape.place + 1}_{number}", "to_name": tags.image, **size}
        yield {
            **common,
            "from_name": tags.brush if kind == "brushlabels" else tags.polygon,
            "type": kind,
            "value": {**value, kind: [xml_text(shape.category)]},
            **score,
            "meta": {"text": about},
        }
        if tags.sentence is not None:
            text = {**_place(value), "text": [shape.answer.sentence]}
            yield {**common, "from_name": tags.sentence, "type": "textarea", "value": text}


def _values(photo: Photo, shape: Shape, export: Export) -> Iterator[tuple[str, dict[str, Any]]]:
    """The kind of each region and its outline."""
    mask = masks.decode(shape.rle)
    found = as_polygons(mask, export.options.tolerance)
    for region in found:
        points = (region.outer * 100 / (photo.width, photo.height)).round(6).tolist()
        yield "polygonlabels", {"points": points, "closed": True}
    if not found:
        yield "brushlabels", {"format": "rle", "rle": brush_code(mask)}


def _place(value: dict[str, Any]) -> dict[str, Any]:
    """What of a region's value Label Studio repeats beside its text: the outline of a polygon."""
    return {key: value[key] for key in ("points", "closed") if key in value}
