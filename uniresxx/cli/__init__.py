"""The `uniresxx` command: one file per subcommand, loaded only when it is asked for.

`uniresxx NAME …` calls `uniresxx.cli.NAME.main(argv)`, which returns an exit code. The codes of all programs:
0 done; 1 the work failed; 2 wrong input (one line on stderr); 75 stopped by a signal after saving.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from uniresxx.errors import InputError

COMMANDS = (
    ("segment", "masks for expressions on photos: overlay PNG, mask PNGs, COCO RLE as JSON"),
    ("data", "look into data sets and scenes, prepare and verify stores"),
    ("export", "a run's best model as a plain folder"),
    ("doctor", "check this machine and installation"),
)


class OneLineParser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the whole usage."""
        raise InputError(f"{message}; see `{self.prog} --help`")


def exit_code(program: str, work: Callable[[], int]) -> int:
    """Run `work` and turn the documented errors into one line on stderr and an exit code.

    InputError -> 2; a full or unwritable disk and other operating-system failures -> 1. Anything else is a
    bug and keeps its traceback.
    """
    try:
        return work()
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away (`… | head`); keep Python's last flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"{program}: {error}", file=sys.stderr)
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
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from uniresxx import __version__

        print(f"uniresxx {__version__}")
        return 0
    known = [name for name, _ in COMMANDS]
    if words[0] not in known:
        print(f"uniresxx: unknown command {words[0]!r}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    command = import_module(f"uniresxx.cli.{words[0]}")
    return exit_code(f"uniresxx {words[0]}", lambda: command.main(words[1:]))
