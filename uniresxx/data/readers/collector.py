"""From the expressions of a split to one ImageRecord per image, with a report of what was left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uniresxx.data.readers.fields import Sentence, need, sentences, shown
from uniresxx.data.readers.instances import NOT_STATED
from uniresxx.errors import InputError, NotThereError
from uniresxx.imaging import masks
from uniresxx.types import RLE, Expression, Granularity, ImageRecord, PhotoInside

logger = logging.getLogger("uniresxx.data")
COCO_MASKS = "masks CC BY 4.0 (COCO), expressions not stated"  # no release of the family names a licence


@dataclass
class _Image:
    path: str | None
    inside: PhotoInside | None
    height: int
    width: int
    licence: str
    expressions: list[Expression] = field(default_factory=list)


class Collector:
    """Gathers expressions into one ImageRecord per image and reports what was left out.

    `root` is the data folder: what goes into a record names files below it, so that a record does not depend
    on where the data lies. `licence` is that of the annotations.
    """

    def __init__(self, where: str, root: Path, licence: str = COCO_MASKS) -> None:
        self.where, self.root, self.licence = where, root, licence
        self.images: dict[str, _Image] = {}
        self.left_out: list[str] = []
        self._seen: dict[str, int] = {}

    def add(
        self,
        image_id: str,
        photo: Path | PhotoInside,
        size: tuple[int, int],
        expression: Expression,
        licence: str = NOT_STATED,
    ) -> None:
        """Add an expression; `size` is (height, width), one per image, or InputError.

        `photo` and its `licence` are those of the image's first expression.
        """
        inside = photo if isinstance(photo, PhotoInside) else None
        path = None if inside else str(photo)
        image = self.images.setdefault(image_id, _Image(path, inside, *size, licence))
        if (image.height, image.width) != size:
            raise InputError(
                f"{self.where}: {expression.expression_id} says image {image_id} is {size[0]} x {size[1]} "
                f"(height x width), earlier records say {image.height} x {image.width}"
            )
        image.expressions.append(expression)

    def unique(self, expression_id: str) -> str:
        """The id, with `#2`, `#3`, … where it comes again (our choice: predictions are keyed by it)."""
        count = self._seen[expression_id] = self._seen.get(expression_id, 0) + 1
        return expression_id if count == 1 else f"{expression_id}#{count}"

    def leave_out(self, what: str) -> None:
        """Note something that is right but cannot be asked or scored."""
        self.left_out.append(what)

    def records(self) -> list[ImageRecord]:
        """The records; warns about what was left out. InputError where nothing is left."""
        if self.left_out:
            some = "; ".join(self.left_out[:3]) + ("; …" if len(self.left_out) > 3 else "")
            if not self.images:
                raise InputError(f"{self.where}: nothing left to read: {some}")
            logger.warning("%s: left out %d: %s", self.where, len(self.left_out), some)
        if not self.images:
            raise InputError(f"{self.where}: holds no expression")
        repeated = sum(count > 1 for count in self._seen.values())
        if repeated:
            logger.warning("%s: %d native ids are used more than once; got #2, #3, …", self.where, repeated)
        records = [
            ImageRecord(
                name,
                item.height,
                item.width,
                tuple(item.expressions),
                path=item.path,
                inside=item.inside,
                source={"licence": f"photo {item.licence}; annotations: {self.licence}"},
            )
            for name, item in self.images.items()
        ]
        if self.left_out:  # noted on the first record only, so that counts over records add up
            lines = tuple(line.replace(f"{self.root}/", "") for line in self.left_out)
            records[0] = replace(records[0], source={**records[0].source, "left_out": lines})
        return records


def asked(record: Mapping[str, Any], who: str, collector: Collector) -> Iterator[Sentence]:
    """The sentences of a RefCOCO-type record that can be asked; blank ones are left out by name.

    InputError where a sentence has no `sent_id`.
    """
    for sentence in sentences(record, "sent_id", who):
        if sentence.native_id is None:
            need({}, "sent_id", f"{who}: a sentence")
        if sentence.text:
            yield sentence
        else:
            collector.leave_out(f"{who}: sentence {sentence.native_id} is blank")


def target_expression(
    expression_id: str,
    sentence: Sentence,
    granularity: Granularity,
    rle: RLE | None,
    source: Mapping[str, Any],
) -> Expression:
    """An Expression with the area of its mask; `source` gets the raw text."""
    return Expression(
        expression_id,
        sentence.text,
        granularity,
        rle,
        area=0 if rle is None else masks.area(rle),
        source={"raw": sentence.raw, **source},
    )


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
