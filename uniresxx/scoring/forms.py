"""The forms in which programs write their answers, as (expression id, line of a predictions.jsonl).

- Ours: an object with `expression_id`, `rejected` and `mask`. Where `rejected` is left out, a null mask means it.
- COCO results: `segmentation` (run-length code or polygons) and `score`; the results of one expression are united.
- X-SAM's predictions.json: `pred_mask`.
- lmms-eval's log of samples: `resps`, whose text is JSON with `masks` and `scores`; no mask means rejected.

The last three name an expression only where somebody wrote its id: as `expression_id`, or as the `image_id`, the
`sample_id`, the `doc_id` or inside `doc`. Numbers there count the rows of another program's data set; they are
refused with a line that says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.scoring.problems import Problems
from uniresxx.types import RLE

Line = tuple[str, str, Mapping[str, Any]]  # place, expression id, object
Sizes = Mapping[str, tuple[int, int]]
_RULE_OF_COCO = "answers united from COCO results: no box, category or score threshold is applied"
_FROM_MASK = "lines without `rejected`: rejected where `mask` is null"
_FORCED = "lines with `decoding` forced: [SEG] was given, so nothing was ever rejected"
_EMPTY_FLAG = "lines with `rejected` false and `mask` null: answered, with an empty mask"


def lines_of(values: Iterable[tuple[str, Any]], sizes: Sizes, problems: Problems) -> Iterator[Line]:
    """(place, expression id, line) of every value; what has no id is a problem.

    Args:
        values: (place, value), as `json_values` gives them.
        sizes: the photo's (height, width) by expression id.
        problems: notes values without an id, and what is assumed.
    """
    results: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for place, value in values:
        if not isinstance(value, dict):
            problems.add(
                "without id", f"{place}: `expression_id` is missing; expected an object, not {_short(value)}"
            )
            continue
        form = _form_of(value)
        name = _name_of(value, sizes)
        if name is None:
            problems.add("without id", f"{place}: {_missing_id(value, form)}")
        elif form == "COCO":
            results.setdefault(name, []).append((place, value))
        elif form in _LINES:
            try:
                yield place, name, _LINES[form](value)
            except InputError as error:
                problems.add("wrong values", f"{place}: {error}")
        else:
            yield place, name, _own(value, problems)
    for name, found in results.items():
        try:
            line = _of_results([value for _, value in found], sizes.get(name))
        except InputError as error:
            problems.add("wrong values", f"{found[0][0]}: {error}")
            continue
        problems.assumed[_RULE_OF_COCO] += 1
        yield found[0][0], name, line


def _short(value: Any) -> str:
    return "a list" if isinstance(value, list) else repr(value)[:30]


def _form_of(value: Mapping[str, Any]) -> str:
    if "mask" in value or "rejected" in value:
        return "ours"
    if "segmentation" in value:
        return "COCO"
    if "pred_mask" in value:
        return "X-SAM"
    return "lmms-eval" if "resps" in value or "filtered_resps" in value else "ours"


def _name_of(value: Mapping[str, Any], known: Collection[str]) -> str | None:
    """The expression id; of other programs' keys only one that holds an id of the benchmark."""
    name = value.get("expression_id")
    if isinstance(name, str):
        return name
    doc = value.get("doc")
    other = doc.get("expression_id") if isinstance(doc, dict) else None
    candidates = (other, *(value.get(key) for key in ("image_id", "sample_id", "doc_id", "id")))
    return next((name for name in candidates if isinstance(name, str) and name in known), None)


def _missing_id(value: Mapping[str, Any], form: str) -> str:
    if form != "ours":
        return (
            f"an answer in the form of {form} without `expression_id`: its own numbers say nothing about this "
            "benchmark; add the id to every answer (`uniresxx data dump` prints the ids)"
        )
    keys = ", ".join(f"`{key[:30]}`" for key in list(value)[:4])
    return f"`expression_id` is missing; the object has {keys or 'no key'}"


def _own(value: Mapping[str, Any], problems: Problems) -> Mapping[str, Any]:
    """A line of our form, with `rejected` where it follows from the mask."""
    if value.get("decoding") == "forced":
        problems.assumed[_FORCED] += 1
    if "rejected" not in value and "mask" in value:
        problems.assumed[_FROM_MASK] += 1
        return {**value, "rejected": value["mask"] is None}
    if value.get("rejected") is False and "mask" in value and value["mask"] is None:
        problems.assumed[_EMPTY_FLAG] += 1
    return value


def _of_results(results: list[Mapping[str, Any]], size: tuple[int, int] | None) -> dict[str, Any]:
    """The COCO results of one expression as one answer; one whose `segmentation` is null says: nothing there."""
    found = [result for result in results if result["segmentation"] is not None]
    if size is None or not found:  # of an unknown expression nothing is looked at
        return {"rejected": True, "mask": None}
    united = masks.union([masks.from_coco(result["segmentation"], *size) for result in found], size)
    return {"rejected": False, "mask": united, "score": _best([result.get("score") for result in found])}


def _best(scores: Iterable[Any]) -> float | None:
    numbers = [s for s in scores if isinstance(s, int | float) and not isinstance(s, bool)]
    return max(numbers, default=None)


def _of_xsam(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"rejected": False, "mask": value["pred_mask"]}


def from_response(response: Any) -> dict[str, Any]:
    """What a response says, JSON text with `masks` and `scores` or a list of masks alone: the union of its masks.

    No mask means rejected. Raises InputError where it is something else.
    """
    try:
        answer = json.loads(response) if isinstance(response, str) else None
    except (ValueError, RecursionError):
        answer = None
    found = answer.get("masks") if isinstance(answer, dict) else answer
    if not isinstance(found, list):
        raise InputError('the response is not JSON with {"masks": […], "scores": […]}')
    checked: list[RLE] = [masks.validate(mask) for mask in found]
    if not checked:
        return {"rejected": True, "mask": None}
    if any(mask["size"] != checked[0]["size"] for mask in checked):
        raise InputError("the masks of the response have different sizes")
    scores = answer.get("scores") if isinstance(answer, dict) else None
    united = masks.union(checked, checked[0]["size"])
    return {"rejected": False, "mask": united, "score": _best(scores if isinstance(scores, list) else ())}


def _of_sample(value: Mapping[str, Any]) -> dict[str, Any]:
    """A sample of lmms-eval: the text of its (first) response."""
    response = value.get("filtered_resps") or value.get("resps")
    while isinstance(response, list) and response:
        response = response[0]
    return from_response(response)


_LINES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "X-SAM": _of_xsam,
    "lmms-eval": _of_sample,
}
