"""A checkpoint that answers a harness: questions one by one, asked together where they share a photo."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from uniresxx.segmenters.base import Segmenter
from uniresxx.segmenters.load import load_segmenter
from uniresxx.suites.answers import answer_text
from uniresxx.types import Decoding

Asked = tuple[np.ndarray, str]  # photo, uint8 (y, x, 3), and expression


class HarnessModel:
    """A `Segmenter` behind the interface of a harness."""

    def __init__(self, segmenter: Segmenter, batch_images: int = 8) -> None:
        """Wrap a model.

        Args:
            segmenter: the model; `load` takes a checkpoint instead.
            batch_images: photos that are answered together.
        """
        self.segmenter = segmenter
        self.batch_images = batch_images
        self.decoding = Decoding(template=segmenter.question_template)

    @classmethod
    def load(cls, checkpoint: str | None, batch_images: int = 8, device: str = "auto") -> HarnessModel:
        """The model of a checkpoint, named as in `load_segmenter`, on a device."""
        return cls(load_segmenter(checkpoint or None, device=device), batch_images)

    def answers(self, asked: Iterable[Asked]) -> Iterator[str]:
        """The answer to each question as JSON text, in order.

        Questions about the same photo are answered together where they follow one another.
        """
        groups = _by_photo(asked)
        while batch := list(islice(groups, self.batch_images)):
            encoded = self.segmenter.encode_images([photo for photo, _ in batch])
            texts = [texts for _, texts in batch]
            yield from map(answer_text, self.segmenter.answer(encoded, texts, self.decoding))


def _by_photo(asked: Iterable[Asked]) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Neighbouring questions about one photo together."""
    photo: np.ndarray | None = None
    texts: list[str] = []
    for pixels, text in asked:
        if photo is not None and not (pixels is photo or np.array_equal(pixels, photo)):
            yield photo, texts
            texts = []
        photo = pixels
        texts.append(text)
    if photo is not None:
        yield photo, texts
