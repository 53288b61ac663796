"""One thread owns the model: it collects the questions of many requests and answers them together.

A first question waits up to `window` seconds for others, but only while requests are on their way (`coming`). While
the model works, questions queue up and make the next batch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import monotonic
from typing import Any

import numpy as np

from uniresxx.prediction import Prediction
from uniresxx.segmenters.asking import answer_phrases
from uniresxx.segmenters.base import Segmenter
from uniresxx.serve.features import EncodedPhoto, FeatureCache
from uniresxx.serve.metrics import Metrics
from uniresxx.types import Decoding, OnText, Question

PHOTOS_AT_ONCE = 8  # encoded together; bounds the memory, no answer depends on it
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers to one ask, and the photo's size in pixels."""

    predictions: list[Prediction]
    height: int
    width: int
    seen: Any = None  # what `Ask.look` returned


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """Texts about one photo, and where their answers go."""

    digest: bytes  # of the photo's file
    photo: np.ndarray | EncodedPhoto  # uint8 (y, x, 3), or encoded earlier
    texts: Sequence[str | Question]
    decoding: Decoding
    answer: Future[Answered] = field(default_factory=Future)
    # hears the words of the first text's answer so far, in the model's thread
    on_words: Callable[[str], None] | None = None
    look: Callable[[Any], Any] | None = None  # called with the encoded photo, in the model's thread


class Batcher:
    """The queue and its thread."""

    def __init__(
        self,
        segmenter: Segmenter,
        cache: FeatureCache,
        metrics: Metrics,
        *,
        max_batch: int,
        window: float,
    ) -> None:
        """Start the thread.

        Args:
            segmenter: used by that thread alone.
            cache: of encoded photos.
            metrics: counts batches, photos and time.
            max_batch: questions answered together; an ask of more is answered alone.
            window: seconds that a first question waits for others.
        """
        self._segmenter, self._cache, self._metrics = segmenter, cache, metrics
        self._max_batch, self._window = max_batch, window
        self._changed = Condition()
        self._asks: deque[Ask] = deque()
        self._coming = 0
        self._closed = False
        self._thread = Thread(target=self._work, name="uniresxx model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Questions in the queue."""
        with self._changed:
            return self._waiting()

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Around the work on a request before `submit`: the others may wait for it."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def submit(self, ask: Ask) -> None:
        """Put an ask into the queue."""
        with self._changed:
            assert not self._closed, "asked after close"
            self._asks.append(ask)
            self._changed.notify()

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _waiting(self) -> int:
        return sum(len(ask.texts) for ask in self._asks)

    def _count(self, change: int) -> None:
        with self._changed:
            self._coming += change
            if self._coming == 0:
                self._changed.notify()

    def _work(self) -> None:
        while batch := self._next_batch():
            wanted = [ask for ask in batch if ask.answer.set_running_or_notify_cancel()]
            for decoding in dict.fromkeys(ask.decoding for ask in wanted):
                self._answer([ask for ask in wanted if ask.decoding == decoding])

    def _next_batch(self) -> list[Ask]:
        """The asks to answer together; none once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._asks or self._closed)
            end = monotonic() + self._window
            while self._coming and not self._closed and self._waiting() < self._max_batch:
                if not self._changed.wait(end - monotonic()):
                    break
            batch: list[Ask] = []
            room = self._max_batch
            while self._asks and (not batch or len(self._asks[0].texts) <= room):
                batch.append(self._asks.popleft())
                room -= len(batch[-1].texts)
            return batch

    def _answer(self, asks: list[Ask]) -> None:
        """Answer asks of one decoding. Where that fails, each is tried alone: one cannot spoil the others."""
        try:
            found = self._predictions(asks)
        except Exception as error:  # whatever the model raises belongs to whoever asked
            if len(asks) > 1:
                for ask in asks:
                    self._answer([ask])
            else:
                logger.exception("a question could not be answered")
                asks[0].answer.set_exception(error)
            return
        for ask, answered in zip(asks, found, strict=True):
            ask.answer.set_result(answered)

    def _predictions(self, asks: list[Ask]) -> list[Answered]:
        """The answers of each ask, in order."""
        by_photo: dict[bytes, list[Ask]] = {}
        for ask in asks:
            by_photo.setdefault(ask.digest, []).append(ask)
        photos = self._encoded({digest: own[0] for digest, own in by_photo.items()})
        texts = [[text for ask in own for text in ask.texts] for own in by_photo.values()]
        with self._metrics.answering(sum(map(len, texts))):
            joined = self._segmenter.join_images([photos[digest].features for digest in by_photo])
            on_text = _passed_on([ask for own in by_photo.values() for ask in own])
            answers = iter(answer_phrases(self._segmenter, joined, texts, asks[0].decoding, on_text))
        found: dict[Ask, Answered] = {}
        for digest, own in by_photo.items():
            photo = photos[digest]
            for ask in own:
                own_answers = [next(answers) for _ in ask.texts]
                seen = None if ask.look is None else ask.look(photo.features)
                found[ask] = Answered(own_answers, photo.height, photo.width, seen)
        return [found[ask] for ask in asks]

    def _encoded(self, first: dict[bytes, Ask]) -> dict[bytes, EncodedPhoto]:
        """The encoded photo of each digest, given one of its asks; new ones are kept."""
        photos: dict[bytes, EncodedPhoto] = {}
        new: list[tuple[bytes, np.ndarray]] = []
        for digest, ask in first.items():
            known = ask.photo if isinstance(ask.photo, EncodedPhoto) else self._cache.get(digest)
            if known is not None:
                photos[digest] = known
            elif isinstance(ask.photo, np.ndarray):
                new.append((digest, ask.photo))
        for start in range(0, len(new), PHOTOS_AT_ONCE):
            part = new[start : start + PHOTOS_AT_ONCE]
            with self._metrics.encoding(len(part)):
                encoded = self._segmenter.encode_images([pixels for _, pixels in part])
                apart = self._segmenter.split_images(encoded)
            for (digest, pixels), features in zip(part, apart, strict=True):
                photos[digest] = EncodedPhoto(features, *pixels.shape[:2])
                self._cache.put(digest, photos[digest])
        return photos


def _passed_on(asks: Sequence[Ask]) -> OnText | None:
    """A listener that passes the words of each ask's first text on to it; None where nobody listens."""
    listeners = [ask.on_words if text == 0 else None for ask in asks for text in range(len(ask.texts))]
    if not any(listeners):
        return None

    def listen(number: int, words: str) -> None:
        listener = listeners[number]
        if listener is not None:
            listener(words)

    return listen
