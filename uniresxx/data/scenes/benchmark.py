"""Whole splits of the benchmark with the exact numbers of expressions, and texts for a tokenizer."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from uniresxx.data.scenes.kinds import PART_NAMES
from uniresxx.data.scenes.presets import check_split, preset_of
from uniresxx.data.scenes.record import scene_record
from uniresxx.errors import InputError
from uniresxx.types import Expression, Granularity, ImageRecord


def dense_classes(preset: str) -> tuple[int, int, int]:
    """Numbers of dense labels (kind, colour, part), "none" included: label 0..n-1, 255 = do not supervise."""
    numbers = preset_of(preset)
    return len(numbers.kinds) + 1, len(numbers.colours) + 1, len(PART_NAMES) + 1


def _keep(record: ImageRecord, left: dict[Granularity, int]) -> tuple[Expression, ...]:
    """Expressions of a record within what is left of the quotas; a negative only together with its positive."""
    by_id = {expression.expression_id: expression for expression in record.expressions}
    kept: set[str] = set()

    def take(expression: Expression) -> None:
        if expression.expression_id not in kept:
            left[expression.granularity] -= 1
            kept.add(expression.expression_id)

    for expression in record.expressions:
        positive = by_id.get(expression.source.get("negative_of", ""))
        if positive is None or left[Granularity.NONE] == 0:
            continue
        if positive.expression_id in kept or left[positive.granularity] > 0:
            take(positive)
            take(expression)
    for expression in record.expressions:
        # the last places for positives are kept for those that negatives of later pictures will need
        free = sum(left.values()) - 2 * left[Granularity.NONE]
        if expression.rle is not None and left[expression.granularity] > 0 and free > 0:
            take(expression)
    return tuple(expression for expression in record.expressions if expression.expression_id in kept)


@lru_cache(maxsize=16)
def _records(preset: str, split: str) -> tuple[ImageRecord, ...]:
    left = dict(zip(Granularity, preset_of(preset).quota(split), strict=True))
    records: list[ImageRecord] = []
    index = 0
    while any(left.values()):
        record = scene_record(preset, split, index)
        index += 1
        kept = _keep(record, left)
        # pictures that would only bring what is full already are left out
        if kept:
            records.append(replace(record, expressions=kept))
    return tuple(records)


def benchmark_records(preset: str, split: str) -> list[ImageRecord]:
    """All records of a measured split with its exact numbers of expressions; InputError for train."""
    numbers = preset_of(preset)
    check_split(numbers, split)
    if split == "train":
        raise InputError(
            f"{preset}/train is drawn without end; measured splits: {', '.join(numbers.splits[1:])}"
        )
    return list(_records(preset, split))


def text_corpus(preset: str, n: int) -> list[str]:
    """The first n texts of training (expressions and what is said in dialogues), for a tokenizer."""
    texts: list[str] = []
    index = 0
    while len(texts) < n:
        record = scene_record(preset, "train", index)
        texts += [expression.text for expression in record.expressions]
        for dialogue in record.dialogues:
            for turn in dialogue.turns:
                texts += [turn.question, *([turn.say] if turn.say else [])]
        index += 1
    return texts[:n]
