"""`python -m train RECIPE [--section.field value] [--data DIR] --out DIR [--fresh]`."""

from __future__ import annotations

import io
import re
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import tyro

from train.recipe import Recipe, check
from train.recipes import KNOWN
from uniresxx.errors import InputError

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


def run(argv: list[str]) -> int:
    """Parse, build what the recipe names, train. Raises what `main` turns into exit codes."""
    command = parse(argv, KNOWN)
    from dataclasses import replace

    from train.job import open_job  # torch and the models are loaded only for a good command line
    from train.loop import train
    from uniresxx.evaluate import versions

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        job = open_job(command.recipe, command.data)
    except ValueError as error:  # sizes that do not fit together, found only while the model is built
        raise InputError(str(error)) from error
    job = replace(job, extra={**job.extra, "versions": versions()})
    again = shlex.join(["python", "-m", "train", *(a for a in without_rank(argv) if a != "--fresh")])
    return train(command.recipe, job, command.out, command.fresh, again)


def main(argv: list[str] | None = None) -> int:
    """The program: returns the exit code, says errors in one line."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return run(arguments)
    except InputError as error:
        return _fail(WRONG_INPUT, error)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return STOPPED
    except (OSError, RuntimeError) as error:
        from train.loop import TrainingError
        from uniresxx.checkpoint import DISK_FULL, SaveError

        full = isinstance(error, OSError) and error.errno in DISK_FULL
        if full or isinstance(error, TrainingError | SaveError):
            return _fail(FAILED, error)
        raise


def _fail(code: int, error: Exception) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
