"""Checks of what users hand in: photos of any kind and texts. Errors: InputError, one line."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from uniresxx.errors import InputError
from uniresxx.imaging.decode import MAX_BYTES, MAX_PIXELS, decode_photo, read_photo, rgb_of
from uniresxx.text import clean_text, is_blank
from uniresxx.types import Question

MAX_CHARACTERS = 500  # of one expression (our choice: the longest of the public benchmarks has under 250)
MAX_ANSWER_CHARACTERS = 2000  # of one answer in a history (our choice: far more than 48 tokens spell)
SMALLEST_SIDE = 2  # pixels; a photo one pixel wide shows nothing that words could point at

Photo = str | os.PathLike[str] | Image.Image | np.ndarray | bytes


def photo_pixels(photo: Photo) -> np.ndarray:
    """A photo of any kind as uint8 (y, x, 3); InputError where it is none or too small."""
    pixels, name = _pixels_of(photo)
    if min(pixels.shape[:2]) < SMALLEST_SIDE:
        height, width = pixels.shape[:2]
        raise InputError(
            f"{name} is {width} x {height} pixels (width x height): too small to point at anything, "
            f"both sides need at least {SMALLEST_SIDE}"
        )
    return pixels


def checked(text: str | Question) -> str | Question:
    """The text as `clean_text` gives it; InputError where it is empty, too long or not a text."""
    if isinstance(text, Question):
        return Question(_checked_words(text.text), tuple(_checked_turn(turn) for turn in text.history))
    return _checked_words(text)


def _checked_turn(turn: tuple[str, str]) -> tuple[str, str]:
    """A turn of a history; its answer is what a model generated, so it may be empty and stays as it is."""
    if not isinstance(turn, Sequence) or isinstance(turn, str) or len(turn) != 2:
        raise InputError(f"a turn of a history must be a (question, answer) pair, not {turn!r:.80}")
    question, answer = turn
    words = _plain(answer, "an answer in a history")
    if len(words) > MAX_ANSWER_CHARACTERS:
        raise InputError(
            f"answer of {len(words)} characters ({words[:30]!r}…) in a history: "
            f"the cap is {MAX_ANSWER_CHARACTERS}"
        )
    return _checked_words(question), words


def _plain(text: str, name: str) -> str:
    """Text without half characters (bytes of the command line that are not UTF-8), which no tokenizer takes."""
    if not isinstance(text, str):
        raise InputError(f"{name} must be text, not {type(text).__name__}")
    return text.encode("utf-8", "replace").decode("utf-8")


def _checked_words(text: str) -> str:
    words = clean_text(_plain(text, "an expression"))
    if is_blank(words):
        raise InputError("empty expression: say what to segment, such as 'the left wheel of the red car'")
    if len(words) > MAX_CHARACTERS:
        raise InputError(
            f"expression of {len(words)} characters ({words[:30]!r}…): the cap is {MAX_CHARACTERS}"
        )
    return words


def _pixels_of(photo: Photo) -> tuple[np.ndarray, str]:
    """The photo as uint8 (y, x, 3) RGB and what an error calls it."""
    if isinstance(photo, Image.Image):
        return rgb_of(photo), "the picture"
    if isinstance(photo, np.ndarray):
        return _pixels_of_array(photo), "the array"
    if isinstance(photo, bytes | bytearray | memoryview):
        if len(photo) > MAX_BYTES:
            raise InputError(f"the picture is over the cap of {MAX_BYTES} bytes for a photo")
        return decode_photo(bytes(photo), "the picture"), "the picture"
    if isinstance(photo, str | os.PathLike):
        return read_photo(photo), os.fspath(photo)
    raise InputError(
        f"a photo is a path, a PIL picture, the bytes of a file or a uint8 array, not {type(photo).__name__}"
    )


def _pixels_of_array(photo: np.ndarray) -> np.ndarray:
    """Check an array: its own copy, so that a caller may reuse theirs."""
    if photo.dtype != np.uint8:
        raise InputError(f"a photo array must be uint8 (0 to 255), not {photo.dtype}")
    if photo.ndim == 2:
        photo = np.repeat(photo[:, :, None], 3, axis=2)
    if photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise InputError(f"a photo array must be (y, x, 3) RGB or (y, x) grey, not {photo.shape}")
    if photo.shape[0] * photo.shape[1] > MAX_PIXELS:
        raise InputError(
            f"the array of {photo.shape[1]} x {photo.shape[0]} pixels is over the cap of {MAX_PIXELS}"
        )
    return np.array(photo)
