"""`python -m tools.launch FAMILY`: all of a full-size training on one machine, from checks to the table of scores.

Checks versions, GPUs, data, disk and memory; trains the stages A, B and C; exports the model; evaluates every
benchmark of the data folder. Each step is a command of train, uniresxx or eval, shown before it runs. The same
command continues after an interruption: steps that are done are skipped, and each step continues by itself.
`--dry-run` checks everything, each command by the parser of its own program, and starts none.

Exit codes: 0 done, 2 something is missing or wrong, else that of the step that ended.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from train.recipes import KNOWN
from uniresxx.errors import InputError
from uniresxx.files import write_json

if TYPE_CHECKING:
    from train.command_line import Command
    from train.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"a": "_align", "b": "_ground", "c": ""}  # stage -> end of its recipe's name
FAMILIES = sorted(name for name in KNOWN if all(name + end in KNOWN for end in STAGES.values()))
LAUNCHER = "torch.distributed.run"
RECORD = "launch.json"  # the steps that are done
SECONDS_TO_SAVE = "570"  # that torchrun waits after a stop signal
WRONG_INPUT = 2
FROZEN, TRAINED = 2, 12  # bytes of a parameter in a checkpoint: bf16; fp32 with AdamW's two moments
KEPT = 4  # checkpoints of a stage at once: the last two, the best, and the one that is being written
GB = 1e9


@dataclass(frozen=True)
class Step:
    """One command of the whole; `words` follow `python -m`."""

    name: str
    words: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command as a person types it."""
        return shlex.join(["python", "-m", *self.words])

    @property
    def program(self) -> tuple[str, tuple[str, ...]]:
        """The module of our own that it starts, and its arguments, without the launcher."""
        words = self.words
        if words[0] == LAUNCHER:
            words = words[words.index("-m") + 1 :]
        return words[0], words[1:]


def parser() -> argparse.ArgumentParser:
    """The options."""
    root = argparse.ArgumentParser("python -m tools.launch", description=str(__doc__).split("\n\n")[1])
    root.add_argument("family", choices=FAMILIES, metavar="FAMILY", help=f"of {', '.join(FAMILIES)}")
    root.add_argument("--data", type=Path, required=True, metavar="DIR", help="root of the data sets")
    root.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a, b, c, model and eval")
    root.add_argument("--gpus", type=int, default=8, metavar="N", help="of this machine; 0: its CPU")
    root.add_argument("--zero-stage", type=int, choices=range(4), default=2, metavar="0-3")
    root.add_argument(
        "--weights", nargs="+", default=[], metavar="NAME=FOLDER",
        help="published weights of the first stage: llava=FOLDER high=FOLDER sam=FOLDER (docs/weights.md)",
    )  # fmt: skip
    root.add_argument("--first-stage", choices=STAGES, default="a", help="leave out the stages before it")
    root.add_argument(
        "--mixture", nargs="+", default=[], metavar="STAGE=MIXTURE",
        help="other training data of a stage, such as b=composed_parts=1,paco=1",
    )  # fmt: skip
    root.add_argument("--options", default="", metavar="WORDS", help="more of every stage, in one word")
    root.add_argument("--dry-run", action="store_true", help="check everything, start nothing")
    return root


def steps_of(options: argparse.Namespace) -> list[Step]:
    """The commands, in order. InputError where a NAME=VALUE is none."""
    out, data, more = options.out, str(options.data), shlex.split(options.options)
    weights = _pairs(options.weights, "--weights")
    mixtures = _pairs(options.mixture, "--mixture", STAGES)
    start = [word for name, value in weights.items() for word in (f"--model.weights.{name}", value)]
    names = list(STAGES)[list(STAGES).index(options.first_stage) :]
    steps = []
    for stage in names:
        words = ["train", options.family + STAGES[stage], "--engine.zero_stage", str(options.zero_stage)]
        words += [*start, *more, "--data", data, "--out", str(out / stage)]
        if stage in mixtures:
            words += ["--data.mixture", mixtures[stage]]
        steps.append(_step(f"stage {stage.upper()}", words, options.gpus))
        start = ["--model.weights.start", str(out / stage)]
    model = str(out / "model")
    steps.append(Step("export", ("uniresxx", "export", str(out / names[-1]), model)))
    evaluate = ["eval", "reproduce", "--checkpoint", model, "--data", data, "--out", str(out / "eval")]
    return [*steps, _step("evaluation", evaluate, options.gpus)]


def _step(name: str, words: Sequence[str], gpus: int) -> Step:
    """A command that all GPUs share."""
    launcher = (LAUNCHER, "--nproc_per_node", str(gpus), "-m") if gpus else ()
    return Step(name, (*launcher, *words))


def _pairs(words: Sequence[str], option: str, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """NAME=VALUE words as a dict."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value or (known is not None and name not in known):
            kinds = f", NAME one of {', '.join(known)}" if known else ""
            raise InputError(f"{option} {word}: write NAME=VALUE{kinds}")
        found[name] = value
    return found


def parsed(steps: Sequence[Step]) -> dict[str, Command]:
    """Each command read by the parser of its own program; the recipes of the stages, by the step's name.

    Raises InputError with the step's name and the parser's line.
    """
    from torch.distributed.run import get_args_parser

    from eval.__main__ import parser as eval_parser
    from train.command_line import parse
    from uniresxx.cli.export import parser as export_parser

    commands = {}
    for step in steps:
        module, words = step.program
        try:
            if step.words[0] == LAUNCHER:
                get_args_parser().parse_args(step.words[1:])
            if module == "train":
                commands[step.name] = parse(list(words), KNOWN)
            elif module == "eval":
                eval_parser().parse_args(words)
            else:
                export_parser().parse_args(words[1:])
        except InputError as error:
            raise InputError(f"{step.name}: {error}") from None
    return commands


def problems_of(
    commands: Mapping[str, Command], data: Path, out: Path, weights: Mapping[str, str], gpus: int
) -> Iterator[str]:
    """Everything that would end the training later, a line each; what is found is printed on the way."""
    from uniresxx.model.build import check_sources

    first = next(iter(commands.values()))
    yield from wrong_versions(first.recipe.engine.zero_stage > 0)
    try:
        check_sources(first.recipe.model)
    except InputError as error:
        yield str(error)
    for name, place in weights.items():
        if Path(place).is_dir():
            continue
        if place.startswith((".", "/")) or place.count("/") != 1:
            yield f"--weights {name}={place}: no such folder"
        else:
            print(f"--weights {name}={place}: no folder here, so an id of the hub, which is downloaded")
    yield from _missing_data(data, commands)
    plans = {name: predicted(command, gpus) for name, command in commands.items()}
    yield from _missing_gpus(gpus, plans)
    yield from _missing_disk(out, plans)


def wrong_versions(with_engine: bool) -> Iterator[str]:
    """Installed packages that pyproject.toml does not allow; `with_engine`: those of ZeRO too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["train"] + (extras["engine"] if with_engine else [])
    for text in wanted:
        requirement = Requirement(text)
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "none"
        if found == "none" or not requirement.specifier.contains(found, prereleases=True):
            yield f"{text} is needed, {found} is installed: pip install -e '.[train,engine]'"


def _missing_data(data: Path, commands: Mapping[str, Command]) -> Iterator[str]:
    """Training data that cannot be read, and the evaluation's where there is none at all."""
    from eval.reproduce import benchmarks_below
    from uniresxx.data.mixture.parts import MixturePart, mixture_named

    if not data.is_dir():
        yield f"--data {data}: no such folder"
        return
    seen: dict[str, str | None] = {}
    for name, command in commands.items():
        d = command.recipe.data
        parts = mixture_named(d.mixture) if d.mixture else d.parts or (MixturePart(d.source, d.split),)
        for source in dict.fromkeys(f"{part.source}/{part.split}" for part in parts):
            if source not in seen:
                seen[source] = _unreadable(source, data)
            if seen[source]:
                yield f"{name}: {source}: {seen[source]}"
    found, missing = benchmarks_below(data)
    print(
        f"to evaluate: {', '.join(found) or 'nothing'}; missing: {', '.join(m.name for m in missing) or 'nothing'}"
    )
    if not found:
        yield f"--data {data} holds no benchmark to evaluate"


def _unreadable(source: str, data: Path) -> str | None:
    """Why not a single record of a data set can be read; None where one can."""
    from uniresxx.data.catalog import find_store, stream_benchmark

    if find_store(source, data) or find_store(source.rpartition("/")[0], data):
        return None
    try:
        return None if next(iter(stream_benchmark(source, data)), None) else "it is empty"
    except InputError as error:
        return str(error)


def predicted(command: Command, gpus: int) -> Plan:
    """The memory of a stage, printed as a line."""
    from train.plan import plan

    found = plan(command.recipe, max(gpus, 1))
    print(found.line())
    return found


def _missing_gpus(gpus: int, plans: Mapping[str, Plan]) -> Iterator[str]:
    import torch

    if not gpus:
        return
    there = torch.cuda.device_count()
    if there < gpus:
        yield f"{there} GPUs are visible, {gpus} are asked for: give --gpus {there}, or another machine"
    sizes = [torch.cuda.get_device_properties(k).total_memory for k in range(min(there, gpus))]
    for name, found in plans.items():
        if sizes and found.peak > min(sizes):
            yield (
                f"{name} needs {found.peak / GB:.1f} GB per GPU, the smallest has {min(sizes) / GB:.1f} GB: use "
                "--zero-stage 3, another FAMILY, or --options '--data.batch_images …'"
            )


def _missing_disk(out: Path, plans: Mapping[str, Plan]) -> Iterator[str]:
    """Checkpoints of all stages and the exported model, against the free space of their disk."""
    sizes = [FROZEN * (p.parameters - p.trained) + TRAINED * p.trained for p in plans.values()]
    needed = KEPT * sum(sizes) + sizes[-1]
    place = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    print(f"disk: about {needed / GB:.0f} GB for checkpoints, {free / GB:.0f} GB free in {place}")
    if free < needed:
        yield f"{place} has {free / GB:.0f} GB free, about {needed / GB:.0f} GB are needed: give another --out"


def run_steps(steps: Sequence[Step], out: Path, gpus: int) -> int:
    """Run what is not done yet, in order; the exit code of the first step that does not end well, else 0."""
    record = out / RECORD
    done: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    environment = _environment(gpus)
    for step in steps:
        if done.get(step.name) == step.line:
            print(f"{step.name}: done")
            continue
        print(f"{step.name}: {step.line}", flush=True)
        code = _wait(subprocess.Popen([sys.executable, "-m", *step.words], env=environment))
        if code:
            print(f"{step.name} ended with exit code {code}; the same command continues", file=sys.stderr)
            return code
        done[step.name] = step.line
        write_json(record, done)
    return 0


def _environment(gpus: int) -> dict[str, str]:
    """The environment of a step: threads, time to save, and the programs of this clone."""
    given = dict(os.environ)
    given.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // max(gpus, 1))))
    given.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_SAVE)
    given["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), given.get("PYTHONPATH"))))
    return given


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a step. A stop signal is the step's: it saves, and this program waits for it."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {
        signal.SIGINT: signal.signal(
            signal.SIGINT, signal.SIG_IGN
        ),  # a terminal sends it to the step as well
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Check, then run; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        steps = steps_of(options)
        commands = parsed(steps)
        weights = _pairs(options.weights, "--weights")
        problems = list(problems_of(commands, options.data, options.out, weights, options.gpus))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if options.dry_run:
        for step in steps:
            print(f"{step.name}: {step.line}")
    if problems:
        return WRONG_INPUT
    if options.dry_run:
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    return run_steps(steps, options.out, options.gpus)


if __name__ == "__main__":
    sys.exit(main())
