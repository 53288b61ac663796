"""`python -m eval.suites.vlmevalkit`: VLMEvalKit's own program with our data sets and our model added to it.

The toolkit has no entry points: its `run.py` is started inside this process, after both were put into its tables.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from eval.suites.tasks import BENCHMARKS, DATA
from uniresxx.errors import InputError

MODEL = "uniresxx"
PROGRAM = "run.py"


def parser() -> argparse.ArgumentParser:
    """The options that are ours; every other one goes to the toolkit."""
    root = argparse.ArgumentParser(
        prog="python -m eval.suites.vlmevalkit",
        description=f"Run VLMEvalKit on our tasks. {DATA} names the root of the data sets. Options that are not "
        "listed go to the toolkit's run.py.",
    )
    root.add_argument(
        "toolkit", type=Path, metavar="DIR", help="a clone of VLMEvalKit (its run.py is started)"
    )
    root.add_argument("--data", nargs="+", required=True, choices=BENCHMARKS, metavar="TASK",
                      help=f"of {', '.join(BENCHMARKS)}")  # fmt: skip
    root.add_argument("--checkpoint", default="", metavar="DIR", help="default: the model of the package")
    root.add_argument("--device", default="auto", help="as in python -m eval run")
    return root


def add_ours(checkpoint: str, device: str) -> None:
    """Put our data sets and our model into the tables of the toolkit."""
    import vlmeval.dataset
    from vlmeval.config import supported_VLM

    from eval.suites.vlmevalkit_dataset import MaskDataset
    from uniresxx.suites.vlmevalkit import VLMEvalKitModel

    vlmeval.dataset.DATASET_CLASSES.append(MaskDataset)
    vlmeval.dataset.SUPPORTED_DATASETS.extend(MaskDataset.supported_datasets())
    supported_VLM[MODEL] = partial(VLMEvalKitModel, checkpoint=checkpoint, device=device)


def main(argv: Sequence[str] | None = None) -> int:
    """Start the toolkit; returns the exit code, 2 for wrong input."""
    options, others = parser().parse_known_args(argv)
    program = options.toolkit / PROGRAM
    try:
        if not program.is_file():
            raise InputError(f"{options.toolkit} has no {PROGRAM}: name the folder of a clone of VLMEvalKit")
        if not os.environ.get(DATA):
            raise InputError(f"name the root of the data sets by the environment variable {DATA}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # An answer may be longer than the 32,767 characters of a spreadsheet's cell, the toolkit's default.
    os.environ.setdefault("PRED_FORMAT", "tsv")
    sys.path.insert(0, str(options.toolkit))
    add_ours(options.checkpoint, options.device)
    sys.argv = [str(program), "--data", *options.data, "--model", MODEL, *others]
    runpy.run_path(str(program), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
