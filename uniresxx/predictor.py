"""One photo, any number of expressions: masks in a few lines of Python.

Knows no model, only the Segmenter protocol. Masks are in the image frame: the photo as a person sees it, EXIF
orientation applied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.imaging.inputs import Photo, checked, photo_pixels
from uniresxx.imaging.overlay import Layer
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import Decoding, Prediction, Question, Segment

EXPRESSIONS_AT_ONCE = 32  # bounds the memory for masks; expressions are independent, so answers do not change


class Predictor:
    """A model and its current photo, which is encoded once for all expressions.

    Example:
        >>> from uniresxx import Predictor
        >>> from uniresxx.predictor import mask_of
        >>> predictor = Predictor.from_pretrained("runs/demo")  # doctest: +SKIP
        >>> photo = predictor.set_image("street.jpg")  # doctest: +SKIP
        >>> wheel, cat = predictor.segment(["the left wheel of the red car", "the blue cat"])  # doctest: +SKIP
        >>> mask = mask_of(wheel)  # bool (y, x) at the photo's size, None where it is not there  # doctest: +SKIP
    """

    def __init__(self, segmenter: Segmenter, decoding: Decoding | None = None) -> None:
        self.segmenter = segmenter
        self.decoding = decoding or Decoding(template=segmenter.question_template)
        self._photo: np.ndarray | None = None
        self._encoded: Any = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        decoding: Decoding | None = None,
        *,
        device: str = "auto",
        dtype: str | None = None,
        attention: str | None = None,
        device_map: str | None = None,
        quantization: str | None = None,
    ) -> Predictor:
        """Load a model.

        Args:
            path: a run folder (its best checkpoint), a `from_pretrained` folder, or `hub:OWNER/NAME`.
            decoding: how answers are generated; None: with the model's own question about an expression.
            device: as in `load_segmenter`, like the next four; "auto" takes a GPU where there is one.
            dtype: "float32" or "bfloat16" for all weights; None: as saved.
            attention: backend of the language model; None: that of the checkpoint.
            device_map: "auto" spreads a model larger than one GPU; None: one device.
            quantization: "int8" or "nf4" of the language model; None: as saved.

        Raises:
            InputError: the path holds no complete checkpoint of a known model, or the device is not there.
        """
        from uniresxx.segmenters.load import load_segmenter

        segmenter = load_segmenter(
            path,
            device=device,
            dtype=dtype,
            attention=attention,
            device_map=device_map,
            quantization=quantization,
        )
        return cls(segmenter, decoding)

    @property
    def photo(self) -> np.ndarray | None:
        """The current photo, uint8 (y, x, 3) RGB, or None."""
        return self._photo

    def set_image(self, photo: Photo) -> np.ndarray:
        """Encode a photo; every later `segment` reuses the result.

        Args:
            photo: a path, a PIL picture, or an array: uint8 (y, x, 3) RGB or (y, x) grey.

        Returns:
            The photo as uint8 (y, x, 3) RGB.

        Raises:
            InputError: the photo cannot be used; the previous one stays.
        """
        pixels = photo_pixels(photo)
        encoded = self.segmenter.encode_images([pixels])
        self._photo, self._encoded = pixels, encoded
        return pixels

    def segment(self, texts: str | Question | Sequence[str | Question]) -> list[Prediction]:
        """Answer expressions about the current photo.

        Args:
            texts: one text or several. Text is plain text: `[SEG]` or `<image>` in it have no special meaning.

        Returns:
            One prediction per text, in order.

        Raises:
            InputError: there is no photo yet, or a text is empty or longer than MAX_CHARACTERS.
        """
        if self._photo is None:
            raise InputError("no photo yet: call set_image before segment")
        asked = [checked(text) for text in ([texts] if isinstance(texts, str | Question) else texts)]
        found: list[Prediction] = []
        for start in range(0, len(asked), EXPRESSIONS_AT_ONCE):
            part = asked[start : start + EXPRESSIONS_AT_ONCE]
            found += self.segmenter.answer(self._encoded, [part], self.decoding)
        assert len(found) == len(asked), (len(found), len(asked))
        return found


def mask_of(found: Prediction | Segment) -> np.ndarray | None:
    """The mask as bool (y, x) at the photo's size, or None where the model answered that it is not there."""
    if found.mask is None or (isinstance(found, Prediction) and found.rejected):
        return None
    return masks.decode(found.mask)


def layers_of(texts: Sequence[str], found: Sequence[Prediction]) -> Iterator[Layer]:
    """What `draw_overlay` needs, masks decoded one at a time; a layer per phrase of a longer answer."""
    for text, prediction in zip(texts, found, strict=True):
        if len(prediction.segments) > 1:
            for part in prediction.segments:
                yield Layer(part.phrase or text, mask_of(part), None if part.mask is None else part.score)
        else:
            yield Layer(text, mask_of(prediction), None if prediction.rejected else prediction.score)
