"""Runs a target under atheris: `python tests/fuzz/fuzz_NAME.py -runs=100000` (needs `pip install -e '.[fuzz]'`).

Options are libFuzzer's (-max_total_time=60, -max_len=4096, a corpus folder …). Without a folder the target's
seeds start the search. What breaks is written to the current folder as crash-…; give it to the target as its
only argument to see it again.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def run(path: str) -> None:
    """Feed `check` of the target in file `path` until libFuzzer ends the process; what it raises is a finding."""
    import atheris

    for name in [name for name in sys.modules if name.split(".")[0] == "uniresxx"]:
        del sys.modules[name]  # to come again with marks that tell which lines ran
    with atheris.instrument_imports(include=["uniresxx"]):
        spec = spec_from_file_location("target", path)
        assert spec is not None and spec.loader is not None
        target = module_from_spec(spec)
        spec.loader.exec_module(target)
    words = list(sys.argv)
    if all(word.startswith("-") for word in words[1:]):
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        for number, seed in enumerate(target.seeds()):
            (folder / f"seed-{number}").write_bytes(seed)
        words.append(str(folder))
    atheris.Setup(words, target.check)
    atheris.Fuzz()
