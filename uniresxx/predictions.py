"""predictions.jsonl: one line per expression, appended and flushed line by line, read back with every doubt
listed.

Keys: `expression_id`, `rejected`, `mask` (COCO RLE at the photo's size, or null), `mask_if_forced`
(optional), `score`, `p_absent` (numbers or null), `text` (or null). Unknown keys are ignored, so the format can grow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any

from uniresxx import masks
from uniresxx.errors import InputError
from uniresxx.types import RLE, ImageRecord, Prediction, Segment

_SHOWN_PROBLEMS = 8


def _no_constants(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _parse(line: bytes) -> Any:
    """One JSON value; NaN and Infinity, which Python would take, are errors as in JSON itself."""
    return json.loads(line, parse_constant=_no_constants)


class JsonlWriter:
    """Appends JSON objects to a file, each line flushed, so that whatever stops the program loses at most one
    line.

    Opening an existing file cuts off a last line that was not written to its end; `kept` are the objects
    before it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept: list[dict[str, Any]] = []
        end = 0
        if path.exists():
            self.kept, end = _whole_lines(path)
            with path.open("r+b") as file:
                file.truncate(end)
        self._file: BufferedWriter = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object; ValueError for NaN, OSError when the disk is full."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
        self._file.write(line.encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file; what was written is already on its way to the disk."""
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSONL file and the byte where they end; InputError for damage before the last line."""
    kept: list[dict[str, Any]] = []
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                value = _parse(line)
            except ValueError:
                if file.read(1):
                    raise InputError(
                        f"{path}:{number}: not JSON, and not the last line: the file is damaged; use --fresh"
                    ) from None
                break
            if not line.endswith(b"\n"):
                break  # whole by chance, but the writer ends every line; written again on continuing
            if not isinstance(value, dict):
                raise InputError(f"{path}:{number}: expected an object per line; use --fresh to start over")
            kept.append(value)
            end += len(line)
    return kept, end


def to_json(expression_id: str, prediction: Prediction) -> dict[str, Any]:
    """The line of one prediction."""
    line: dict[str, Any] = {
        "expression_id": expression_id,
        "rejected": prediction.rejected,
        "mask": prediction.mask,
        "score": prediction.score,
        "p_absent": prediction.p_absent,
        "text": prediction.text,
    }
    if prediction.mask_if_forced is not None:
        line["mask_if_forced"] = prediction.mask_if_forced
    if prediction.segments:
        line["segments"] = [
            {"phrase": s.phrase, "mask": s.mask, "score": s.score} for s in prediction.segments
        ]
    return line


def from_json(line: Any, size: tuple[int, int] | None = None) -> Prediction:
    """Parse and check one line; InputError says what is wrong. `size` is the photo's (height, width)."""
    if not isinstance(line, dict):
        raise InputError("expected a JSON object per line")
    rejected = line.get("rejected")
    if not isinstance(rejected, bool):
        raise InputError(f"`rejected` must be true or false, not {rejected!r}")
    if "mask" not in line and not rejected:
        raise InputError("`mask` is missing although `rejected` is false")
    text = line.get("text")
    if text is not None and not isinstance(text, str):
        raise InputError(f"`text` must be a string, not {type(text).__name__}")
    segments = line.get("segments") or ()
    return Prediction(
        rejected=rejected,
        mask=_mask(line.get("mask"), "mask", size),
        text=text,
        score=_number(line.get("score"), "score"),
        p_absent=_number(line.get("p_absent"), "p_absent"),
        mask_if_forced=_mask(line.get("mask_if_forced"), "mask_if_forced", size),
        segments=tuple(_segment(s, size) for s in segments),
    )


def _segment(value: Any, size: tuple[int, int] | None) -> Segment:
    if not isinstance(value, dict) or not isinstance(value.get("phrase"), str):
        raise InputError("`segments` must be a list of {phrase, mask, score}")
    mask = _mask(value.get("mask"), "segments.mask", size)
    return Segment(value["phrase"], mask, _number(value.get("score"), "segments.score"))


def _mask(value: Any, key: str, size: tuple[int, int] | None) -> RLE | None:
    if value is None:
        return None
    try:
        masks.validate(value, size)
    except InputError as error:
        raise InputError(f"`{key}`: {error}") from None
    return value


def _number(value: Any, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"`{key}` must be a finite number or null, not {value!r}")
    return float(value)


def read_predictions(path: Path, records: Iterable[ImageRecord]) -> dict[str, Prediction]:
    """Predictions by expression id for exactly the expressions of `records`.

    InputError lists what is wrong: unreadable or truncated lines, unknown, duplicate and missing ids, masks
    that do not fit their photo, numbers that are none. Nothing is guessed and nothing is left out silently.
    """
    sizes = {e.expression_id: (r.height, r.width) for r in records for e in r.expressions}
    found: dict[str, Prediction] = {}
    problems: list[str] = []
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a predictions.jsonl") from None
    with file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                line = _parse(raw)
                name = line.get("expression_id") if isinstance(line, dict) else None
                if not isinstance(name, str):
                    raise InputError("`expression_id` is missing")
                if name not in sizes:
                    raise InputError(f"unknown expression_id {name!r}")
                if name in found:
                    raise InputError(f"duplicate expression_id {name!r}")
                found[name] = from_json(line, sizes[name])
            except InputError as error:
                problems.append(f"line {number}: {error}")
            except ValueError:
                cut = "" if raw.endswith(b"\n") else " (truncated last line)"
                problems.append(f"line {number}: not JSON{cut}")
    missing = [name for name in sizes if name not in found]
    if missing:
        problems.append(f"{len(missing)} of {len(sizes)} expressions missing, first {missing[0]!r}")
    if problems:
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise InputError(f"{path}: {'; '.join(problems[:_SHOWN_PROBLEMS])}{more}")
    return found
