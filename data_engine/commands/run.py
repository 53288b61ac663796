"""`python -m data_engine run`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from data_engine.assemble import make_store
from data_engine.executors.local import LocalExecutor
from data_engine.pictures import Source, sources
from data_engine.recipe import BUILT_IN, Recipe, recipe_named
from data_engine.report import write_report
from data_engine.run import Job, run_steps
from data_engine.schedule import Executor, FailedRunError
from uniresxx.cli import OneLineParser, PageFormatter
from uniresxx.errors import InputError
from uniresxx.files import lock_file

RUN = """masks with words for every picture below DIR, as a store that `python -m train finetune` reads

Work lies in STORE.engine: finished shards, quarantine.jsonl, timings.jsonl and the report. The same command goes on
where the last one was stopped; what is done is never done again, by another recipe with the same first steps either.
Pictures that fail are put in quarantine with the reason; more than the recipe's budget stop the run.

Exit codes: 0 done; 1 too many pictures failed, or the disk; 2 wrong input; 75 stopped."""
STOPPED = 75


def parser() -> OneLineParser:
    """The parser of the command."""
    made = OneLineParser(prog="python -m data_engine run", description=RUN, formatter_class=PageFormatter)
    made.add_argument("recipe", metavar="RECIPE", help=f"{', '.join(BUILT_IN)}, or a JSON file")
    made.add_argument("--images", type=Path, required=True, metavar="DIR", help="the pictures")
    made.add_argument("--out", type=Path, required=True, metavar="STORE", help="the store to make")
    made.add_argument("--licence", default="not stated", metavar="TEXT", help="of all pictures")
    made.add_argument(
        "--licences", type=Path, metavar="CSV", help="columns picture, licence, source: of single pictures"
    )
    made.add_argument("--executor", choices=("local", "ray"), default="local", help="default: local")
    made.add_argument(
        "--address", metavar="HOST:PORT|auto", help="of a Ray cluster (default: start one here)"
    )
    made.add_argument(
        "--workers", type=int, metavar="N",
        help="of each step (default: as the recipe says); local only, 0: in this process",
    )  # fmt: skip
    made.add_argument("--retry", action="store_true", help="do again what failed")
    made.add_argument("--fresh", action="store_true", help="replace the store of another run; shards stay")
    return made


def main(argv: Sequence[str]) -> int:
    """Run; returns the exit code."""
    words = parser().parse_args(argv)
    recipe = recipe_named(words.recipe)
    _check(words)
    job = Job(recipe, words.images.resolve(), words.out.resolve(), words.workers or None, words.retry)
    found = sources(job.images, words.licence, words.licences)
    signal.signal(signal.SIGTERM, _stop)
    try:
        with lock_file(job.folder / ".lock", f"run the data engine into {words.out}"):
            return _run(job, found, _executor(words, recipe), words)
    except KeyboardInterrupt:
        print("data_engine: stopped; the same command continues", file=sys.stderr)
        return STOPPED
    except FailedRunError as error:
        print(f"error: {error}; see {job.folder / 'quarantine.jsonl'}", file=sys.stderr)
        return 1


def _run(job: Job, found: Sequence[Source], executor: Executor, words: argparse.Namespace) -> int:
    finished = run_steps(job, found, executor)
    store = make_store(job, finished, words.fresh, lambda *_: None)
    report = write_report(job, finished)
    counts = store.meta["splits"]["train"]["counts"]
    print(f"{store.path}: " + ", ".join(f"{count} {what}" for what, count in counts.items() if count))
    print(f"report: {report}")
    return 0


def _executor(words: argparse.Namespace, recipe: Recipe) -> Executor:
    if words.executor == "local":
        return LocalExecutor(in_process=words.workers == 0)
    try:
        from data_engine.executors.ray import RayExecutor
    except ImportError:
        raise InputError("--executor ray: Ray is not installed; pip install -e '.[data-engine]'") from None
    return RayExecutor(words.address, recipe.steps, words.workers)


def _check(words: argparse.Namespace) -> None:
    """InputError for options that do not go together."""
    if words.workers is not None and words.workers < (1 if words.executor == "ray" else 0):
        raise InputError(f"--workers {words.workers}: must be 1 or more (local: 0 is this process)")
    if words.address is not None and words.executor != "ray":
        raise InputError("--address is of a Ray cluster: add --executor ray")
    if words.out.exists() and not words.out.is_dir():
        raise InputError(f"--out {words.out}: is a file; name a folder")
    if words.out.resolve().is_relative_to(words.images.resolve()):
        raise InputError(f"--out {words.out}: lies within --images; name a folder beside it")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
