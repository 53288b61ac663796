"""The models that the page offers: each in a thread of its own, which answers the questions of all visitors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field, replace
from hashlib import sha256
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any

import numpy as np

from chat_demo.session import CHAT_DECODING
from uniresxx.checkpoints.resolve import find, model_name
from uniresxx.errors import InputError
from uniresxx.evaluation.regions import ProposesRegions
from uniresxx.hub.card import saw_only_scenes
from uniresxx.imaging.inputs import checked
from uniresxx.prediction import Prediction
from uniresxx.predictor import Predictor
from uniresxx.segmenters.asking import questions_asked
from uniresxx.segmenters.base import FindsAtClick, Segmenter, TellsAttention
from uniresxx.serve.batcher import Ask, Batcher
from uniresxx.serve.features import FeatureCache
from uniresxx.serve.metrics import Metrics
from uniresxx.serve.photos import check_photo, decoded
from uniresxx.serve.refused import Refused
from uniresxx.serve.settings import ServeSettings
from uniresxx.types import Decoding, Question

LIMITS = ServeSettings(cache_bytes=256 * 2**20)
WAIT = 0.05  # seconds between two looks at the words of an answer
MOST_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture's file, checked: `digest` names it, `pixels` is uint8 (y, x, 3), upright."""

    name: str
    data: bytes = field(repr=False)
    digest: bytes
    pixels: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and what it cost."""

    prediction: Prediction
    model: str
    seconds: float  # from the question to the answer, the wait for others included
    encoded: bool  # whether the picture was encoded for it
    proposals: Mapping[str, int] = field(default_factory=dict)  # regions by "object" and "part"
    proposal_seconds: float | None = None


def photo_of(data: bytes, name: str) -> Photo:
    """A picture's file as a photo. InputError in words: no picture, damaged, over a cap of the server."""
    try:
        check_photo(data, name, LIMITS)
    except Refused as refused:
        raise InputError(str(refused.detail)) from None
    return Photo(name, data, sha256(data).digest(), decoded(data, name))


class Model:
    """One loaded model."""

    def __init__(self, segmenter: Segmenter, name: str, only_scenes: bool) -> None:
        """Start its thread.

        Args:
            segmenter: used by that thread alone, except for its proposals, which need no weights.
            name: what the page calls it.
            only_scenes: whether it was trained on drawn scenes alone.
        """
        self.name, self.only_scenes, self.segmenter = name, only_scenes, segmenter
        self.cache = FeatureCache(LIMITS.cache_bytes)
        self._batcher = Batcher(
            segmenter, self.cache, Metrics(), max_batch=LIMITS.max_batch, window=LIMITS.window_ms / 1000
        )

    def replies(
        self, photo: Photo, text: str | Question, decoding: Decoding = CHAT_DECODING
    ) -> Iterator[str | Reply]:
        """The words of the answer so far, as they come, then the reply. InputError: a text that cannot be asked."""
        start = perf_counter()
        known = self.cache.get(photo.digest)
        words: SimpleQueue[str] = SimpleQueue()
        asked = Ask(
            photo.digest,
            photo.pixels if known is None else known,
            [checked(text)],
            decoding,
            on_words=words.put,
        )
        self._batcher.submit(asked)
        said = ""
        while not asked.answer.done() and perf_counter() - start < MOST_SECONDS:
            newest = _newest(words)
            if newest is not None and newest != said:
                said = newest
                yield said
            try:
                asked.answer.exception(timeout=WAIT)
            except NotYet:
                continue
        if not asked.answer.done():
            asked.answer.cancel()
            raise InputError(f"no answer after {MOST_SECONDS:.0f} seconds: ask again, or use a smaller model")
        prediction = replace(asked.answer.result().predictions[0], asked=asked_text(text))
        yield self._reply(photo, prediction, perf_counter() - start, known is None)

    def answer(self, photo: Photo, text: str | Question, decoding: Decoding | None = None) -> Reply:
        """The reply alone; `decoding` None: the model's own question about an expression."""
        decoding = decoding or Decoding(template=self.segmenter.question_template)
        *_, reply = self.replies(photo, text, decoding)
        assert isinstance(reply, Reply)
        return reply

    def regions(self, photo: Photo) -> Mapping[str, np.ndarray]:
        """Boxes (N, 4) xyxy of the photo's proposals by "object" and "part"; none where they are not kept."""
        known = self.cache.get(photo.digest)
        if known is None or not isinstance(self.segmenter, ProposesRegions):
            return {}
        return self.segmenter.regions(known.features)[0]

    def region_at(self, photo: Photo, x: float, y: float) -> np.ndarray | None:
        """What lies at a click, bool (y, x); None where the model cannot tell. Encodes a new photo."""
        segmenter = self.segmenter
        if not isinstance(segmenter, FindsAtClick):
            return None
        found: np.ndarray | None = self._seen(photo, lambda encoded: segmenter.region_at(encoded, x, y))
        return found

    def attention_shares(self, photo: Photo, text: str | Question) -> list[dict[str, float]]:
        """The attention by stream of each [SEG] and [REJ] of an answer; empty where the model cannot tell.

        A text that names several phrases has one entry for each, which is empty where the model answered it in words.
        """
        segmenter = self.segmenter
        if not isinstance(segmenter, TellsAttention):
            return []
        questions = questions_asked(segmenter, text, CHAT_DECODING)

        def shares(encoded: Any) -> list[dict[str, float]]:
            found = [segmenter.attention_shares(encoded, question, CHAT_DECODING) for question in questions]
            return found[0] if len(found) == 1 else [next(iter(decisions), {}) for decisions in found]

        found: list[dict[str, float]] = self._seen(photo, shares)
        return found

    def _seen(self, photo: Photo, look: Callable[[Any], Any]) -> Any:
        """What `look` makes of the encoded photo, in the model's thread."""
        known = self.cache.get(photo.digest)
        asked = Ask(photo.digest, photo.pixels if known is None else known, [], CHAT_DECODING, look=look)
        self._batcher.submit(asked)
        return asked.answer.result(timeout=MOST_SECONDS).seen

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        self._batcher.close()

    def _reply(self, photo: Photo, prediction: Prediction, seconds: float, encoded: bool) -> Reply:
        known = self.cache.get(photo.digest)
        took = None
        if known is not None and isinstance(self.segmenter, ProposesRegions):
            took = float(self.segmenter.proposal_seconds(known.features))
        counts = {name: len(boxes) for name, boxes in self.regions(photo).items()}
        return Reply(prediction, self.name, seconds, encoded, counts, took)


def load(checkpoints: Sequence[str], placement: Mapping[str, Any], log: Callable[[str], None]) -> list[Model]:
    """The models of `--checkpoint`, the one of the package where none is named. InputError as of Predictor."""
    twice = next((name for place, name in enumerate(checkpoints) if name in checkpoints[:place]), None)
    if twice is not None:
        raise InputError(f"--checkpoint {twice} is given twice: name each model once")
    models = []
    for checkpoint in checkpoints or (None,):
        name = model_name(checkpoint)
        log(f"loading {name}")
        predictor = Predictor.from_pretrained(checkpoint, CHAT_DECODING, **placement)
        only_scenes = saw_only_scenes(find(checkpoint, log).folders[0])
        models.append(Model(predictor.segmenter, name, only_scenes))
    return models


def asked_text(text: str | Question) -> str:
    """The text of a question."""
    return text.text if isinstance(text, Question) else text


def _newest(words: SimpleQueue[str]) -> str | None:
    """The last of what waits in the queue."""
    newest = None
    while True:
        try:
            newest = words.get_nowait()
        except Empty:
            return newest
