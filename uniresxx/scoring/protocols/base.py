"""What every protocol is: a value of three decisions, and the arithmetic they share.

A protocol decides which expressions of a picture count (`counted`), on which benchmarks it makes no sense
(`refuses`), and what an answer is worth (`judge`). Rejection rules are applied before: `judge` sees the final
`rejected`. Areas are pixels at the size the protocol compares at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.scoring.metrics import THRESHOLDS, Outcome, Tally
from uniresxx.types import RLE, Expression, ImageRecord, Prediction

_ANSWER_MARKS = ("[SEG]", "[REJ]")
PRECISION_KEYS = tuple(f"Pr@{x}" for x in THRESHOLDS)
NOT_ABOVE = (False,) * len(THRESHOLDS)


def every_expression(record: ImageRecord) -> Sequence[Expression]:
    """Every sentence once."""
    return record.expressions


def no_padding(records: Sequence[ImageRecord], world_size: int) -> Sequence[str]:
    """Nothing counts twice, on however many processes."""
    return ()


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way of scoring, as a value."""

    name: str
    summary: str
    judge: Callable[[Expression, Prediction], Outcome]
    counted: Callable[[ImageRecord], Sequence[Expression]] = every_expression
    refuses: tuple[str, ...] = ()  # names of benchmarks, without the split
    undefined: tuple[str, ...] = ()  # score keys that this way of scoring does not have
    # (records of a benchmark, world size) -> expression ids that sampler padding counts once more, each as
    # often as it does
    padded: Callable[[Sequence[ImageRecord], int], Sequence[str]] = no_padding
    draws_truth: bool = False  # `judge` draws the truth from `Expression.polygons` where they are given
    origin: str = ""  # repository:path and commit of the code it repeats; empty for our own

    def check(self, benchmark: str) -> None:
        """Raise InputError where the protocol is not defined for the benchmark (NAME/SPLIT)."""
        if benchmark.split("/")[0] in self.refuses:
            raise InputError(
                f"{benchmark} may ask for what is not there, which protocol {self.name!r} has no rule for: "
                "use --protocol strict"
            )

    def tally_image(self, record: ImageRecord, predictions: Mapping[str, Prediction]) -> Tally:
        """Judge every counted expression of one picture; a missing prediction is a KeyError (check files
        first)."""
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
    *,
    targeted: bool,
    rejected: bool,
    iou: float,
    intersection: int,
    union: int,
    above: tuple[bool, ...] = NOT_ABOVE,
) -> Outcome:
    """An Outcome with what every protocol copies from the expression and the answer."""
    return Outcome(
        granularity=expression.granularity,
        targeted=targeted,
        rejected=rejected,
        iou=iou,
        intersection=intersection,
        union=union,
        above=above,
        level=expression.level,
        twin=expression.twin,
        no_answer=is_no_answer(prediction),
    )


def has_target(expression: Expression) -> bool:
    """Whether the truth has at least one pixel (our choice: a truth mask without pixels is no target)."""
    return expression.rle is not None and masks.area(expression.rle) > 0


def is_no_answer(prediction: Prediction) -> bool:
    """Whether the generated text holds neither [SEG] nor [REJ], as the empty one does; without text (files of
    other models) nothing is known, so it is not counted."""
    text = prediction.text
    return text is not None and not any(mark in text for mark in _ANSWER_MARKS)


def padding_of(count: int, world_size: int) -> list[int]:
    """Items that `DistributedSampler(drop_last=False)` hands out once more so that all ranks get equally many.

    The first items of `count`, from the start again where they do not suffice. Formula of
    pytorch/pytorch:torch/utils/data/distributed.py.
    """
    if world_size < 1:
        raise InputError(f"the number of processes must be at least 1, not {world_size}")
    return [index % count for index in range(-count % world_size)] if count else []


def pad_by_image(records: Iterable[ImageRecord], world_size: int) -> list[str]:
    """Padding where an item is a picture with all its sentences, as in LISA and GSVA.

    Their item list is `list(set(image ids))` (LISA:utils/refer.py getImgIds, GSVA:data/grefer.py getImgIds),
    so the pictures at its start follow CPython's order of a set of integers; ids that are no numbers keep the
    order of the records (our choice).
    """
    by_id = {record.image_id: record for record in records}
    order = list(by_id)
    if all(name.isdecimal() for name in order):
        order = [str(number) for number in list(set([int(name) for name in order]))]
    repeated = [by_id[order[item]] for item in padding_of(len(order), world_size)]
    return [e.expression_id for record in repeated for e in record.expressions]
