"""The training loop. It knows no model: a model is `forward`, `loss` and `counts`.

What a step learns from is a pure function of its number, so a run that continues from a checkpoint does the
same steps as one that was never stopped (bit by bit on a CPU in fp32 with the same number of threads).
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from train.engine import Engine
from train.log import Display, RunLog, draw_curve, print_line, read_log, trim_log
from train.recipe import Recipe, check, differences
from uniresxx import checkpoint
from uniresxx.data.ledger import DATA, QUARANTINE, DataError, Ledger
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic

DONE, STOPPED = 0, 75  # exit codes
GIVE_UP_AFTER = 10  # steps in a row whose loss or gradient is not finite
LOG, CURVE, OVERLAYS, LOCK = "log.jsonl", "curve.png", "overlays", ".lock"
_IDS_SHOWN = 8

Say = Callable[[str], None]


class TrainingError(RuntimeError):
    """Training cannot go on; programs exit with 1."""


@dataclass(frozen=True)
class Job:
    """What a recipe trains.

    model: nn.Module with `forward(batch)`, `loss(output, batch) -> LossTerms`, `config` and `tokenizer` (see
        checkpoint.Saveable), and `counts(batch) -> dict[str, int]`: the denominator of each loss term, known
        before the forward pass.
    batches: pure function (step, micro) -> Batch, step from 0, micro < data.accumulate. Runs in worker
        processes where `data.workers` > 0: no global state, no use of torch's global random numbers.
    overlay: (step) -> picture of what the model sees now; called in eval mode without gradients.
    fingerprint: identifies the data by content; a run continues only on the same data.
    extra: saved in recipe.json and not compared (prompt templates, …).
    ledger: counts what was drawn, and keeps the samples that could not be prepared within their budget.
    """

    model: Any
    batches: Callable[[int, int], Any]
    overlay: Callable[[int], Image.Image] | None = None
    fingerprint: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    ledger: Ledger | None = None


@dataclass
class State:
    """Where a run is; saved as state.json."""

    step: int = 0  # updates done (skipped ones count)
    seconds: float = 0.0  # of training, over all restarts
    expressions: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    finished: bool = False


class Stop:
    """Turns SIGINT and SIGTERM into a request. While it is installed, no signal can interrupt a save."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        line = b"\nstopping after this step, then saving\n" if first else b"\nstill saving, one moment\n"
        with suppress(OSError):
            os.write(2, line)  # print is not safe here: it may be what was interrupted


class _Numbered(Dataset[Any]):
    """Micro-batches by their number over the whole run."""

    def __init__(self, batches: Callable[[int, int], Any], accumulate: int) -> None:
        self.batches, self.accumulate = batches, accumulate

    def __getitem__(self, index: int) -> Any:
        try:
            return self.batches(index // self.accumulate, index % self.accumulate)
        except (InputError, DataError) as error:
            return error  # raised again outside: a worker would wrap it into a page of traceback


def _start_worker(index: int) -> None:
    """Workers leave signals to the training process: a Ctrl-C reaches the whole group."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def prefetch(
    batches: Callable[[int, int], Any], recipe: Recipe, start: int
) -> Generator[list[Any], None, None]:
    """The micro-batches of each step from `start` on, prepared ahead by `data.workers` processes."""
    accumulate, workers = recipe.data.accumulate, recipe.data.workers
    loader: DataLoader[Any] = DataLoader(
        _Numbered(batches, accumulate),
        batch_size=None,
        sampler=range(start * accumulate, recipe.optim.steps * accumulate),
        num_workers=workers,
        worker_init_fn=_start_worker if workers else None,
        prefetch_factor=2 * accumulate if workers else None,
        generator=torch.Generator(),  # else making the loader would move torch's global random state
    )
    stream = iter(loader)
    try:
        while micro := list(islice(stream, accumulate)):
            for batch in micro:
                if isinstance(batch, InputError):
                    raise batch
                if isinstance(batch, DataError):
                    raise TrainingError(str(batch))
            yield micro
    finally:
        del stream  # ends the workers now: an exception that holds this frame must not keep them


@dataclass(frozen=True)
class StepResult:
    """One update. `terms` are unweighted means over the step; `ids` belong to what was not finite."""

    loss: float
    terms: dict[str, float]
    grad_norm: float
    lr: float
    expressions: int
    skipped: bool
    ids: list[str]


def do_step(
    engine: Engine, model: Any, micro: Sequence[Any], step: int, clip_norm: float, time_used: float = 0.0
) -> StepResult:
    """One update from its micro-batches; the result does not depend on how the step's samples are cut."""
    counts: dict[str, int] = {}
    for batch in micro:
        for name, value in model.counts(batch).items():
            counts[name] = counts.get(name, 0) + int(value)
    counts = engine.reduce(counts)
    losses: list[torch.Tensor] = []
    sums: dict[str, list[torch.Tensor]] = {}
    for batch in micro:
        placed = engine.place(batch)
        terms = model.loss(engine.forward(placed), placed)
        loss = terms.total(counts)
        engine.backward(loss)
        losses.append(loss.detach())
        for name, value in terms.sums.items():
            sums.setdefault(name, []).append(value.detach())
    each = [float(loss) for loss in losses]
    means = {name: sum(map(float, values)) / max(counts[name], 1) for name, values in sums.items()}
    grad_norm = engine.clip(clip_norm)
    ids = [name for batch in micro for name in batch.expression_ids]
    lr, bad, skipped = 0.0, [], not (math.isfinite(sum(each)) and math.isfinite(grad_norm))
    if skipped:
        engine.skip()
        guilty = [batch for batch, loss in zip(micro, each, strict=True) if not math.isfinite(loss)]
        bad = [name for batch in guilty or micro for name in batch.expression_ids]
    else:
        lr = engine.step(step, time_used)
    return StepResult(sum(each), means, grad_norm, lr, len(ids), skipped, bad)


def train(recipe: Recipe, job: Job, out: Path, fresh: bool = False, command: str = "the same command") -> int:
    """Train, or continue in `out`; returns DONE or STOPPED (a signal came; everything is saved).

    Raises InputError for wrong input (another recipe or data set in `out` among it), checkpoint.SaveError and
    TrainingError where the work fails. `command` is shown to say how to continue.
    """
    check(recipe)
    say = print_line
    with _locked(out):
        if fresh:
            _start_over(out)
        about = {"format": 1, "recipe": recipe.to_dict(), "data": job.fingerprint} | dict(job.extra)
        folder = _accept(out, about, say)
        torch.manual_seed(recipe.seed)
        engine = Engine(job.model, recipe.engine, recipe.optim)
        state = State() if folder is None else _restore(folder, engine, say)
        if state.finished:
            say(f"{out} is finished ({state.step} steps, {state.seconds / 60:.1f} min); --fresh starts over")
            return DONE
        trim_log(out / LOG, state.step)
        if state.step:
            say(f"continuing {out} after step {state.step}")
        return _Run(recipe, job, out, engine, state, about).go(command)


class _Run:
    """The running loop with what it writes."""

    def __init__(
        self, recipe: Recipe, job: Job, out: Path, engine: Engine, state: State, about: dict[str, Any]
    ) -> None:
        self.recipe, self.job, self.out, self.about = recipe, job, out, about
        self.engine, self.state = engine, state
        self.log = RunLog(out / LOG)
        self.display = Display(
            recipe.optim.steps, state.step, recipe.log.print_every_seconds, recipe.optim.max_minutes
        )
        self.saved = state.step if state.step else -1
        self.pictured = any((out / OVERLAYS).glob("step_*.png"))
        self.started = time.monotonic() - state.seconds

    def go(self, command: str) -> int:
        """All remaining steps."""
        state, steps = self.state, self.recipe.optim.steps
        stream = prefetch(self.job.batches, self.recipe, state.step)
        with self.display, Stop() as stop, closing(stream):
            try:
                self.job.model.train()
                for micro in stream:
                    self._step(micro)
                    state.finished = state.step >= steps or self._time_used() >= 1.0
                    self._picture()
                    if state.finished or stop.requested or state.step % self.recipe.log.save_every == 0:
                        self._save()
                    if state.finished or stop.requested:
                        break
            finally:
                self.log.close()
        if not state.finished:
            print_line(f"stopped and saved at step {state.step} of {steps}; continue with: {command}")
            return STOPPED
        self._report()
        early = "" if state.step >= steps else " (optim.max_minutes)"
        print_line(f"trained {state.step} steps{early} in {state.seconds / 60:.1f} min: {self.out}")
        return DONE

    def _time_used(self) -> float:
        limit = self.recipe.optim.max_minutes
        return 0.0 if limit is None else (time.monotonic() - self.started) / (60.0 * limit)

    def _step(self, micro: Sequence[Any]) -> None:
        """One update, its log line and its guard."""
        state, engine = self.state, self.engine
        clip = self.recipe.optim.clip_norm
        drawn = self._note(micro)
        result = do_step(engine, self.job.model, micro, state.step, clip, min(self._time_used(), 1.0))
        state.step += 1
        state.seconds = time.monotonic() - self.started
        state.expressions += result.expressions
        state.skipped += result.skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if result.skipped else 0
        record = {"step": state.step, "loss": result.loss, "loss_hex": result.loss.hex()} | result.terms
        record |= {
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "expressions": state.expressions,
            "expressions_per_s": round(self.display.count(result.expressions), 2),
            "seconds": round(state.seconds, 3),
            "skipped": result.skipped,
        }
        if drawn:
            record["drawn"] = {key: count for key, count in drawn.items() if count}
        self.log.write(record)
        self.display.show(record)
        if result.skipped:
            shown = ", ".join(result.ids[:_IDS_SHOWN]) + (", …" if len(result.ids) > _IDS_SHOWN else "")
            numbers = f"loss {result.loss}, gradient norm {result.grad_norm}"
            what = f"step {state.step}: {numbers}; expressions: {shown}"
            self.display.say(f"skipped {what}")
            if state.skipped_in_a_row >= GIVE_UP_AFTER:
                raise TrainingError(
                    f"{GIVE_UP_AFTER} steps in a row were not finite; the last is {what}. "
                    "Look at these samples, or lower --optim.lr"
                )

    def _note(self, micro: Sequence[Any]) -> dict[str, int]:
        """What the step draws, over all ranks. TrainingError where too much of it had to be replaced."""
        if self.job.ledger is None:
            return {}
        try:
            return self.engine.reduce(self.job.ledger.note(self.out, self.state.step, micro))
        except DataError as error:
            raise TrainingError(str(error)) from None

    def _report(self) -> None:
        """What the run was given, when it is done."""
        if self.job.ledger is not None:
            lines = (record.get("drawn", {}) for record in read_log(self.out / LOG))
            for line in self.job.ledger.report(self.out, lines):
                print_line(line)

    def _picture(self) -> None:
        """The overlay, where one is due; the training's random numbers and mode stay as they are."""
        log, state = self.recipe.log, self.state
        first = not self.pictured and state.seconds >= log.overlay_first_seconds
        due = first or state.finished or state.step % log.overlay_every == 0
        if self.job.overlay is None or not due:
            return
        model: nn.Module = self.job.model
        modes = [(module, module.training) for module in model.modules()]
        devices = [self.engine.device] if self.engine.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            picture = self.job.overlay(state.step)
        for module, mode in modes:
            module.training = mode
        path = self.out / OVERLAYS / f"step_{state.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, png_bytes(picture))
        if first:
            self.display.say(f"first picture: {path}")
        self.pictured = True

    def _save(self) -> None:
        """Checkpoint and curve."""
        state = self.state
        if self.saved == state.step:
            return
        self.log.flush()
        checkpoint.save(
            self.out,
            state.step,
            self.job.model,
            self.engine.tensors(),
            asdict(state) | {"engine": self.engine.describe()},
            self.about,
            self.recipe.log.keep_last,
        )
        self.saved = state.step
        draw_curve(self.out / LOG, self.out / CURVE)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Only one process trains into a folder; the lock goes with the process, however it ends."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: give a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = (out / LOCK).open("w")
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror}): give another folder") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is training into {out}: wait for it or stop it") from None
        yield


def _start_over(out: Path) -> None:
    """Delete what an earlier run of this loop wrote in `out`, and nothing else."""
    if (out / checkpoint.CHECKPOINTS).is_dir():
        for path in (out / checkpoint.CHECKPOINTS).glob("step_*"):
            shutil.rmtree(path)
        (out / checkpoint.CHECKPOINTS / checkpoint.BEST).unlink(missing_ok=True)
    for path in (out / OVERLAYS).glob("step_*.png"):
        path.unlink()
    for name in (LOG, CURVE, QUARANTINE, DATA, checkpoint.RECIPE):
        (out / name).unlink(missing_ok=True)


def _accept(out: Path, about: Mapping[str, Any], say: Say) -> Path | None:
    """The checkpoint to continue from; notes the recipe. Raises InputError with a diff for another recipe."""
    folder = checkpoint.newest_verified(out, say)
    known = folder / checkpoint.RECIPE if folder else out / checkpoint.RECIPE
    if known.exists():
        saved = checkpoint.read_json(known)
        changes = differences(_decisive(saved), _decisive(about))
        if changes:
            raise InputError(
                f"{out} was trained with another recipe or data set ({'; '.join(changes)}): "
                "use another --out, the old values, or --fresh to start over"
            )
    write_atomic(out / checkpoint.RECIPE, checkpoint.to_json(dict(about)))
    return folder


def _decisive(about: Mapping[str, Any]) -> dict[str, Any]:
    return {**about.get("recipe", {}), "data set": about.get("data", "")}


def _restore(folder: Path, engine: Engine, say: Say) -> State:
    """Weights, optimizer and random state into the engine; returns where the run was."""
    tokenizer = engine.model.tokenizer
    if tokenizer is not None and tokenizer.to_json().encode() != (folder / checkpoint.TOKENIZER).read_bytes():
        raise InputError(
            f"{folder / checkpoint.TOKENIZER} is not the vocabulary of this recipe and data: --fresh"
        )
    checkpoint.load_weights(engine.model, folder)
    engine.load(checkpoint.read_tensors(folder / checkpoint.OPTIMIZER))
    saved = checkpoint.read_json(folder / checkpoint.STATE)
    changes = differences(saved["engine"], engine.describe())
    if changes:
        say(f"note: the last bits may differ from an undisturbed run ({'; '.join(changes)})")
    return State(**{item.name: saved[item.name] for item in fields(State)})
