"""Make a training store of a folder of pictures: `python -m data_engine COMMAND`

commands:
  run RECIPE --images DIR --out STORE    masks with words for every picture; the same command continues
  plan RECIPE [--images DIR]             the steps, and what so many pictures would cost
  review export|read …                   a sample for people to correct, and the precision it shows
  vocabulary NAME --against NAME/SPLIT   a part vocabulary beside PACO's or PartImageNet++'s

RECIPE is `drawn` or `drawn_1000` (drawn scenes, on a CPU), `photographs` (public models, GPUs), or a JSON file.
Exit codes: 0 done; 1 the work failed; 2 wrong input; 75 stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from shutil import get_terminal_size

from data_engine.commands import plan, review, run, vocabulary
from uniresxx.cli import did_you_mean, exit_code, wrapped
from uniresxx.errors import InputError

COMMANDS = {"run": run.main, "plan": plan.main, "review": review.main, "vocabulary": vocabulary.main}


def main(argv: Sequence[str]) -> int:
    """Run a command; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(wrapped(__doc__ or "", get_terminal_size().columns))
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise InputError(
            f"unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}; known: {', '.join(COMMANDS)}"
        )
    return COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(exit_code("data_engine", lambda: main(sys.argv[1:])))
