"""The loop with a stub model: accumulation, exact resume, signals, kills, guards, refusals.

Run as a script (`python test_train_loop.py OUT STEPS SAVE_EVERY PAUSE WORKERS HOLD`) it trains the stub, for the
tests that need a process of their own. The step HOLD waits for a file OUT.go: whatever has to meet the run before
its end can come as late as a busy machine lets it.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from train.engines.base import Engine
from train.job import Job
from train.log import draw_curve, read_log, smooth, trim_log
from train.loop import DONE, STOPPED, train
from train.recipe import DataConfig, EngineConfig, EvalConfig, LogConfig, OptimConfig, Recipe
from train.run_folder import start_over
from train.step import TrainingError, do_step, prefetch
from train.validation import ValidationResult
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.tensors import read_tensors
from uniresxx.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600  # seconds for a process on a machine that is busy with other work
torch.set_num_threads(1)
WIDTH, VOCABULARY = 8, 16


@dataclass
class StubConfig:
    width: int = WIDTH

    def to_dict(self):
        return {"model_type": "stub", "width": self.width}


class StubTokenizer:
    words = VOCABULARY

    def to_json(self):
        return json.dumps({"words": self.words})


@dataclass
class StubBatch:
    words: torch.Tensor  # (N, 3)
    truth: torch.Tensor  # (N,)
    present: torch.Tensor  # (N,) bool
    expression_ids: list[str]

    def to(self, device):
        return StubBatch(
            self.words.to(device), self.truth.to(device), self.present.to(device), self.expression_ids
        )


@dataclass
class StubTerms:
    sums: dict
    weights: dict

    def total(self, counts):
        return sum(self.weights[k] * self.sums[k] / max(counts[k], 1) for k in self.sums)


class Stub(nn.Module):
    """Embedding, norm, dropout (so random state matters), two losses with different denominators."""

    def __init__(self, dropout=0.2):
        super().__init__()
        torch.manual_seed(7)
        self.config, self.tokenizer = StubConfig(), StubTokenizer()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, 1)
        self.rare = nn.Linear(WIDTH, 1)  # gets no gradient in some steps

    def forward(self, batch):
        return self.dropout(self.norm(self.words(batch.words).mean(1)))

    def counts(self, batch):
        return {"text": len(batch.words) * 3, "mask": int(batch.present.sum())}

    def loss(self, output, batch):
        text = (self.head(output).squeeze(1) - batch.truth).square().sum()
        rows = output[batch.present]
        mask = self.rare(rows).square().sum() if len(rows) else output.sum() * 0
        return StubTerms({"text": text, "mask": mask}, {"text": 1.0, "mask": 2.0})


def one_sample(index):
    generator = torch.Generator().manual_seed(1000 + index)
    words = torch.randint(0, VOCABULARY, (3,), generator=generator)
    return words, torch.randn((), generator=generator), index % 3 == 0, f"stub/train/{index}"


def batches(images, accumulate):
    def get(step, micro):
        start = (step * accumulate + micro) * images
        rows = [one_sample(index) for index in range(start, start + images)]
        return StubBatch(
            torch.stack([r[0] for r in rows]),
            torch.stack([r[1] for r in rows]),
            torch.tensor([r[2] for r in rows]),
            [r[3] for r in rows],
        )

    return get


def recipe_of(steps=12, images=4, accumulate=2, save_every=5, workers=0, **optim):
    return Recipe(
        "stub",
        StubConfig(),
        DataConfig("stub", "train", images, accumulate, 1, workers),
        OptimConfig(steps=steps, lr=1e-2, warmup_steps=3, weight_decay=0.1, **optim),
        EngineConfig(device="cpu", threads=1),
        LogConfig(save_every=save_every, overlay_first_seconds=1e9, overlay_every=6, print_every_seconds=0),
        seed=3,
    )


def job_of(recipe, **changes):
    get = batches(recipe.data.batch_images, recipe.data.accumulate)
    return replace(Job(Stub(), get, fingerprint="stub 1"), **changes)


def weights_of(run):
    folder = checkpoint.newest_verified(run, print)
    tensors = read_tensors(folder / "model.safetensors")
    return tensors | read_tensors(folder / "optimizer.safetensors")


def assert_same_run(one, other):
    left, right = weights_of(one), weights_of(other)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    hexes = [[(r["step"], r["loss_hex"]) for r in read_log(run / "log.jsonl")] for run in (one, other)]
    assert hexes[0] == hexes[1]


class StopAtError(Exception):
    pass


def crashing(get, step):
    def wrapped(now, micro):
        if now == step:
            raise StopAtError
        return get(now, micro)

    return wrapped


@pytest.fixture
def script():
    """Starts this file as a program that trains the stub; nothing it starts outlives the test."""
    started = []

    def start(out, steps, save_every, pause=0.0, workers=0, hold=1000, **kwargs):
        command = [sys.executable, __file__, *map(str, (out, steps, save_every, pause, workers, hold))]
        # no bytecode: Python 3.11 leaves half of it where the size of files is limited
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **kwargs
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def wait_for_lines(log, count, process):
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and log.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _draw_quickly(monkeypatch, request):
    """The curve costs more than the stub's training; one test looks at it."""
    if "real_curve" not in request.fixturenames:
        monkeypatch.setattr("train.loop.draw_curve", lambda log, picture: None)


@pytest.fixture
def real_curve():
    """Asks for the curve to be drawn."""


# ---- one step


@pytest.mark.parametrize(("images", "accumulate"), [(1, 8), (2, 4), (4, 2)])
def test_accumulation_does_not_change_a_step(images, accumulate):
    results = []
    for size, parts in ((8, 1), (images, accumulate)):
        recipe = recipe_of(images=size, accumulate=parts)
        model = Stub(dropout=0.0)
        engine = Engine(model, recipe)
        get = batches(size, parts)
        for step in range(5):
            result = do_step(engine, model, [get(step, m) for m in range(parts)], step)
        results.append((result, model.state_dict()))
    (whole, weights), (cut, cut_weights) = results
    assert whole.loss == pytest.approx(cut.loss, abs=1e-6)
    assert whole.grad_norm == pytest.approx(cut.grad_norm, abs=1e-6)
    assert whole.terms == pytest.approx(cut.terms, abs=1e-6)
    assert whole.expressions == cut.expressions == 8
    for name in weights:
        assert torch.allclose(weights[name], cut_weights[name], atol=1e-6), name


def test_terms_are_means_over_the_whole_step():
    recipe = recipe_of(images=3, accumulate=2)
    model = Stub(dropout=0.0)
    micro = [batches(3, 2)(0, m) for m in range(2)]
    with torch.no_grad():
        sums = [model.loss(model(batch), batch).sums for batch in micro]
    result = do_step(Engine(model, recipe), model, micro, 0)
    # indices 0..5: 2 of 6 are present, 3 words each
    assert result.terms["text"] == pytest.approx(sum(float(s["text"]) for s in sums) / 18)
    assert result.terms["mask"] == pytest.approx(sum(float(s["mask"]) for s in sums) / 2)
    assert result.loss == pytest.approx(result.terms["text"] + 2.0 * result.terms["mask"])


def test_bf16_runs_and_keeps_fp32_weights():
    recipe = recipe_of()
    model = Stub()
    engine = Engine(model, replace(recipe, engine=replace(recipe.engine, precision="bf16")))
    result = do_step(engine, model, [batches(4, 1)(0, 0)], 0)
    assert math.isfinite(result.loss)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("workers", [0, 1])
def test_prefetch_starts_anywhere_and_leaves_the_random_state_alone(workers):
    recipe = recipe_of(steps=4, images=2, accumulate=2, workers=workers)
    before = torch.get_rng_state()
    got = [[batch.expression_ids for batch in micro] for micro in prefetch(batches(2, 2), recipe, 2)]
    assert torch.equal(before, torch.get_rng_state())
    ids = [[[f"stub/train/{8 + 4 * s + 2 * m + i}" for i in range(2)] for m in range(2)] for s in range(2)]
    assert got == ids


def test_wrong_input_in_a_worker_stays_one_line():
    def broken(step, micro):
        raise InputError("photo.jpg is truncated")

    with pytest.raises(InputError, match=r"^photo\.jpg is truncated$"):
        list(prefetch(broken, recipe_of(workers=1), 0))
    assert multiprocessing.active_children() == []


def test_a_failing_step_leaves_no_worker(tmp_path):
    recipe = recipe_of(workers=1)
    job = job_of(recipe)
    job.model.counts = None  # the step fails
    with pytest.raises(TypeError):
        train(recipe, job, tmp_path)
    assert multiprocessing.active_children() == []


# ---- whole runs


@pytest.mark.parametrize(
    ("stop_at", "precision"), [(5, "fp32"), (7, "fp32"), (11, "fp32"), (7, "bf16")]
)  # 5: right after a checkpoint
def test_resumed_equals_uninterrupted(tmp_path, stop_at, precision):
    """With dropout, so the random state matters."""
    recipe = recipe_of()
    recipe = replace(recipe, engine=replace(recipe.engine, precision=precision))
    assert train(recipe, job_of(recipe), tmp_path / "whole") == DONE
    job = job_of(recipe)
    with pytest.raises(StopAtError):
        train(recipe, replace(job, batches=crashing(job.batches, stop_at)), tmp_path / "cut")
    assert len(read_log(tmp_path / "cut/log.jsonl")) == stop_at
    torch.rand(5)  # a new process has other random numbers
    assert train(recipe, job_of(recipe, model=Stub()), tmp_path / "cut") == DONE
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_changes_nothing(tmp_path, capsys):
    recipe = recipe_of()
    train(recipe, job_of(recipe), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    capsys.readouterr()
    assert train(recipe, job_of(recipe), tmp_path) == DONE
    assert "is finished (12 steps" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}


def test_files_of_a_run(tmp_path, real_curve):
    recipe = recipe_of()
    modes = []

    def overlay(step):
        torch.rand(3)  # must not disturb the training
        modes.append(job.model.training)
        return Image.new("RGB", (4, 4))

    job = job_of(recipe)
    train(recipe, replace(job, overlay=overlay), tmp_path / "run")
    train(recipe, job_of(recipe), tmp_path / "plain")
    assert_same_run(tmp_path / "run", tmp_path / "plain")
    assert modes == [False, False] and job.model.training
    assert [p.name for p in sorted((tmp_path / "run/overlays").iterdir())] == [
        "step_00000006.png", "step_00000012.png",
    ]  # fmt: skip
    assert Image.open(tmp_path / "run/curve.png").size[0] > 100
    records = read_log(tmp_path / "run/log.jsonl")
    assert [r["step"] for r in records] == list(range(1, 13))
    assert {"text", "mask", "lr", "grad_norm", "expressions_per_s"} <= records[0].keys()
    assert float.fromhex(records[3]["loss_hex"]) == records[3]["loss"]
    steps = [p.name for p in sorted((tmp_path / "run/checkpoints").iterdir())]
    assert steps == ["step_00000010", "step_00000012"]  # keep_last 2
    saved = json.loads((tmp_path / "run/checkpoints/step_00000012/recipe.json").read_text())
    assert saved["recipe"]["optim"]["lr"] == 1e-2 and saved["data"] == "stub 1"


def test_the_first_overlay_comes_after_some_seconds(tmp_path):
    recipe = recipe_of(steps=3)
    recipe = replace(recipe, log=replace(recipe.log, overlay_first_seconds=0.0, overlay_every=1000))
    train(recipe, job_of(recipe, overlay=lambda step: Image.new("RGB", (2, 2))), tmp_path)
    assert {p.name for p in (tmp_path / "overlays").iterdir()} == {"step_00000001.png", "step_00000003.png"}


def test_another_recipe_or_data_set_is_refused_with_a_diff(tmp_path):
    recipe = recipe_of()
    train(recipe, job_of(recipe), tmp_path)
    other = replace(recipe, optim=replace(recipe.optim, lr=5e-3))
    with pytest.raises(InputError, match=r"optim\.lr: 0\.01 -> 0\.005"):
        train(other, job_of(other), tmp_path)
    with pytest.raises(InputError, match='data set: "stub 1" -> "stub 2"'):
        train(recipe, job_of(recipe, fingerprint="stub 2"), tmp_path)
    reworded = job_of(recipe)
    reworded.model.tokenizer.words = 17
    with pytest.raises(InputError, match="not the vocabulary"):
        train(recipe, reworded, tmp_path)
    chatty = replace(recipe, log=replace(recipe.log, print_every_seconds=1.0))  # changes no weight
    assert train(chatty, job_of(chatty), tmp_path) == DONE


def longer(recipe, **changes):
    return replace(recipe, optim=replace(recipe.optim, **changes))


@pytest.mark.parametrize("stop_at", [None, 7])
def test_a_longer_run_with_a_constant_rate_equals_one_that_was_planned_so(tmp_path, capsys, stop_at):
    short = recipe_of(decay="constant")
    job = job_of(short)
    if stop_at is None:
        assert train(short, job, tmp_path / "grown") == DONE
    else:
        with pytest.raises(StopAtError):
            train(short, replace(job, batches=crashing(job.batches, stop_at)), tmp_path / "grown")
    long = longer(short, steps=20)
    assert train(long, job_of(long), tmp_path / "grown") == DONE
    assert "optim.steps 12 -> 20: the learning rate does not depend on them" in capsys.readouterr().out
    train(long, job_of(long), tmp_path / "planned")
    assert_same_run(tmp_path / "grown", tmp_path / "planned")
    assert json.loads((tmp_path / "grown/recipe.json").read_text())["recipe"]["optim"]["steps"] == 20


def test_a_longer_run_with_a_cosine_names_the_rate_it_jumps_to(tmp_path, capsys):
    short, long = recipe_of(), recipe_of(steps=24)
    train(short, job_of(short), tmp_path)
    assert train(long, job_of(long), tmp_path) == DONE
    output = capsys.readouterr().out
    records = read_log(tmp_path / "log.jsonl")
    assert [r["step"] for r in records] == list(range(1, 25))
    promised = re.search(r"optim.steps 12 -> 24: .* of step 13 is (\S+) instead of 0", output)
    assert promised is not None
    assert float(promised[1]) == pytest.approx(records[12]["lr"], rel=1e-2) and records[12]["lr"] > 0
    assert records[-1]["lr"] < records[12]["lr"]


def test_more_minutes_continue_a_run_that_its_limit_ended(tmp_path, monkeypatch, capsys):
    ticks = itertools.count()
    monkeypatch.setattr("train.loop.time", SimpleNamespace(monotonic=lambda: 0.01 * next(ticks)))
    recipe = recipe_of(steps=60, save_every=100, max_minutes=1.0 / 60)
    assert train(recipe, job_of(recipe), tmp_path) == DONE
    done = len(read_log(tmp_path / "log.jsonl"))
    assert done < 60 and train(recipe, job_of(recipe), tmp_path) == DONE  # finished
    assert len(read_log(tmp_path / "log.jsonl")) == done
    unlimited = longer(recipe, max_minutes=None)
    assert train(unlimited, job_of(unlimited), tmp_path) == DONE
    assert len(read_log(tmp_path / "log.jsonl")) == 60
    assert "-> None: the cosine decay is that of the longer run" in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"optim.max_minutes: null -> 0.01\d+ \(a run can become longer, not"
    ):
        train(recipe, job_of(recipe), tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"steps": 11}, r"\(optim.steps: 12 -> 11 \(a run can become longer, not shorter\)\)"),
        ({"steps": 20, "lr": 5e-3}, r"\(optim.lr: 0.01 -> 0.005\)"),
        ({"steps": 20, "max_minutes": 1.0}, r"\(optim.max_minutes: null -> 1.0 \(a run can"),
        ({"steps": 20, "warmup_steps": 4}, r"\(optim.warmup_steps: 3 -> 4\)"),
    ],
)
def test_only_the_length_of_a_run_may_change_and_only_upwards(tmp_path, changes, line):
    recipe = recipe_of()
    train(recipe, job_of(recipe), tmp_path)
    other = longer(recipe, **changes)
    with pytest.raises(InputError, match=line):
        train(other, job_of(other), tmp_path)


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_fresh_removes_only_what_a_run_wrote(tmp_path):
    recipe = recipe_of()
    job = job_of(recipe, overlay=lambda step: Image.new("RGB", (2, 2)))
    train(recipe, job, tmp_path)
    mine = {
        "overlays/step_by_step.png", "overlays/mine.png", "eval/step_notes/a.txt", "eval/step_00000012/notes.txt",
        "checkpoints/step_list.txt", "checkpoints/step_00000012/notes.txt", "data/photo.jpg",
    }  # fmt: skip
    for name in mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "eval/step_00000012/stub/val").mkdir(parents=True)
    (tmp_path / "eval/step_00000012/stub/val/predictions.jsonl").write_text("{}")
    start_over(tmp_path)
    assert {name for name in files_of(tmp_path) if name != ".lock"} == mine
    assert not (tmp_path / "eval/step_00000012/stub").exists()


def test_fresh_removes_nothing_before_all_checks_have_passed(tmp_path):
    recipe = recipe_of()
    train(recipe, job_of(recipe), tmp_path)
    before = files_of(tmp_path)
    wrong = replace(recipe, optim=replace(recipe.optim, lr_scale=(("nowhere", 0.1),)))
    with pytest.raises(InputError, match="matches no trained parameter"):
        train(wrong, job_of(wrong), tmp_path, fresh=True)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["log.jsonl", "recipe.json", "curve.png", "data.json"])
def test_a_folder_of_another_program_stays_as_it_is(tmp_path, name, fresh):
    (tmp_path / name).write_text('{"eggs": 3}')
    recipe = recipe_of()
    with pytest.raises(
        InputError, match=f"is no run folder, and a run would overwrite its {name}: use another"
    ):
        train(recipe, job_of(recipe), tmp_path, fresh=fresh)
    assert (tmp_path / name).read_text() == '{"eggs": 3}'


def test_a_refused_run_changes_no_file(tmp_path):
    recipe = recipe_of()
    train(recipe, job_of(recipe), tmp_path)
    before = files_of(tmp_path)
    other = replace(recipe, seed=9)
    with pytest.raises(InputError, match="seed: 3 -> 9"):
        train(other, job_of(other), tmp_path)
    assert files_of(tmp_path) == before


def test_fresh_starts_over_and_leaves_other_files(tmp_path):
    recipe = recipe_of()
    train(recipe, job_of(recipe), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    other = replace(recipe, seed=4)
    assert train(other, job_of(other), tmp_path, fresh=True) == DONE
    assert len(read_log(tmp_path / "log.jsonl")) == 12
    assert (tmp_path / "notes.txt").read_text() == "mine"
    train(other, job_of(other), tmp_path / "direct")
    assert_same_run(tmp_path, tmp_path / "direct")


def test_continues_from_the_one_before_a_damaged_checkpoint(tmp_path, capsys):
    recipe = recipe_of()
    train(recipe, job_of(recipe), tmp_path / "whole")
    train(recipe, job_of(recipe), tmp_path / "hurt")
    weights = tmp_path / "hurt/checkpoints/step_00000012/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    capsys.readouterr()
    assert train(recipe, job_of(recipe), tmp_path / "hurt") == DONE
    output = capsys.readouterr().out
    assert "step_00000012 is damaged (model.safetensors has a wrong checksum)" in output
    assert "after step 10" in output
    assert_same_run(tmp_path / "whole", tmp_path / "hurt")


def test_time_limit_ends_the_run(tmp_path, monkeypatch, capsys):
    ticks = itertools.count()
    monkeypatch.setattr("train.loop.time", SimpleNamespace(monotonic=lambda: 0.01 * next(ticks)))
    recipe = recipe_of(steps=100_000, save_every=100_000, max_minutes=2.0 / 60)
    assert train(recipe, job_of(recipe), tmp_path) == DONE
    records = read_log(tmp_path / "log.jsonl")
    assert 1.8 < records[-1]["seconds"] < 2.1 and len(records) < 200
    assert records[-1]["lr"] < 0.01 * max(r["lr"] for r in records)  # the decay was completed
    assert "(optim.max_minutes)" in capsys.readouterr().out


def test_two_processes_cannot_share_a_folder(tmp_path):
    recipe = recipe_of()
    inside = []

    def overlay(step):
        with pytest.raises(
            InputError, match=f"cannot train into .*: process {os.getpid()} on .* works there"
        ):
            train(recipe, job_of(recipe), tmp_path)
        inside.append(step)
        return Image.new("RGB", (2, 2))

    train(recipe, job_of(recipe, overlay=overlay), tmp_path)
    assert inside


# ---- guards


def poisoned(get, steps):
    def wrapped(step, micro):
        batch = get(step, micro)
        if step in steps and micro == 1:
            batch.truth[0] = math.nan
        return batch

    return wrapped


def test_a_step_that_is_not_finite_is_skipped(tmp_path, capsys):
    recipe = recipe_of()
    job = job_of(recipe)
    assert train(recipe, replace(job, batches=poisoned(job.batches, {2, 6})), tmp_path) == DONE
    records = read_log(tmp_path / "log.jsonl")
    assert [r["step"] for r in records if r["skipped"]] == [3, 7]
    assert records[2]["loss"] is None and records[2]["loss_hex"] == "nan"
    assert all(torch.isfinite(t).all() for t in weights_of(tmp_path).values())
    ids = ", ".join(f"stub/train/{index}" for index in range(20, 24))  # the micro-batch with the NaN
    assert f"expressions: {ids}" in capsys.readouterr().out


def test_ten_in_a_row_stop_the_run_with_the_ids(tmp_path):
    recipe = recipe_of(steps=40)
    job = job_of(recipe)
    with pytest.raises(TrainingError, match=r"10 steps in a row .*stub/train/164"):
        train(recipe, replace(job, batches=poisoned(job.batches, set(range(11, 40)))), tmp_path)
    assert checkpoint.newest_verified(tmp_path, print).name == "step_00000010"  # none from between


def test_a_save_that_is_due_waits_for_a_finite_step(tmp_path):
    recipe = recipe_of(steps=14, save_every=5)
    job = job_of(recipe)
    train(recipe, replace(job, batches=poisoned(job.batches, {9, 10})), tmp_path)
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step_00000012", "step_00000014"]


def test_a_validation_that_is_due_waits_for_a_finite_step(tmp_path):
    recipe = replace(recipe_of(steps=40, save_every=100), eval=EvalConfig(("any/val",), every=3))
    measured = []

    def validate(step, folder, ranks):
        measured.append(step)
        return ValidationResult("mIoU", float(step))

    job = job_of(recipe, validate=validate)
    gone = poisoned(job.batches, {7, 8, 9, *range(13, 40)})
    with pytest.raises(TrainingError, match="10 steps in a row"):
        train(recipe, replace(job, batches=gone), tmp_path)
    assert measured == [3, 6, 11, 12]  # 9 waited; none of 15, 18, 21
    assert resolve(tmp_path, print).name == "step_00000012"
    assert checkpoint.newest_verified(tmp_path, print).name == "step_00000012"


def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(tmp_path, monkeypatch):
    recipe = recipe_of()
    written = checkpoint.write_file

    def write(path, content):
        if "step_00000010" in str(path) and path.name == "optimizer.safetensors":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, content)

    monkeypatch.setattr(checkpoint, "write_file", write)
    with pytest.raises(checkpoint.SaveError, match="the disk is full; earlier checkpoints are intact"):
        train(recipe, job_of(recipe), tmp_path / "cut")
    assert [p.name for p in (tmp_path / "cut/checkpoints").iterdir()] == ["step_00000005"]
    monkeypatch.undo()
    assert train(recipe, job_of(recipe), tmp_path / "cut") == DONE
    train(recipe, job_of(recipe), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


# ---- the log


def test_trim_drops_incomplete_and_later_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    trim_log(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_smooth_ignores_gaps():
    assert smooth([1.0, None, 3.0, 5.0], 2)[1:] == [1.0, 2.0, 4.0]


def test_curve_of_an_empty_log_is_no_picture(tmp_path):
    draw_curve(tmp_path / "log.jsonl", tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


# ---- real processes


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.system), 1])
def test_signals_save_and_the_same_command_continues(tmp_path, workers, script):
    out = tmp_path / "cut"
    process = script(out, 40, 10, 0.03, workers, 25, start_new_session=True)
    wait_for_lines(out / "log.jsonl", 13, process)
    os.killpg(
        process.pid, signal.SIGTERM if workers else signal.SIGINT
    )  # the whole group, as a terminal does
    Path(f"{out}.go").touch()
    for _ in range(50):  # impatience must not break the save
        time.sleep(0.005)
        process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == STOPPED, output
    step = len(read_log(out / "log.jsonl"))
    assert f"stopped and saved at step {step} of 40; continue with: again" in output
    assert checkpoint.newest_verified(out, print).name == f"step_{step:08d}"
    recipe = recipe_of(40, save_every=10, workers=workers)
    train(recipe, job_of(recipe), out)
    train(recipe, job_of(recipe), tmp_path / "whole")
    assert_same_run(out, tmp_path / "whole")


def test_a_closed_pipe_does_not_stop_a_run(tmp_path, script):
    process = script(tmp_path, 30, 10, 0.01)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=PATIENCE) == DONE
    assert len(read_log(tmp_path / "log.jsonl")) == 30


@pytest.mark.system
def test_kill_9_loses_nothing(tmp_path, script):
    out = tmp_path / "cut"
    for lines in (8, 19):
        process = script(out, 30, 4, 0.01, hold=lines + 4)
        wait_for_lines(out / "log.jsonl", lines, process)
        process.kill()
        process.communicate()
    process = script(out, 30, 4)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == DONE, output
    assert "continuing" in output
    recipe = recipe_of(30, save_every=4)
    train(recipe, job_of(recipe), tmp_path / "whole")
    assert_same_run(out, tmp_path / "whole")


def test_a_file_size_limit_is_a_full_disk(tmp_path, script):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # the log fits, the optimizer's file does not

    process = script(tmp_path, 4, 2, preexec_fn=limit)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 1
    assert output.strip().splitlines()[-1].startswith("error: could not save step 2"), output
    assert list((tmp_path / "checkpoints").iterdir()) == []


def as_script(arguments):
    out, steps, save_every, pause, workers, hold = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # but for what the loop makes of it
    recipe = recipe_of(int(steps), save_every=int(save_every), workers=int(workers))
    job = job_of(recipe)
    get = job.batches

    def slow(step, micro):
        end = time.monotonic() + PATIENCE
        time.sleep(float(pause))
        while step >= int(hold) and not Path(f"{out}.go").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return get(step, micro)

    try:
        return train(recipe, replace(job, batches=slow), Path(out), command="again")
    except checkpoint.SaveError as error:
        print(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(as_script(sys.argv[1:]))
