"""`python -m eval run | score | compare | report | reproduce`.

Exit codes: 0 done, 1 failed, 2 wrong input, 75 stopped.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args

from uniresxx.cli import OneLineParser, add_placement_options
from uniresxx.errors import InputError
from uniresxx.evaluation.ranks import LostRankError, OtherRankError, ranks_of
from uniresxx.scoring.protocols import PROTOCOLS
from uniresxx.scoring.rejection import CRITERION, RULE_NAMES, RULES
from uniresxx.types import DecodingMode

EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED = 1, 2, 75


def parser() -> argparse.ArgumentParser:
    """The options of all commands."""
    root = OneLineParser(prog="python -m eval", description="Run, score, compare and report.")
    root.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # from deepspeed; RANK counts
    commands = root.add_subparsers(
        dest="command", required=True, metavar="run|score|compare|report|reproduce"
    )

    run = commands.add_parser("run", help="generate answers with a checkpoint, then score them")
    run.add_argument(
        "--checkpoint", required=True, metavar="NAMED", help="run or plain folder, hub:OWNER/NAME, or FAMILY:NAME"
    )  # fmt: skip
    run.add_argument("--benchmark", dest="benchmarks", nargs="+", required=True, metavar="NAME/SPLIT")
    run.add_argument("--rule", choices=("token", "token_and_presence"), help="default: the model's own")
    run.add_argument(
        "--decoding", dest="decoding_mode", choices=get_args(DecodingMode), default="generate",
        help="generate: the model decides (default); forced: [SEG] is given, so nothing is rejected",
    )  # fmt: skip
    run.add_argument(
        "--chats", type=int, metavar="N",
        help="pictures that are asked a chat of up to 12 turns (default: 60 of benchmarks with conversations)",
    )  # fmt: skip
    run.add_argument("--batch-images", type=_positive, default=8, metavar="N")
    run.add_argument("--strict", action="store_true", help="stop at the first photograph that cannot be read")
    run.add_argument(
        "--images", type=Path, metavar="DIR", help="where the photographs of a prepared store lie now"
    )
    run.add_argument(
        "--fresh", action="store_true", help="remove earlier evaluations of these benchmarks in --out first"
    )
    add_placement_options(run)

    score = commands.add_parser(
        "score",
        help="score a predictions file, or a folder of PNG masks, of any model",
        description="Score any model's predictions against a benchmark and add the scores to OUT/metrics.json. "
        "Nothing else in OUT changes; an entry is replaced only by the same question asked again.",
    )
    score.add_argument(
        "predictions", type=Path, metavar="PREDICTIONS",
        help="a predictions.jsonl, or a folder of <expression_id>.png, nested or with __ for / (0 = background)",
    )  # fmt: skip
    score.add_argument(
        "--tune-on", nargs=2, metavar=("PREDICTIONS", "NAME/val"),
        help=f"tune the threshold of p_absent on the same model's answers to a val split (best {CRITERION})",
    )  # fmt: skip
    score.add_argument(
        "--allow-partial", action="store_true", help="score what fits of a bad file, and say how much"
    )
    score.add_argument(
        "--padded-world-size", type=_positive, metavar="N",
        help="count again what a sampler padding to N processes would repeat (shows the effect)",
    )  # fmt: skip

    compare = commands.add_parser(
        "compare",
        help="where and by how much two models differ, paired by image",
        description="Differences A - B with 95 % intervals (paired bootstrap) and p-values (random swaps of "
        "whole images). Two run folders also give a page of the questions that they answer differently.",
    )
    compare.add_argument(
        "a", type=Path, metavar="A", help="a run folder, a predictions file or a folder of PNGs"
    )
    compare.add_argument("b", type=Path, metavar="B", help="of the same kind")
    compare.add_argument(
        "--open", dest="show", action="store_true", help="open the page in the browser of this machine"
    )

    for command in (score, compare):
        command.add_argument(
            "--benchmark", required=command is score, metavar="NAME/SPLIT",
            help=None if command is score else "of run folders, default: all that both hold",
        )  # fmt: skip
        command.add_argument(
            "--rejected", choices=RULES, default="flag" if command is score else None,
            help="what counts as rejected: " + "; ".join(f"{k} = {v}" for k, v in RULE_NAMES.items()),
        )  # fmt: skip
        command.add_argument("--threshold", type=float, metavar="X", help="of p_absent")
    names = ", ".join(protocol.name for protocol in PROTOCOLS)
    for command in (run, score, compare):
        command.add_argument("--data", type=Path, metavar="DIR", help="root of the native layouts")
        command.add_argument(
            "--protocol", default=None if command is compare else "strict",
            help=f"one of {names}; default: strict" + (", of run folders their own" if command is compare else ""),
        )  # fmt: skip
        command.add_argument("--limit", type=_positive, metavar="N", help="only the first N images")
    for command in (run, score):
        command.add_argument("--out", type=Path, required=True, metavar="DIR")
    compare.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the page; default: A/compare of run folders, else none",
    )

    _add_report(commands)
    _add_reproduce(commands)
    return root


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="write DIR/report/index.html")
    report.add_argument("--out", type=Path, metavar="DIR", help="folder of the report; default: FIRST/report")
    report.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="run or evaluation folders")
    report.add_argument("--data", type=Path, metavar="DIR", help="where the data lies now, if it moved")


def _add_reproduce(commands: Any) -> None:
    command = commands.add_parser(
        "reproduce",
        help="every benchmark that a data folder holds, beside the published numbers",
        description="Runs every benchmark below DIR, names what is missing and goes on. Writes OUT/reproduce.md and "
        "OUT/reproduce.csv beside what `run` writes. The same command continues.",
    )
    command.add_argument("--checkpoint", required=True, metavar="DIR", help="as in run")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="root of the native layouts")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--limit", type=_positive, metavar="N", help="only the first N images of each")
    command.add_argument("--batch-images", type=_positive, default=8, metavar="N")
    add_placement_options(command)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, not {text!r}")
    return value


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run(options: dict[str, Any]) -> None:
    from eval.run import run

    run(**options)


def _score(options: dict[str, Any]) -> None:
    from eval.score import rejection_of, score

    rule, threshold, tune_on = (options.pop(name) for name in ("rejected", "threshold", "tune_on"))
    score(**options, rejection=rejection_of(rule, threshold, tune_on, options["data"]))


def _compare(options: dict[str, Any]) -> None:
    from eval.compare import compare
    from eval.score import rejection_of

    rule, threshold = (options.pop(name) for name in ("rejected", "threshold"))
    chosen = rule is not None or threshold is not None
    compare(**options, rejection=rejection_of(rule or "flag", threshold) if chosen else None)


def _report(options: dict[str, Any]) -> None:
    from eval.report.write import report

    print(f"report: {report(**options)}")


def _reproduce(options: dict[str, Any]) -> None:
    from eval.reproduce import reproduce

    reproduce(**options)


COMMANDS = {"run": _run, "score": _score, "compare": _compare, "report": _report, "reproduce": _reproduce}
SHARED = ("run", "reproduce")  # the processes of a launcher share the work


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Of several processes that a launcher starts, all evaluate; the first one alone does everything else.
    """
    command, rank, out = "", 0, None
    try:
        rank, processes = ranks_of()
        options = vars(parser().parse_args(argv))
        del options["local_rank"]
        command = options.pop("command")
        if rank and command not in SHARED:
            print(f"process {rank} of {processes}: nothing to do, process 0 works alone", file=sys.stderr)
            return 0
        signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C
        out = options.get("out")
        if out is not None and out.exists() and not out.is_dir():
            raise InputError(f"--out {out} is a file: give a folder")
        COMMANDS[command](options)
    except KeyboardInterrupt:
        kept = "the answers so far are kept; the same command continues"
        _complain(rank, f"stopped: {kept if command in SHARED else 'nothing was changed'}", of_main_only=True)
        return EXIT_STOPPED
    except OtherRankError as error:
        return error.code
    except LostRankError as error:
        _complain(rank, f"error: {error}: the answers so far are kept; the same command continues")
        return EXIT_FAILED
    except InputError as error:
        _complain(rank, f"error: {_one_line(error)}")
        return EXIT_INPUT
    except BrokenPipeError:  # the reader of our output ended (`… | head`); silence Python's last flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        line = _one_line(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            line = f"{out}: the disk is full ({error.strerror}): free some space and run the same command"
        _complain(rank, f"error: {line}")
        return EXIT_FAILED
    return 0


def _complain(rank: int, line: str, of_main_only: bool = False) -> None:
    """Print a line on stderr, with the number of the process where it is not the first."""
    if not rank or not of_main_only:
        print(f"process {rank}: {line}" if rank else line, file=sys.stderr)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
