"""Answers as JSON text, which is what a harness passes from a model to a task.

`masks` (COCO run lengths at the photo's size), `boxes` (around them, corners as shares of the photo's width and
height) and `scores` are what lmms-eval's own segmentation tasks read; no mask means that nothing is there. The other
keys are those of a line of predictions.jsonl, and optional.
"""

from __future__ import annotations

import json
from typing import Any

from uniresxx.errors import InputError
from uniresxx.prediction import Prediction
from uniresxx.scoring.forms import from_response
from uniresxx.scoring.json_values import parse
from uniresxx.scoring.predictions import from_json, to_json

_KEPT = (
    "rejected",
    "p_absent",
    "text",
    "mask_if_forced",
    "truncated",
)  # keys of a line that an answer has too


def answer_text(prediction: Prediction) -> str:
    """A prediction as the JSON text of its answer: one mask, or none where it is rejected."""
    rle = None if prediction.rejected else prediction.rle
    line = to_json("", prediction)
    answer = {
        "masks": [] if rle is None else [rle],
        "boxes": [] if rle is None else [_shares(prediction)],
        "scores": [] if rle is None else [prediction.score],
        **{key: line[key] for key in _KEPT if key in line},
    }
    return json.dumps(answer, ensure_ascii=False)


def _shares(prediction: Prediction) -> dict[str, float]:
    """The box of a mask, corners as shares of the photo; all 0 where the mask has no pixel."""
    assert prediction.rle is not None
    height, width = prediction.rle["size"]
    x0, y0, x1, y1 = prediction.box or (0, 0, 0, 0)
    return {"x_min": x0 / width, "y_min": y0 / height, "x_max": x1 / width, "y_max": y1 / height}


def line_of(expression_id: str, answer: str, size: tuple[int, int]) -> dict[str, Any]:
    """The line of predictions.jsonl that an answer of any model stands for.

    Several masks are united. An answer that cannot be read, or whose mask does not fit the photo, is wrong and no
    rejection: its line has no mask, the answer as its text, and the reason under `problem`.

    Args:
        answer: what the model said: JSON as above, or a list of masks alone.
        size: (height, width) of the photo.
    """
    line: dict[str, Any] = {"expression_id": expression_id, "rejected": False, "mask": None, "score": None}
    try:
        found = line | _read(answer)
        from_json(found, size)
        return found
    except (InputError, ValueError) as error:
        return line | {"p_absent": None, "text": answer, "problem": str(error)}


def _read(answer: str) -> dict[str, Any]:
    """The keys of a line that an answer holds; InputError or ValueError where it is no such JSON."""
    line = {"p_absent": None, "text": None, **from_response(answer)}
    found = parse(answer.encode())
    return line | {key: found[key] for key in _KEPT if key in found}
