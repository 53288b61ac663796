"""Guards of a run: requests to stop, gradient spikes, writes in the background."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from statistics import fmean, stdev
from types import FrameType
from typing import Any

WINDOW = 128  # gradient norms a spike is measured against


class Stop:
    """Turns SIGINT and SIGTERM into a request. While it is installed, no signal can interrupt a save."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        line = b"\nstopping after this step, then saving\n" if first else b"\nstill saving, one moment\n"
        with suppress(OSError):
            os.write(2, line)  # print is not safe here: it may be what was interrupted


def is_spike(norm: float, before: Sequence[float], sigmas: float | None) -> bool:
    """Whether a gradient norm is more than `sigmas` standard deviations above the mean of the `WINDOW` before it.

    It needs half a window. Norms of skipped steps stay in the window, so that a lasting change of scale ends the
    skipping. Rule and numbers (128, 6) of allenai/OLMo-core:src/olmo_core/optim/skip_step_optimizer.py; our choice:
    only upwards, and the norm alone.
    """
    if sigmas is None or len(before) < WINDOW // 2:
        return False
    return norm > fmean(before) + sigmas * stdev(before)


def remember(norm: float, before: Sequence[float]) -> list[float]:
    """The window with one more norm, if that is finite."""
    return [*before, norm][-WINDOW:] if math.isfinite(norm) else list(before)


class Background:
    """Runs one function at a time in a thread; the next call raises what it raised."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, function: Callable[[], object]) -> None:
        """Finish the earlier function, then start this one."""
        self.finish()
        self._thread = threading.Thread(target=self._run, args=(function,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing runs."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Wait until nothing runs; raise what the function raised."""
        self.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # raised again by `finish`, in the training thread
            self._failure = error
