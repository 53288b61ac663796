"""Region proposals in an evaluation: how many truth boxes they find, what they cost, and truth boxes as input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from uniresxx.data.store.photos import photo_of
from uniresxx.imaging import masks
from uniresxx.imaging.geometry import box_iou
from uniresxx.scoring.metrics import percent
from uniresxx.scoring.predictions import whole_lines
from uniresxx.scoring.protocols import has_target
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import Expression, Granularity, ImageRecord

STREAM_OF = {Granularity.OBJECT: "object", Granularity.PART: "part"}
RECALL_IOU = 0.5


@runtime_checkable
class ProposesRegions(Protocol):
    """A Segmenter that proposes regions and shows them, so that recall and cost can be measured."""

    def regions(self, encoded: Any) -> list[Mapping[str, np.ndarray]]:
        """Per encoded photo: valid proposal boxes by "object" / "part", xyxy (N, 4), image frame, pixels."""
        ...

    def proposal_seconds(self, encoded: Any) -> float:
        """Seconds it took to find the proposals of all encoded photos."""
        ...


@runtime_checkable
class ReadsTruthBoxes(Protocol):
    """A Segmenter for the ablation whose region proposals are the truth's boxes."""

    @property
    def wants_truth_boxes(self) -> bool:
        """Whether this model's config asks for them."""
        ...

    def encode_images_with_truth_boxes(
        self, photos: Sequence[np.ndarray], records: Sequence[ImageRecord]
    ) -> Any:
        """`encode_images` that also reads the boxes (and only the boxes) of the truth."""
        ...


def encode_records(
    segmenter: Segmenter, records: Sequence[ImageRecord], photos: Sequence[np.ndarray] | None = None
) -> Any:
    """Encode the records' photos. Only a model whose config asks for truth boxes gets them.

    `photos`: of the records, where the caller has decoded them already.
    """
    photos = [photo_of(record) for record in records] if photos is None else photos
    if isinstance(segmenter, ReadsTruthBoxes) and segmenter.wants_truth_boxes:
        return segmenter.encode_images_with_truth_boxes(photos, records)
    return segmenter.encode_images(photos)


def image_lines(
    segmenter: Segmenter, encoded: Any, records: Sequence[ImageRecord], seconds: float
) -> list[dict[str, Any]]:
    """One line of images.jsonl per record; `seconds` is the time of the whole batch."""
    lines: list[dict[str, Any]] = [
        {"image_id": r.image_id, "seconds": seconds / len(records)} for r in records
    ]
    if isinstance(segmenter, ProposesRegions):
        each = segmenter.proposal_seconds(encoded) / len(records)
        for line, record, proposals in zip(lines, records, segmenter.regions(encoded), strict=True):
            found, total = box_recall(record, proposals)
            line |= {"found": found, "total": total, "proposal_seconds": each}
    return lines


def box_recall(
    record: ImageRecord, proposals: Mapping[str, np.ndarray]
) -> tuple[dict[str, int], dict[str, int]]:
    """(found, total) truth boxes per stream: all boxes of a drawn picture, those of the expressions of a photo.

    So the recall on photos counts referents, whether a data set marks other objects or not.
    """
    found, total = {}, {}
    for granularity, stream in STREAM_OF.items():
        truth = record.boxes.get(stream) if record.pixels is not None else None
        if truth is None:
            boxes = [_box(e) for e in record.expressions if e.granularity == granularity and has_target(e)]
            truth = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        overlaps = box_iou(np.asarray(truth, np.float64), np.asarray(proposals[stream], np.float64))
        total[stream] = len(truth)
        found[stream] = int((overlaps.max(axis=1, initial=0.0) >= RECALL_IOU).sum())
    return found, total


def _box(expression: Expression) -> tuple[float, float, float, float]:
    assert expression.rle is not None
    box = masks.box_of(expression.rle)
    assert box is not None
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3]))


def image_summary(path: Path, image_ids: set[str]) -> dict[str, Any]:
    """Proposal recall and time per image, from the last line of each image in an images.jsonl."""
    lines = {line["image_id"]: line for line in whole_lines(path)[0] if line["image_id"] in image_ids}
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in lines.values():
        found.update(line.get("found", {}))
        total.update(line.get("total", {}))
    seconds = sum(line["seconds"] for line in lines.values())
    proposing = [line["proposal_seconds"] for line in lines.values() if "proposal_seconds" in line]
    return {
        "proposal_recall": {stream: percent(found[stream], total[stream]) for stream in sorted(total)}
        or None,
        "proposal_boxes": dict(total) or None,
        "seconds_per_image": seconds / len(lines) if lines else None,
        "proposal_seconds_per_image": sum(proposing) / len(proposing) if proposing else None,
    }
