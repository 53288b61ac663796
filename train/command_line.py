"""The command line of training, as dataclasses."""

from __future__ import annotations

import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mllm.pretrained_config import with_changes
from train.log import mute
from train.recipe import Recipe, check
from train.recipe_changes import FORMER_FIELDS
from train.sam_options import with_sam_sizes
from uniresxx.cli import did_you_mean
from uniresxx.errors import InputError
from uniresxx.model.config import FORMER_VALUES

_USAGE = "python -m train RECIPE [--section.field value] [--data DIR] --out DIR [--fresh]"
_PLAN = "python -m train plan RECIPE [--gpus N] [--json] [--section.field value]"
_FINETUNE = "python -m train finetune --from CKPT --data STORE --out DIR [--section.field value]"
_CALIBRATE = "python -m train calibrate-presence --from CKPT --out DIR [--data STORE|scenes]"
_Options = TypeVar("_Options")
_RecipeOption = Annotated[tyro.conf.FlagConversionOff[Recipe], tyro.conf.arg(name="")]
_DataOption = Annotated[Path | None, tyro.conf.arg(aliases=("--root",))]
Recipes = Mapping[str, Callable[[], Recipe]]


@dataclass(frozen=True)
class Command:
    """The command line after the recipe's name."""

    recipe: _RecipeOption
    out: Path  # run folder; an unfinished run in it continues
    data: _DataOption = None  # root of the data sets' native layouts
    fresh: bool = False  # remove the run in --out and start over


@dataclass(frozen=True)
class PlanCommand:
    """The command line of `plan` after the recipe's name."""

    recipe: _RecipeOption
    gpus: int = 1  # processes of the job, one per GPU
    tokens: int | None = None  # of an expression with its question and answer; None: a usual number
    json: bool = False  # print one JSON object instead of a table


@dataclass(frozen=True)
class _Start:
    """The checkpoint and the run folder alone: they are read first, for the defaults of the other options."""

    start: Annotated[Path, tyro.conf.arg(name="from")]
    out: Path | None = None


@dataclass(frozen=True)
class FinetuneCommand:
    """The command line of `finetune`."""

    recipe: _RecipeOption
    start: Annotated[Path, tyro.conf.arg(name="from")]  # run folder, from_pretrained folder, hub:OWNER/NAME
    out: Path  # run folder; an unfinished run in it continues
    data: _DataOption = None  # a prepared store, or the root of native layouts for --data.source
    fresh: bool = False  # remove the run in --out and start over
    refusal_pictures: int = (
        60  # at most, to measure N-acc and T-acc before and after; 0: they are not measured
    )


@dataclass(frozen=True)
class Finetuning(Command):
    """What `parse_finetune` makes of it."""

    refusal_pictures: int = 0


@dataclass(frozen=True)
class CalibrateCommand:
    """Retrain the presence head of a checkpoint alone, so that it says again that something is not there.

    All other weights stay as they are, bit by bit: no mask and no word changes. About a minute for a small model on
    a CPU. The head is fitted to pictures that ask for absent things too: those of --data, else of the checkpoint's
    own training data, else of that of the model it started from, else drawn scenes. OUT gets a checkpoint folder as
    any other, and in refusal/ the answers that N-acc and T-acc before and after were computed from.
    """

    start: Annotated[str, tyro.conf.arg(name="from")]  # run folder, from_pretrained folder, hub:OWNER/NAME
    out: Path  # folder of the new checkpoint
    data: str | None = None  # a prepared store, scenes, scenes_easy, or the root of its own data sets
    pictures: int = 600  # of each data set
    device: str = "auto"  # cpu, cuda, cuda:N or mps
    seed: int = 0  # which expressions of a picture are asked, and in which words


def without_rank(argv: list[str]) -> list[str]:
    """The arguments without a launcher's `--local_rank=N` or `--local_rank N`."""
    kept: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if name not in ("--local_rank", "--local-rank"):
            kept.append(argument)
        elif not equals:
            next(arguments, None)
    return kept


def parse(argv: list[str], known: Recipes) -> Command:
    """The command line of a recipe. Raises InputError with one line; `--help` exits with 0."""
    arguments = without_rank(argv)
    name = _recipe_name(arguments, known, _USAGE)
    options, recipe = with_sam_sizes(arguments[1:], known[name]())
    default = Command(recipe=recipe, out=tyro.MISSING)
    command = _options(options, known[name], default, f"python -m train {name}")
    check(command.recipe)
    return command


def parse_plan(argv: list[str], known: Recipes) -> PlanCommand:
    """The command line after `plan`. Raises InputError with one line; `--help` exits with 0."""
    arguments = without_rank(argv)
    name = _recipe_name(arguments, known, _PLAN)
    options, recipe = with_sam_sizes(arguments[1:], known[name]())
    default = PlanCommand(recipe=recipe)
    command = _options(options, known[name], default, f"python -m train plan {name}")
    check(command.recipe)
    for option, value, least in (("gpus", command.gpus, 1), ("tokens", command.tokens, 2)):
        if value is not None and value < least:
            raise InputError(f"--{option} {value}: must be at least {least}")
    return command


def parse_finetune(argv: list[str]) -> Finetuning:
    """The command line after `finetune`; the checkpoint decides the defaults. Raises InputError; `--help` exits."""
    from train.finetune import finetune, recipe_of, with_data

    arguments = without_rank(argv)
    default = FinetuneCommand(recipe=finetune(), start=tyro.MISSING, out=tyro.MISSING)
    program = "python -m train finetune"
    if not {"-h", "--help"} & {*arguments}:
        words = _with_value("--from", arguments)
        if not words:
            raise InputError(f"--from is missing: {_FINETUNE}")
        words += _with_value("--out", arguments)
        first = _options(words, finetune, _Start(tyro.MISSING), program)
        default = replace(default, recipe=recipe_of(str(first.start), first.out), start=first.start)
    found = _options(arguments, finetune, default, program)
    check(found.recipe)
    recipe, root = with_data(found.recipe, found.data)
    if found.refusal_pictures < 0:
        raise InputError(f"--refusal_pictures {found.refusal_pictures}: must be at least 0")
    return Finetuning(recipe, found.out, root, found.fresh, found.refusal_pictures)


def parse_calibrate(argv: list[str]) -> CalibrateCommand:
    """The command line after `calibrate-presence`. Raises InputError with one line; `--help` exits with 0."""
    default = CalibrateCommand(start=tyro.MISSING, out=tyro.MISSING)
    program = "python -m train calibrate-presence"
    found = _options(without_rank(argv), CalibrateCommand, default, program)
    if found.pictures < 1:
        raise InputError(f"--pictures {found.pictures}: must be at least 1")
    return found


def _with_value(option: str, arguments: list[str]) -> list[str]:
    """`option` and its value among the arguments; nothing where it is not given."""
    for place, word in enumerate(arguments):
        if word.split("=")[0] == option:
            return arguments[place : place + 2] if word == option else [word]
    return []


def _recipe_name(arguments: list[str], known: Recipes, usage: str) -> str:
    """The first word, which names a recipe."""
    names = ", ".join(sorted(known)) or "none"
    if arguments and arguments[0] in ("-h", "--help"):
        others = f"\n       {_PLAN}\n       {_FINETUNE}\n       {_CALIBRATE}" if usage == _USAGE else ""
        start = usage.partition("RECIPE")[0]
        with _help_into_closed_pipe():
            print(f"usage: {usage}{others}\nrecipes: {names}\noptions of a recipe: {start}RECIPE --help")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"the recipe's name comes first: {usage}; known recipes: {names}")
    if arguments[0] not in known:
        also = ("plan", "finetune", "calibrate-presence") if usage == _USAGE else ()
        hint = did_you_mean(arguments[0], (*known, *also))
        raise InputError(f"unknown recipe {arguments[0]!r}{hint}; known: {names}")
    return arguments[0]


@contextmanager
def _help_into_closed_pipe() -> Iterator[None]:
    """Print help; a reader that stops early (`| head`) is no error."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        mute()
        raise SystemExit(0) from None


def _options(
    arguments: list[str], described: Callable[..., object], default: _Options, program: str
) -> _Options:
    """The options, over `default`."""
    messages = io.StringIO()
    try:
        with redirect_stderr(messages), _help_into_closed_pipe():
            found = tyro.cli(
                type(default),
                prog=program,
                description=inspect.getdoc(described) or "",
                default=default,
                args=arguments,
                use_underscores=True,
                registry=_WITH_DICTS,
            )
        return _with_dict_changes(found, default, "")
    except SystemExit as end:
        if not end.code:
            raise
        hint = _hint(arguments, default)
        raise InputError(f"{plain(messages.getvalue())}{hint}; see {program} --help") from None


class _Changes(dict[str, Any]):
    """What a command line says about a dict, to be applied to the dict of the recipe."""


_WITH_DICTS = ConstructorRegistry()


@_WITH_DICTS.primitive_rule
def _dict_option(option: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
    """A dict takes words `key=value`, see `mllm.pretrained_config.with_changes`."""
    if option.type != dict[str, Any]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="KEY=VALUE ...|FOLDER",
        instance_from_str=lambda words: _Changes(words=words),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda values: [f"{key}={json.dumps(value)}" for key, value in values.items()],
    )


def _with_dict_changes(found: Any, default: Any, path: str) -> Any:
    """A dataclass with the changes of the command line applied to the dicts of `default`; InputError names them."""
    if isinstance(found, _Changes):
        try:
            return with_changes(default, found["words"])
        except ValueError as error:
            raise InputError(f"--{path}: {error}") from error
    if not is_dataclass(found):
        return found
    changed: dict[str, Any] = {}
    for name, option in _options_of(found, path).items():
        value = getattr(found, name)
        new = _with_dict_changes(value, getattr(default, name), option)
        if new is not value:
            changed[name] = new
    return replace(found, **changed) if changed else found  # type: ignore[type-var]


def _options_of(value: Any, path: str) -> dict[str, str]:
    """The option of each field of a dataclass at `path`; the recipe's own fields have no prefix."""
    start = f"{path}." if path else ""
    return {field.name: "" if field.name == "recipe" else f"{start}{field.name}" for field in fields(value)}


def _option_names(value: Any, path: str) -> list[str]:
    """The options of a command line's dataclass, without dashes; a dict is one option."""
    if not is_dataclass(value):
        return [path]
    options = _options_of(value, path)
    return [
        option for field, place in options.items() for option in _option_names(getattr(value, field), place)
    ]


def _hint(arguments: list[str], default: Any) -> str:
    """What to write instead of the first option or value that has a new or similar name."""
    known = ["from" if name == "start" else name for name in _option_names(default, "")]
    words = [part for word in arguments for part in word.split("=", 1)]
    for option, value in zip_longest(words, words[1:]):
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--"):
            continue
        if name in FORMER_FIELDS:
            new = FORMER_FIELDS[name]
            return f"; --{name} is now --{new}" if new else f"; --{name} no longer exists: leave it out"
        if (name.rpartition(".")[2], value) in FORMER_VALUES:
            return f"; {value} is now {FORMER_VALUES[name.rpartition('.')[2], value]}"
        if name not in known and name != "root":
            return did_you_mean(option, [f"--{name}" for name in known])
    return ""


def plain(box: str) -> str:
    """The message in a box as one line, without the title and the hints; drawn in Unicode or in ASCII."""
    lines = [line for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"\n[ │]*[─-]{3,}[ │]*\n", "\n".join(lines))
    titled = "╭" not in box and len(paragraphs) > 1
    return " ".join(paragraphs[titled].replace("│", " ").split()).removesuffix(".") or "wrong arguments"
