"""The doors for masks: vLLM-Omni's multipart form, and JSON for several photos and prompts."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, File, Form, Response, UploadFile

from uniresxx.imaging.geometry import box_iou
from uniresxx.serve.refused import Refused
from uniresxx.serve.replies import answer_of, separate
from uniresxx.serve.schemas import (
    REFUSALS,
    Found,
    ImageAnswers,
    MaskFormat,
    SegmentAnswer,
    Segmentations,
    SegmentRequest,
)
from uniresxx.serve.service import Service

MAX_BOXES = 100
OVERLAP = 0.5  # IoU from which a mask is the thing in a negative box (our choice)
NOTE = "x-uniresxx-note"
TEXT_ONLY = "this model finds things by words: add prompt, such as prompt='the red car'"


def doors(service: Service) -> APIRouter:
    """The routes of a service."""
    router = APIRouter(responses=REFUSALS)

    @router.post("/v1/images/segmentations")
    async def segmentations(
        response: Response,
        image: Annotated[UploadFile, File(description="JPEG, PNG or WEBP")],
        prompt: Annotated[str | None, Form(examples=["the left wheel of the red car"])] = None,
        boxes: Annotated[
            str | None, Form(description="JSON: [[x0, y0, x1, y1], …]", examples=["[[12, 34, 56, 78]]"])
        ] = None,
        box_labels: Annotated[
            str | None, Form(description="JSON: 1 or 0 for each box; 0: not this thing", examples=["[0]"])
        ] = None,
        mask_format: Annotated[MaskFormat, Form()] = "png",
    ) -> Segmentations:
        """The masks of a prompt in one photo; form and answer are those of vLLM-Omni.

        The model takes words alone. Of `boxes`, those labelled 0 remove masks whose box overlaps them (IoU of at
        least 0.5); those labelled 1 change nothing, which the header x-uniresxx-note says. Boxes without a prompt
        are refused.
        """
        negative, ignored = _labelled(boxes, box_labels)
        if prompt is None:
            raise Refused(400, TEXT_ONLY)
        data = await image.read()
        answered = await service.answer(data, "image", [prompt], service.question_decoding)
        found = await asyncio.to_thread(separate, answered.predictions[0], mask_format)
        if ignored:
            response.headers[NOTE] = "boxes labelled 1 are not used: this model finds things by words"
        return Segmentations(data=[one for one in found if not _is_any(one, negative)])

    @router.post("/v1/segment")
    async def segment(request: SegmentRequest) -> SegmentAnswer:
        """Several prompts about several photos; every prompt gets one answer."""
        settings = service.settings
        if len(request.images) > settings.max_photos:
            raise Refused(400, f"images: {len(request.images)} photos, at most {settings.max_photos}")
        for k, ask in enumerate(request.images):
            if len(ask.prompts) > settings.max_prompts:
                raise Refused(
                    400, f"images[{k}].prompts: {len(ask.prompts)} prompts, at most {settings.max_prompts}"
                )
        names = [f"images[{k}].image" for k in range(len(request.images))]
        files = [
            await service.bytes_of(ask.image, name) for ask, name in zip(request.images, names, strict=True)
        ]
        asks = [
            (data, name, ask.prompts) for data, name, ask in zip(files, names, request.images, strict=True)
        ]
        found = await service.answer_many(asks, service.question_decoding)

        def written() -> list[ImageAnswers]:
            return [
                ImageAnswers(
                    width=one.width,
                    height=one.height,
                    answers=[
                        answer_of(prompt, prediction, request.mask_format)
                        for prompt, prediction in zip(ask.prompts, one.predictions, strict=True)
                    ],
                )
                for ask, one in zip(request.images, found, strict=True)
            ]

        return SegmentAnswer(model=settings.model_name, data=await asyncio.to_thread(written))

    return router


def _labelled(boxes: str | None, labels: str | None) -> tuple[list[list[float]], bool]:
    """The negative boxes, and whether there are positive ones. Refused where a box or a label is none."""
    if boxes is None:
        if labels is not None:
            raise Refused(400, "box_labels: there are no boxes")
        return [], False
    given = _json_list("boxes", boxes)
    if len(given) > MAX_BOXES:
        raise Refused(400, f"boxes: {len(given)} boxes, at most {MAX_BOXES}")
    checked = [_box(value, k) for k, value in enumerate(given)]
    signs = [1] * len(checked) if labels is None else _json_list("box_labels", labels)
    if len(signs) != len(checked) or any(isinstance(sign, bool) or sign not in (0, 1) for sign in signs):
        raise Refused(400, f"box_labels: needs 0 or 1 for each of the {len(checked)} boxes")
    return [box for box, sign in zip(checked, signs, strict=True) if sign == 0], 1 in signs


def _json_list(name: str, text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise Refused(400, f"{name}: not a JSON list")
    return value


def _box(value: Any, place: int) -> list[float]:
    """A box of four finite numbers with an area."""
    numbers = isinstance(value, list) and len(value) == 4
    numbers = numbers and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    if not numbers or not all(abs(x) < 1e9 and math.isfinite(x) for x in value):
        raise Refused(400, f"boxes[{place}]: not [x0, y0, x1, y1] in pixels")
    x0, y0, x1, y1 = (float(x) for x in value)
    if x1 <= x0 or y1 <= y0:
        raise Refused(400, f"boxes[{place}]: needs x1 > x0 and y1 > y0")
    return [x0, y0, x1, y1]


def _is_any(found: Found, boxes: list[list[float]]) -> bool:
    """Whether a mask is what one of the boxes shows."""
    return bool(boxes) and bool((box_iou(np.array([found.box]), np.array(boxes)) >= OVERLAP).any())
