"""`python -m train RECIPE [--section.field value] [--data DIR] --out DIR [--fresh]`."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

from train.recipe import Recipe, check
from train.recipes import KNOWN
from uniresxx.errors import InputError

if TYPE_CHECKING:
    from train.distributed import Ranks
    from train.loop import Job

FAILED, WRONG_INPUT, STOPPED = 1, 2, 75
_SPEAKING_SECONDS = 10  # that process 0 may need to read the command line after another one has
_USAGE = "python -m train RECIPE [--section.field value] [--data DIR] --out DIR [--fresh]"
_PLAN = "python -m train plan RECIPE [--gpus N] [--json] [--section.field value]"
_FINETUNE = "python -m train finetune --from CKPT --data STORE --out DIR [--section.field value]"
_Options = TypeVar("_Options")


@dataclass(frozen=True)
class Command:
    """The command line after the recipe's name."""

    recipe: Annotated[tyro.conf.FlagConversionOff[Recipe], tyro.conf.arg(name="")]
    out: Path  # run folder; an unfinished run in it is continued
    data: Path | None = None  # root of the data sets' native layouts
    fresh: bool = False  # delete the run in --out and start over


@dataclass(frozen=True)
class PlanCommand:
    """The command line of `plan` after the recipe's name."""

    recipe: Annotated[tyro.conf.FlagConversionOff[Recipe], tyro.conf.arg(name="")]
    gpus: int = 1  # processes of the job, one per GPU
    tokens: int | None = None  # of an expression with its question and answer; None: what is usual
    json: bool = False  # one JSON object instead of a table


@dataclass(frozen=True)
class _Start:
    """The checkpoint alone, which must be read before the other options have defaults."""

    start: Annotated[Path, tyro.conf.arg(name="from")]


@dataclass(frozen=True)
class FinetuneCommand:
    """The command line of `finetune`."""

    recipe: Annotated[tyro.conf.FlagConversionOff[Recipe], tyro.conf.arg(name="")]
    start: Annotated[Path, tyro.conf.arg(name="from")]  # run folder or from_pretrained folder
    out: Path  # run folder; an unfinished run in it is continued
    data: Path | None = None  # a prepared store, or the root that --data.source is looked for below
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
    name = _recipe_named(arguments, known, _USAGE)
    command = _options(
        arguments, known[name], Command(recipe=known[name](), out=tyro.MISSING), f"python -m train {name}"
    )
    check(command.recipe)
    return command


def parse_plan(argv: list[str], known: dict[str, Callable[[], Recipe]]) -> PlanCommand:
    """The command line after `plan`. Raises InputError with one line; `--help` exits with 0."""
    arguments = without_rank(argv)
    name = _recipe_named(arguments, known, _PLAN)
    command = _options(
        arguments, known[name], PlanCommand(recipe=known[name]()), f"python -m train plan {name}"
    )
    check(command.recipe)
    for option, value in (("gpus", command.gpus), ("tokens", command.tokens)):
        if value is not None and value < (2 if option == "tokens" else 1):
            raise InputError(f"--{option} {value}: must be at least {2 if option == 'tokens' else 1}")
    return command


def parse_finetune(argv: list[str]) -> Command:
    """The command line after `finetune`: defaults come from the checkpoint. Raises InputError; `--help` exits."""
    from train.finetune import finetune, recipe_of, with_data

    arguments = ["finetune", *without_rank(argv)]
    default = FinetuneCommand(recipe=finetune(), start=tyro.MISSING, out=tyro.MISSING)
    program = "python -m train finetune"
    if not {"-h", "--help"} & {*arguments}:
        start = _options(
            ["", *_value_of("--from", arguments, _FINETUNE)], finetune, _Start(tyro.MISSING), program
        )
        default = replace(default, recipe=recipe_of(start.start), start=start.start)
    found = _options(arguments, finetune, default, program)
    check(found.recipe)
    recipe, root = with_data(found.recipe, found.data)
    return Command(recipe, found.out, root, found.fresh)


def _value_of(option: str, arguments: list[str], usage: str) -> list[str]:
    """`option` with its value, as in the arguments."""
    for place, word in enumerate(arguments):
        if word.split("=")[0] == option:
            return arguments[place : place + 2] if word == option else [word]
    raise InputError(f"{option} is missing: {usage}")


def _recipe_named(arguments: list[str], known: dict[str, Callable[[], Recipe]], usage: str) -> str:
    """The first word, which names a recipe."""
    names = ", ".join(sorted(known)) or "none"
    if arguments and arguments[0] in ("-h", "--help"):
        others = f"\n       {_PLAN}\n       {_FINETUNE}" if usage == _USAGE else ""
        start = usage.partition("RECIPE")[0]
        print(f"usage: {usage}{others}\nrecipes: {names}\noptions of a recipe: {start}RECIPE --help")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"the recipe's name comes first: {usage}; known recipes: {names}")
    if arguments[0] not in known:
        raise InputError(f"unknown recipe {arguments[0]!r}; known: {names}")
    return arguments[0]


def _options(
    arguments: list[str], described: Callable[[], Recipe], default: _Options, program: str
) -> _Options:
    """The options after the first word, over `default`."""
    messages = io.StringIO()
    try:
        with redirect_stderr(messages):
            return tyro.cli(
                type(default),
                prog=program,
                description=(described.__doc__ or "").strip(),
                default=default,
                args=arguments[1:],
                use_underscores=True,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(f"{plain(messages.getvalue())}; see {program} --help") from None


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


def run(
    argv: list[str],
    joined: Callable[[Ranks], object],
    named: Callable[[Recipe], object] = lambda recipe: None,
) -> int:
    """Parse, build what the recipe names, train. Raises what `main` turns into exit codes.

    `joined` is told of the job this process has become part of, `named` of its recipe.
    """
    argv = without_rank(argv)
    if argv and argv[0] == "plan":
        return show_plan(parse_plan(argv[1:], KNOWN))
    tuned = bool(argv) and argv[0] == "finetune"
    command = parse_finetune(argv[1:]) if tuned else parse(argv, KNOWN)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings speak of things the engine chose
    from train.engines.base import join_ranks  # torch and the models are loaded only for a good command line
    from train.loop import train
    from uniresxx.files import versions

    signal.signal(signal.SIGTERM, _interrupt)
    recipe = command.recipe
    named(recipe)
    ranks = join_ranks(recipe.engine)
    joined(ranks)
    with ranks.main_output_only():
        job = ranks.on_all_ranks(lambda: _open(recipe, command.data))
    job = replace(job, extra={**job.extra, "versions": versions()})
    again = shlex.join(["python", "-m", "train", *(a for a in argv if a != "--fresh")])
    return train(recipe, job, command.out, command.fresh, again, ranks)


def show_plan(command: PlanCommand) -> int:
    """Print what a recipe will need."""
    from train.plan import plan, table

    found = plan(command.recipe, command.gpus, command.tokens)
    print(json.dumps(found.to_dict()) if command.json else table(found), end="\n" * command.json)
    return 0


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
    recipes: list[Recipe] = []
    together = True  # do all ranks end here for the same reason?
    try:
        return run(arguments, jobs.append, recipes.append)
    except InputError as error:
        if jobs or os.environ.get("RANK", "0") == "0":  # every rank reads the same command line
            _fail(WRONG_INPUT, error)
        else:  # a launcher ends the job with the first process that ends, and process 0 must have spoken
            time.sleep(_SPEAKING_SECONDS)
        return WRONG_INPUT
    except KeyboardInterrupt:
        together = False
        print("stopped; the same command continues", file=sys.stderr)
        _abandon(jobs, STOPPED)
        return STOPPED
    except (OSError, RuntimeError, MemoryError) as error:
        code, line = _explain(error)
        together = code is not None and not (line or "").startswith(_LOST)
        line = _with_forecast(error, line, recipes)
        if code is None:
            _crash(jobs)
            raise
        if line is not None:
            _fail(code, line)
        if not together:
            _abandon(jobs, code)
        return code
    except BaseException:
        together = False
        _crash(jobs)
        raise
    finally:
        for ranks in jobs:
            ranks.leave(together)


def _crash(jobs: Sequence[Ranks]) -> None:
    """A bug: where others wait for this process, its traceback now; Python would show it after `leave`."""
    if any(ranks.group is not None for ranks in jobs):
        traceback.print_exc()
        _abandon(jobs, FAILED)


def _abandon(jobs: Sequence[Ranks], code: int) -> None:
    for ranks in jobs:
        ranks.abandon(code)


_LOST = "another process of the job is gone or silent"


def _explain(error: OSError | RuntimeError | MemoryError) -> tuple[int | None, str | None]:
    """Exit code and line for the failures that are no bug; (None, None) for a bug, no line for a follower."""
    from train.distributed import FollowedError, is_lost
    from train.loop import TrainingError
    from uniresxx.checkpoints.folders import DISK_FULL, SaveError

    if isinstance(error, FollowedError):
        return error.code, None
    if _is_out_of_memory(error):
        return FAILED, (
            f"out of memory ({_first_line(error)}): halve --data.batch_images and double --data.accumulate (the "
            "losses stay the same), lower --data.expressions_per_image, use --engine.precision bf16, "
            "--engine.zero_stage 2 or 3 on more GPUs, or --engine.offload optimizer; of the CPU's memory fewer "
            "--data.workers need less"
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


def _is_out_of_memory(error: BaseException) -> bool:
    """On a GPU torch has a class for it, on a CPU only words; so for a process that prepares batches."""
    import torch

    said = str(error)
    worker = "DataLoader worker" in said and "Killed" in said  # by the system, when memory runs out
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in said or worker


def _with_forecast(error: Exception, line: str | None, recipes: list[Recipe]) -> str | None:
    """The line with what `plan` predicts, where memory ran out: worked out only then (some seconds)."""
    from train.plan import forecast

    if line is None or not recipes or not _is_out_of_memory(error):
        return line
    found = forecast(recipes[0], int(os.environ.get("WORLD_SIZE", "1")))
    return f"{line}; {found}" if found else line


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _fail(code: int, error: Exception | str) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
