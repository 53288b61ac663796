"""From the expressions and dialogues of a split to one ImageRecord per image, with a report of what was left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.data.readers.fields import Sentence, need, sentences, shown
from uniresxx.data.readers.instances import NOT_STATED, drawn
from uniresxx.errors import BadAnnotationError, InputError, NotThereError
from uniresxx.imaging import masks
from uniresxx.text import clean_text, is_blank
from uniresxx.types import RLE, Dialogue, Expression, Granularity, ImageRecord, PhotoInside, Turn

logger = logging.getLogger("uniresxx.data")
MAX_LISTED = 1000
COCO_MASKS = "masks CC BY 4.0 (COCO), expressions not stated"  # no release of the family names a licence


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo of a data set.

    Args:
        image_id: its id in the records.
        place: its path, or its place in another file.
        size: (height, width).
        licence: of the photo alone.
        boxes: of all its objects, as in ImageRecord; empty where the data set does not have them.
        coco_id: its id in COCO, where the data set states one that its name does not hold.
    """

    image_id: str
    place: Path | PhotoInside
    size: tuple[int, int]
    licence: str = NOT_STATED
    boxes: Mapping[str, np.ndarray] = field(default_factory=dict)
    coco_id: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What the sentences of a record point at."""

    granularity: Granularity
    rle: RLE | None
    source: Mapping[str, Any]
    instances: tuple[RLE, ...] | None = None  # as in Expression


class Collector:
    """Gathers expressions into one ImageRecord per image and reports what was left out.

    Args:
        where: the file and split; errors and warnings start with it.
        root: the data folder; a record names files below it, so it does not depend on where the data lies.
        start: what every expression id starts with, `<data set>/<split>`.
        licence: of the annotations.
        repeated_ids: whether the file may give an id twice. To find that out, all ids are kept in memory.
    """

    def __init__(
        self, where: str, root: Path, start: str, licence: str = COCO_MASKS, repeated_ids: bool = True
    ) -> None:
        self.where, self.root, self.start, self.licence = where, root, start, licence
        self.repeated_ids = repeated_ids
        self.images: dict[str, tuple[Photo, list[Expression]]] = {}
        self.dialogues: dict[str, list[Dialogue]] = {}
        self.left_out: list[str] = []
        self.counts: Counter[str] = Counter()  # of what is too common to be listed
        self._seen: Counter[str] = Counter()

    def add(self, who: str, photo: Photo, target: Target, asked: Iterable[tuple[object, Sentence]]) -> None:
        """Add the sentences of a record, each with its id inside the split; blank ones are left out.

        Raises InputError where earlier records give the photo another size.
        """
        area = 0 if target.rle is None else masks.area(target.rle)
        for native, sentence in asked:
            text = clean_text(sentence.text)
            if is_blank(text):
                self.leave_out(f"{who}: sentence {native} is blank")
                continue
            expressions = self._expressions_of(photo, native)
            source = {"raw": sentence.raw, **target.source}
            expression_id = self._unique(f"{self.start}/{native}")
            expressions.append(
                Expression(
                    expression_id, text, target.granularity, target.rle, area,
                    source=source, instances=target.instances,
                )
            )  # fmt: skip

    def add_dialogue(self, photo: Photo, native: object, turns: tuple[Turn, ...]) -> None:
        """Add a conversation with its id inside the split; InputError as `add`."""
        self._expressions_of(photo, native)
        turns = tuple(_clean_turn(turn) for turn in turns)
        dialogue = Dialogue(self._unique(f"{self.start}/{native}"), turns)
        self.dialogues.setdefault(photo.image_id, []).append(dialogue)

    def _expressions_of(self, photo: Photo, native: object) -> list[Expression]:
        """The expressions of a photo so far; InputError where earlier records give it another size."""
        first, expressions = self.images.setdefault(photo.image_id, (photo, []))
        if first.size != photo.size:
            raise InputError(
                f"{self.where}: {self.start}/{native} says image {photo.image_id} is {photo.size[0]} x "
                f"{photo.size[1]} (height x width), earlier records say {first.size[0]} x {first.size[1]}"
            )
        return expressions

    def _unique(self, expression_id: str) -> str:
        """The id, with `#2`, `#3`, … where it comes again: predictions are stored by id."""
        if not self.repeated_ids:
            return expression_id
        self._seen[expression_id] += 1
        count = self._seen[expression_id]
        return expression_id if count == 1 else f"{expression_id}#{count}"

    def leave_out(self, what: str) -> None:
        """Note something that is right but cannot be asked or scored; the first MAX_LISTED are listed."""
        if len(self.left_out) < MAX_LISTED:
            self.left_out.append(what)
        else:
            self.count("more left out")

    def mask(self, row: Mapping[str, Any], size: tuple[int, int], who: str) -> RLE | None:
        """The mask of an annotation; None, and left out, where it cannot be read or covers no pixel."""
        rle = self.drawn(row, size, who)
        return rle if rle is not None and masks.area(rle) else None

    def drawn(self, row: Mapping[str, Any], size: tuple[int, int], who: str) -> RLE | None:
        """The mask of an annotation; None, and left out, where it cannot be read; an empty one is noted alone."""
        with self.leaving_out():
            rle = drawn(row, size, who)
            if not masks.area(rle):
                self.leave_out(f"{who}: its segmentation covers no pixel")
            return rle
        return None

    def count(self, what: str, number: int = 1) -> None:
        """Count something that a person should know of the set and that is too common to be listed."""
        self.counts[what] += number

    @contextmanager
    def leaving_out(self) -> Iterator[None]:
        """Leaves out what the block was about to add, where its annotation can be no target."""
        try:
            yield
        except BadAnnotationError as error:
            self.leave_out(str(error))

    def records(self) -> list[ImageRecord]:
        """The records; warns about what was left out. InputError where nothing is left.

        The first record has, in its source, the lines of what was `left_out` and the `counts`: on one record only,
        so that counts over records add up.
        """
        records = [self._record(photo, expressions) for photo, expressions in self.images.values()]
        notes = self._notes(not records)
        records[0] = replace(records[0], source={**records[0].source, **notes})
        return records

    def streamed(self, steps: Iterable[object]) -> Iterator[ImageRecord]:
        """As `records`, one by one; each step adds whole photos, which are forgotten once they are out.

        What was left out and counted is known at the end, so the last record has it.
        """
        last: ImageRecord | None = None
        for _ in steps:
            for photo, expressions in self.images.values():
                if last is not None:
                    yield last
                last = self._record(photo, expressions)
            self.images.clear()
            self.dialogues.clear()
        notes = self._notes(last is None)
        assert last is not None
        yield replace(last, source={**last.source, **notes})

    def _notes(self, nothing: bool) -> dict[str, Any]:
        """What was left out and counted, with a warning; InputError where `nothing` is left."""
        some = "; ".join(self.left_out[:3]) + ("; …" if len(self.left_out) > 3 else "")
        counts = "; ".join(f"{number} {what}" for what, number in self.counts.items())
        if nothing and self.left_out:
            raise InputError(f"{self.where}: nothing left to read: {some}")
        if nothing:
            raise InputError(f"{self.where}: holds nothing to ask" + (f" ({counts})" if counts else ""))
        if self.left_out:
            logger.warning("%s: left out %d: %s", self.where, len(self.left_out), some)
        if counts:
            logger.warning("%s: %s", self.where, counts)
        repeated = sum(count > 1 for count in self._seen.values())
        if repeated:
            logger.warning("%s: %d native ids are used more than once; got #2, #3, …", self.where, repeated)
        notes: dict[str, Any] = {"counts": dict(self.counts)} if self.counts else {}
        if self.left_out:
            notes["left_out"] = tuple(line.replace(f"{self.root}/", "") for line in self.left_out)
        return notes

    def _record(self, photo: Photo, expressions: list[Expression]) -> ImageRecord:
        inside = photo.place if isinstance(photo.place, PhotoInside) else None
        licence = f"photo {photo.licence}; annotations: {self.licence}"
        return ImageRecord(
            photo.image_id,
            *photo.size,
            tuple(expressions),
            path=None if inside else str(photo.place),
            inside=inside,
            dialogues=tuple(self.dialogues.get(photo.image_id, ())),
            boxes=photo.boxes,
            source={"licence": licence} | ({} if photo.coco_id is None else {"coco_id": photo.coco_id}),
        )


def _clean_turn(turn: Turn) -> Turn:
    """A turn whose question and phrases are clean; plain answers may have several lines."""
    phrases = tuple(replace(phrase, text=clean_text(phrase.text)) for phrase in turn.phrases)
    return replace(turn, question=clean_text(turn.question), phrases=phrases)


def with_sent_ids(record: Mapping[str, Any], who: str) -> Iterator[tuple[str, Sentence]]:
    """The sentences of a RefCOCO-type record by `sent_id`; InputError where one has none."""
    for sentence in sentences(record, "sent_id", who):
        if sentence.native_id is None:
            need({}, "sent_id", f"{who}: a sentence")
        yield str(sentence.native_id), sentence


def records_of_split(
    records: Sequence[Mapping[str, Any]], split: str, path: Path
) -> list[tuple[str, Mapping[str, Any]]]:
    """(name for errors, record) of the records of a split; InputError listing the splits if it has none."""
    named = [(f"{path}: record {index}{_ref_name(record)}", record) for index, record in enumerate(records)]
    chosen = [(who, record) for who, record in named if need(record, "split", who) == split]
    if not chosen:
        known = sorted({str(record["split"])[:30] for record in records if isinstance(record["split"], str)})
        raise NotThereError(f"{path}: has no split {split!r}; it has {', '.join(known) or 'no records'}")
    return chosen


def _ref_name(record: Mapping[str, Any]) -> str:
    return f" (ref_id {shown(record['ref_id'])})" if "ref_id" in record else ""
