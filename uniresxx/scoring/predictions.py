"""Answers of any model on disk, read one by one; what does not fit is listed.

predictions.jsonl has one line per expression, each flushed when it is written: `expression_id`, `rejected`, `mask`
(COCO RLE at the photo's size, or null), `mask_if_forced` (optional), `score`, `p_absent` (numbers or null), `text`
(or null), `truncated` (only where true), `instances` (`mask` and `score` of each thing that `mask` unites, where the
model tells them apart). Unknown keys are ignored. A line with `unanswered`, a reason, is no answer: the photo could
not be read. `decoding` is there where it was forced.

`forms` has the other forms of answers that are read, `json_values` the ways in which a file may hold them.

A folder of PNG masks at the photos' sizes serves as well, `<expression_id>.png`: nested as the id is
(`refcoco/val/17.png`), or with `__` for `/` (`refcoco__val__17.png`). Grey value 0 is background, anything above is
foreground. A mask without foreground is an empty mask, not a rejection (`--rejected empty_mask` makes it one).
Other files are ignored. What has to be assumed about a file is counted in `Problems.assumed`.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedWriter
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.prediction import Instance, Prediction, Segment
from uniresxx.scoring.forms import lines_of
from uniresxx.scoring.json_values import json_values, parse
from uniresxx.scoring.png_masks import from_png, png_files
from uniresxx.scoring.problems import Problems
from uniresxx.types import RLE, ImageRecord

UNANSWERED = "unanswered"  # key of the reason in the line of an expression whose photo could not be read


class JsonlWriter:
    """Appends JSON objects to a file, each line flushed, so that an interruption loses at most one line.

    Opening an existing file cuts off a last line that was not written to its end; `kept` are the objects before it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept: list[dict[str, Any]] = []
        end = 0
        if path.exists():
            self.kept, end = whole_lines(path)
            with path.open("r+b") as file:
                file.truncate(end)
        self._file: BufferedWriter = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object; ValueError for NaN, OSError when the disk is full."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
        self._file.write(line.encode())
        self._file.flush()

    def write_all(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append objects together, and return once the disk has them. Raises as `write`."""
        lines = [json.dumps(r, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for r in records]
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSONL file and the byte where they end, before a last line that was cut off.

    The file is only read. Raises InputError for damage before the last line.
    """
    kept: list[dict[str, Any]] = []
    end = 0
    for value, start, length in json_lines(path):
        kept.append(value)
        end = start + length
    return kept, end


def json_lines(path: Path) -> Iterator[tuple[dict[str, Any], int, int]]:
    """(object, its first byte, its length with the line's end) of a JSONL file that `JsonlWriter` writes.

    A last line that was cut off is left out. Raises InputError for damage before it.
    """
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                value = parse(line)
            except ValueError:
                if file.read(1):
                    raise InputError(
                        f"{path}:{number}: not JSON, and not the last line: the file is damaged; use --fresh"
                    ) from None
                break
            if not line.endswith(b"\n"):
                break  # the writer ends every line; this one is written again
            if not isinstance(value, dict):
                raise InputError(f"{path}:{number}: expected an object per line; use --fresh to start over")
            yield value, start, len(line)
            start += len(line)


def to_json(expression_id: str, prediction: Prediction) -> dict[str, Any]:
    """The line of one prediction."""
    line: dict[str, Any] = {
        "expression_id": expression_id,
        "rejected": prediction.rejected,
        "mask": prediction.rle,
        "score": prediction.score,
        "p_absent": prediction.p_absent,
        "text": prediction.text,
    }
    if prediction.mask_if_forced is not None:
        line["mask_if_forced"] = prediction.mask_if_forced
    if prediction.truncated:
        line["truncated"] = True
    if prediction.instances:
        line["instances"] = [{"mask": i.rle, "score": i.score} for i in prediction.instances]
    if prediction.segments:
        line["segments"] = [
            {"phrase": s.phrase, "mask": s.rle, "score": s.score} | ({"span": list(s.span)} if s.span else {})
            for s in prediction.segments
        ]
    return line


def from_json(line: Any, size: tuple[int, int] | None = None) -> Prediction:
    """Parse and check one line; InputError says what is wrong. `size` is the photo's (height, width)."""
    if not isinstance(line, dict):
        raise InputError("expected a JSON object per line")
    rejected = line.get("rejected")
    if not isinstance(rejected, bool):
        raise InputError(f"`rejected` must be true or false, not {reprlib.repr(rejected)}")
    if "mask" not in line and not rejected:
        raise InputError("`mask` is missing although `rejected` is false")
    text = line.get("text")
    if text is not None and not isinstance(text, str):
        raise InputError(f"`text` must be a string, not {type(text).__name__}")
    return Prediction(
        rejected=rejected,
        rle=_mask(line.get("mask"), "mask", size),
        text=text,
        score=_number(line.get("score"), "score"),
        p_absent=_number(line.get("p_absent"), "p_absent"),
        mask_if_forced=_mask(line.get("mask_if_forced"), "mask_if_forced", size),
        segments=tuple(_segment(s, size) for s in _list_of(line, "segments", "{phrase, mask, score}")),
        instances=tuple(_instance(i, size) for i in _list_of(line, "instances", "{mask, score}")),
        truncated=line.get("truncated") is True,
    )


def _list_of(line: Mapping[str, Any], key: str, what: str) -> list[Any]:
    value = line.get(key) or []
    if not isinstance(value, list):
        raise InputError(f"`{key}` must be a list of {what}")
    return value


def _instance(value: Any, size: tuple[int, int] | None) -> Instance:
    mask = _mask(value.get("mask"), "instances.mask", size) if isinstance(value, dict) else None
    if mask is None:
        raise InputError("`instances` must be a list of {mask, score}")
    return Instance(mask, _number(value.get("score"), "instances.score"))


def _segment(value: Any, size: tuple[int, int] | None) -> Segment:
    if not isinstance(value, dict) or not isinstance(value.get("phrase"), str):
        raise InputError("`segments` must be a list of {phrase, mask, score}")
    mask = _mask(value.get("mask"), "segments.mask", size)
    return Segment(
        value["phrase"], mask, _number(value.get("score"), "segments.score"), _span(value.get("span"))
    )


def _span(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(place) is int for place in value):
        return value[0], value[1]
    raise InputError(
        f"`segments.span` must be the first and last place in the text, not {reprlib.repr(value)}"
    )


def _mask(value: Any, key: str, size: tuple[int, int] | None) -> RLE | None:
    if value is None:
        return None
    try:
        return masks.validate(value, size)
    except InputError as error:
        raise InputError(f"`{key}`: {error}") from None


def _number(value: Any, key: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < math.inf:
        try:
            return float(value)
        except OverflowError:  # a whole number of hundreds of digits
            pass
    raise InputError(f"`{key}` must be a finite number or null, not {reprlib.repr(value)}")


def sizes_of(records: Iterable[ImageRecord]) -> dict[str, tuple[int, int]]:
    """The photo's (height, width) by expression id."""
    return {e.expression_id: (record.height, record.width) for record in records for e in record.expressions}


def stream_predictions(
    path: Path,
    sizes: Mapping[str, tuple[int, int]],
    problems: Problems,
    prepare: Callable[[Prediction], Prediction] = lambda prediction: prediction,
) -> Iterator[tuple[str, Prediction]]:
    """Yield (expression id, answer) for every valid line or PNG, in the file's order.

    Args:
        path: a predictions.jsonl, another form of answers (`forms`), or a folder of PNGs; each answer is parsed and
            checked once and not kept.
        sizes: the photo's (height, width) by expression id (`sizes_of`).
        problems: notes what is left out: unreadable or truncated lines, unknown and repeated ids, masks that do not
            fit their photo, numbers that are none, what `prepare` refuses; and what is assumed.
        prepare: changes each answer, or refuses it with InputError.

    Raises:
        InputError: nothing can be read at all.
    """
    seen: set[str] = set()
    found: Iterable[tuple[str, str, Path | Mapping[str, Any]]]
    found = (
        png_files(path, sizes) if path.is_dir() else lines_of(json_values(path, problems), sizes, problems)
    )
    for place, name, content in found:
        reason = None if isinstance(content, Path) else content.get(UNANSWERED)
        if name not in sizes:
            problems.add("unknown ids", f"{place}: unknown expression_id {name[:100]!r}")
        elif name in seen:
            problems.add("duplicate ids", f"{place}: duplicate expression_id {name!r}")
        elif isinstance(reason, str):
            seen.add(name)
            problems.unanswered[name] = reason
        else:
            try:
                size = sizes[name]
                answer = prepare(
                    from_png(content, size, problems)
                    if isinstance(content, Path)
                    else from_json(content, size)
                )
            except InputError as error:
                problems.add("wrong values", f"{place}: {error}")
            else:
                seen.add(name)
                yield name, answer
