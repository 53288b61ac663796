"""The output of a run: log.jsonl, the curve picture, the progress bar or plain lines."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from uniresxx.files import write_atomic

# Keys of a log line that are no loss term.
FIXED = (
    "step", "loss", "loss_hex", "lr", "grad_norm", "expressions", "expressions_per_s", "seconds", "skipped",
    "drawn", "text_tokens_per_s", "visual_tokens_per_s", "mfu", "data_wait", "memory_gb", "eval",
)  # fmt: skip
_RATE_WINDOW = 20  # steps
_BAR = 24  # columns of the progress bar
_CURVE_POINTS = 2000


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, up to one that a crash has cut off."""
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def trim_log(path: Path, step: int) -> None:
    """Drop the lines after `step`: what a killed run did after its last checkpoint is done again."""
    if path.exists():
        kept = [record for record in read_log(path) if record["step"] <= step]
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def print_line(line: str) -> None:
    """Print a line; a closed pipe (`| head`) or a lost terminal does not stop the program."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        mute()


def mute() -> None:
    """Drop all further output."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class _Console(Console):
    """A console that a closed pipe does not end."""

    def on_broken_pipe(self) -> None:
        mute()


class RunLog:
    """Appends one JSON object per step."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line; numbers that are not finite become null."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        self._stream.write(json.dumps(clean, allow_nan=False) + "\n")
        self._stream.flush()

    def flush(self) -> None:
        """Flush everything to the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def smooth(values: Sequence[float | None], window: int) -> list[float]:
    """Running mean of the last `window` values without the gaps (NaN before the first)."""
    recent: deque[float] = deque(maxlen=window)
    means: list[float] = []
    for value in values:
        if value is not None:
            recent.append(value)
        means.append(sum(recent) / len(recent) if recent else math.nan)
    return means


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The lines of the steps, without those of validation, which have no loss."""
    return [record for record in read_log(path) if "loss" in record]


def draw_curve(log: Path, picture: Path) -> None:
    """Loss terms (smoothed over a fiftieth of the run, logarithmic), validation scores, learning rate by step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [record for record in read_steps(log) if not record["skipped"]]
    if not records:
        return
    validated = [record for record in read_log(log) if "eval" in record]
    steps = [record["step"] for record in records]
    window, stride = max(len(records) // 50, 1), max(len(records) // _CURVE_POINTS, 1)
    names = list(dict.fromkeys(key for record in records for key in record if key not in FIXED))
    figure = Figure(figsize=(8, 6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ratios = (4, 2, 1) if validated else (4, 1)
    above, *between, below = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    for name in ["loss", *names]:
        values = smooth([record.get(name) for record in records], window)
        above.plot(steps[::stride], values[::stride], label=name, linewidth=2 if name == "loss" else 1)
    above.set_yscale("log", nonpositive="mask")
    above.set_ylabel(f"loss terms, mean of {window} steps")
    above.grid(alpha=0.3)
    above.legend(ncols=4, fontsize="small")
    for axis in between:
        _draw_scores(axis, validated)
    below.plot(steps[::stride], [record["lr"] for record in records][::stride], color="black")
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    buffer = BytesIO()
    canvas.print_png(buffer)
    write_atomic(picture, buffer.getvalue())


def _draw_scores(axis: Any, validated: Sequence[Mapping[str, Any]]) -> None:
    """mIoU of each benchmark, and N-acc where it is defined, by step."""
    names = list(dict.fromkeys(name for record in validated for name in record["eval"]))
    for name in names:
        for key, style in (("mIoU", "o-"), ("N-acc", "x:")):
            found = [(r["step"], r["eval"][name][key]) for r in validated if name in r["eval"]]
            points = [(step, value) for step, value in found if value is not None]
            if points:
                axis.plot(*zip(*points, strict=True), style, label=f"{name} {key}")
    axis.set_ylim(0, 100)
    axis.set_ylabel("percent")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def rates(record: Mapping[str, Any]) -> str:
    """The rates of a log line for the progress line."""
    parts = [f"{record['expressions_per_s']:.0f} expr/s"]
    if record["text_tokens_per_s"] is not None:
        parts.append(
            f"{record['text_tokens_per_s']:.0f} text + {record['visual_tokens_per_s']:.0f} visual tok/s"
        )
    if record["mfu"] is not None:
        parts.append(f"MFU {record['mfu']:.0%}")
    return ", ".join([*parts, f"data {record['data_wait']:.0%}", f"{record['memory_gb']:.1f} GB"])


def fitting(parts: Sequence[str], width: int) -> str:
    """The parts that fit into a line of a terminal, in order of importance; the first one always."""
    line = parts[0]
    for part in parts[1:]:
        if part and len(line) + 2 + len(part) <= width:
            line += f", {part}"
    return line


class Display:
    """A progress bar on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, steps: int, done: int, every_seconds: float, max_minutes: float | None) -> None:
        self.steps, self.every = steps, every_seconds
        self.limit = None if max_minutes is None else 60.0 * max_minutes
        self.console = _Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
        self.times: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=_RATE_WINDOW + 1)
        self.expressions, self.printed = 0, -math.inf
        text = TextColumn("{task.fields[line]}", markup=False)
        columns = (MofNCompleteColumn(), BarColumn(bar_width=_BAR), text)
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=steps, completed=done, line="starting")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def log(self, line: str) -> None:
        """Print a line above the progress bar."""
        self.console.print(line, markup=False)

    def count(self, expressions: int) -> float:
        """Count a finished step; returns expressions per second over the last steps."""
        self.expressions += expressions
        self.times.append((time.monotonic(), self.expressions))
        (start, before), (now, after) = self.times[0], self.times[-1]
        return (after - before) / max(now - start, 1e-9)

    def show(self, record: Mapping[str, Any]) -> None:
        """Show the newest log line."""
        terms = " ".join(f"{k} {v:.3f}" for k, v in record.items() if k not in FIXED and v is not None)
        loss, lr, left = f"loss {record['loss']:.3f}", f"lr {record['lr']:.2g}", f"{self._left(record)} left"
        line = f"{loss} ({terms}) {lr} {rates(record)}, {left}"
        if self.console.is_terminal:
            speed, *more = rates(record).split(", ")
            beside = self.console.width - len(f"{self.steps}/{self.steps} ") - _BAR - 2
            line = fitting((loss, left, speed, lr, terms, *more), beside)
            self.bar.update(self.task, completed=record["step"], line=line)
        elif time.monotonic() - self.printed >= self.every or record["step"] == self.steps:
            self.printed = time.monotonic()
            self.log(f"step {record['step']}/{self.steps} {line}")

    def _left(self, record: Mapping[str, Any]) -> str:
        start, now = self.times[0][0], self.times[-1][0]
        left = (now - start) / max(len(self.times) - 1, 1) * (self.steps - record["step"])
        if self.limit is not None:
            left = min(left, max(self.limit - record["seconds"], 0.0))
        minutes, seconds = divmod(round(left), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
