"""What every format module returns: annotations of photos, before photos, frames and sentences are looked at.

A format module reads its files and knows nothing of the others; `records.py` turns what they return into records.
A size is (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uniresxx.types import RLE

Size = tuple[int, int]
Draw = Callable[[Size], RLE]  # the mask of an annotation in a photo of that size


@dataclass(frozen=True, slots=True)
class PhotoName:
    """A photo as a file names it.

    Args:
        name: with the folders and the slashes that the file has.
        folder: of the file that names it; decides between photos of one name.
        without_suffix: `name` has no `.jpg` (YOLO names its label files so).
    """

    name: str
    folder: Path
    without_suffix: bool = False


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated region.

    Args:
        who: file and record, for the lists of what is left out.
        photo: None where the file names an image that it does not have.
        draw: its mask; None where it has no outline at all. Raises InputError where it is unreadable.
        has_box: whether it has a box with area.
        size: of the frame that the outline is drawn in, where the file says it.
        in_shares: whether the outline is in shares of the photo's sides, so that it fits a photo of any size.
        category: its name, "" where it has none.
        texts: sentences of its own.
        is_part: whether it names a parent or a part.
        native_id: its id within the file.
        problem: why it cannot be read, "" where it can.
    """

    who: str
    photo: PhotoName | None
    draw: Draw | None = None
    has_box: bool = False
    size: Size | None = None
    in_shares: bool = False
    category: str = ""
    texts: tuple[str, ...] = ()
    is_part: bool = False
    native_id: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """The annotations of one file; ids hold within it only. `notes` say what people should know of it."""

    kind: str
    path: Path
    images: Mapping[str, PhotoName]  # by image id: every photo that it lists
    annotations: Sequence[Annotation]
    split: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SentenceRow:
    """A row of a sentences file that names its photo and its masks."""

    who: str
    photo: PhotoName | None
    texts: tuple[str, ...]
    masks: tuple[str, ...] = ()
    split: str = ""
    is_part: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Reference:
    """A record of a list of refs, which names annotations of another file by id."""

    who: str
    image_id: str
    photo: PhotoName | None
    annotation_ids: tuple[str, ...]
    texts: tuple[str, ...]
    split: str = ""
    is_part: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SentenceFile:
    """A sentences file: rows, refs, or (where no row has a sentence) only the splits of photos."""

    path: Path
    rows: Sequence[SentenceRow] = field(default_factory=tuple)
    refs: Sequence[Reference] = field(default_factory=tuple)
    notes: tuple[str, ...] = ()

    @property
    def has_sentences(self) -> bool:
        """Whether any record has a sentence."""
        return any(row.texts for row in self.rows) or any(ref.texts for ref in self.refs)
