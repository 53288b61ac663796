"""What a protocol is, and the arithmetic that all protocols share.

Areas are pixels at the size the protocol compares at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import THRESHOLDS, Outcome, Tally
from uniresxx.types import RLE, Expression, ImageRecord

_ANSWER_MARKS = ("[SEG]", "[REJ]")
PRECISION_KEYS = tuple(f"Pr@{x}" for x in THRESHOLDS)
NOT_ABOVE = (False,) * len(THRESHOLDS)
# what scenes changed in an expression that has a target (`source["slot"]`) -> one of metrics.ABSENT; the anchor is
# the other thing of a relation, "… left of the red house"
_ABSENT_OF = {
    "kind": "category",
    "colour": "attribute",
    "part": "part",
    "relation": "relation",
    "anchor": "relation",
}


def every_expression(record: ImageRecord) -> Sequence[Expression]:
    """Every sentence once."""
    return record.expressions


def no_padding(records: Sequence[ImageRecord], world_size: int) -> Sequence[str]:
    """Nothing counts twice, on however many processes."""
    return ()


@dataclass(frozen=True, slots=True)
class Protocol:
    """How answers are scored, as a value. A rule of rejection is applied before: `judge` gets the final `rejected`.

    Args:
        judge: what one answer to one expression is worth.
        counted: the expressions of an image that count.
        refuses: names of benchmarks, without the split, on which the protocol is not defined.
        undefined: keys of scores that the protocol does not have.
        padded: (records of a benchmark, number of processes) -> ids of the expressions that a padded sampler
            counts again, each as often as it does.
        draws_truth: `judge` draws the truth from `Expression.polygons` where they are given.
        has_more: entries also have the numbers of `uniresxx.scoring.more`, which read an answer as `strict` does.
        origin: repository:path and commit of the code it repeats; empty for our own.

    Example:
        ```python
        from uniresxx.scoring.protocols import protocol_of

        rela = protocol_of("rela")
        tally = rela.tally_image(record, {expression_id: prediction})  # one image, all its answers
        print(tally.overall.scores()["gIoU"])
        ```
    """

    name: str
    summary: str
    judge: Callable[[Expression, Prediction], Outcome]
    counted: Callable[[ImageRecord], Sequence[Expression]] = every_expression
    refuses: tuple[str, ...] = ()
    undefined: tuple[str, ...] = ()
    padded: Callable[[Sequence[ImageRecord], int], Sequence[str]] = no_padding
    draws_truth: bool = False
    has_more: bool = False
    origin: str = ""

    def check(self, benchmark: str) -> None:
        """Raise InputError where the protocol is not defined for the benchmark (NAME/SPLIT)."""
        if benchmark.split("/")[0] in self.refuses:
            raise InputError(
                f"{benchmark} holds expressions without a target, for which protocol {self.name!r} has no rule: "
                "use --protocol strict"
            )

    def tally_image(self, record: ImageRecord, predictions: Mapping[str, Prediction]) -> Tally:
        """Judge every counted expression of one image. KeyError where a prediction is missing."""
        return Tally.of_image(self.judge(e, predictions[e.expression_id]) for e in self.counted(record))


class Areas(NamedTuple):
    """Pixels of a prediction, of the truth, and of both at once."""

    predicted: int
    true: int
    common: int

    @property
    def union(self) -> int:
        """Pixels of either."""
        return self.predicted + self.true - self.common

    @property
    def iou(self) -> float:
        """Pixels of both over those of either; 0 where there is none."""
        return self.common / self.union if self.union else 0.0


def areas(truth: RLE | None, mask: RLE | None) -> Areas:
    """The areas of two masks of one size; None is a mask without a pixel."""
    return Areas(
        predicted=masks.area(mask) if mask is not None else 0,
        true=masks.area(truth) if truth is not None else 0,
        common=masks.intersection_area(mask, truth) if mask is not None and truth is not None else 0,
    )


def outcome(
    expression: Expression,
    prediction: Prediction,
    found: Areas,
    iou: float,
    *,
    targeted: bool | None = None,
    intersection: int | None = None,
    union: int | None = None,
    above: tuple[bool, ...] = NOT_ABOVE,
) -> Outcome:
    """The Outcome of an answer; where nothing else is given, target and sums follow from the areas."""
    return Outcome(
        granularity=expression.granularity,
        targeted=found.true > 0 if targeted is None else targeted,
        rejected=prediction.rejected,
        iou=iou,
        intersection=found.common if intersection is None else intersection,
        union=found.union if union is None else union,
        above=above,
        level=expression.level,
        twin=expression.twin,
        no_answer=is_no_answer(prediction),
        truncated=prediction.truncated,
        empty=not prediction.rejected and (prediction.rle is None or masks.area(prediction.rle) == 0),
        absent=_ABSENT_OF.get(str(expression.source.get("slot"))),
    )


def has_target(expression: Expression) -> bool:
    """Whether the truth has at least one pixel (our choice: a truth mask without pixels is no target)."""
    return expression.rle is not None and masks.area(expression.rle) > 0


def is_no_answer(prediction: Prediction) -> bool:
    """Whether there is a generated text and it holds neither [SEG] nor [REJ]."""
    text = prediction.text
    return text is not None and not any(mark in text for mark in _ANSWER_MARKS)


def padding_of(count: int, world_size: int) -> list[int]:
    """Items, of `count`, that `DistributedSampler(drop_last=False)` repeats so that all ranks get equally many.

    They are the first ones, repeated if need be (pytorch/pytorch:torch/utils/data/distributed.py).
    """
    if world_size < 1:
        raise InputError(f"the number of processes must be at least 1, not {world_size}")
    return [index % count for index in range(-count % world_size)] if count else []


def pad_by_image(records: Iterable[ImageRecord], world_size: int) -> list[str]:
    """Padding where an item is an image with all its sentences, as in LISA and GSVA.

    Their item list is `list(set(image ids))` (LISA:utils/refer.py getImgIds, GSVA:data/grefer.py getImgIds), so it
    has CPython's order of a set of integers. Ids that are no numbers keep the order of the records (our choice).
    """
    by_id = {record.image_id: record for record in records}
    order = list(by_id)
    if all(name.isdecimal() for name in order):
        order = [str(number) for number in list(set([int(name) for name in order]))]
    repeated = [by_id[order[item]] for item in padding_of(len(order), world_size)]
    return [e.expression_id for record in repeated for e in record.expressions]
