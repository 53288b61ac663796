"""What people said about answers: a file that only grows, and the store and the annotation files made of it.

`corrections.jsonl` has a line for each decision. A later line about the same key stands for it, and earlier ones
stay, so every version can be read again. The pictures lie beside it, named by the digest of their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import gmtime, strftime
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from chat_demo.web.corrected_store import alone, refuse_another_base, version_of
from chat_demo.web.models import Photo
from uniresxx import __version__
from uniresxx.annotations import AnnotatedImage, AnnotatedMask, Provenance, write
from uniresxx.annotations.records import Author
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import write_store
from uniresxx.errors import InputError
from uniresxx.files import write_atomic
from uniresxx.scoring.predictions import JsonlWriter
from uniresxx.serve.photos import STARTS
from uniresxx.types import RLE, Granularity

LINES, PICTURES, STORE = "corrections.jsonl", "pictures", "store"
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided about one sentence."""

    key: str
    text: str
    granularity: Granularity
    rle: RLE | None  # None: it is not there
    author: Author  # "model": its answer was accepted as it was
    asked: str  # the sentence as the model was asked
    model: str
    score: float | None


class Corrections:
    """The corrections in one folder, which is made with the first of them. Safe for several threads."""

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        """Read what is there. InputError: the file is damaged, or `base` cannot be read.

        Args:
            folder: of the corrections.
            base: the prepared store that they are about; None: the store of the corrections holds them alone.
        """
        self.folder, self.base, self._lock = folder, base, Lock()
        self.fingerprint = None if base is None else Store.open(base).fingerprint  # what people looked at
        path = folder / LINES
        self._lines: list[Mapping[str, Any]] = []
        if path.exists():
            with JsonlWriter(path) as file:
                self._lines = list(file.kept)

    def __len__(self) -> int:
        return len(self.latest())

    @property
    def version(self) -> int:
        """How many decisions were ever written."""
        return len(self._lines)

    def latest(self) -> dict[str, Mapping[str, Any]]:
        """The line that stands for each key."""
        return {line["key"]: line for line in list(self._lines)}

    def add(self, photo: Photo, name: str, decision: Decision) -> int:
        """Write a decision, and the picture where it is new; the version it makes. OSError: the disk."""
        with self._lock:
            pictures = self.folder / PICTURES
            pictures.mkdir(parents=True, exist_ok=True)
            kind = next(kind for kind, start in STARTS.items() if start.match(photo.data))
            file = sha256(photo.data).hexdigest()[:32] + SUFFIX[kind]
            if not (pictures / file).exists():
                write_atomic(pictures / file, photo.data)
            height, width = photo.pixels.shape[:2]
            line = {
                "version": self.version + 1,
                "key": decision.key,
                "picture": file,
                "name": name,
                "height": height,
                "width": width,
                "text": decision.text,
                "granularity": str(decision.granularity),
                "mask": decision.rle,
                "author": decision.author,
                "asked": decision.asked,
                "model": decision.model,
                "score": decision.score,
                "base": self.fingerprint,
                "time": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
            }
            with JsonlWriter(self.folder / LINES) as file_of_lines:
                file_of_lines.write(line)
            self._lines.append(line)
            return self.version

    def write_store(self) -> Path:
        """Make the store that `train finetune --data` reads, or make it anew; a version of `base` where there is one.

        InputError: nothing to learn from; `base` cannot be read, or is not what a decision was made about.
        """
        with self._lock:
            lines = list(self.latest().values())
            if not any(line["mask"] or self.base is not None for line in lines):
                raise InputError("no mask is accepted or corrected yet: a store needs at least one")
            authors = [line["author"] for line in lines]
            about = {"version": self.version, **{name: authors.count(name) for name in ("model", "human")}}
            pictures = self.folder / PICTURES
            if self.base is None:
                return write_store(self.folder / STORE, alone(pictures, lines, about), fresh=True).path
            base = Store.open(self.base)
            refuse_another_base(base, self.fingerprint, lines)
            work = version_of(base, pictures, lines, about)
            return write_store(self.folder / f"{STORE}_v{self.version}", work).path

    def exported(self, form: str) -> bytes:
        """The latest decisions in a format of `uniresxx.annotations`, as a ZIP file. InputError: none yet."""
        lines = list(self.latest().values())
        if not lines:
            raise InputError("nothing is accepted or corrected yet")
        by_picture: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            by_picture.setdefault(line["picture"], []).append(line)
        images = [
            AnnotatedImage(
                str(self.folder / PICTURES / picture), own[0]["height"], own[0]["width"],
                tuple(_annotated(line) for line in own),
            )
            for picture, own in by_picture.items()
        ]  # fmt: skip
        models = ", ".join(dict.fromkeys(str(line["model"]) for line in lines))
        stream = BytesIO()
        with TemporaryDirectory() as place, ZipFile(stream, "w", ZIP_DEFLATED) as folder:
            for path in write(form, images, Path(place), provenance=Provenance(models, "", __version__)):
                folder.write(path, path.relative_to(place))
        return stream.getvalue()


def _annotated(line: Mapping[str, Any]) -> AnnotatedMask:
    return AnnotatedMask(
        line["mask"], line["text"], line["text"], line["score"] if line["author"] == "model" else None,
        author=line["author"],
    )  # fmt: skip
