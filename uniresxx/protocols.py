"""Protocols: how one answer to one expression is judged. The choice is named in every metrics file.

A protocol is three decisions: which expressions of a picture count (`counted`), on which benchmarks it makes
no sense (`refuses`), and what an answer is worth (`judge`). Another way of scoring is another `Protocol`
value in PROTOCOLS; counters, files and reports stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from uniresxx import masks
from uniresxx.errors import InputError
from uniresxx.metrics import THRESHOLDS, Outcome, Tally
from uniresxx.types import Expression, ImageRecord, Prediction

_ANSWER_MARKS = ("[SEG]", "[REJ]")


def no_padding(records: Sequence[ImageRecord], world_size: int) -> Sequence[str]:
    """Nothing counts twice, on however many processes."""
    return ()


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way of scoring, as a value."""

    name: str
    summary: str
    judge: Callable[[Expression, Prediction], Outcome]
    counted: Callable[[ImageRecord], Sequence[Expression]]
    refuses: tuple[str, ...] = ()  # names of benchmarks, without the split
    undefined: tuple[str, ...] = ()  # score keys that this way of scoring does not have
    # (records, world size) -> ids of the expressions that sampler padding counts once more, each as often
    padded: Callable[[Sequence[ImageRecord], int], Sequence[str]] = no_padding

    def check(self, benchmark: str) -> None:
        """Raise InputError where the protocol is not defined for the benchmark (NAME/SPLIT)."""
        if benchmark.split("/")[0] in self.refuses:
            raise InputError(f"protocol {self.name!r} is not defined on {benchmark}: use --protocol strict")

    def tally_image(self, record: ImageRecord, predictions: Mapping[str, Prediction]) -> Tally:
        """Judge every counted expression of one picture; a missing prediction is a KeyError (check files
        first)."""
        return Tally.of_image(self.judge(e, predictions[e.expression_id]) for e in self.counted(record))


def protocol_of(name: str) -> Protocol:
    """Look a protocol up; InputError lists the known ones."""
    for protocol in PROTOCOLS:
        if protocol.name == name:
            return protocol
    raise InputError(f"unknown protocol {name!r}; known: {', '.join(p.name for p in PROTOCOLS)}")


def has_target(expression: Expression) -> bool:
    """Whether the truth has at least one pixel (our choice: a truth mask without pixels is no target)."""
    return expression.rle is not None and masks.area(expression.rle) > 0


def is_no_answer(prediction: Prediction) -> bool:
    """Whether the generated text holds neither [SEG] nor [REJ], as the empty one does; without text (files of
    other models) nothing is known, so it is not counted."""
    text = prediction.text
    return text is not None and not any(mark in text for mark in _ANSWER_MARKS)


def every_expression(record: ImageRecord) -> Sequence[Expression]:
    """Every sentence once."""
    return record.expressions


def _judge_strict(expression: Expression, prediction: Prediction) -> Outcome:
    """Judge one answer at the photo's size; an answer without a mask is an empty mask.

    (IoU, I, U): no target, rejected 1, 0, 0; no target, answered 0, 0, |P|; target, rejected 0, 0, |G|;
    target, answered I/U, I, U.
    """
    truth = expression.rle
    mask = None if prediction.rejected else prediction.mask
    area_true = masks.area(truth) if truth is not None else 0
    area_pred = masks.area(mask) if mask is not None else 0
    inter = masks.intersection_area(mask, truth) if mask is not None and truth is not None else 0
    union = area_pred + area_true - inter
    # A targeted expression always has union > 0.
    iou = inter / union if area_true else float(prediction.rejected)
    return Outcome(
        granularity=expression.granularity,
        targeted=area_true > 0,
        rejected=prediction.rejected,
        iou=iou,
        intersection=inter,
        union=union,
        # Exact although in floats: I/U rounds to the literal only when it equals it (U < 2^50).
        above=tuple(iou > x for x in THRESHOLDS),
        level=expression.level,
        twin=expression.twin,
        no_answer=is_no_answer(prediction),
    )


STRICT = Protocol(
    name="strict",
    summary="original size, every expression once, integer sums; a rejected target scores 0, "
    "a mask where nothing is scores 0 and adds its pixels to the union; Pr@X counts IoU > X over targets",
    judge=_judge_strict,
    counted=every_expression,
)
PROTOCOLS = (STRICT,)
