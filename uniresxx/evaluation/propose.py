"""Region proposals of a store's photos, kept beside its records with what they come from, and their recall.

Shapes: B photos, N boxes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from uniresxx.data.store.photos import photo_of
from uniresxx.data.store.read import Store
from uniresxx.errors import InputError
from uniresxx.evaluation.regions import box_recall
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.regions.classical import grid_boxes, propose
from uniresxx.scoring.metrics import percent

ProposerName = Literal["learned", "owlv2", "classical", "grid"]
# photos (uint8 (y, x, 3)) -> boxes of each by "object" and "part", xyxy (N, 4), image frame, pixels
Proposer = Callable[[Sequence[np.ndarray]], Sequence[Mapping[str, np.ndarray]]]
FORMAT, VERSION = "uniresxx-proposals", 1
SIDE = 768  # of the square that a photo is fitted into: that of the full-size model
MAX_OBJECTS, MAX_PARTS = 32, 64  # as in the full-size model


def from_pixels(name: ProposerName) -> tuple[Proposer, dict[str, Any]]:
    """`classical` or `grid`, and its identity."""

    def boxes_of(photo_yx3: np.ndarray) -> dict[str, np.ndarray]:
        letterbox = Letterbox.fit(photo_yx3.shape[0], photo_yx3.shape[1], SIDE)
        if name == "grid":
            kinds = {"object": grid_boxes(SIDE, MAX_OBJECTS), "part": grid_boxes(SIDE, MAX_PARTS)}
        else:
            found = propose(letterbox.photo(photo_yx3), MAX_OBJECTS, MAX_PARTS)
            kinds = {"object": found.objects, "part": found.parts}
        return {kind: _on_the_photo(letterbox.unboxes(boxes), photo_yx3) for kind, boxes in kinds.items()}

    identity = {"proposer": name, "side": SIDE, "max_objects": MAX_OBJECTS, "max_parts": MAX_PARTS}
    return (lambda photos: [boxes_of(photo) for photo in photos]), identity


def from_run(checkpoint: str) -> tuple[Proposer, dict[str, Any]]:
    """`learned`: the boxes that a trained model finds, and its identity; InputError for a model with other boxes."""
    from uniresxx.checkpoints.folders import checkpoint_identity
    from uniresxx.checkpoints.resolve import resolve
    from uniresxx.model.modeling import UniRESPlusPlusModel
    from uniresxx.segmenters.load import load_segmenter

    folder = resolve(checkpoint, print)
    model = load_segmenter(folder)
    if not isinstance(model, UniRESPlusPlusModel) or model.config.boxes != "learned":
        raise InputError(f"{checkpoint}: has no learned boxes; name a run with --model.boxes learned")
    identity = {"proposer": "learned", "checkpoint": checkpoint_identity(folder)}
    return (lambda photos: model.regions(model.encode_images(photos))), identity


def from_owlv2(source: str) -> tuple[Proposer, dict[str, Any]]:
    """`owlv2`: the boxes of OWLv2 from its folder or hub id, and its identity."""
    import torch

    from uniresxx.model.processing import PixelNorm, pixels
    from uniresxx.model.regions.detector import Owlv2Proposer

    detector, normalised = Owlv2Proposer(source, MAX_OBJECTS, MAX_PARTS), PixelNorm("clip")

    def boxes_of(photo_yx3: np.ndarray) -> dict[str, np.ndarray]:
        letterbox = Letterbox.fit(photo_yx3.shape[0], photo_yx3.shape[1], SIDE)
        extent = torch.tensor([[letterbox.inner_width, letterbox.inner_height]], dtype=torch.float32)
        found = detector(normalised(pixels([letterbox.photo(photo_yx3)])), extent)
        objects = found.objects_BO4[found.object_valid_BO].numpy()
        parts = found.parts_BP4[found.part_valid_BP].numpy()
        return {"object": letterbox.unboxes(objects), "part": letterbox.unboxes(parts)}

    identity = {
        "proposer": "owlv2",
        "source": source,
        "side": SIDE,
        "max_objects": MAX_OBJECTS,
        "max_parts": MAX_PARTS,
    }
    return (lambda photos: [boxes_of(photo) for photo in photos]), identity


def proposer_named(name: ProposerName, checkpoint: str | None) -> tuple[Proposer, dict[str, Any]]:
    """A proposer and its identity; InputError where it needs a checkpoint and none is named."""
    if name in ("classical", "grid"):
        return from_pixels(name)
    if checkpoint is None:
        what = "the run of a model with learned boxes" if name == "learned" else "OWLv2's folder or hub id"
        raise InputError(f"--proposer {name} needs --checkpoint: {what}")
    return from_run(checkpoint) if name == "learned" else from_owlv2(checkpoint)


def write_proposals(
    store: Store, proposer: Proposer, identity: Mapping[str, Any], progress: Callable[[str, int, int], None]
) -> tuple[Path, dict[str, float | None]]:
    """Write STORE/proposals-<proposer>.jsonl, whole or not at all; returns it and the recall per level in percent.

    The first line has the format, the proposer's identity and the store's fingerprint; each other line a row of the
    store, its image id and its boxes, xyxy in pixels of the photo. Recall: the share of the boxes of all object and
    part expressions with a proposal of IoU 0.5 or more. Raises InputError where a photo cannot be read.
    """
    path = store.path / f"proposals-{identity['proposer']}.jsonl"
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    head = {"format": FORMAT, "version": VERSION, "store": store.fingerprint, **identity}
    partial = path.with_name(f".writing-proposals_{identity['proposer']}")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(head) + "\n")
        for index, record in enumerate(store):
            [boxes] = proposer([photo_of(record)])
            here, of = box_recall(record, boxes)
            found.update(here)
            total.update(of)
            line = {kind: np.round(boxes[kind], 2).tolist() for kind in ("object", "part")}
            stream.write(json.dumps({"row": index, "image_id": record.image_id, **line}) + "\n")
            progress("propose", index + 1, len(store))
    os.replace(partial, path)
    return path, {kind: percent(found[kind], total[kind]) for kind in ("object", "part")}


def _on_the_photo(boxes_N4: np.ndarray, photo_yx3: np.ndarray) -> np.ndarray:
    """Boxes cut to the photo, without those of the padding."""
    height, width = photo_yx3.shape[:2]
    cut = boxes_N4.clip(0, np.array([width, height, width, height]))
    return cut[(cut[:, 2:] - cut[:, :2]).min(axis=1) > 0]
