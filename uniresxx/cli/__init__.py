"""The `uniresxx` command: one file per subcommand, loaded only when it is asked for.

`uniresxx NAME …` calls `uniresxx.cli.NAME.main(argv)`, which returns an exit code. The codes of all programs:
0 done; 1 the work failed; 2 wrong input (one line on stderr); 75 stopped by a signal after saving.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from itertools import groupby
from textwrap import wrap
from typing import Any, NoReturn, get_args

from mllm.config import Attention, Quantization
from uniresxx.errors import InputError

COMMANDS = (
    ("segment", "find what words describe in photos: overlays, masks, COCO RLE"),
    ("data", "inspect data sets and scenes, prepare and verify stores"),
    ("convert", "published weights in pickles as safetensors; released LISA, GSVA, M2SA as models to use"),
    ("export", "write a run's best model as a plain folder"),
    ("serve", "answer over HTTP"),
    ("doctor", "check this machine and installation"),
    ("completion", "print a script with which bash or zsh completes these commands"),
)


def did_you_mean(word: str, known: Iterable[Any]) -> str:
    """`; did you mean '--out'?` where one of the known words is close, else nothing."""
    close = get_close_matches(word, [str(one) for one in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line and name the closest known option, choice or command."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the whole usage."""
        raise InputError(f"{message}; see `{self.prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of argparse; an unknown option is named before anything that is missing because of it."""
        words = list(sys.argv[1:] if args is None else args)
        options = self._option_string_actions
        for word in words if self._subparsers is None else []:
            name = word.partition("=")[0]
            if name == "--":
                break
            if name.startswith("--") and not any(option.startswith(name) for option in options):
                self.error(f"unknown option {name!r}{did_you_mean(name, options)}")
        return super().parse_known_args(words, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(str(value), action.choices)
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {value!r} (choose from {choices}){hint}")


def wrapped(text: str, width: int) -> str:
    """A docstring for a terminal of `width` columns: paragraphs are filled, indented lines keep their columns."""
    lines: list[str] = []
    for indented, group in groupby(text.strip("\n").splitlines(), lambda line: not line or line[0] == " "):
        for line in group if indented else [" ".join(group)]:
            columns = re.match(r"\s*(\S.*?\s{2,})?", line)
            after = " " * columns.end() if indented and columns else ""
            lines += wrap(line, width, subsequent_indent=after) or [""]
    return "\n".join(lines)


class PageFormatter(argparse.HelpFormatter):
    """The help of a command, with its docstring as description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return wrapped(text, width)


def parser_for(program: str, page: str | None) -> OneLineParser:
    """A parser whose help is a module's docstring: its first line, in backticks, is the usage."""
    usage, _, description = (page or "").partition("\n")
    return OneLineParser(
        prog=program,
        usage=usage.strip("`"),
        description=description,
        formatter_class=PageFormatter,
    )


def add_placement_options(parser: argparse.ArgumentParser) -> None:
    """`--device`, `--dtype`, `--attention`, `--device-map`, `--quantization`: of every command that loads a model."""
    parser.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda[:N]|mps",
        help="where the model computes; auto (default): a CUDA GPU, else Apple's MPS, else the CPU",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"),
        help="of all weights; auto (default): as saved; bfloat16 halves the memory and changes answers a little",
    )  # fmt: skip
    parser.add_argument(
        "--attention", choices=get_args(Attention),
        help="attention of the language model (default: that of the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--device-map", choices=("auto",), help="auto: spread a model larger than one GPU over all of them",
    )  # fmt: skip
    parser.add_argument(
        "--quantization", choices=[kind for kind in get_args(Quantization) if kind != "none"],
        help="8 or 4 bits for the language model, by bitsandbytes (default: as saved); changes answers a little",
    )  # fmt: skip


def placement_words(options: argparse.Namespace) -> dict[str, str | None]:
    """The values of these options, as keyword arguments of `Predictor.from_pretrained`."""
    names = ("device", "dtype", "attention", "device_map", "quantization")
    return {name: getattr(options, name) for name in names}


@contextmanager
def first_load() -> Iterator[None]:
    """Pause the garbage collector while a program imports torch and loads its model for the first time.

    Imports make 700,000 objects that live to the end, and the collector looks through them again and again: a third
    of the start of `segment`. They are frozen at the end, so later collections do not look at them either.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def exit_code(program: str, work: Callable[[], int]) -> int:
    """Run `work` and turn the documented errors into one line on stderr and an exit code.

    InputError -> 2; a full or unwritable disk and other operating-system failures -> 1. Anything else is a
    bug and keeps its traceback. A reader that stops early (`… | head`) ends the program quietly, with 1.
    """
    try:
        try:
            return work()
        finally:  # also where argparse printed the help and exits
            if sys.stdout is not None:
                sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 1


def usage() -> str:
    """The text of `uniresxx --help`."""
    lines = [
        "usage: uniresxx COMMAND … | uniresxx COMMAND --help | uniresxx --version",
        "",
        "Point at anything in a picture with words and get its mask.",
        "",
        "commands:",
    ]
    return "\n".join([*lines, *(f"  {name:<10}{what}" for name, what in COMMANDS)])


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a subcommand; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    known = [command for command, _ in COMMANDS]
    if name in known:
        return exit_code(
            f"uniresxx {name}", lambda: int(import_module(f"uniresxx.cli.{name}").main(words[1:]))
        )
    return exit_code("uniresxx", lambda: _without_command(name, known))


def _without_command(word: str, known: Sequence[str]) -> int:
    """`--help`, `--version`, or InputError for a command that does not exist."""
    if word == "--version":
        from uniresxx import __version__

        print(f"uniresxx {__version__}")
    elif word in ("-h", "--help", "help"):
        print(usage())
    elif word:
        raise InputError(f"unknown command {word!r}{did_you_mean(word, known)}; known: {', '.join(known)}")
    else:
        print(usage(), file=sys.stderr)
        return 2
    return 0
