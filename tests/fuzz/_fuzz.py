"""Runs a target under atheris: `python tests/fuzz/fuzz_NAME.py -runs=100000` (needs `pip install -e '.[fuzz]'`).

Options are libFuzzer's (-max_total_time=60, -max_len=4096, a corpus folder …). Without a folder the target's
seeds start the search. What breaks is written to the current folder as crash-…; give it to the target as its
only argument to see it again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def run(check: Callable[[bytes], None], seeds: Sequence[bytes]) -> None:
    """Feed `check` until libFuzzer ends the process: anything it raises is a finding."""
    import atheris

    words = list(sys.argv)
    if all(word.startswith("-") for word in words[1:]):
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        for number, seed in enumerate(seeds):
            (folder / f"seed-{number}").write_bytes(seed)
        words.append(str(folder))
    atheris.instrument_all()
    atheris.Setup(words, check)
    atheris.Fuzz()
