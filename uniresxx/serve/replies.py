"""Predictions as the doors write them."""

from __future__ import annotations

import base64
import math

import numpy as np
from PIL import Image

from uniresxx.conversation.words import segments_of, words_for
from uniresxx.files import png_bytes
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.serve.schemas import Answer, ChatMasks, Found, MaskFormat, PhraseFound, ReplyMessage, RLEMask
from uniresxx.types import RLE


def finite(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def mask_of(rle: RLE, form: MaskFormat) -> str | RLEMask:
    """A mask as RLE, or as base64 of a grey PNG at the photo's size, 255 inside."""
    if form == "rle":
        return RLEMask(size=[int(side) for side in rle["size"]], counts=rle["counts"])
    picture = Image.fromarray(masks.decode(rle).astype(np.uint8) * 255)
    return base64.b64encode(png_bytes(picture)).decode()


def found_of(rle: RLE, score: float | None, form: MaskFormat) -> Found:
    """A mask with its box."""
    return Found(mask=mask_of(rle, form), box=box_of(rle), score=finite(score))


def box_of(rle: RLE) -> list[float]:
    """The tight box of a mask; zeros for one without a pixel, which the model never answers."""
    return [float(side) for side in masks.box_of(rle) or (0, 0, 0, 0)]


def separate(prediction: Prediction, form: MaskFormat) -> list[Found]:
    """A mask for each thing the model tells apart (instances, else phrases), else the one mask; none if rejected."""
    if prediction.rejected or prediction.rle is None:
        return []
    parts = [(one.rle, one.score) for one in prediction.instances]
    parts = parts or [(part.rle, part.score) for part in prediction.segments if part.rle is not None]
    return [found_of(rle, score, form) for rle, score in parts or [(prediction.rle, prediction.score)]]


def phrase_of(phrase: str, rle: RLE | None, score: float | None, form: MaskFormat) -> PhraseFound:
    """A phrase with its mask, or without one."""
    if rle is None:
        return PhraseFound(phrase=phrase, mask=None, box=None, score=None)
    return PhraseFound(phrase=phrase, mask=mask_of(rle, form), box=box_of(rle), score=finite(score))


def chat_reply(asked: str, prediction: Prediction, form: MaskFormat) -> ReplyMessage:
    """The answer to a message: as generated, in sentences, and the mask of each phrase."""
    phrases = [phrase_of(part.phrase, part.rle, part.score, form) for part in segments_of(asked, prediction)]
    inside = ChatMasks(words=words_for(asked, prediction), phrases=phrases)
    return ReplyMessage(content=prediction.text or "", uniresxx=inside)


def answer_of(prompt: str, prediction: Prediction, form: MaskFormat) -> Answer:
    """Everything known of one prompt."""
    rle = None if prediction.rejected else prediction.rle
    several = prediction.segments if len(prediction.segments) > 1 else ()
    return Answer(
        prompt=prompt,
        rejected=rle is None,
        mask=None if rle is None else mask_of(rle, form),
        box=None if rle is None else box_of(rle),
        score=finite(prediction.score),
        p_absent=finite(prediction.p_absent),
        text=prediction.text,
        phrases=[phrase_of(part.phrase, part.rle, part.score, form) for part in several],
        instances=[found_of(one.rle, one.score, form) for one in prediction.instances] if rle else [],
    )
