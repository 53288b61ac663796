"""`python -m eval run | score | report`. Exit codes: 0 done, 1 failed, 2 wrong input, 75 stopped."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from uniresxx.cli import OneLineParser
from uniresxx.errors import InputError

EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED = 1, 2, 75


def parser() -> argparse.ArgumentParser:
    """The command line of all three commands."""
    root = OneLineParser(prog="python -m eval", description="Run, score and report.")
    commands = root.add_subparsers(dest="command", required=True, metavar="run|score|report")

    run = commands.add_parser("run", help="generate answers with a checkpoint, then score them")
    run.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="run or from_pretrained folder"
    )
    run.add_argument("--benchmark", nargs="+", required=True, metavar="NAME/SPLIT")
    run.add_argument("--rule", choices=("token", "token_and_presence"), help="default: the model's own")
    run.add_argument("--batch-images", type=_positive, default=8, metavar="N")
    run.add_argument("--fresh", action="store_true", help="forget an evaluation of these benchmarks in --out")

    score = commands.add_parser("score", help="score a predictions file of any model")
    score.add_argument("predictions", type=Path, metavar="PREDICTIONS")
    score.add_argument("--benchmark", required=True, metavar="NAME/SPLIT")

    for command in (run, score):
        command.add_argument("--data", type=Path, metavar="DIR", help="root of the native layouts")
        command.add_argument("--out", type=Path, required=True, metavar="DIR")
        command.add_argument("--protocol", default="strict", help="default: strict")
        command.add_argument("--limit", type=_positive, metavar="N", help="only the first N pictures")

    report = commands.add_parser("report", help="write DIR/report/index.html")
    report.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="run or evaluation folders")
    report.add_argument(
        "--data", type=Path, metavar="DIR", help="where the photographs lie now, if they moved"
    )
    return root


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        args = parser().parse_args(argv)
        if args.command != "report" and args.out.exists() and not args.out.is_dir():
            raise InputError(f"--out {args.out} is a file: give a folder")
        if args.command == "run":
            signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C: what is answered is on disk
            from eval.run import run

            run(
                args.checkpoint,
                args.benchmark,
                args.out,
                data=args.data,
                rule=args.rule,
                protocol=args.protocol,
                limit=args.limit,
                batch_images=args.batch_images,
                fresh=args.fresh,
            )
        elif args.command == "score":
            from eval.score import score

            score(args.predictions, args.benchmark, args.out, data=args.data, protocol=args.protocol,
                  limit=args.limit)  # fmt: skip
        else:
            from eval.report import report

            print(f"report: {report(args.folders, args.data)}")
    except KeyboardInterrupt:
        print("stopped: what was answered is kept; the same command continues", file=sys.stderr)
        return EXIT_STOPPED
    except InputError as error:
        print(f"eval: {_one_line(error)}", file=sys.stderr)
        return EXIT_INPUT
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        print(
            f"eval: {_one_line(error)}{': free some space and run the same command' if full else ''}",
            file=sys.stderr,
        )
        return EXIT_FAILED
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
