"""Answers of any model on disk, read one by one; what does not fit is listed.

predictions.jsonl has one line per expression, each flushed when it is written: `expression_id`, `rejected`, `mask`
(COCO RLE at the photo's size, or null), `mask_if_forced` (optional), `score`, `p_absent` (numbers or null), `text`
(or null), `truncated` (only where true), `instances` (`mask` and `score` of each thing that `mask` unites, where the
model tells them apart). Unknown keys are ignored.

A folder of PNG masks at the photos' sizes serves as well, `<expression_id>.png`: nested as the id is
(`refcoco/val/17.png`), or with `__` for `/` (`refcoco__val__17.png`). Grey value 0 is background, anything above is
foreground. A mask without foreground is an empty mask, not a rejection (`--rejected empty_mask` makes it one).
Other files are ignored.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError
from uniresxx.imaging import decode as images
from uniresxx.imaging import masks
from uniresxx.types import RLE, ImageRecord, Instance, Prediction, Segment

_SHOWN_PROBLEMS = 8


def _no_constants(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _parse(line: bytes) -> Any:
    """One JSON value; NaN and Infinity, which Python would take, are errors as in JSON itself. ValueError."""
    try:
        return json.loads(line, parse_constant=_no_constants)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
                break  # the writer ends every line; this one is written again
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
    if prediction.truncated:
        line["truncated"] = True
    if prediction.instances:
        line["instances"] = [{"mask": i.mask, "score": i.score} for i in prediction.instances]
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
        raise InputError(f"`rejected` must be true or false, not {reprlib.repr(rejected)}")
    if "mask" not in line and not rejected:
        raise InputError("`mask` is missing although `rejected` is false")
    text = line.get("text")
    if text is not None and not isinstance(text, str):
        raise InputError(f"`text` must be a string, not {type(text).__name__}")
    return Prediction(
        rejected=rejected,
        mask=_mask(line.get("mask"), "mask", size),
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
    return Segment(value["phrase"], mask, _number(value.get("score"), "segments.score"))


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


@dataclass(slots=True)
class Problems:
    """What does not fit in a predictions file: how many problems of each kind, the first few in words."""

    kinds: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)
    entries: int = 0

    def add(self, kind: str, text: str, count: int = 1) -> None:
        """Note one problem that stands for `count` expressions or lines."""
        self.kinds[kind] += count
        self.entries += 1
        if len(self.first) < _SHOWN_PROBLEMS:
            self.first.append(text)

    def add_missing(self, missing: Collection[str], total: int) -> None:
        """Note the expressions without an answer, if any."""
        if missing:
            first = next(iter(missing))
            text = f"{len(missing)} of {total} expressions missing, first {first[:100]!r}"
            self.add("missing", text, len(missing))

    def __bool__(self) -> bool:
        return self.entries > 0

    def __str__(self) -> str:
        more = f"; and {self.entries - len(self.first)} more" if self.entries > len(self.first) else ""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        return f"{'; '.join(self.first)}{more} (in all: {counts})"


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
        path: a predictions.jsonl or a folder of PNGs; each line is parsed and checked once and not kept.
        sizes: the photo's (height, width) by expression id (`sizes_of`).
        problems: notes what is left out: unreadable or truncated lines, unknown and repeated ids, masks that do not
            fit their photo, numbers that are none, what `prepare` refuses.
        prepare: changes each answer, or refuses it with InputError.

    Raises:
        InputError: nothing can be read at all.
    """
    seen: set[str] = set()
    for place, name, content in _png_files(path, sizes) if path.is_dir() else _lines(path, problems):
        if name not in sizes:
            problems.add("unknown ids", f"{place}: unknown expression_id {name[:100]!r}")
        elif name in seen:
            problems.add("duplicate ids", f"{place}: duplicate expression_id {name!r}")
        else:
            try:
                read = _from_png if isinstance(content, Path) else from_json
                answer = prepare(read(content, sizes[name]))
            except InputError as error:
                problems.add("wrong values", f"{place}: {error}")
            else:
                seen.add(name)
                yield name, answer


def _lines(path: Path, problems: Problems) -> Iterator[tuple[str, str, Any]]:
    """(place, expression id, object) per line of a predictions.jsonl; what has no id is a problem."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a predictions.jsonl") from None
    with file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            place = f"line {number}"
            try:
                line = _parse(raw)
            except ValueError as error:
                why = "" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else f" ({error})"
                cut = "" if raw.endswith(b"\n") else " (truncated last line)"
                problems.add("not JSON", f"{place}: not JSON{why or cut}")
                continue
            name = line.get("expression_id") if isinstance(line, dict) else None
            if isinstance(name, str):
                yield place, name, line
            else:
                problems.add("without id", f"{place}: `expression_id` is missing")


def _png_files(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, str, Path]]:
    """(place, expression id, file) per PNG of a folder; InputError where it holds none."""
    found = False
    for root, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if file.startswith(".") or not file.lower().endswith(".png"):
                continue
            found = True
            path = Path(root, file)
            place = path.relative_to(folder).as_posix()
            name = place[: -len(".png")]
            yield place, name if name in sizes else name.replace("__", "/"), path
    if not found:
        raise InputError(
            f"{folder} holds no PNG: give a predictions.jsonl, or a folder of <expression_id>.png"
        )


def _from_png(path: Path, size: tuple[int, int]) -> Prediction:
    mask = images.read_mask(path)
    if mask.shape != size:
        raise InputError(
            f"mask is {mask.shape[0]} x {mask.shape[1]} (height x width), the photo is {size[0]} x {size[1]}"
        )
    return Prediction(rejected=False, mask=masks.encode(mask), text=None)
