"""Progress of the data commands, on stderr."""

from __future__ import annotations

import sys


def show_progress(what: str, done: int, of: int) -> None:
    """One line that changes on a terminal, a line per tenth elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{what}: {done} of {of}\x1b[K", end="\n" if done >= of else "", file=sys.stderr, flush=True)
    elif done >= of or _tenth(done, of) != _tenth(done - 256, of):
        print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)


def _tenth(done: int, of: int) -> int:
    return 10 * max(done, 0) // max(of, 1)
