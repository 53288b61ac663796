"""What the server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = one = CollectorRegistry()
        self.requests = Counter(
            "uniresxx_requests", "requests by path and status", ["path", "status"], registry=one
        )
        self.seconds = Histogram(
            "uniresxx_request_seconds", "time of a request", ["path"], buckets=SECONDS, registry=one
        )
        self._batches = Histogram(
            "uniresxx_batch_questions", "questions answered together", buckets=BATCHES, registry=one
        )
        self._answer = Counter("uniresxx_answer_seconds", "time spent on answers", registry=one)
        self._encode = Counter("uniresxx_encode_seconds", "time spent on encoding photos", registry=one)
        self._photos = Counter("uniresxx_encoded_photos", "photos encoded", registry=one)
        self.cache = Counter(
            "uniresxx_photo_lookups", "photos found among the encoded ones, or not", ["found"], registry=one
        )

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A value that is read whenever the metrics are."""
        gauge = Gauge(f"uniresxx_{name}", about, registry=self.registry)
        gauge.set_function(value)

    @contextmanager
    def answering(self, questions: int) -> Iterator[None]:
        """Around the answers to a batch."""
        start = perf_counter()
        yield
        self._answer.inc(perf_counter() - start)
        self._batches.observe(questions)

    @contextmanager
    def encoding(self, photos: int) -> Iterator[None]:
        """Around the encoding of photos."""
        start = perf_counter()
        yield
        self._encode.inc(perf_counter() - start)
        self._photos.inc(photos)

    def text(self) -> bytes:
        """All values."""
        return generate_latest(self.registry)
