"""What a training step sees: a pure function of (seed, step, slot), so that the state of the data is one integer.

Any number of workers gives the same batches, and a step cut into micro-batches sees the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mllm.tokens import Vocabulary
from uniresxx.data.collate import Sample, collate, make_sample
from uniresxx.data.scenes import scene_record
from uniresxx.data.scenes.lessons import first_lesson
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.types import Batch, ImageRecord

Source = Callable[[int], ImageRecord]  # slot (0, 1, 2, … without end) -> image


@dataclass(frozen=True)
class SceneSource:
    """The scenes, drawn without end, with a curriculum: easy pictures first, and colours asked for alone.

    Before slot `then_at` the pictures are those of preset `first`; before slot `lesson_until` half of a picture's
    expressions make way for its first lesson (colours and sides alone).
    """

    preset: str
    seed: int
    first: str | None = None
    then_at: int = 0
    lesson_until: int = 0

    def __call__(self, slot: int) -> ImageRecord:
        """Picture number `slot`."""
        preset = self.first if self.first is not None and slot < self.then_at else self.preset
        record = scene_record(preset, "train", slot, self.seed)
        if slot >= self.lesson_until:
            return record
        kept = record.expressions[slot % 2 :: 2]
        return replace(record, expressions=kept + first_lesson(record, preset))


@dataclass(frozen=True)
class RecordSource:
    """A list of records in a new order each epoch."""

    records: Sequence[ImageRecord]
    seed: int

    def __call__(self, slot: int) -> ImageRecord:
        """Record of this slot."""
        epoch, place = divmod(slot, len(self.records))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.records))
        return self.records[int(order[place])]


@dataclass(frozen=True)
class Batches:
    """Micro-batch number `micro` of step `step`."""

    source: Source
    config: UniRESPlusPlusConfig
    vocabulary: Vocabulary
    seed: int
    batch_images: int
    accumulate: int
    expressions_per_image: int
    dialogue_share: float = 0.2  # of an image's branches, where it offers enough conversations
    rank: int = 0
    world_size: int = 1  # processes that divide each micro-batch among them

    def for_rank(self, rank: int, world_size: int) -> Batches:
        """The share of one process: every `world_size`-th image of each micro-batch."""
        return replace(self, rank=rank, world_size=world_size)

    def __call__(self, step: int, micro: int) -> Batch:
        """The prepared micro-batch, or this rank's share of it."""
        first = (step * self.accumulate + micro) * self.batch_images
        slots = range(first, first + self.batch_images)[self.rank :: self.world_size]
        samples = [self.sample(slot) for slot in slots]
        return collate(samples, self.config, self.vocabulary)

    def sample(self, slot: int) -> Sample:
        """One prepared image: at most `expressions_per_image` of its expressions, and its share of conversations."""
        record = self.source(slot)
        rng = np.random.default_rng((self.seed, slot, 1))
        count = min(self.expressions_per_image, len(record.expressions))
        chosen = rng.permutation(len(record.expressions))[:count]
        expressions = [record.expressions[int(i)] for i in chosen]
        choices = [int(i) for i in rng.integers(0, 1 << 16, count)]
        wanted = int(count * self.dialogue_share / (1 - self.dialogue_share) + rng.random())
        picked = rng.permutation(len(record.dialogues))[:wanted]
        dialogues = [record.dialogues[int(i)] for i in picked]
        return make_sample(record, expressions, dialogues, choices, self.config, self.vocabulary)
