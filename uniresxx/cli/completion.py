"""`uniresxx completion bash|zsh`

Prints a script that lets the shell complete commands, options, their choices and file names:

  bash   uniresxx completion bash > ~/.local/share/bash-completion/completions/uniresxx
  zsh    uniresxx completion zsh > DIR/_uniresxx, with DIR in $fpath before `compinit` is called

For one session of bash: eval "$(uniresxx completion bash)"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from uniresxx.cli import COMMANDS, OneLineParser, parser_for
from uniresxx.cli.data import COMMANDS as DATA_COMMANDS
from uniresxx.errors import InputError

SHELLS = ("bash", "zsh")


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_for("uniresxx completion", __doc__)
    made.add_argument("shell", choices=SHELLS, help="the shell that completes")
    return made


def all_commands() -> OneLineParser:
    """One parser with every command below it, made of the commands' own parsers."""
    top = OneLineParser(
        prog="uniresxx", description="Point at anything in a picture with words and get its mask."
    )
    commands = top.add_subparsers(dest="command")
    for name, what in COMMANDS:
        if name != "data":
            own = parser() if name == "completion" else import_module(f"uniresxx.cli.{name}").parser()
            commands.add_parser(name, help=what, parents=[own], add_help=False)
    data = commands.add_parser("data", help=dict(COMMANDS)["data"]).add_subparsers(dest="data_command")
    for name in DATA_COMMANDS:
        module = name.replace("-", "_")
        modules = [module, "prepare_own"] if name == "prepare" else [module]
        parents = [import_module(f"uniresxx.cli.data.{one}").parser() for one in modules]
        data.add_parser(name, help=name, parents=parents, add_help=False, conflict_handler="resolve")
    return top


def script(shell: str) -> str:
    """The completion script; InputError where shtab, which writes it, is not installed."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise InputError("completion needs shtab: run `pip install 'uniresxx[completion]'`") from None
    top = all_commands()
    for action in _actions(top):
        if action.nargs != 0 and action.choices is None and action.type not in (int, float):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    return str(shtab.complete(top, shell))


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser and of all commands below it."""
    found = []
    for action in parser._actions:
        below = action.choices.values() if isinstance(action, argparse._SubParsersAction) else ()
        found += [action, *(one for command in below for one in _actions(command))]
    return found


def main(argv: Sequence[str]) -> int:
    """Print the script."""
    print(script(parser().parse_args(argv).shell))
    return 0
