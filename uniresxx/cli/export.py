"""`uniresxx export RUN OUT`

Writes a plain `from_pretrained` folder: config.json, model.safetensors, tokenizer.json. RUN is a run folder (its
best checkpoint, else the newest that verifies), one of its checkpoints, or another such folder. Checkpoints of
every engine and ZeRO stage hold whole weights already, so nothing is gathered and no deepspeed is needed.

The weights are copied byte by byte and compared with the checkpoint's checksum. Files of the same names in OUT
are replaced, each as a whole; other files are left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from uniresxx.cli import OneLineParser
from uniresxx.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Do the job; returns the exit code."""
    lines = (__doc__ or "").split("\n", 2)
    parser = OneLineParser(
        prog="uniresxx export",
        usage=lines[0].strip("`"),
        description=lines[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the plain model")
    options = parser.parse_args(argv)
    from uniresxx.checkpoint import export, resolve

    source = resolve(options.run, lambda line: print(f"uniresxx export: {line}", file=sys.stderr))
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"{options.out} is a file: name a folder")
    names = export(source, options.out)
    print(f"{source} -> {options.out}: {', '.join(names)}")
    return 0
