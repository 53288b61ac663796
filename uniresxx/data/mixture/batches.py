"""Micro-batches of a training step, each a pure function of (step, micro): the state of the data is one integer.

Any number of workers and ranks gives the same global batches, and a step cut into more micro-batches shows the
same images. A sample that cannot be prepared is replaced by another of its data set; no other sample changes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from uniresxx.data.dialogues.as_asked import as_asked
from uniresxx.data.dialogues.compose import composed_dialogues
from uniresxx.data.mixture.augment import mirrored
from uniresxx.data.mixture.data_log import MAX_ATTEMPTS, too_many_bad, zero_counts
from uniresxx.data.mixture.mix import Origin
from uniresxx.data.scenes import scene_record
from uniresxx.data.scenes.warmup import warmup_expressions
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError, MissingPhotoError
from uniresxx.imaging.boxes import boxes_of_masks
from uniresxx.segmenters.base import Collator
from uniresxx.types import BadSample, Dialogue, ImageRecord, TrainingBatch

FLIP_STREAM = 3  # keeps the random numbers of mirrored pictures apart from all others
DIALOGUE_STREAM = 4  # and those of composed conversations
WHOLE_SHARE = 0.15  # of the conversations: shown with all earlier turns, so that unneeded ones do little harm


class Source(Protocol):
    """Slot (0, 1, 2, … without end) -> record; a pure function."""

    @property
    def shares(self) -> dict[str, float]:
        """Share of the expressions that each data set shall show, adding up to 1."""
        ...

    @property
    def box_levels(self) -> set[str]:
        """Levels ("object", "part") that the records have truth boxes of."""
        ...

    def __call__(self, slot: int, attempt: int = 0) -> ImageRecord:
        """The record of a slot; `attempt` n > 0: its n-th replacement."""
        ...

    def origin(self, slot: int, attempt: int = 0) -> Origin:
        """Where that record comes from; never reads the record."""
        ...


@dataclass(frozen=True)
class SceneSource:
    """Drawn scenes without end, with a curriculum.

    Slots below `first_slots` show pictures of the preset `first`. In slots below `warmup_slots`, half of a
    picture's expressions are replaced by those of `warmup_expressions`: colours and sides alone. Slots from
    `pair_slots[n]` on have stage n + 1 of `pair_expressions`: both of two like things.
    """

    preset: str
    seed: int
    first: str | None = None
    first_slots: int = 0
    warmup_slots: int = 0
    pair_slots: tuple[int, ...] = ()

    @property
    def shares(self) -> dict[str, float]:
        """All expressions come from the preset."""
        return {self.preset: 1.0}

    @property
    def box_levels(self) -> set[str]:
        """Every picture has boxes of both."""
        return {"object", "part"}

    def __call__(self, slot: int, attempt: int = 0) -> ImageRecord:
        """Picture number `slot`."""
        preset = self.first if self.first is not None and slot < self.first_slots else self.preset
        stage = sum(slot >= first for first in self.pair_slots)
        record = scene_record(preset, "train", _picture(slot, attempt), self.seed, stage)
        if slot >= self.warmup_slots:
            return record
        half = record.expressions[slot % 2 :: 2]
        return replace(record, expressions=half + warmup_expressions(record, preset))

    def origin(self, slot: int, attempt: int = 0) -> Origin:
        """Preset and number of the picture; no photograph is needed."""
        return Origin(self.preset, f"{self.preset} picture {_picture(slot, attempt)}", "")


def _picture(slot: int, attempt: int) -> int:
    """Replacements are pictures that no slot reaches."""
    return slot + (attempt << 40)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One prepared image, and what the data log counts of it."""

    sample: Any  # the collator's
    counts: dict[str, int]  # 1 image, expressions by granularity, texts, dialogues
    label: str  # the data set it is of
    bad: tuple[BadSample, ...]  # samples it stands in for


@dataclass(frozen=True)
class Batches:
    """(step, micro) -> the prepared micro-batch number `micro` of step `step`."""

    source: Source
    collator: Collator
    seed: int
    batch_images: int
    accumulate: int
    expressions_per_image: int
    dialogue_share: float = 0.2  # of an image's branches, where the image has enough conversations
    flip: float = 0.0  # share of pictures that are mirrored with their words, where the words allow it
    compose_dialogues: bool = False  # conversations of expressions, for records that bring none
    rank: int = 0
    world_size: int = 1

    def for_rank(self, rank: int, world_size: int) -> Batches:
        """The same steps for process `rank` of `world_size`: each micro-batch is divided among them.

        The global batch stays `batch_images * accumulate` images.

        Raises:
            InputError: there are fewer images in a micro-batch than processes.
        """
        if not 0 <= rank < world_size <= self.batch_images:
            raise InputError(
                f"data.batch_images {self.batch_images} cannot be divided among {world_size} processes: raise "
                "--data.batch_images (and lower --data.accumulate: a step trains on their product)"
            )
        return replace(self, rank=rank, world_size=world_size)

    def slots(self, step: int, micro: int) -> range:
        """Slots of this process's micro-batch."""
        first = (step * self.accumulate + micro) * self.batch_images
        start, stop = (self.batch_images * r // self.world_size for r in (self.rank, self.rank + 1))
        return range(first + start, first + stop)

    def __call__(self, step: int, micro: int) -> TrainingBatch:
        """The prepared micro-batch.

        Raises:
            DataError: MAX_ATTEMPTS samples in a row could not be prepared.
        """
        drawn = [self.draw(slot) for slot in self.slots(step, micro)]
        batch = self.collator.collate([image.sample for image in drawn])
        batch.drawn = zero_counts(self.source.shares)
        for image in drawn:
            for what, count in image.counts.items():
                batch.drawn[f"{image.label} {what}"] += count
        batch.bad = [item for image in drawn for item in image.bad]
        return batch

    def draw(self, slot: int) -> Drawn:
        """One prepared image: at most `expressions_per_image` of its expressions, and its share of conversations.

        A question of a conversation is shown with the earlier turns that it points back to, as it is asked later.

        An image without expressions shows at most as many conversations.

        A record that cannot be prepared (photo missing or damaged, mask of another size, broken row) is replaced.

        Raises:
            DataError: MAX_ATTEMPTS records in a row could not be prepared.
        """
        bad: list[BadSample] = []
        while len(bad) < MAX_ATTEMPTS:
            attempt = len(bad)
            try:
                sample, counts = self._prepare(slot, attempt)
            except (ValueError, OSError) as error:
                bad.append(self._bad_sample(slot, attempt, error))
            else:
                return Drawn(sample, counts, self.source.origin(slot).data_set, tuple(bad))
        raise too_many_bad(bad, f"{len(bad)} samples in a row could not be prepared")

    def _bad_sample(self, slot: int, attempt: int, error: Exception) -> BadSample:
        origin, reason = self.source.origin(slot, attempt), " ".join(str(error).split())
        if origin.hint and isinstance(error, MissingPhotoError):
            reason = f"{reason} ({origin.hint})"
        return BadSample(slot, origin.record, reason)

    def _prepare(self, slot: int, attempt: int) -> tuple[Any, dict[str, int]]:
        """The collator's sample of a record, and what it counts."""
        record = self.source(slot, attempt)
        rng = np.random.default_rng((self.seed, slot, 1))
        count = min(self.expressions_per_image, len(record.expressions))
        chosen = rng.permutation(len(record.expressions))[:count]
        expressions = tuple(record.expressions[int(i)] for i in chosen)
        template_choices = [int(i) for i in rng.integers(0, 1 << 16, count)]
        talks = self.expressions_per_image
        if record.expressions:
            talks = int(count * self.dialogue_share / (1 - self.dialogue_share) + rng.random())
        dialogues = self._dialogues(record, slot, talks, rng)
        # also of expressions that were not chosen
        boxes = boxes_of_masks(record) if self.collator.reads_boxes else None
        shown = replace(record, expressions=expressions, dialogues=dialogues, referent_boxes=boxes)
        if self.flip and np.random.default_rng((self.seed, slot, FLIP_STREAM)).random() < self.flip:
            shown = mirrored(shown) or shown
        counts = {"images": 1, "dialogues": len(dialogues), "texts": 0 if expressions else len(dialogues)}
        counts |= Counter(str(e.granularity) for e in expressions)
        return self.collator.sample(shown, photo_of(shown), template_choices), counts

    def _dialogues(
        self, record: ImageRecord, slot: int, talks: int, rng: np.random.Generator
    ) -> tuple[Dialogue, ...]:
        """Conversations for `talks` branches: most as inference asks them, some with all their earlier turns."""
        found = record.dialogues
        if not found and self.compose_dialogues and talks:
            found = composed_dialogues(record, (self.seed, slot, DIALOGUE_STREAM))
        order, whole = rng.permutation(len(found)), rng.random(len(found)) < WHOLE_SHARE
        branches: list[Dialogue] = []
        for place in order:
            if len(branches) >= talks:
                break
            branches += [found[place]] if whole[place] else as_asked(found[place])
        return tuple(branches[:talks])
