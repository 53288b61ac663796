"""Whole splits of the benchmark with the exact numbers of expressions, and texts for a tokenizer."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from uniresxx.data.scenes.kinds import PART_NAMES
from uniresxx.data.scenes.presets import check_split, preset_of
from uniresxx.data.scenes.record import scene_record
from uniresxx.types import Expression, Granularity, ImageRecord


def dense_classes(preset: str) -> tuple[int, int, int]:
    """How many dense labels there are of kind, colour and part, label 0 (none) included; 255 is not supervised."""
    numbers = preset_of(preset)
    return len(numbers.kinds) + 1, len(numbers.colours) + 1, len(PART_NAMES) + 1


def _choose(record: ImageRecord, remaining: dict[Granularity, int]) -> tuple[Expression, ...]:
    """Expressions of a record that the remaining quotas allow; a negative only together with its positive."""
    by_id = {expression.expression_id: expression for expression in record.expressions}
    chosen: set[str] = set()

    def take(expression: Expression) -> None:
        if expression.expression_id not in chosen:
            remaining[expression.granularity] -= 1
            chosen.add(expression.expression_id)

    for expression in record.expressions:
        positive = by_id.get(expression.source.get("negative_of", ""))
        if positive is None or remaining[Granularity.NONE] == 0:
            continue
        if positive.expression_id in chosen or remaining[positive.granularity] > 0:
            take(positive)
            take(expression)
    for expression in record.expressions:
        # the last places for positives are reserved for the positives of later negatives
        free = sum(remaining.values()) - 2 * remaining[Granularity.NONE]
        if expression.rle is not None and remaining[expression.granularity] > 0 and free > 0:
            take(expression)
    return tuple(expression for expression in record.expressions if expression.expression_id in chosen)


@lru_cache(maxsize=16)
def _records(preset: str, split: str) -> tuple[ImageRecord, ...]:
    remaining = dict(zip(Granularity, preset_of(preset).quota(split), strict=True))
    records: list[ImageRecord] = []
    index = 0
    while any(remaining.values()):
        record = scene_record(preset, split, index)
        index += 1
        chosen = _choose(record, remaining)
        if chosen:  # else all its granularities are full
            records.append(replace(record, expressions=chosen))
    return tuple(records)


def benchmark_records(preset: str, split: str) -> list[ImageRecord]:
    """All records of a measured split with its exact numbers of expressions; InputError for train."""
    check_split(preset_of(preset), split)
    return list(_records(preset, split))


def text_corpus(preset: str, n: int) -> list[str]:
    """The first n texts of training (expressions, questions and answers), to train a tokenizer on."""
    texts: list[str] = []
    index = 0
    while len(texts) < n:
        record = scene_record(preset, "train", index)
        texts += [expression.text for expression in record.expressions]
        for dialogue in record.dialogues:
            for turn in dialogue.turns:
                texts += [turn.question, *([turn.answer] if turn.answer else [])]
        index += 1
    return texts[:n]
