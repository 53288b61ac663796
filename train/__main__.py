"""`python -m train RECIPE [--section.field value] [--data DIR] --out DIR [--fresh]`, with its exit codes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from train.command_line import (
    CalibrateCommand,
    Command,
    Finetuning,
    PlanCommand,
    parse,
    parse_calibrate,
    parse_finetune,
    parse_plan,
    without_rank,
)
from train.recipe import Recipe
from train.recipes import KNOWN
from uniresxx.errors import InputError

if TYPE_CHECKING:
    from train.distributed import Ranks
    from train.job import Job

FAILED, WRONG_INPUT, STOPPED = 1, 2, 75
_MESSAGE_SECONDS = 10  # that process 0 may need to print its message after another process has failed
_LOST = "another process of the job is gone or silent"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def show_plan(command: PlanCommand) -> int:
    """Print the memory that a recipe needs."""
    from train.plan import plan, table

    found = plan(command.recipe, command.gpus, command.tokens)
    print(json.dumps(found.to_dict()) if command.json else table(found), end="\n" * command.json)
    return 0


def _calibrate(command: CalibrateCommand) -> int:
    """Retrain the presence head; one process does it."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    from train.calibrate import calibrate

    signal.signal(signal.SIGTERM, _interrupt)
    calibrate(command)
    return 0


def _train(command: Command, argv: list[str], ranks: Ranks) -> int:
    """Open what the recipe names, and train. Raises what `main` turns into exit codes."""
    from train.loop import train
    from uniresxx.checkpoints.folders import newest_verified
    from uniresxx.files import versions

    with ranks.main_output_only():
        newest = None if command.fresh else ranks.on_rank0(lambda: newest_verified(command.out, print))
        job = ranks.on_all_ranks(lambda: _open(command.recipe, command.data, newest))
    job = replace(job, extra={**job.extra, "versions": versions()})
    again = shlex.join(["python", "-m", "train", *(a for a in argv if a != "--fresh")])
    return train(command.recipe, job, command.out, command.fresh, again, ranks)


def _report_refusal(command: Finetuning) -> None:
    """Say what finetuning did to the refusal of its start. The run is saved already, so nothing ends it here."""
    from train.refusal import report

    try:
        report(command.recipe, command.out, command.data, command.refusal_pictures)
    except (InputError, RuntimeError, MemoryError) as error:
        if not isinstance(error, InputError) and not _is_out_of_memory(error):
            raise
        print(f"refusal is not measured: {_first_line(error)}", file=sys.stderr)


def _open(recipe: Recipe, data: Path | None, newest: Path | None) -> Job:
    """Open what the recipe names. Raises InputError."""
    from train.assemble import open_job

    try:
        return open_job(recipe, data, newest)
    except ValueError as error:  # sizes that do not fit together, found while the model is built
        raise InputError(str(error)) from error


def main(argv: list[str] | None = None) -> int:
    """The program: returns the exit code, prints an error as one line."""
    argv = without_rank(sys.argv[1:] if argv is None else argv)
    ranks: Ranks | None = None
    recipe: Recipe | None = None
    all_end = True  # whether every rank ends here, for the same reason
    try:
        if argv[:1] == ["plan"]:
            return show_plan(parse_plan(argv[1:], KNOWN))
        if argv[:1] == ["calibrate-presence"]:
            return _calibrate(parse_calibrate(argv[1:]))
        command = parse_finetune(argv[1:]) if argv[:1] == ["finetune"] else parse(argv, KNOWN)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no warnings about choices of the engine
        from train.engines.choose import join_ranks  # loads torch: only after the command line is checked

        signal.signal(signal.SIGTERM, _interrupt)
        recipe = command.recipe
        ranks = join_ranks(recipe.engine)
        done = _train(command, argv, ranks)
        if done == 0 and isinstance(command, Finetuning) and command.refusal_pictures:
            ranks.on_rank0(lambda: _report_refusal(command))
        return done
    except InputError as error:
        if ranks or os.environ.get("RANK", "0") == "0":  # every rank reads the same command line
            _print_error(error)
        else:  # a launcher ends the job with its first process, so process 0 must print before
            time.sleep(_MESSAGE_SECONDS)
        return WRONG_INPUT
    except KeyboardInterrupt:
        all_end = False
        print("stopped; the same command continues", file=sys.stderr)
        if ranks:
            ranks.exit_now(STOPPED)
        return STOPPED
    except (OSError, RuntimeError, MemoryError) as error:
        code, line = _explain(error, recipe)
        if code is None:
            all_end = False
            _show_bug(ranks)
            raise
        if line is not None:
            _print_error(line)
            all_end = not line.startswith(_LOST)
        if ranks and not all_end:
            ranks.exit_now(code)
        return code
    except BaseException:
        all_end = False
        _show_bug(ranks)
        raise
    finally:
        if ranks:
            ranks.close(wait=all_end)


def _show_bug(ranks: Ranks | None) -> None:
    """Print the traceback of a bug and end, where there are other ranks: closing the job first could hang."""
    if ranks is not None and ranks.group is not None:
        traceback.print_exc()
        ranks.exit_now(FAILED)


def _explain(
    error: OSError | RuntimeError | MemoryError, recipe: Recipe | None
) -> tuple[int | None, str | None]:
    """Exit code and message of an expected failure; no code for a bug, no message where rank 0 prints it."""
    from train.distributed import is_lost
    from train.step import TrainingError
    from uniresxx.checkpoints.folders import DISK_FULL, SaveError
    from uniresxx.evaluation.ranks import OtherRankError

    if isinstance(error, OtherRankError):
        return error.code, None
    if _is_out_of_memory(error):
        return FAILED, (
            f"out of memory ({_first_line(error)}): halve --data.batch_images and double --data.accumulate (the "
            "losses stay the same), lower --data.expressions_per_image, use --engine.precision bf16, "
            "--engine.zero_stage 2 or 3 on more GPUs, or --engine.offload optimizer; fewer --data.workers need "
            f"less memory of the CPU{_forecast(recipe)}"
        )
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    if full or isinstance(error, TrainingError | SaveError):
        return FAILED, str(error)
    if isinstance(error, RuntimeError) and is_lost(error):
        return FAILED, (
            f"{_LOST} ({_first_line(error)}): its own message is above; the same command continues from the "
            "newest checkpoint"
        )
    return None, None


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch has a class for a GPU's memory, but only messages for the CPU and for killed data workers."""
    import torch

    text = str(error)
    worker = "DataLoader worker" in text and "Killed" in text
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in text or worker


def _forecast(recipe: Recipe | None) -> str:
    """The prediction of `plan`, as the end of a message; it takes some seconds."""
    from train.plan import forecast

    found = forecast(recipe, int(os.environ.get("WORLD_SIZE", "1"))) if recipe else ""
    return f"; {found}" if found else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _print_error(error: Exception | str) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
