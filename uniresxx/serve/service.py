"""What all doors share: a photo's bytes and texts in, answers out, within the limits of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256

from uniresxx.errors import InputError
from uniresxx.imaging.inputs import checked
from uniresxx.segmenters.base import Segmenter
from uniresxx.serve.batcher import Answered, Ask, Batcher
from uniresxx.serve.features import FeatureCache
from uniresxx.serve.metrics import Metrics
from uniresxx.serve.photos import check_photo, decoded, from_base64
from uniresxx.serve.refused import Refused
from uniresxx.serve.settings import ServeSettings
from uniresxx.serve.urls import fetched
from uniresxx.types import AS_TYPED, Decoding, Question


class Room:
    """How many pixels may be decoded at a time: a decoded photo is many times as large as its file."""

    def __init__(self, pixels: int) -> None:
        self.pixels, self.used = pixels, 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, pixels: int) -> AsyncIterator[None]:
        """Wait for room for a photo, and hold it. A photo larger than everything waits until it is alone."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.used or self.used + pixels <= self.pixels)
            self.used += pixels
        try:
            yield
        finally:
            async with self._changed:
                self.used -= pixels
                self._changed.notify_all()


class Service:
    """The model behind the doors. Used from one event loop; the model runs in the batcher's thread."""

    def __init__(self, segmenter: Segmenter, settings: ServeSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.cache = FeatureCache(settings.cache_bytes)
        self.question_decoding = Decoding(template=segmenter.question_template)
        self.chat_decoding = Decoding(template=AS_TYPED)
        self.batcher = Batcher(
            segmenter,
            self.cache,
            self.metrics,
            max_batch=settings.max_batch,
            window=settings.window_ms / 1000,
        )
        self._room = Room(settings.held_pixels)
        self.questions = 0  # accepted and not answered
        self.metrics.watch("waiting_questions", "questions in the queue", lambda: self.batcher.waiting)
        self.metrics.watch("cached_photos", "encoded photos that are kept", lambda: len(self.cache))
        self.metrics.watch("cached_bytes", "bytes of these", lambda: self.cache.used_bytes)

    async def answer(
        self, data: bytes, name: str, texts: Sequence[str | Question], decoding: Decoding
    ) -> Answered:
        """The answers to texts about one photo.

        Args:
            data: the photo's file.
            name: what an error calls it.
            texts: plain text: `[SEG]` or `<image>` in it have no special meaning.
            decoding: how answers are generated.

        Raises:
            InputError: the photo or a text cannot be used.
            Refused: the photo is over a cap, or too many questions wait.
        """
        asked = [checked(text) for text in texts]
        digest = sha256(data).digest()
        with self._accepted(len(asked)):
            known = self.cache.get(digest)
            self.metrics.cache.labels("no" if known is None else "yes").inc()
            if known is not None:
                return await self._asked(Ask(digest, known, asked, decoding))
            height, width = await asyncio.to_thread(check_photo, data, name, self.settings)
            async with self._room.taken(height * width):
                with self.batcher.coming():
                    pixels = await asyncio.to_thread(decoded, data, name)
                    answer = self._asked(Ask(digest, pixels, asked, decoding))
                del pixels
                return await answer

    def _asked(self, ask: Ask) -> Awaitable[Answered]:
        """Put an ask into the queue; what to wait for."""
        self.batcher.submit(ask)
        return asyncio.wrap_future(ask.answer)

    @contextmanager
    def _accepted(self, questions: int) -> Iterator[None]:
        """Around questions from their arrival to their answers; 503 where too many are not answered."""
        if self.questions + questions > self.settings.max_queue:
            raise Refused(503, "too many questions are waiting: try again", retry_after=1)
        self.questions += questions
        try:
            yield
        finally:
            self.questions -= questions

    async def bytes_of(self, image: str, name: str) -> bytes:
        """The bytes of a picture that a JSON request holds (base64, data URL) or names (https, where allowed)."""
        if image[:8].lower().startswith(("https:", "http:")):
            return await asyncio.to_thread(fetched, image, self.settings)
        return await asyncio.to_thread(from_base64, image, name, self.settings)

    async def answer_many(
        self, asks: Sequence[tuple[bytes, str, Sequence[str | Question]]], decoding: Decoding
    ) -> list[Answered]:
        """`answer` for several photos of one request; where one fails, the whole request does."""
        work = [self.answer(data, name, texts, decoding) for data, name, texts in asks]
        answers: list[Answered] = []
        for found in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(found, BaseException):
                raise found
            answers.append(found)
        return answers

    def close(self) -> None:
        """Answer what waits, then end the model's thread."""
        self.batcher.close()


def first_line(error: InputError) -> str:
    """The message of an error, for a client."""
    return " ".join(str(error).split())[:500]
