"""`python -m train RECIPE [--section.field value] [--data DIR] --out DIR [--fresh]`."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import tyro

from train.recipe import Recipe, check
from train.recipes import KNOWN
from uniresxx.errors import InputError

if TYPE_CHECKING:
    from train.loop import Job
    from train.ranks import Ranks

FAILED, WRONG_INPUT, STOPPED = 1, 2, 75
_USAGE = "python -m train RECIPE [--section.field value] [--data DIR] --out DIR [--fresh]"


@dataclass(frozen=True)
class Command:
    """The command line after the recipe's name."""

    recipe: Annotated[tyro.conf.FlagConversionOff[Recipe], tyro.conf.arg(name="")]
    out: Path  # run folder; an unfinished run in it is continued
    data: Path | None = None  # root of the data sets' native layouts
    fresh: bool = False  # delete the run in --out and start over


def without_rank(argv: list[str]) -> list[str]:
    """The arguments without a launcher's `--local_rank=N` (or `--local_rank N`), wherever it stands."""
    kept: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if name not in ("--local_rank", "--local-rank"):
            kept.append(argument)
        elif not equals:
            next(arguments, None)
    return kept


def parse(argv: list[str], known: dict[str, Callable[[], Recipe]]) -> Command:
    """The command line as a dataclass. Raises InputError with one line; `--help` exits with 0."""
    arguments = without_rank(argv)
    names = ", ".join(sorted(known)) or "none"
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: {_USAGE}\nrecipes: {names}\noptions of a recipe: python -m train RECIPE --help")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"the recipe's name comes first: {_USAGE}; known recipes: {names}")
    name = arguments[0]
    if name not in known:
        raise InputError(f"unknown recipe {name!r}; known: {names}")
    recipe = known[name]()
    messages = io.StringIO()
    try:
        with redirect_stderr(messages):
            command = tyro.cli(
                Command,
                prog=f"python -m train {name}",
                description=(known[name].__doc__ or "").strip(),
                default=Command(recipe=recipe, out=tyro.MISSING),
                args=arguments[1:],
                use_underscores=True,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(f"{plain(messages.getvalue())}; see python -m train {name} --help") from None
    check(command.recipe)
    return command


def plain(box: str) -> str:
    """The first paragraph of a drawn message box as one line."""
    lines = [line.strip("│ \t") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    first: list[str] = []
    for line in lines:
        if line.startswith("──"):
            break
        first.append(line)
    return re.sub(r"\s+", " ", " ".join(first)).strip() or "wrong arguments"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run(argv: list[str], joined: Callable[[Ranks], object]) -> int:
    """Parse, build what the recipe names, train. Raises what `main` turns into exit codes.

    `joined` is told of the job this process has become part of.
    """
    command = parse(argv, KNOWN)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings speak of things the engine chose
    from dataclasses import replace

    from train.engine import join_ranks  # torch and the models are loaded only for a good command line
    from train.loop import train
    from uniresxx.evaluate import versions

    signal.signal(signal.SIGTERM, _interrupt)
    recipe = command.recipe
    ranks = join_ranks(recipe.engine)
    joined(ranks)
    job = ranks.together(lambda: _open(recipe, command.data))
    job = replace(job, extra={**job.extra, "versions": versions()})
    again = shlex.join(["python", "-m", "train", *(a for a in without_rank(argv) if a != "--fresh")])
    return train(recipe, job, command.out, command.fresh, again, ranks)


def _open(recipe: Recipe, data: Path | None) -> Job:
    """What the recipe names. Raises InputError."""
    from train.job import open_job

    try:
        return open_job(recipe, data)
    except ValueError as error:  # sizes that do not fit together, found only while the model is built
        raise InputError(str(error)) from error


def main(argv: list[str] | None = None) -> int:
    """The program: returns the exit code, says errors in one line."""
    arguments = sys.argv[1:] if argv is None else argv
    jobs: list[Ranks] = []
    together = True  # do all ranks end here for the same reason?
    try:
        return run(arguments, jobs.append)
    except InputError as error:
        if jobs or os.environ.get("RANK", "0") == "0":  # every rank reads the same command line
            _fail(WRONG_INPUT, error)
        return WRONG_INPUT
    except KeyboardInterrupt:
        together = False
        print("stopped; the same command continues", file=sys.stderr)
        return STOPPED
    except (OSError, RuntimeError) as error:
        code, line = _explain(error)
        together = code is not None and not (line or "").startswith(_LOST)
        if code is None:
            raise
        return code if line is None else _fail(code, line)
    except BaseException:
        together = False
        raise
    finally:
        for ranks in jobs:
            ranks.leave(together)


_LOST = "another process of the job is gone or silent"


def _explain(error: OSError | RuntimeError) -> tuple[int | None, str | None]:
    """Exit code and line for the failures that are no bug; (None, None) for a bug, no line for a follower."""
    import torch

    from train.loop import TrainingError
    from train.ranks import FollowedError, is_lost
    from uniresxx.checkpoint import DISK_FULL, SaveError

    if isinstance(error, FollowedError):
        return error.code, None
    if isinstance(error, torch.OutOfMemoryError):
        return FAILED, (
            f"out of memory ({_first_line(error)}): halve --data.batch_images and double --data.accumulate (the "
            "losses stay the same), lower --data.expressions_per_image, use --engine.precision bf16, "
            "--engine.zero_stage 2 or 3 on more GPUs, or --engine.offload optimizer"
        )
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    if full or isinstance(error, TrainingError | SaveError):
        return FAILED, str(error)
    if isinstance(error, RuntimeError) and is_lost(error):
        return FAILED, (
            f"{_LOST} ({_first_line(error)}): what it said last is above; the same command continues from "
            "the newest checkpoint"
        )
    return None, None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _fail(code: int, error: Exception | str) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
