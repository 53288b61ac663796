"""The training loop. It knows no model: a model is `forward`, `loss` and `counts`.

What a step learns from is a pure function of its number, so a run that continues from a checkpoint does the same
steps as one that was never stopped (bit by bit on a CPU in fp32 with the same threads, ranks and stage).

Every rank runs this file. All ranks share counts, losses, the clock, signals and failures of rank 0, so all skip,
save and stop at the same step. Only rank 0 writes and prints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from train.distributed import Ranks
from train.engines.base import Engine
from train.engines.choose import build_engine, join_ranks
from train.guards import Background, Stop, is_spike, remember
from train.job import Job
from train.log import Display, RunLog, draw_curve, print_line, read_log
from train.optim import longer_run_line, time_used
from train.recipe import Recipe, check, share_of
from train.run_folder import (
    CURVE,
    EVAL,
    LOCK,
    LOG,
    OVERLAYS,
    State,
    begin,
    check_owner,
    previous_run,
    restore,
    write_picture,
)
from train.step import StepResult, TrainingError, do_step, prefetch
from train.throughput import ThroughputMeter
from train.trackers import check_trackers, open_trackers, tracked_numbers
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints.saveable import Snapshot
from uniresxx.checkpoints.shards import copied
from uniresxx.checkpoints.tensors import load_weights
from uniresxx.data.mixture.data_log import DataError, StepData
from uniresxx.evaluation.ranks import ALONE, FAILED, OtherRankError, Processes
from uniresxx.files import lock_file

DONE, STOPPED = 0, 75  # exit codes
GIVE_UP_AFTER = 10  # steps in a row whose loss or gradient is not finite
_IDS_SHOWN = 8
_RANK_STRIDE = 1 << 32  # between the seeds of ranks, far from any other run's seed


def train(
    recipe: Recipe,
    job: Job,
    out: Path,
    fresh: bool = False,
    command: str = "the same command",
    ranks: Ranks | None = None,
) -> int:
    """Train, or continue the run in `out`.

    Args:
        recipe: decides every step.
        job: the opened data and model of the recipe.
        out: the run folder.
        fresh: remove the run in `out` and start over.
        command: shown as the way to continue.
        ranks: the processes, if they are joined already.

    Returns:
        DONE, or STOPPED after a signal, with everything saved.

    Raises:
        InputError: wrong input, such as another recipe or data set in `out`.
        checkpoint.SaveError: the disk is full or refuses.
        TrainingError: training cannot go on.
        OtherRankError: rank 0 failed; on the other ranks.
    """
    recipe = recipe if job.model_config is None else replace(recipe, model=job.model_config)
    check(recipe)
    check_trackers(recipe.log)
    ranks = ranks or join_ranks(recipe.engine)
    ranks.on_rank0(lambda: share_of(recipe.data, ranks.world_size))
    with ExitStack() as stack:
        stack.enter_context(ranks.main_output_only())
        ranks.on_rank0(lambda: stack.enter_context(lock_file(out / LOCK, f"train into {out}")))
        about = {"format": 1, "recipe": recipe.to_dict(), "data": job.fingerprint} | dict(job.extra)
        previous = ranks.on_rank0(
            lambda: check_owner(out) if fresh else previous_run(out, about, job.model.tokenizer, job.newest)
        )
        if previous is not None and not job.loaded:
            ranks.on_all_ranks(lambda: load_weights(job.model, previous.checkpoint))
        torch.manual_seed(recipe.seed + _RANK_STRIDE * ranks.rank)
        engine = build_engine(job.model, recipe, ranks)
        state = State()
        if previous is not None:
            state = ranks.on_all_ranks(lambda: restore(previous.checkpoint, engine))
        state.finished = _is_finished(recipe, state)
        ranks.on_rank0(lambda: begin(out, about, state, fresh))
        if state.finished:
            print_line(
                f"{out} is finished ({state.step} steps, {state.seconds / 60:.1f} min); a larger --optim.steps or "
                "--optim.max_minutes continues it, --fresh starts over"
            )
            return DONE
        for line in job.messages:
            print_line(line)
        if previous is not None:
            print_line(f"continuing {out} after step {state.step}")
            planned = replace(recipe.optim, steps=previous.steps, max_minutes=previous.max_minutes)
            if planned != recipe.optim:
                print_line(longer_run_line(planned, recipe.optim, state.step, state.seconds))
        return _Run(recipe, job, out, engine, state, about).run(command)


def _is_finished(recipe: Recipe, state: State) -> bool:
    return state.step >= recipe.optim.steps or time_used(recipe.optim, state.seconds) >= 1.0


class _Run:
    """The running loop with what it writes."""

    def __init__(
        self, recipe: Recipe, job: Job, out: Path, engine: Engine, state: State, about: dict[str, Any]
    ) -> None:
        self.recipe, self.job, self.out, self.about = recipe, job, out, about
        self.engine, self.ranks, self.state = engine, engine.ranks, state
        self.log = RunLog(out / LOG if self.ranks.is_main else Path(os.devnull))
        optim, log = recipe.optim, recipe.log
        self.display = Display(optim.steps, state.step, log.print_every_seconds, optim.max_minutes)
        self.meter = ThroughputMeter(self.ranks, recipe.engine, engine.device, job.cost)
        self.trackers = open_trackers(log, out, state.step, about) if self.ranks.is_main else []
        self.writer = Background()
        self.saved_step = state.step if state.step else -1
        self.save_due = self.validation_due = False  # they wait for a finite step
        self.has_overlay = self.ranks.on_rank0(lambda: any((out / OVERLAYS).glob("step_*.png")))
        self.started = time.monotonic() - state.seconds

    def run(self, command: str) -> int:
        """All remaining steps."""
        state, steps = self.state, self.recipe.optim.steps
        batches: Any = self.job.batches
        if self.ranks.world_size > 1:
            batches = batches.for_rank(self.ranks.rank, self.ranks.world_size)
        stream = prefetch(batches, self.recipe, state.step, pin=self.engine.device.type == "cuda")
        with self.display, Stop() as stop, closing(stream):
            try:
                self.job.model.train()
                for micro in self.meter.waiting(stream):
                    self._step(micro)
                    stopping = self._share_clock_and_signal(stop.requested)
                    state.finished = _is_finished(self.recipe, state)
                    self._save_overlay()
                    validated = not stopping and self._validate()
                    self.save_due |= state.step % self.recipe.log.save_every == 0
                    due = self.save_due and not state.skipped_in_a_row  # else bad weights push out good ones
                    if state.finished or stopping or validated or due:
                        self._save()
                    if state.finished or stopping:
                        break
                self.ranks.on_all_ranks(self.writer.finish)
            finally:
                self.writer.wait()
                self.log.close()
                for tracker in self.trackers:
                    tracker.close()
        if not state.finished:
            print_line(f"stopped and saved at step {state.step} of {steps}; continue with: {command}")
            return STOPPED
        self._report_data()
        early = "" if state.step >= steps else " (optim.max_minutes)"
        print_line(f"trained {state.step} steps{early} in {state.seconds / 60:.1f} min: {self.out}")
        return DONE

    def _share_clock_and_signal(self, stop: bool) -> bool:
        """All ranks take the clock of rank 0; returns whether any rank got a signal."""
        now = time.monotonic() - self.started if self.ranks.is_main else 0.0
        seconds, stops = self.ranks.sum([now, stop])
        self.state.seconds = seconds
        return stops > 0

    def _step(self, micro: Sequence[Any]) -> None:
        """One update, its log line and its guard."""
        state, sigmas = self.state, self.recipe.optim.spike_sigmas
        drawn = self._count_data(micro)
        result = do_step(
            self.engine, self.job.model, micro, state.step,
            min(time_used(self.recipe.optim, state.seconds), 1.0),
            lambda norm: is_spike(norm, state.norms, sigmas),
        )  # fmt: skip
        if sigmas is not None:
            state.norms = remember(result.grad_norm, state.norms)
        finite = not result.bad_ids
        state.step += 1
        state.expressions += result.expressions
        state.skipped += result.skipped
        state.spikes += result.skipped and finite
        state.skipped_in_a_row = 0 if finite else state.skipped_in_a_row + 1
        record: dict[str, Any] = {
            "step": state.step,
            "loss": result.loss,
            "loss_hex": result.loss.hex(),
            **result.terms,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "expressions": state.expressions,
            "expressions_per_s": round(self.display.count(result.expressions), 2),
            "seconds": round(time.monotonic() - self.started, 3),
            "skipped": result.skipped,
            **self.meter.record(micro),
        }
        if drawn:
            record["drawn"] = {key: count for key, count in drawn.items() if count}
        self._write(record, "train")
        self.display.show(record)
        if result.skipped:
            self._report_skipped(result)

    def _write(self, record: Mapping[str, Any], group: str) -> None:
        """Write a log line, and its numbers to the trackers."""
        self.log.write(record)
        for tracker in self.trackers:
            tracker.write(record["step"], tracked_numbers(record, group))

    def _report_skipped(self, result: StepResult) -> None:
        """Print a line for a step that was not applied; TrainingError after too many that are not finite."""
        step, ids = self.state.step, result.bad_ids
        if not ids:
            self.display.log(f"skipped step {step}: gradient norm {result.grad_norm:.4g} is a spike")
            return
        shown = ", ".join(ids[:_IDS_SHOWN]) + (", …" if len(ids) > _IDS_SHOWN else "")
        what = f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}; expressions: {shown}"
        self.display.log(f"skipped {what}")
        if self.state.skipped_in_a_row >= GIVE_UP_AFTER:
            if not self.ranks.is_main:
                raise OtherRankError(FAILED)
            raise TrainingError(
                f"{GIVE_UP_AFTER} steps in a row were not finite; the last is {what}. "
                "Check these samples, or lower --optim.lr with another --out (or --fresh)"
            )

    def _count_data(self, micro: Sequence[Any]) -> dict[str, int]:
        """Count the samples of the step over all ranks. TrainingError where too many had to be replaced."""
        data_log = self.job.data_log
        if data_log is None:
            return {}
        by_rank = self.ranks.gather([StepData(batch.drawn, batch.bad) for batch in micro])
        data = [item for items in by_rank for item in items]
        try:
            return self.ranks.on_rank0(lambda: data_log.record(self.out, self.state.step, data))
        except DataError as error:
            raise TrainingError(str(error)) from None

    def _report_data(self) -> None:
        """Write and print the counts of the whole run."""
        data_log = self.job.data_log
        if data_log is not None:
            lines = (record.get("drawn", {}) for record in read_log(self.out / LOG))
            for line in self.ranks.on_rank0(lambda: data_log.report(self.out, lines)):
                print_line(line)

    def _save_overlay(self) -> None:
        """Write the overlay, where one is due."""
        log, state = self.recipe.log, self.state
        first = not self.has_overlay and state.seconds >= log.overlay_first_seconds
        due = first or state.finished or state.step % log.overlay_every == 0
        overlay = self.job.overlay
        if overlay is None or not due:
            return
        picture = self.engine.in_eval_mode(lambda: overlay(state.step))
        path = self.out / OVERLAYS / f"step_{state.step:08d}.png"
        self.ranks.on_rank0(lambda: write_picture(path, picture))
        if first:
            self.display.log(f"first picture: {path}")
        self.has_overlay = True

    def _validate(self) -> bool:
        """Answer and score the benchmarks, where they are due; returns whether they were."""
        state, every, validate = self.state, self.recipe.eval.every, self.job.validate
        if validate is None or every is None:
            return False
        self.validation_due |= state.step % every == 0
        if not (state.finished or (self.validation_due and not state.skipped_in_a_row)):
            return False
        self.validation_due = False
        folder, overlay = self.out / EVAL / f"step_{state.step:08d}", self.job.overlay
        # in stage 3 every rank has to run the same modules, and one keeps the files
        alone = self.recipe.engine.zero_stage == 3
        sharing: Processes = ALONE if alone else self.ranks
        with ExitStack() as stack:
            if alone and not self.ranks.is_main:
                folder = Path(stack.enter_context(TemporaryDirectory()))
            measure = partial(validate, state.step, folder, sharing)
            found = self.ranks.on_all_ranks(lambda: self.engine.in_eval_mode(measure))
            picture = None if overlay is None else self.engine.in_eval_mode(lambda: overlay(state.step))
        value = self.ranks.on_rank0(lambda: found.value)
        best = value is not None and (state.best is None or value > state.best["value"])
        if best:
            state.best = {"step": state.step, "metric": found.metric, "value": value}
        if picture is not None:
            self.ranks.on_rank0(lambda: write_picture(folder / "overlay.png", picture))
        self._write({"step": state.step, "eval": found.scores}, "eval")
        shown = "not defined" if value is None else f"{value:.2f}"
        self.display.log(f"step {state.step}: {found.metric} {shown}{', the best so far' if best else ''}")
        for line in found.lines:
            self.display.log(line)
        return True

    def _save(self) -> None:
        """Write a checkpoint, the mark of the best one, and the curve."""
        state = self.state
        self.save_due = False
        if self.saved_step == state.step:
            return
        background, ranks = self.recipe.log.save_async, self.ranks
        weights, tensors = self.engine.weights(), self.engine.tensors()
        about = asdict(state) | {"engine": self.engine.describe()}
        if background:
            ranks.on_all_ranks(self.writer.finish)  # its copies are gone before there are new ones
            weights, tensors = copied(weights, tensors, ranks)
            ranks = ranks.in_background()
        model: Any = self.job.model
        snapshot = Snapshot(model.config, model.tokenizer, weights)

        def write() -> None:
            checkpoint.save(
                self.out, about["step"], snapshot, tensors, about, self.about, self.recipe.log.keep_last,
                ranks, about["best"],
            )  # fmt: skip

        self.ranks.on_rank0(self.log.flush)
        if background:
            self.writer.start(write)
        else:
            write()
        self.ranks.on_rank0(lambda: draw_curve(self.out / LOG, self.out / CURVE))
        self.saved_step = state.step
