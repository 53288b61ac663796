"""`python -m tools.crash_test [--every N] [--random N]`: kills a run, fills its disk, damages its files.

A very small model trains a few steps and saves every other one. Then the same training is
  * killed at its N-th write, fsync, rename and removal (every N-th of them in turn; half a write is on the disk),
  * given a full disk at each of these,
  * killed at random moments,
  * given a truncated, emptied, bit-flipped or missing file in its newest checkpoint,
and continued by the same call each time. It must finish, every checkpoint that was reported as saved and kept must
still verify, and the final weights, optimizer state and losses must equal the undisturbed run's,
bit by bit. Prints one line per kind and a JSON object last; exits with 1 where anything failed.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from mllm.config import MLLMConfig, tiny_llama
from mllm.tower_families import clip_vit, convnext
from train.assemble import open_job
from train.job import Job
from train.log import RunLog, read_log
from train.loop import train
from train.recipe import EngineConfig, LogConfig, Recipe
from train.recipes import KNOWN
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints.shards import OPTIMIZER
from uniresxx.files import write_atomic
from uniresxx.model.config import PyramidHeadConfig

STEPS, SAVE_EVERY, KEEP = 4, 2, 1
KILLED, FULL, DONE = 9, 1, 0
DAMAGES = ("truncate", "empty", "flip", "remove")
Fault = Callable[..., None]


def small_recipe(background: bool) -> Recipe:
    """A few steps of tiny_scenes with a model of half a megabyte."""
    full = KNOWN["tiny_scenes"]()
    mllm = MLLMConfig(
        low=clip_vit(16, 1, 2), high=convnext((8, 8, 16, 16), (1, 1, 1, 1)),
        llm=tiny_llama(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=400
        ),
        mgfe_blocks=1, mgfe_heads=2,
    )  # fmt: skip
    return replace(
        full,
        model=replace(full.model, mllm=mllm, head=PyramidHeadConfig(width=16, heads=2)),
        data=replace(full.data, batch_images=2, expressions_per_image=2),
        optim=replace(full.optim, steps=STEPS, warmup_steps=2, max_minutes=None),
        engine=EngineConfig(device="cpu", threads=1),
        log=LogConfig(SAVE_EVERY, KEEP, background, 1e9, 10**9, 1e9),
    )


class Counter:
    """Counts operations on the disk; calls `fault` before operation number `at`."""

    def __init__(self, at: int, fault: Fault) -> None:
        self.at, self.fault, self.count = at, fault, 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.fault(*args)
            return function(*args, **kwargs)

        return wrapped

    def install(self) -> None:
        """Replace the operations in this process, for good: it is a child made for one experiment."""
        for owner, name in (
            (checkpoint, "write_file"), (os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"),
            (shutil, "rmtree"), (RunLog, "write"),
        ):  # fmt: skip
            setattr(owner, name, self.wrap(getattr(owner, name)))


def die(*args: Any) -> None:
    """End the process with half a write done and no clean-up."""
    if len(args) == 2 and isinstance(args[1], bytes):
        args[0].write_bytes(args[1][: len(args[1]) // 2])
    elif len(args) == 2 and callable(args[1]):  # it writes the file itself
        args[1](args[0])
        os.truncate(args[0], args[0].stat().st_size // 2)
    os._exit(KILLED)


def fill(*args: Any) -> None:
    """The disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class CrashTest:
    """Runs of one training, each in a child process that inherits the new model."""

    folder: Path
    recipe: Recipe
    job: Job
    failures: list[str] = field(default_factory=list)

    def start(self, out: Path, counter: Counter | None = None, report: Path | None = None) -> int:
        """Train in a child; returns its process id. `report` gets a line per finished save."""
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            code = self._work(out, counter, report)
        finally:
            os._exit(code)

    def _work(self, out: Path, counter: Counter | None, report: Path | None) -> int:
        patch("train.loop.draw_curve", lambda log, picture: write_atomic(picture, b"a curve")).start()
        saved = checkpoint.save
        if report is not None:
            stream = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

            def save(run: Path, step: int, *rest: Any) -> Path:
                path = saved(run, step, *rest)
                os.write(stream, f"{step}\n".encode())
                return path

            patch.object(checkpoint, "save", save).start()
        if counter is not None:
            counter.install()
        try:
            return train(self.recipe, self.job, out)
        except (checkpoint.SaveError, OSError):
            return FULL
        finally:
            if counter is not None and report is not None and counter.at < 0:
                os.write(stream, f"{counter.count} operations\n".encode())

    def finish(self, child: int) -> int:
        """Wait for a child; its exit code (negative: the signal)."""
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def check(self, what: str, out: Path, whole: Path, report: Path, code: int, allowed: set[int]) -> None:
        """After a fault: no checkpoint is lost, and the same call finishes with the same result."""
        if code not in allowed:
            self.failures.append(f"{what}: exit code {code}")
        reported = [int(line) for line in report.read_text().split()] if report.exists() else []
        good = [step for step in range(STEPS + 1) if is_good(checkpoint.step_folder(out, step))]
        for step in reported:
            if step not in good and sum(newer > step for newer in good) < KEEP:
                self.failures.append(f"{what}: the saved step {step} is lost, there are {good}")
        self.compare(what, out, whole)

    def compare(self, what: str, out: Path, whole: Path) -> None:
        """Continue, and compare with the undisturbed run."""
        code = self.finish(self.start(out))
        if code != DONE:
            self.failures.append(f"{what}: continuing ended with {code}")
        elif result_of(out) != result_of(whole):
            self.failures.append(f"{what}: another result than the undisturbed run")
        shutil.rmtree(out)


def is_good(folder: Path) -> bool:
    """A checkpoint that verifies."""
    return folder.exists() and checkpoint.damage(folder) is None


def result_of(run: Path) -> list[Any]:
    """Final weights, optimizer state and losses, exactly, and the temporary files left behind."""
    folder = checkpoint.step_folder(run, STEPS)
    found: list[Any] = [[record["loss_hex"] for record in read_log(run / "log.jsonl")]]
    found += [(folder / name).read_bytes() for name in (checkpoint.WEIGHTS, f"{OPTIMIZER}.safetensors")]
    return [*found, [path.name for path in run.rglob("*.tmp")]]


def faults_at_operations(test: CrashTest, whole: Path, every: int, kind: str) -> int:
    """Kill the run or fill the disk at every N-th operation; returns the number of faults."""
    counting, report = test.folder / "counting", test.folder / "counting.txt"
    assert test.finish(test.start(counting, Counter(-1, die), report)) == DONE
    total = int(report.read_text().split()[-2])
    shutil.rmtree(counting)
    report.unlink()
    fault, code = (die, KILLED) if kind == "kill" else (fill, FULL)
    numbers = range(1, total + 1, every)
    for number in numbers:
        out, report = test.folder / f"{kind}_{number}", test.folder / f"{kind}_{number}.txt"
        ended = test.finish(test.start(out, Counter(number, fault), report))
        test.check(f"{kind} at operation {number} of {total}", out, whole, report, ended, {code, DONE})
    return len(numbers)


def kills_at_random(test: CrashTest, whole: Path, count: int, seconds: float) -> int:
    """SIGKILL at random moments of the run."""
    source = random.Random(0)
    for number in range(count):
        out, report = test.folder / f"random_{number}", test.folder / f"random_{number}.txt"
        out.mkdir()
        wait = source.uniform(0.0, seconds)
        child = test.start(out, None, report)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        ended = test.finish(child)
        test.check(f"killed after {wait:.2f} s", out, whole, report, ended, {-signal.SIGKILL, DONE})
    return count


def damaged_files(test: CrashTest, whole: Path) -> int:
    """Damage each file of the newest checkpoint in each way."""
    names = sorted(path.name for path in checkpoint.step_folder(whole, STEPS).iterdir())
    for name in names:
        for kind in DAMAGES:
            out = test.folder / f"{kind}_{name}"
            shutil.copytree(whole, out)
            damage(checkpoint.step_folder(out, STEPS) / name, kind)
            test.compare(f"{kind} {name}", out, whole)
    return len(names) * len(DAMAGES)


def damage(path: Path, kind: str) -> None:
    """Damage a file."""
    data = bytearray(path.read_bytes())
    if kind == "remove":
        path.unlink()
    elif kind == "flip":
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2] if kind == "truncate" else b"")


def experiments(test: CrashTest, every: int, count: int) -> Iterator[tuple[str, int]]:
    """All kinds of faults; yields the kind and the number."""
    whole = test.folder / "whole"
    start = time.monotonic()
    assert test.finish(test.start(whole)) == DONE, "the undisturbed run fails"
    seconds = time.monotonic() - start
    yield "killed at an operation", faults_at_operations(test, whole, every, "kill")
    yield "full disk at an operation", faults_at_operations(test, whole, every, "full")
    yield "killed at a random moment", kills_at_random(test, whole, count, seconds)
    yield "damaged files", damaged_files(test, whole)


def main(argv: list[str] | None = None) -> int:
    """All experiments; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.crash_test", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take every N-th operation")
    parser.add_argument("--random", type=int, default=20, help="kills at random moments")
    parser.add_argument("--async", action="store_true", dest="background", help="with log.save_async")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    recipe = small_recipe(options.background)
    done: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="crash_test_") as folder:
        test = CrashTest(Path(folder), recipe, open_job(recipe, None))
        for kind, count in experiments(test, options.every, options.random):
            done[kind] = count
            print(f"{kind}: {count}, {len(test.failures)} failures so far", flush=True)
    for line in test.failures:
        print(f"failed: {line}")
    print(json.dumps(done | {"failures": len(test.failures)}))
    return 1 if test.failures else 0


if __name__ == "__main__":
    sys.exit(main())
