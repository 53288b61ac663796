"""Micro-batches of a training step: a pure function of (step, micro), so that the state of the data is one integer.

Any number of workers and ranks gives the same global batches, and a step cut into micro-batches sees the same
images. A sample that cannot be prepared is replaced by another of its data set; no other sample moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mllm.tokens import Vocabulary
from uniresxx.data.mixture.augment import mirrored
from uniresxx.data.mixture.ledger import IN_A_ROW, no_counts, over_budget
from uniresxx.data.scenes import scene_record
from uniresxx.data.scenes.warmup import warmup_expressions
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError, MissingPhotoError
from uniresxx.imaging.boxes import boxes_of_masks
from uniresxx.model.collate import Sample, collate, make_sample
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.types import BadSample, Batch, ImageRecord

FLIP = 3  # stream of random numbers for mirrored pictures


class Source(Protocol):
    """Slot (0, 1, 2, … without end) -> image; a pure function."""

    @property
    def wanted(self) -> dict[str, float]:
        """Share of the expressions of each data set, adding up to 1."""
        ...

    def __call__(self, slot: int, attempt: int = 0) -> ImageRecord:
        """The image of a slot, or the `attempt`-th that stands in for it."""
        ...

    def name(self, slot: int, attempt: int = 0) -> str:
        """What to call it where it cannot be read."""
        ...

    def label(self, slot: int) -> str:
        """The data set of a slot."""
        ...

    def hint(self, slot: int) -> str:
        """What to set where its photographs are not found."""
        ...


@dataclass(frozen=True)
class SceneSource:
    """The scenes, drawn without end, with a curriculum: easy pictures first, and colours asked for alone.

    Before slot `then_at` the pictures are those of preset `first`; before slot `warmup_until` half of a picture's
    expressions make way for its first lesson (colours and sides alone).
    """

    preset: str
    seed: int
    first: str | None = None
    then_at: int = 0
    warmup_until: int = 0

    @property
    def wanted(self) -> dict[str, float]:
        """All of it."""
        return {self.preset: 1.0}

    def __call__(self, slot: int, attempt: int = 0) -> ImageRecord:
        """Picture number `slot`."""
        preset = self.first if self.first is not None and slot < self.then_at else self.preset
        record = scene_record(preset, "train", slot + (attempt << 40), self.seed)
        if slot >= self.warmup_until:
            return record
        kept = record.expressions[slot % 2 :: 2]
        return replace(record, expressions=kept + warmup_expressions(record, preset))

    def name(self, slot: int, attempt: int = 0) -> str:
        """Preset and number."""
        return f"{self.preset} picture {slot + (attempt << 40)}"

    def label(self, slot: int) -> str:
        """The preset."""
        return self.preset

    def hint(self, slot: int) -> str:
        """Nothing can be missing."""
        return ""


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
    flip: float = 0.0  # share of pictures that are mirrored, with the words, where words allow it
    rank: int = 0
    world_size: int = 1

    def for_rank(self, rank: int, world_size: int) -> Batches:
        """The same steps for one of `world_size` processes: each micro-batch is cut among them.

        The global batch stays `batch_images * accumulate` images. InputError where a process would get none.
        """
        if not 0 <= rank < world_size <= self.batch_images:
            raise InputError(
                f"data.batch_images {self.batch_images} cannot be cut among {world_size} processes: raise "
                "--data.batch_images (and lower --data.accumulate: a step sees both multiplied)"
            )
        return replace(self, rank=rank, world_size=world_size)

    def slots(self, step: int, micro: int) -> range:
        """Slots of this process's micro-batch."""
        first = (step * self.accumulate + micro) * self.batch_images
        start, stop = (self.batch_images * r // self.world_size for r in (self.rank, self.rank + 1))
        return range(first + start, first + stop)

    def __call__(self, step: int, micro: int) -> Batch:
        """The prepared micro-batch. DataError where too many samples in a row cannot be prepared."""
        samples = [self.sample(slot) for slot in self.slots(step, micro)]
        batch = collate(samples, self.config, self.vocabulary)
        batch.drawn = no_counts(tuple(self.source.wanted))
        for sample in samples:
            for what, count in sample.drawn.items():
                batch.drawn[f"{sample.label} {what}"] += count
        batch.bad = [item for sample in samples for item in sample.bad]
        return batch

    def sample(self, slot: int) -> Sample:
        """One prepared image: at most `expressions_per_image` of its expressions, and its share of conversations.

        What cannot be prepared (photo missing or damaged, mask of another size, broken row) is replaced.
        """
        bad: list[BadSample] = []
        while len(bad) < IN_A_ROW:
            attempt = len(bad)
            try:
                sample = self._prepared(slot, attempt)
            except (ValueError, OSError) as error:
                bad.append(self._told(slot, attempt, error))
            else:
                return replace(sample, label=self.source.label(slot), bad=tuple(bad))
        raise over_budget(bad, f"{len(bad)} samples in a row could not be prepared")

    def _told(self, slot: int, attempt: int, error: Exception) -> BadSample:
        reason = " ".join(str(error).split())
        hint = self.source.hint(slot)
        if hint and isinstance(error, MissingPhotoError):
            reason = f"{reason} ({hint})"
        return BadSample(slot, self.source.name(slot, attempt), reason)

    def _prepared(self, slot: int, attempt: int) -> Sample:
        record = self.source(slot, attempt)
        rng = np.random.default_rng((self.seed, slot, 1))
        count = min(self.expressions_per_image, len(record.expressions))
        chosen = rng.permutation(len(record.expressions))[:count]
        expressions = [record.expressions[int(i)] for i in chosen]
        choices = [int(i) for i in rng.integers(0, 1 << 16, count)]
        wanted = int(count * self.dialogue_share / (1 - self.dialogue_share) + rng.random())
        picked = rng.permutation(len(record.dialogues))[:wanted]
        dialogues = [record.dialogues[int(i)] for i in picked]
        boxes = record.boxes
        if self.config.boxes == "learned":  # of what is not asked for as well
            boxes = boxes_of_masks(record)
        asked = replace(record, expressions=tuple(expressions), dialogues=tuple(dialogues), boxes=boxes)
        if self.flip and np.random.default_rng((self.seed, slot, FLIP)).random() < self.flip:
            asked = mirrored(asked) or asked
        return make_sample(
            asked, photo_of(asked), asked.expressions, asked.dialogues, choices, self.config, self.vocabulary
        )
