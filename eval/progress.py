"""The progress of an evaluation: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_SECONDS = 60.0  # between two lines where there is no terminal


@contextmanager
def progress_of(name: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A function (answered, all) that shows both, with expressions per second and the time that is left."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    rate = _Rate()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None, rate="")

        def show(done: int, total: int) -> None:
            now = time.monotonic()
            rate.add(done, now)
            bar.update(task, completed=done, total=total, rate=rate.text())
            if not console.is_terminal and rate.line_is_due(now):
                left = rate.left(total - done)
                line = f"{name}: {done:,} of {total:,} expressions, {rate.text()}, {left} left"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield show


class _Rate:
    """Expressions per second since the first call."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._now = (0, 0.0)
        self._said = 0.0

    def add(self, done: int, now: float) -> None:
        if self._first is None:
            self._first, self._said = (done, now), now
        self._now = (done, now)

    @property
    def _per_second(self) -> float:
        if self._first is None or self._now[1] <= self._first[1]:
            return 0.0
        return (self._now[0] - self._first[0]) / (self._now[1] - self._first[1])

    def text(self) -> str:
        return f"{self._per_second:.1f} expressions/s" if self._per_second else ""

    def left(self, count: int) -> str:
        if not self._per_second:
            return "unknown time"
        seconds = round(count / self._per_second)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def line_is_due(self, now: float) -> bool:
        if now - self._said < LOG_SECONDS:
            return False
        self._said = now
        return True
