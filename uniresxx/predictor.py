"""One photo, any number of expressions: masks in a few lines of Python.

Knows no model, only the Segmenter protocol. Masks are in the image frame: the photo as a person sees it, EXIF
orientation applied.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from uniresxx.conversation.history import relevant_turns
from uniresxx.conversation.words import segments_of, words_for
from uniresxx.errors import InputError
from uniresxx.evaluation.ahead import ahead
from uniresxx.imaging.inputs import Photo, checked, photo_pixels
from uniresxx.imaging.overlay import Layer
from uniresxx.prediction import Prediction, Segment
from uniresxx.segmenters.asking import answer_phrases
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import AS_TYPED, Decoding, Question

EXPRESSIONS_AT_ONCE = 32  # bounds the memory for masks; expressions are independent, so answers do not change
PHOTOS_AT_ONCE = 4  # of `segment_many`, encoded together
_NO_PIXELS = np.zeros((0, 0, 3), dtype=np.uint8)
NOT_DRAWN = (
    "this model has seen drawn scenes only, and the picture looks like a photograph: its answers mean little; "
    "try it on a scene of `uniresxx data export-scenes`, or load a model trained on photographs"
)
logger = logging.getLogger("uniresxx")


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """The answer to one message of a conversation."""

    words: str  # in sentences, a line for each phrase
    segments: tuple[Segment, ...]  # one per phrase, its mask None where it is not there; none for plain words
    prediction: Prediction


class Predictor:
    """A model and its current photo, which is encoded once for all expressions.

    Example:
        >>> from uniresxx import Predictor
        >>> predictor = Predictor.from_pretrained("runs/demo")  # doctest: +SKIP
        >>> photo = predictor.set_image("street.jpg")  # doctest: +SKIP
        >>> wheel, cat = predictor.segment(["the left wheel of the red car", "the blue cat"])  # doctest: +SKIP
        >>> mask = wheel.mask  # bool (y, x) at the photo's size, None where it is not there  # doctest: +SKIP
        >>> predictor.chat("and its roof?").words  # doctest: +SKIP
    """

    def __init__(
        self,
        segmenter: Segmenter,
        decoding: Decoding | None = None,
        *,
        name: str = "",
        saw_only_scenes: bool = False,
    ) -> None:
        """Wrap a loaded model.

        Args:
            segmenter: the model.
            decoding: how answers are generated; None: with the model's own question about an expression.
            name: what a program calls the model.
            saw_only_scenes: whether it was trained on drawn scenes alone; the first picture that looks like a
                photograph is then answered with a warning in the log `uniresxx`, once.
        """
        self.segmenter = segmenter
        self.decoding = decoding or Decoding(template=segmenter.question_template)
        self.name = name
        self._warns = saw_only_scenes
        self._photo: np.ndarray | None = None
        self._encoded: Any = None
        self._turns: list[tuple[str, str]] = []  # questions and generated answers of `chat`

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
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
            path: a run folder (its best checkpoint), a `from_pretrained` folder, `hub:OWNER/NAME`, or
                `FAMILY:DIR_OR_HUB_ID` of a public model. None: the tiny model that comes with the package, which
                knows drawn scenes only.
            decoding: how answers are generated; None: with the model's own question about an expression.
            device: as in `load_segmenter`, like the next four; "auto" takes a GPU where there is one.
            dtype: "float32" or "bfloat16" for all weights; None: as saved.
            attention: backend of the language model; None: that of the checkpoint.
            device_map: "auto" spreads a model larger than one GPU; None: one device.
            quantization: "int8" or "nf4" of the language model; None: as saved.

        Raises:
            InputError: the path holds no complete checkpoint of a known model, or the device is not there.
        """
        from uniresxx.checkpoints.resolve import find, model_name
        from uniresxx.hub.card import saw_only_scenes
        from uniresxx.model.placement import placement_of
        from uniresxx.segmenters.load import load_source

        placement = placement_of(device, dtype, attention, device_map, quantization)
        source = find(path, lambda line: warnings.warn(line, stacklevel=5))
        return cls(
            load_source(source, placement),
            decoding,
            name=model_name(path),
            saw_only_scenes=source.family is None and saw_only_scenes(source.folders[0]),
        )

    @property
    def photo(self) -> np.ndarray | None:
        """The current photo, uint8 (y, x, 3) RGB, or None."""
        return self._photo

    def set_image(self, photo: Photo) -> np.ndarray:
        """Encode a photo; every later `segment` reuses the result. A conversation begins anew.

        Args:
            photo: a path, a PIL picture, the bytes of a picture file, or an array: uint8 (y, x, 3) RGB or (y, x)
                grey.

        Returns:
            The photo as uint8 (y, x, 3) RGB.

        Raises:
            InputError: the photo cannot be used; the previous one stays.
        """
        pixels = photo_pixels(photo)
        self._warn_of_photograph(pixels)
        encoded = self.segmenter.encode_images([pixels])
        self._photo, self._encoded = pixels, encoded
        self.reset_chat()
        return pixels

    def segment(
        self, texts: str | Question | Sequence[str | Question], *, instances: bool = False
    ) -> list[Prediction]:
        """Answer expressions about the current photo.

        Args:
            texts: one text or several. Text is plain text: `[SEG]` or `<image>` in it have no special meaning.
            instances: each prediction also has the things that its mask unites, as the model's head tells them apart.

        Returns:
            One prediction per text, in order.

        Raises:
            InputError: there is no photo yet, a text is empty or longer than MAX_CHARACTERS, or the model does not
                tell instances apart.
        """
        if self._photo is None:
            raise InputError("no photo yet: call set_image before segment")
        self._check_instances(instances)
        asked = _checked_texts(texts)
        found: list[Prediction] = []
        for start in range(0, len(asked), EXPRESSIONS_AT_ONCE):
            part = asked[start : start + EXPRESSIONS_AT_ONCE]
            found += answer_phrases(self.segmenter, self._encoded, [part], self.decoding)
        assert len(found) == len(asked), (len(found), len(asked))
        return [_about(one, text, self._photo, instances) for one, text in zip(found, asked, strict=True)]

    def segment_many(
        self,
        asked: Iterable[tuple[Photo, str | Question | Sequence[str | Question]]],
        *,
        instances: bool = False,
        on_bad_photo: Callable[[Photo, InputError], None] | None = None,
    ) -> Iterator[list[Prediction]]:
        """Answer expressions about many photos: decoded ahead in threads, encoded and answered a few together.

        The current photo and the conversation stay.

        Args:
            asked: photos, each with its text or texts; taken as they are needed.
            instances: as of `segment`.
            on_bad_photo: gets each photo that cannot be used, which then has no predictions; None: the error is
                raised.

        Yields:
            The predictions of each photo, in order. One of a photo that was given as a path reads it again to plot.

        Raises:
            InputError: as `set_image` and `segment`.
        """
        self._check_instances(instances)
        with closing(ahead(_prepared, asked, 2 * PHOTOS_AT_ONCE)) as decoded:
            while batch := list(islice(decoded, PHOTOS_AT_ONCE)):
                yield from self._answered(batch, instances, on_bad_photo)

    def _answered(
        self,
        batch: Sequence[_Asked],
        instances: bool,
        on_bad_photo: Callable[[Photo, InputError], None] | None,
    ) -> Iterator[list[Prediction]]:
        """The predictions of each photo of a batch."""
        good = [row for row in batch if row.error is None]
        found: Iterator[Prediction] = iter(())
        if good:
            for row in good:
                self._warn_of_photograph(row.pixels)
            encoded = self.segmenter.encode_images([row.pixels for row in good])
            found = iter(answer_phrases(self.segmenter, encoded, [row.texts for row in good], self.decoding))
        for row in batch:
            if row.error is not None and on_bad_photo is None:
                raise row.error
            if row.error is not None and on_bad_photo is not None:
                on_bad_photo(row.photo, row.error)
            shown = row.photo if isinstance(row.photo, str | os.PathLike) else row.pixels
            yield [_about(next(found), text, shown, instances) for text in row.texts]

    def chat(self, message: str) -> ChatAnswer:
        """Answer a message about the current photo, in sentences; earlier messages are remembered.

        The model gets the earlier turns that the message points back to ("its wheel", "the other one"), and no
        others. One phrase asked gives one segment, several give one each.

        Args:
            message: what is typed, such as "Where is the red car?".

        Raises:
            InputError: as `segment`.
        """
        if self._photo is None:
            raise InputError("no photo yet: call set_image before chat")
        text = str(checked(message))
        question = Question(text, relevant_turns(self._turns, text))
        decoding = replace(self.decoding, template=AS_TYPED)
        answer = answer_phrases(self.segmenter, self._encoded, [[question]], decoding)[0]
        self._turns.append((text, answer.text or ""))
        found = replace(answer, asked=text, photo=self._photo)
        return ChatAnswer(words_for(text, found), segments_of(text, found), found)

    def ask(self, question: str | Question, on_words: Callable[[str], None] | None = None) -> Prediction:
        """Answer one question about the current photo; the conversation of `chat` stays.

        Args:
            question: a text, with the earlier turns that it needs.
            on_words: called while the answer is generated, with its words so far.

        Raises:
            InputError: as `segment`.
        """
        if self._photo is None:
            raise InputError("no photo yet: call set_image before ask")
        asked = checked(question)
        on_text = None if on_words is None else lambda _, words: on_words(words)
        answer = answer_phrases(self.segmenter, self._encoded, [[asked]], self.decoding, on_text)[0]
        return _about(answer, asked, self._photo, instances=True)

    def reset_chat(self) -> None:
        """Forget the messages of `chat`; the photo stays."""
        self._turns.clear()

    def _check_instances(self, wanted: bool) -> None:
        if wanted and not self.segmenter.finds_instances:
            raise InputError(
                "this model gives one mask for all that an expression means and does not tell instances apart: "
                "leave out instances=True, or train with --model.instances 20"
            )

    def _warn_of_photograph(self, pixels: np.ndarray) -> None:
        """Say once that a model of drawn scenes is shown a photograph."""
        if self._warns:
            from uniresxx.data.scenes.looks import looks_drawn

            if not looks_drawn(pixels):
                self._warns = False
                logger.warning(NOT_DRAWN)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A photo of `segment_many`, decoded, with its checked texts; no texts where it cannot be used."""

    photo: Photo
    pixels: np.ndarray
    texts: list[str | Question]
    error: InputError | None = None


def _prepared(item: tuple[Photo, str | Question | Sequence[str | Question]]) -> _Asked:
    photo, texts = item
    asked = _checked_texts(texts)
    try:
        return _Asked(photo, photo_pixels(photo), asked)
    except InputError as error:
        return _Asked(photo, _NO_PIXELS, [], error)


def _checked_texts(texts: str | Question | Sequence[str | Question]) -> list[str | Question]:
    return [checked(text) for text in ([texts] if isinstance(texts, str | Question) else texts)]


def _about(found: Prediction, asked: str | Question, photo: Photo, instances: bool) -> Prediction:
    """The prediction with what was asked about which photo."""
    text = asked.text if isinstance(asked, Question) else asked
    return replace(found, asked=text, photo=photo, instances=found.instances if instances else ())


def layers_of(texts: Sequence[str], found: Sequence[Prediction]) -> Iterator[Layer]:
    """What `draw_overlay` needs, masks decoded one at a time; a layer per phrase of a longer answer."""
    for text, prediction in zip(texts, found, strict=True):
        yield from replace(prediction, asked=text).layers()
