"""The training loop. It knows no model: a model is `forward`, `loss` and `counts`.

What a step learns from is a pure function of its number, so a run that continues from a checkpoint does the
same steps as one that was never stopped (bit by bit on a CPU in fp32 with the same threads, ranks and stage).

Every rank runs this file. Whatever decides the way (counts, losses, the clock, signals, failures of rank 0) is
shared, so all ranks skip, save and stop at the same step; only rank 0 writes and speaks.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar, cast

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from train.distributed import FAILED, FollowedError, Ranks
from train.engines.base import Engine, build_engine, join_ranks
from train.guards import Background, Stop, is_spike, remember
from train.log import Display, RunLog, draw_curve, print_line, read_log, trim_log
from train.recipe import Recipe, check, differences, share_of
from train.throughput import ThroughputMeter, Work
from train.trackers import TENSORBOARD, check_trackers, numbers_of, open_trackers
from train.validation import ValidationResult
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints import tensors as tensor_files
from uniresxx.data.mixture.data_log import DATA, QUARANTINE, DataError, DataLog, StepData
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic

DONE, STOPPED = 0, 75  # exit codes
GIVE_UP_AFTER = 10  # steps in a row whose loss or gradient is not finite
LOG, CURVE, OVERLAYS, EVAL, LOCK = "log.jsonl", "curve.png", "overlays", "eval", ".lock"
_IDS_SHOWN = 8
_WORDS_SHOWN, _LONGEST = 4, 100  # of a vocabulary's diff: entries, characters of each
_RANK_STRIDE = 1 << 32  # between the seeds of ranks, far from any other run's seed

Value = TypeVar("Value")


class TrainingError(RuntimeError):
    """Training cannot go on; programs exit with 1."""


class Divisible(Protocol):
    """Batches that several ranks can share."""

    def for_rank(self, rank: int, world_size: int) -> Callable[[int, int], Any]: ...


@dataclass(frozen=True)
class Job:
    """What a recipe trains.

    model: nn.Module with `forward(batch)`, `loss(output, batch) -> LossTerms`, `config` and `tokenizer` (see
        checkpoint.Saveable), and `counts(batch) -> dict[str, int]`: the denominator of each loss term, known
        before the forward pass.
    batches: pure function (step, micro) -> Batch, step from 0, micro < data.accumulate. Runs in worker
        processes where `data.workers` > 0: no global state, no use of torch's global random numbers. With
        several ranks its method `for_rank(rank, world_size)` gives the function of that rank's share: together
        the shares are the same micro-batch.
    overlay: (step) -> picture of what the model sees now; called in eval mode without gradients.
    fingerprint: identifies the data by content; a run continues only on the same data.
    extra: saved in recipe.json and not compared (prompt templates, …).
    ledger: counts what was drawn, and keeps the samples that could not be prepared within their budget.
    measure: (step, folder) -> ValidationResult, called as the overlay is, on every rank with the same result, at
        every `eval.every`-th step (where that is not finite, at the next one that is) and the last; writes into the
        folder. A checkpoint is saved then, and the one with the best value is kept and marked.
    work: tokens and FLOPs of a micro-batch, for the log.
    said: lines about the data, printed before the first step.
    """

    model: Any
    batches: Callable[[int, int], Any]
    overlay: Callable[[int], Image.Image] | None = None
    fingerprint: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    ledger: DataLog | None = None
    measure: Callable[[int, Path], ValidationResult] | None = None
    work: Callable[[Any], Work] | None = None
    said: tuple[str, ...] = ()


@dataclass
class State:
    """Where a run is; saved as state.json."""

    step: int = 0  # updates done (skipped ones count)
    seconds: float = 0.0  # of training, over all restarts
    expressions: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0  # not finite, one after the other
    spikes: int = 0  # of the skipped steps
    norms: list[float] = field(default_factory=list)  # the window of guards.is_spike
    best: dict[str, Any] | None = None  # checkpoint.mark_best's file
    finished: bool = False


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
    """One update of all ranks. `terms` are unweighted means over the step; `ids` belong to what was not finite."""

    loss: float
    terms: dict[str, float]
    grad_norm: float
    lr: float
    expressions: int
    skipped: bool
    ids: list[str]


def do_step(
    engine: Engine,
    model: Any,
    micro: Sequence[Any],
    step: int,
    time_used: float = 0.0,
    spike: Callable[[float], bool] = lambda norm: False,
) -> StepResult:
    """One update from this rank's micro-batches; the result does not depend on how the step's samples are cut."""
    counts: dict[str, int] = {}
    for batch in micro:
        for name, value in model.counts(batch).items():
            counts[name] = counts.get(name, 0) + int(value)
    counts = engine.reduce(counts)
    losses: list[torch.Tensor] = []
    sums: dict[str, list[torch.Tensor]] = {}
    for place, batch in enumerate(micro, start=1):
        with engine.accumulating(last=place == len(micro)):
            placed = engine.place(batch)
            terms = model.loss(engine.forward(placed), placed)
            loss = terms.total(counts)
            engine.backward(loss)
        losses.append(loss.detach())
        for name, value in terms.sums.items():
            sums.setdefault(name, []).append(value.detach())
    each = [float(loss) for loss in losses]
    mine = [sum(each), sum(len(batch.expression_ids) for batch in micro)]
    mine += [sum(map(float, sums.get(name, []))) for name in counts]
    total, expressions, *rest = engine.ranks.sum(mine)
    update = engine.update(
        step, time_used, lambda norm: math.isfinite(total) and math.isfinite(norm) and not spike(norm)
    )
    finite = math.isfinite(total) and math.isfinite(update.grad_norm)
    return StepResult(
        loss=total,
        terms={name: value / max(counts[name], 1) for name, value in zip(counts, rest, strict=True)},
        grad_norm=update.grad_norm,
        lr=update.lr if update.applied else 0.0,
        expressions=round(expressions),
        skipped=not update.applied,
        ids=[] if finite else _nonfinite_ids(engine.ranks, micro, each),
    )


def _nonfinite_ids(ranks: Ranks, micro: Sequence[Any], losses: Sequence[float]) -> list[str]:
    """Expressions of the micro-batches, of any rank, whose loss is not finite; of all where every loss is."""
    bad = [batch for batch, loss in zip(micro, losses, strict=True) if not math.isfinite(loss)]
    known = ranks.gather([name for batch in bad for name in batch.expression_ids])
    if not any(known):
        known = ranks.gather([name for batch in micro for name in batch.expression_ids])
    return [name for names in known for name in names]


def train(
    recipe: Recipe,
    job: Job,
    out: Path,
    fresh: bool = False,
    command: str = "the same command",
    ranks: Ranks | None = None,
) -> int:
    """Train, or continue in `out`; returns DONE or STOPPED (a signal came; everything is saved).

    Raises InputError for wrong input (another recipe or data set in `out` among it), checkpoint.SaveError and
    TrainingError where the work fails (FollowedError on ranks that only follow rank 0). `command` is shown to
    say how to continue; `ranks` is the job as joined before (default: joined here).
    """
    check(recipe)
    check_trackers(recipe.log)
    ranks = ranks or join_ranks(recipe.engine)
    ranks.on_rank0(lambda: share_of(recipe.data, ranks.world_size))
    with ExitStack() as stack:
        stack.enter_context(ranks.main_output_only())
        ranks.on_rank0(lambda: stack.enter_context(_locked(out)))
        about = {"format": 1, "recipe": recipe.to_dict(), "data": job.fingerprint} | dict(job.extra)
        folder = ranks.on_rank0(lambda: _open_folder(out, about, job.model.tokenizer, fresh))
        if folder is not None:
            ranks.on_all_ranks(lambda: tensor_files.load_weights(job.model, folder))
        torch.manual_seed(recipe.seed + _RANK_STRIDE * ranks.rank)
        engine = build_engine(job.model, recipe, ranks)
        state = State() if folder is None else ranks.on_all_ranks(lambda: _restore(folder, engine))
        if state.finished:
            print_line(
                f"{out} is finished ({state.step} steps, {state.seconds / 60:.1f} min); --fresh starts over"
            )
            return DONE
        ranks.on_rank0(lambda: _tidy(out, state))
        for line in job.said:
            print_line(line)
        if state.step:
            print_line(f"continuing {out} after step {state.step}")
        return _Run(recipe, job, out, engine, state, about).go(command)


class _Run:
    """The running loop with what it writes."""

    def __init__(
        self, recipe: Recipe, job: Job, out: Path, engine: Engine, state: State, about: dict[str, Any]
    ) -> None:
        self.recipe, self.job, self.out, self.about = recipe, job, out, about
        self.engine, self.ranks, self.state = engine, engine.ranks, state
        self.log = RunLog(out / LOG if self.ranks.is_main else Path(os.devnull))
        self.display = Display(
            recipe.optim.steps, state.step, recipe.log.print_every_seconds, recipe.optim.max_minutes
        )
        self.watch = ThroughputMeter(self.ranks, recipe.engine, engine.device, job.work)
        self.trackers = open_trackers(recipe.log, out, state.step, about) if self.ranks.is_main else []
        self.writer = Background()
        self.saved = state.step if state.step else -1
        self.owed = self.unmeasured = False  # a regular save, a measurement that wait for a finite step
        self.pictured = self.ranks.on_rank0(lambda: any((out / OVERLAYS).glob("step_*.png")))
        self.started = time.monotonic() - state.seconds

    def go(self, command: str) -> int:
        """All remaining steps."""
        state, steps = self.state, self.recipe.optim.steps
        batches = self.job.batches
        if self.ranks.world_size > 1:
            batches = cast(Divisible, batches).for_rank(self.ranks.rank, self.ranks.world_size)
        stream = prefetch(batches, self.recipe, state.step)
        with self.display, Stop() as stop, closing(stream):
            try:
                self.job.model.train()
                for micro in self.watch.waiting(stream):
                    self._step(micro)
                    stopping = self._agree(stop.requested)
                    state.finished = state.step >= steps or self._time_used() >= 1.0
                    self._picture()
                    measured = not stopping and self._measure()
                    self.owed |= state.step % self.recipe.log.save_every == 0
                    due = self.owed and not state.skipped_in_a_row  # else weights gone bad push out good ones
                    if state.finished or stopping or measured or due:
                        self._save()
                    if state.finished or stopping:
                        break
                self.ranks.on_rank0(self._written)
            finally:
                self.writer.wait()
                self.log.close()
                for tracker in self.trackers:
                    tracker.close()
        if not state.finished:
            print_line(f"stopped and saved at step {state.step} of {steps}; continue with: {command}")
            return STOPPED
        self._report()
        early = "" if state.step >= steps else " (optim.max_minutes)"
        print_line(f"trained {state.step} steps{early} in {state.seconds / 60:.1f} min: {self.out}")
        return DONE

    def _agree(self, stop: bool) -> bool:
        """Shares the clock of rank 0 and a signal that any rank got."""
        now = time.monotonic() - self.started if self.ranks.is_main else 0.0
        seconds, stops = self.ranks.sum([now, stop])
        self.state.seconds = seconds
        return stops > 0

    def _time_used(self) -> float:
        """Fraction of `max_minutes`, 0..1 and more, at the end of the step before."""
        limit = self.recipe.optim.max_minutes
        return 0.0 if limit is None else self.state.seconds / (60.0 * limit)

    def _step(self, micro: Sequence[Any]) -> None:
        """One update, its log line and its guard."""
        state, sigmas = self.state, self.recipe.optim.spike_sigmas
        drawn = self._note(micro)
        result = do_step(
            self.engine, self.job.model, micro, state.step, min(self._time_used(), 1.0),
            lambda norm: is_spike(norm, state.norms, sigmas),
        )  # fmt: skip
        if sigmas is not None:
            state.norms = remember(result.grad_norm, state.norms)
        finite = not result.ids
        state.step += 1
        state.expressions += result.expressions
        state.skipped += result.skipped
        state.spikes += result.skipped and finite
        state.skipped_in_a_row = 0 if finite else state.skipped_in_a_row + 1
        record = {"step": state.step, "loss": result.loss, "loss_hex": result.loss.hex()} | result.terms
        record |= {
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "expressions": state.expressions,
            "expressions_per_s": round(self.display.count(result.expressions), 2),
            "seconds": round(time.monotonic() - self.started, 3),
            "skipped": result.skipped,
        }
        record |= self.watch.measure(micro)
        if drawn:
            record["drawn"] = {key: count for key, count in drawn.items() if count}
        self._write(record, "train")
        self.display.show(record)
        if result.skipped:
            self._tell_skipped(result)

    def _write(self, record: Mapping[str, Any], group: str) -> None:
        """A log line, here and in the trackers."""
        self.log.write(record)
        for tracker in self.trackers:
            numbers = numbers_of({key: value for key, value in record.items() if key != "drawn"})
            named = {f"{group}/{name.removeprefix(f'{group}/')}": number for name, number in numbers.items()}
            tracker.write(record["step"], {key: v for key, v in named.items() if math.isfinite(v)})

    def _tell_skipped(self, result: StepResult) -> None:
        """A line for a step that was not applied; TrainingError after too many that are not finite."""
        step = self.state.step
        if not result.ids:
            self.display.say(f"skipped step {step}: gradient norm {result.grad_norm:.4g} is a spike")
            return
        shown = ", ".join(result.ids[:_IDS_SHOWN]) + (", …" if len(result.ids) > _IDS_SHOWN else "")
        numbers = f"loss {result.loss}, gradient norm {result.grad_norm}"
        what = f"step {step}: {numbers}; expressions: {shown}"
        self.display.say(f"skipped {what}")
        if self.state.skipped_in_a_row >= GIVE_UP_AFTER:
            if not self.ranks.is_main:
                raise FollowedError(FAILED)
            raise TrainingError(
                f"{GIVE_UP_AFTER} steps in a row were not finite; the last is {what}. "
                "Look at these samples, or lower --optim.lr with another --out (or --fresh)"
            )

    def _note(self, micro: Sequence[Any]) -> dict[str, int]:
        """What the step draws, over all ranks. TrainingError where too much of it had to be replaced."""
        ledger = self.job.ledger
        if ledger is None:
            return {}
        given = self.ranks.gather([StepData(batch.drawn, batch.bad) for batch in micro])
        everything = [item for items in given for item in items]
        try:
            return self.ranks.on_rank0(lambda: ledger.record(self.out, self.state.step, everything))
        except DataError as error:
            raise TrainingError(str(error)) from None

    def _report(self) -> None:
        """What the run was given, when it is done."""
        ledger = self.job.ledger
        if ledger is not None:
            lines = (record.get("drawn", {}) for record in read_log(self.out / LOG))
            for line in self.ranks.on_rank0(lambda: ledger.report(self.out, lines)):
                print_line(line)

    def _picture(self) -> None:
        """The overlay, where one is due."""
        log, state = self.recipe.log, self.state
        first = not self.pictured and state.seconds >= log.overlay_first_seconds
        due = first or state.finished or state.step % log.overlay_every == 0
        overlay = self.job.overlay
        if overlay is None or not due:
            return
        picture = self._look(lambda: overlay(state.step))
        path = self.out / OVERLAYS / f"step_{state.step:08d}.png"
        self.ranks.on_rank0(lambda: _write_picture(path, picture))
        if first:
            self.display.say(f"first picture: {path}")
        self.pictured = True

    def _measure(self) -> bool:
        """The benchmarks, where they are due: scores into the log, the overlay beside them, the best noted."""
        state, every, measure = self.state, self.recipe.eval.every, self.job.measure
        if measure is None or every is None:
            return False
        self.unmeasured |= state.step % every == 0
        if not (state.finished or (self.unmeasured and not state.skipped_in_a_row)):
            return False
        self.unmeasured = False
        folder, overlay = self.out / EVAL / f"step_{state.step:08d}", self.job.overlay
        with ExitStack() as stack:
            if not self.ranks.is_main:  # the same work, so that all run the same modules; one of them writes
                folder = Path(stack.enter_context(TemporaryDirectory()))
            found = self.ranks.on_all_ranks(lambda: self._look(lambda: measure(state.step, folder)))
            picture = None if overlay is None else self._look(lambda: overlay(state.step))
        value = self.ranks.on_rank0(lambda: found.value)
        best = value is not None and (state.best is None or value > state.best["value"])
        if best:
            state.best = {"step": state.step, "metric": found.metric, "value": value}
        if picture is not None:
            self.ranks.on_rank0(lambda: _write_picture(folder / "overlay.png", picture))
        self._write({"step": state.step, "eval": found.scores}, "eval")
        said = "not defined" if value is None else f"{value:.2f}"
        self.display.say(f"step {state.step}: {found.metric} {said}{', the best so far' if best else ''}")
        return True

    def _look(self, work: Callable[[], Value]) -> Value:
        """Use the model as it is now; the training's random numbers and mode stay as they are."""
        model: nn.Module = self.job.model
        modes = [(module, module.training) for module in model.modules()]
        devices = [self.engine.device] if self.engine.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            found = self.engine.answer(work)
        for module, mode in modes:
            module.training = mode
        return found

    def _save(self) -> None:
        """Checkpoint, best mark and curve."""
        state = self.state
        self.owed = False
        if self.saved == state.step:
            return
        model: Any = self.job.model
        weights, tensors = self.engine.weights(), self.engine.tensors()
        about = asdict(state) | {"engine": self.engine.describe()}
        background = self.recipe.log.save_async
        if background and self.ranks.is_main:
            weights, tensors = tensor_files.copied(weights), tensor_files.copied(tensors)
        snapshot = checkpoint.Snapshot(model.config, model.tokenizer, weights)

        def write() -> None:
            checkpoint.save(
                self.out, about["step"], snapshot, tensors, about, self.about, self.recipe.log.keep_last,
                self.ranks.world_size, about["best"],
            )  # fmt: skip

        def start() -> None:
            self.log.flush()
            if background:
                self.writer.start(write)
            else:
                write()
            draw_curve(self.out / LOG, self.out / CURVE)

        self.ranks.on_rank0(start)
        self.saved = state.step

    def _written(self) -> None:
        """Everything handed to the background is on the disk; raises what went wrong there."""
        self.writer.finish()


def _write_picture(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, png_bytes(picture))


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
    for folder in (out / EVAL).glob("step_*"):
        shutil.rmtree(folder)
    for path in (out / TENSORBOARD).glob("events.out.tfevents.*"):
        path.unlink()
    for name in (LOG, CURVE, QUARANTINE, DATA, checkpoint.RECIPE):
        (out / name).unlink(missing_ok=True)


def _open_folder(out: Path, about: Mapping[str, Any], tokenizer: Any, fresh: bool) -> Path | None:
    """The checkpoint to continue from; notes the recipe. InputError with a diff for another recipe or vocabulary."""
    if fresh:
        _start_over(out)
    if (out / checkpoint.CHECKPOINTS).is_dir():
        checkpoint.remove_leftovers(out / checkpoint.CHECKPOINTS)
    folder = checkpoint.newest_verified(out, print_line)
    known = folder / checkpoint.RECIPE if folder else out / checkpoint.RECIPE
    if known.exists():
        changes = differences(_decisive(checkpoint.read_json(known)), _decisive(about))
        if changes:
            raise InputError(
                f"{out} was trained with another recipe or data set ({'; '.join(changes)}): "
                "use another --out, the old values, or --fresh to start over"
            )
    if folder is not None and tokenizer is not None:
        changes = _word_changes((folder / checkpoint.TOKENIZER).read_bytes(), tokenizer.to_json().encode())
        if changes:
            raise InputError(
                f"{folder / checkpoint.TOKENIZER} is not the vocabulary of this recipe and data "
                f"({'; '.join(changes)}): use another --out, the old data, or --fresh to start over"
            )
    write_atomic(out / checkpoint.RECIPE, checkpoint.to_json(dict(about)))
    return folder


def _tidy(out: Path, state: State) -> None:
    """Undo what a killed process did after the checkpoint, and do what it could not do any more."""
    trim_log(out / LOG, state.step)
    if state.best is not None:
        checkpoint.mark_best(out, state.best)


def _decisive(about: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change in a run. How a step is cut into micro-batches may: its images are the same."""
    saved = dict(about.get("recipe", {}))
    data = dict(saved.get("data", {}))
    if {"batch_images", "accumulate"} <= data.keys():
        data["batch_images * accumulate"] = data.pop("batch_images") * data.pop("accumulate")
    return {**saved, "data": data, "data set": about.get("data", "")}


def _word_changes(old: bytes, new: bytes) -> list[str]:
    """The first few entries in which two tokenizer files differ."""
    if old == new:
        return []
    found = differences(json.loads(old), json.loads(new)) or ["the order of entries"]
    shown = [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…" for line in found[:_WORDS_SHOWN]]
    return [*shown, f"{len(found)} changes in all"] if len(found) > _WORDS_SHOWN else shown


def _restore(folder: Path, engine: Engine) -> State:
    """Optimizer and random state into the engine; returns where the run was."""
    engine.load(tensor_files.read_tensors(folder / checkpoint.OPTIMIZER))
    saved = checkpoint.read_json(folder / checkpoint.STATE)
    changes = differences(saved["engine"], engine.describe())
    if changes:
        print_line(f"note: the last bits may differ from an undisturbed run ({'; '.join(changes)})")
    return State(**{item.name: saved[item.name] for item in fields(State) if item.name in saved})
