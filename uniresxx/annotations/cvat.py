"""CVAT's own XML ("CVAT for images 1.1"), and the labels that a task needs for it.

A mask is the run lengths of its bounding box, row after row, outside first. CVAT refuses labels and attributes that a
task does not have, so labels.json holds them as CVAT's label constructor takes them ("Raw").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from uniresxx.annotations.files import write_compact, write_text, xml_text
from uniresxx.annotations.outlines import as_polygons
from uniresxx.annotations.records import Export, Photo, Shape
from uniresxx.annotations.runs import run_lengths
from uniresxx.imaging import masks
from uniresxx.types import RLE

FILE, LABELS = "annotations.xml", "labels.json"
ATTRIBUTES = ("sentence", "score", "p_absent", "model")


def write_cvat(photos: Iterable[Photo], export: Export, out: Path) -> list[Path]:
    """Write annotations.xml and labels.json."""
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    task = SubElement(SubElement(root, "meta"), "task")
    SubElement(task, "name").text = f"Masks of {xml_text(export.provenance.short)}"
    SubElement(task, "mode").text = "annotation"
    labels = SubElement(task, "labels")
    for name in export.names.values():
        _add_label(labels, name)
    for number, photo in enumerate(photos):
        size = {"width": str(photo.width), "height": str(photo.height)}
        image = SubElement(root, "image", {"id": str(number), "name": xml_text(photo.name), **size})
        for shape in photo.shapes:
            _add_shape(image, shape, export)
    indent(root)
    text = tostring(root, encoding="unicode")
    return [
        write_text(out / FILE, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'),
        write_compact(out / LABELS, [_label(name) for name in export.names.values()]),
    ]


def _add_label(labels: Element, name: str) -> None:
    label = SubElement(labels, "label")
    SubElement(label, "name").text = xml_text(name)
    attributes = SubElement(label, "attributes")
    for attribute in ATTRIBUTES:
        listed = SubElement(attributes, "attribute")
        for key, value in {"name": attribute, "mutable": "False", "input_type": "text"}.items():
            SubElement(listed, key).text = value
        SubElement(listed, "default_value")
        SubElement(listed, "values")


def _label(name: str) -> dict[str, object]:
    """A label as CVAT's label constructor takes it."""
    text = {"mutable": False, "input_type": "text", "default_value": "", "values": [""]}
    return {"name": name, "type": "any", "attributes": [{"name": name_of, **text} for name_of in ATTRIBUTES]}


def _add_shape(image: Element, shape: Shape, export: Export) -> None:
    """A mask, or a polygon for each region where there is a tolerance and no hole."""
    common = {"label": xml_text(shape.category), "source": "auto", "occluded": "0"}
    found = as_polygons(masks.decode(shape.rle), export.options.tolerance)
    if len(found) > 1:
        common["group_id"] = str(shape.place + 1)  # the regions of one mask stay together
    for region in found:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in region.outer)
        _add_attributes(
            SubElement(image, "polygon", {**common, "points": points, "z_order": "0"}), shape, export
        )
    if not found:
        coded = {**common, **_mask_fields(shape.rle), "z_order": "0"}
        _add_attributes(SubElement(image, "mask", coded), shape, export)


def _mask_fields(rle: RLE) -> Mapping[str, str]:
    """rle, left, top, width and height of a mask."""
    box = masks.box_of(rle)
    assert box is not None, "a mask that is written has a pixel"
    x0, y0, x1, y1 = box
    runs = run_lengths(masks.decode(rle)[y0:y1, x0:x1].ravel())
    numbers = {"left": x0, "top": y0, "width": x1 - x0, "height": y1 - y0}
    return {"rle": ", ".join(map(str, runs)), **{key: str(value) for key, value in numbers.items()}}


def _add_attributes(element: Element, shape: Shape, export: Export) -> None:
    for key, value in export.attributes(shape.answer).items():
        text = "" if value is None else str(value)
        SubElement(element, "attribute", {"name": key}).text = xml_text(text)
