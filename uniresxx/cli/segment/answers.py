"""The answers to one photo as JSON, and the pictures beside it.

The JSON is written first, with the names of all pictures and `"complete": false`, and again when the pictures are
there. So each picture is named by a JSON at every moment, also where the program is killed in between, and the next
call puts right what was left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uniresxx.cli.segment.job import Asked
from uniresxx.files import png_bytes, safe_name, to_json, write_atomic
from uniresxx.imaging import masks
from uniresxx.imaging.overlay import Layer, draw_overlay
from uniresxx.prediction import Prediction

FORMAT = 1  # of the JSON
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the answers to a photo belong.

    Args:
        name: of the files.
        earlier: the record that this program wrote there before for the photo, which is extended or replaced.
        kept: its answers that still hold, by text.
        done: everything that is asked is answered there, and the pictures are complete.
    """

    name: str
    earlier: Record | None = None
    kept: Mapping[str, Record] = field(default_factory=dict)
    done: bool = False


@dataclass(slots=True)
class Answers:
    """A folder of answers.

    Args:
        folder: where the files go.
        made_by: model and settings, without the photo; answers made by others are not kept.
        pictures: whether mask PNGs and overlays are written.
        sources: the photos of the job, which no result replaces.
        taken: names of this job's results so far, in lower case.
    """

    folder: Path
    made_by: Mapping[str, Any]
    pictures: bool = True
    sources: frozenset[Path] = frozenset()
    taken: set[str] = field(default_factory=set)

    def place_for(self, asked: Asked, photo_sha256: str) -> Place:
        """The first name from the photo's file name on whose results may be written, or are there already.

        A name is passed over where it would replace a photo, other results, or a file of the user.
        """
        stem = safe_name(Path(asked.photo).stem, "photo")
        for number in count(1):
            name = stem if number == 1 else f"{stem}_{number}"
            if name.lower() not in self.taken:
                place = self._place(name, asked, photo_sha256)
                if place is not None:
                    return place
        raise AssertionError("names do not end")

    def _place(self, name: str, asked: Asked, photo_sha256: str) -> Place | None:
        """The place of this name, or None where its results would replace something else."""
        if any(one.parent == self.folder.resolve() and _is_result(one.name, name) for one in self.sources):
            return None
        earlier = read_record(self.folder / f"{name}.json", asked.photo)
        kept: dict[str, Record] = {}
        if earlier is not None:
            before = [entry["text"] for entry in earlier["expressions"]]
            if earlier.get("made_by") == self._made_by(photo_sha256):
                size = (earlier["height"], earlier["width"])
                kept = {entry["text"]: entry for entry in earlier["expressions"] if _is_answer(entry, size)}
            elif not set(before) <= set(asked.texts):
                return None
        texts = list(dict.fromkeys((*kept, *asked.texts)))
        targets = {f"{name}.json"}
        if self.pictures:
            targets |= {
                _overlay_name(name),
                *(_mask_name(name, at, text) for at, text in enumerate(texts, 1)),
            }
        own = {f"{name}.json", *files_of(earlier, name)} if earlier is not None else set()
        if any(os.path.lexists(self.folder / target) for target in targets - own):
            return None
        return Place(name, earlier, kept, self._is_done(name, earlier, kept, asked))

    def _is_done(self, name: str, earlier: Record | None, kept: Mapping[str, Record], asked: Asked) -> bool:
        if earlier is None or not earlier.get("complete") or not set(asked.texts) <= set(kept):
            return False
        if any(list(ids) != kept[text].get("ids") for text, ids in asked.ids.items()):
            return False
        return all((self.folder / file).is_file() for file in files_of(earlier, name))

    def write(
        self,
        place: Place,
        asked: Asked,
        photo: np.ndarray,
        new: Mapping[str, Record],
        about: Mapping[str, Any],
    ) -> list[str]:
        """Write JSON and pictures of a photo, then remove what only its earlier JSON named.

        Args:
            place: from `place_for`, in the same turn.
            asked: the photo and its texts.
            photo: its pixels.
            new: an entry (`entry_of`) for each text that is not kept.
            about: what the JSON says beside the answers; has `photo_sha256`.

        Returns:
            The file names. Raises OSError where the disk refuses.
        """
        entries: list[Record] = []
        pictures: dict[str, bytes] = {}
        for number, (text, found) in enumerate({**place.kept, **new}.items(), start=1):
            entry = {**found, "mask_png": None}
            if asked.ids.get(text):
                entry["ids"] = list(asked.ids[text])
            if self.pictures and entry["mask"] is not None:
                entry["mask_png"] = _mask_name(place.name, number, text)
                mask = masks.decode(entry["mask"])
                pictures[entry["mask_png"]] = png_bytes(Image.fromarray(mask.astype(np.uint8) * 255))
            entries.append(entry)
        if self.pictures:
            pictures[_overlay_name(place.name)] = png_bytes(draw_overlay(photo, layers_of(entries)))
        height, width = photo.shape[:2]
        about = dict(about)
        record = {
            "format": FORMAT,
            "photo": asked.photo.encode("utf-8", "replace").decode(),
            "source": full_path(asked.photo),
            "width": width,
            "height": height,
            "made_by": self._made_by(about.pop("photo_sha256")),
            **about,
            "overlay": _overlay_name(place.name) if self.pictures else None,
            "expressions": entries,
        }
        self._put(place, record, pictures)
        return [*pictures, f"{place.name}.json"]

    def _put(self, place: Place, record: Record, pictures: Mapping[str, bytes]) -> None:
        target = self.folder / f"{place.name}.json"
        stale = [] if place.earlier is None else files_of(place.earlier, place.name) - set(pictures)
        if pictures or stale:
            write_atomic(target, to_json({**record, "complete": False, "removing": sorted(stale)}))
        for file, data in pictures.items():
            write_atomic(self.folder / file, data)
        for file in stale:
            (self.folder / file).unlink(missing_ok=True)
        write_atomic(target, to_json({**record, "complete": True}))

    def _made_by(self, photo_sha256: str) -> Record:
        return {**self.made_by, "photo_sha256": photo_sha256}


def read_record(path: Path, photo: str) -> Record | None:
    """What an earlier call wrote about this photo; None where the file is another one, or of another photo."""
    try:
        record = json.loads(path.read_bytes())
        texts = [entry["text"] for entry in record["expressions"]]
        size = (record["height"], record["width"])
        own = record.get("source", record["photo"]) == full_path(photo) and "overlay" in record
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    known = own and all(isinstance(text, str) for text in texts) and all(type(side) is int for side in size)
    return record if known else None


def files_of(record: Mapping[str, Any], name: str) -> set[str]:
    """The pictures that a record names, those included which it was about to remove."""
    removing = record.get("removing")
    listed = [record["overlay"], *(removing if isinstance(removing, list) else [])]
    listed += [entry.get("mask_png") for entry in record["expressions"]]
    plain = {file for file in listed if isinstance(file, str) and Path(file).name == file}
    return {file for file in plain if _is_result(file, name) and file.lower() != f"{name}.json".lower()}


def full_path(photo: str) -> str:
    """What tells photos apart: the full path, as text that JSON can hold."""
    return os.path.realpath(photo).encode("utf-8", "replace").decode()


def entry_of(text: str, prediction: Prediction, threshold: float | None) -> Record:
    """One expression of the JSON; a mask whose score is below the threshold is left out, which the entry says."""
    score = _number(prediction.score)
    low = not prediction.rejected and threshold is not None and score is not None and score < threshold
    entry: Record = {
        "text": text,
        "rejected": bool(prediction.rejected),
        "score": score,
        "p_absent": _number(prediction.p_absent),
        "mask": None if prediction.rejected or low else prediction.rle,
        "mask_png": None,
        "answer": prediction.text,
    }
    if low:
        entry["left_out"] = f"score {score:.2f} is below the threshold of {threshold:g}"
    elif len(prediction.segments) > 1:
        entry["segments"] = [
            {"phrase": part.phrase, "mask": part.rle, "score": _number(part.score)}
            for part in prediction.segments
        ]
    return entry


def layers_of(entries: Sequence[Mapping[str, Any]]) -> Iterator[Layer]:
    """What `draw_overlay` needs, masks decoded one at a time; a layer per phrase of a longer answer."""
    for entry in entries:
        parts = entry.get("segments") or [{**entry, "phrase": entry["text"]}]
        for part in parts:
            mask = None if part["mask"] is None else masks.decode(part["mask"])
            yield Layer(part["phrase"] or entry["text"], mask, None if mask is None else part["score"])


def _is_answer(entry: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Whether an entry of a file is one that `entry_of` made for a photo of this (height, width)."""
    found = [entry.get("mask"), *(part.get("mask") for part in entry.get("segments") or ())]
    try:
        for rle in found:
            if rle is not None:
                masks.validate(rle, size)
    except (ValueError, TypeError, LookupError):
        return False
    return {"rejected", "score", "p_absent", "mask", "answer"} <= set(entry)


def _number(value: float | None) -> float | None:
    """JSON knows no NaN and no numpy."""
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


def _overlay_name(name: str) -> str:
    return f"{name}.overlay.png"


def _mask_name(name: str, number: int, text: str) -> str:
    return f"{name}.mask_{number:02d}_{safe_name(text)[:40]}.png"


def _is_result(file: str, name: str) -> bool:
    """Whether a file name is one that results of this name may have."""
    file, name = file.lower(), name.lower()
    return file in (_overlay_name(name), f"{name}.json") or file.startswith(f"{name}.mask_")
