"""Engines in one process: guards, micro-batches, best marks, background saves, export, error messages."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed as dist
from torch import nn

from train.__main__ import main
from train.distributed import Ranks, is_lost
from train.engines.base import Engine, device_of
from train.engines.zero import deepspeed_config
from train.guards import WINDOW, Background, is_spike, remember
from train.job import Job
from train.log import read_log, read_steps
from train.loop import DONE, do_step, train
from train.recipe import DataConfig, EngineConfig, EvalConfig, LogConfig, OptimConfig, Recipe, share_of
from train.validation import ValidationResult
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.tensors import read_tensors
from uniresxx.cli import main as uniresxx
from uniresxx.errors import InputError
from uniresxx.evaluation.ranks import OtherRankError

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)
STEPS = 8


@dataclass
class Config:
    width: int = 4

    def to_dict(self):
        return {"model_type": "stub"}


class Words:
    def __init__(self, words=("a", "b")):
        self.words = words

    def to_json(self):
        return json.dumps({"model": {"vocab": {word: i for i, word in enumerate(self.words)}}})


@dataclass
class Numbers:
    values: torch.Tensor  # (N, 4)
    expression_ids: list[str]

    def to(self, device):
        return Numbers(self.values.to(device), self.expression_ids)


@dataclass
class Terms:
    sums: dict
    weights: dict

    def total(self, counts):
        return sum(self.weights[name] * value / max(counts[name], 1) for name, value in self.sums.items())


class Stub(nn.Module):
    """A linear layer, and one that a step reaches only where a value is above 1."""

    def __init__(self, words=("a", "b")):
        super().__init__()
        torch.manual_seed(1)
        self.config, self.tokenizer = Config(), Words(words)
        self.body, self.rare = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, batch):
        return self.body(batch.values)

    def counts(self, batch):
        return {"all": len(batch.values), "high": int((batch.values[:, 0] > 1).sum())}

    def loss(self, output, batch):
        high = output[batch.values[:, 0] > 1]
        extra = self.rare(high).square().sum() if len(high) else output.sum() * 0
        return Terms({"all": output.square().sum(), "high": extra}, {"all": 1.0, "high": 0.5})


class Source:
    """Images by number, cut as the recipe says; `louder` steps have a gradient a thousand times larger."""

    def __init__(self, data, louder=(), rank=0, world_size=1):
        self.data, self.louder, self.rank, self.world_size = data, louder, rank, world_size

    def for_rank(self, rank, world_size):
        return Source(self.data, self.louder, rank, world_size)

    def __call__(self, step, micro):
        size = self.data.batch_images
        first = (step * self.data.accumulate + micro) * size
        numbers = range(first, first + size)[self.rank :: self.world_size]
        rows = [torch.randn(4, generator=torch.Generator().manual_seed(n)) for n in numbers]
        return Numbers(
            torch.stack(rows) * (1000.0 if step in self.louder else 1.0), [f"s/{n}" for n in numbers]
        )


def recipe_of(images=4, accumulate=1, steps=STEPS, **log):
    return Recipe(
        "stub", Config(), DataConfig("stub", "train", images, accumulate),
        OptimConfig(steps=steps, lr=1e-2, warmup_steps=1), EngineConfig(device="cpu", threads=1),
        LogConfig(**{"save_every": 3, "keep_last": 2, "print_every_seconds": 1e9} | log),
    )  # fmt: skip


def job_of(recipe, **changes):
    return replace(Job(Stub(), Source(recipe.data), fingerprint="stub"), **changes)


@pytest.fixture(autouse=True)
def _no_curve(monkeypatch):
    monkeypatch.setattr("train.loop.draw_curve", lambda log, picture: None)


def final(run, step=STEPS):
    folder = checkpoint.step_folder(run, step)
    return read_tensors(folder / "model.safetensors") | read_tensors(folder / "optimizer.safetensors")


def same(run, other):
    left, right = final(run), final(other)
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    assert [r["loss_hex"] for r in read_steps(run / "log.jsonl")] == [
        r["loss_hex"] for r in read_steps(other / "log.jsonl")
    ]


# ---- the engine


def test_a_parameter_without_a_gradient_has_a_zero_gradient():
    recipe = recipe_of()
    model = Stub()
    engine = Engine(model, recipe)
    seen = [do_step(engine, model, [Source(recipe.data)(step, 0)], step) for step in range(6)]
    reached = [bool(Stub().counts(Source(recipe.data)(step, 0))["high"]) for step in range(6)]
    assert {True, False} == set(reached) and all(not result.skipped for result in seen)
    tensors = engine.optimizer_tensors()
    assert tensors["rare.weight/step"] == tensors["body.weight/step"] == 6


def test_two_shares_add_up_to_the_whole_step():
    """Two engines by hand, as two ranks would: the sum of their gradients is the gradient of one."""
    recipe = recipe_of()
    models = [Stub() for _ in range(3)]
    source = Source(recipe.data)
    parts = [source, source.for_rank(0, 2), source.for_rank(1, 2)]
    counts = models[0].counts(source(0, 0))
    for model, part in zip(models, parts, strict=True):
        batch = part(0, 0)
        model.loss(model(batch), batch).total(counts).backward()
    whole, one, two = (model.body.weight.grad for model in models)
    assert torch.allclose(whole, one + two, atol=1e-6)
    assert (
        sorted(parts[1](0, 0).expression_ids + parts[2](0, 0).expression_ids) == source(0, 0).expression_ids
    )


def test_fp16_on_a_cpu_is_refused_with_the_way_out():
    with pytest.raises(InputError, match="fp16: not possible on a CPU; use fp32 or bf16"):
        device_of(EngineConfig(device="cpu", precision="fp16"))


@given(st.integers(1, 96), st.integers(1, 24))
def test_a_batch_that_does_not_divide_names_sizes_that_do(images, ranks):
    data = DataConfig(batch_images=images)
    if images % ranks == 0:
        assert share_of(data, ranks) * ranks == images
        return
    with pytest.raises(InputError) as error:
        share_of(data, ranks)
    text = str(error.value)
    processes = [int(n) for n in text.split("start ")[1].split(" processes")[0].split(", ")]
    sizes = [int(n) for n in text.split("use --data.batch_images ")[1].split(" or ")]
    assert all(images % n == 0 for n in processes) and all(n % ranks == 0 and n > 0 for n in sizes)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("offload", ["none", "optimizer", "all"])
def test_the_deepspeed_configuration_of_every_stage(stage, offload):
    recipe = replace(recipe_of(), engine=EngineConfig(zero_stage=stage, offload=offload, precision="bf16"))
    if offload == "all" and stage < 3:
        return  # refused by recipe.check
    found = deepspeed_config(recipe)
    assert found["zero_optimization"]["stage"] == stage
    assert ("offload_optimizer" in found["zero_optimization"]) == (offload != "none")
    assert ("offload_param" in found["zero_optimization"]) == (offload == "all")
    assert found["torch_autocast"]["enabled"] and found["gradient_clipping"] == recipe.optim.clip_norm


def test_zero_without_deepspeed_says_what_to_install(monkeypatch):
    from train.engines.zero import _import_deepspeed

    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[engine\]', or use stage 0"):
        _import_deepspeed("cpu")


def test_stage_0_never_loads_deepspeed(tmp_path):
    code = (
        "import sys; from train.__main__ import main; "
        f"code = main(['tiny_scenes', '--optim.steps', '1', '--out', {str(tmp_path / 'run')!r}]); "
        "sys.exit(code or 10 * ('deepspeed' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- cuts and what may change


@pytest.mark.parametrize(("images", "accumulate"), [(2, 2), (1, 4), (4, 1)])
def test_a_run_continues_with_other_micro_batches(tmp_path, images, accumulate):
    whole, cut = recipe_of(), recipe_of(images, accumulate)
    train(whole, job_of(whole), tmp_path / "whole")
    train(whole, job_of(whole), tmp_path / "cut")
    checkpoint.shutil.rmtree(tmp_path / f"cut/checkpoints/step_{STEPS:08d}")
    assert train(cut, job_of(cut), tmp_path / "cut") == DONE
    losses = [[r["loss"] for r in read_log(tmp_path / run / "log.jsonl")] for run in ("whole", "cut")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and len(losses[1]) == STEPS
    other = recipe_of(images + 1, accumulate)
    with pytest.raises(InputError, match=r"batch_images \* data.accumulate: 4 -> "):
        train(other, job_of(other), tmp_path / "cut")


def test_another_vocabulary_is_refused_with_a_diff(tmp_path):
    recipe = recipe_of()
    train(recipe, job_of(recipe), tmp_path)
    with pytest.raises(InputError, match=r"not the vocabulary .*model\.vocab\.c: \(absent\) -> 1") as error:
        train(recipe, job_of(recipe, model=Stub(("a", "c", *"defghijk"))), tmp_path)
    assert "changes in all" in str(error.value) and len(str(error.value)) < 700


# ---- guards


def test_golden_spike():
    norms = [1.0, 3.0] * (WINDOW // 2)  # mean 2, deviation 1.0039
    assert not is_spike(8.0, norms, 6.0) and is_spike(8.1, norms, 6.0)
    assert not is_spike(0.0, norms, 6.0)  # only upwards
    assert not is_spike(1e9, norms[: WINDOW // 2 - 1], 6.0)  # too few to judge
    assert not is_spike(1e9, norms, None)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300))
def test_the_window_holds_the_last_finite_norms(norms):
    window = []
    for norm in norms:
        window = remember(norm, window)
    assert window == [norm for norm in norms if math.isfinite(norm)][-WINDOW:]


def test_a_spike_is_skipped_counted_and_resumed_exactly(tmp_path, capsys):
    recipe = recipe_of(steps=90, save_every=70)
    recipe = replace(recipe, optim=replace(recipe.optim, spike_sigmas=6.0, decay="constant"))
    loud = Source(recipe.data, louder=(80,))
    assert train(recipe, job_of(recipe, batches=loud), tmp_path / "whole") == DONE
    assert [r["step"] for r in read_log(tmp_path / "whole/log.jsonl") if r["skipped"]] == [81]
    assert "skipped step 81: gradient norm" in capsys.readouterr().out
    state = json.loads((checkpoint.step_folder(tmp_path / "whole", 90) / "state.json").read_text())
    assert (state["skipped"], state["spikes"], state["skipped_in_a_row"]) == (1, 1, 0)
    checkpoint.shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    checkpoint.shutil.rmtree(tmp_path / "cut/checkpoints/step_00000090")
    train(recipe, job_of(recipe, batches=loud), tmp_path / "cut")
    left, right = final(tmp_path / "whole", 90), final(tmp_path / "cut", 90)
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_background_functions_run_in_order_and_raise_their_failure():
    done, gate, worker = [], threading.Event(), Background()

    def slow():
        gate.wait(60)
        done.append(1)

    worker.start(slow)
    threading.Timer(0.05, gate.set).start()
    worker.start(lambda: done.append(2))
    worker.finish()
    assert done == [1, 2]
    worker.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.finish()
    worker.finish()  # raised once


def test_saving_in_the_background_changes_nothing(tmp_path):
    plain, background = recipe_of(), recipe_of(save_async=True)
    train(plain, job_of(plain), tmp_path / "plain")
    train(background, job_of(background), tmp_path / "background")
    same(tmp_path / "plain", tmp_path / "background")


def test_a_background_save_that_fails_ends_the_run(tmp_path, monkeypatch):
    recipe = recipe_of(save_async=True)

    def full(*arguments):
        raise checkpoint.SaveError("the disk is full")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(checkpoint.SaveError, match="the disk is full"):
        train(recipe, job_of(recipe), tmp_path)


# ---- the best checkpoint


def measured(values):
    return lambda step, folder, ranks: ValidationResult("mIoU", values[step])


def measuring(recipe, every=3):
    return replace(recipe, eval=EvalConfig(("any/val",), every=every))


def test_the_best_is_kept_marked_and_survives_a_restart(tmp_path):
    recipe = measuring(recipe_of(keep_last=1))
    job = job_of(recipe, validate=measured({3: 50.0, 6: 40.0, 8: 45.0}))
    train(recipe, job, tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"best.json", "step_00000003", "step_00000008"}
    assert resolve(tmp_path, print).name == "step_00000003"
    (tmp_path / "checkpoints/best.json").unlink()  # as if killed before the mark was written
    checkpoint.shutil.rmtree(tmp_path / "checkpoints/step_00000008")
    train(recipe, job_of(recipe, validate=measured({6: 40.0, 8: 45.0})), tmp_path)
    best = json.loads((tmp_path / "checkpoints/best.json").read_text())
    assert best == {"step": 3, "metric": "mIoU", "value": 50.0}


def test_validation_changes_nothing(tmp_path):
    recipe = recipe_of()
    train(recipe, job_of(recipe), tmp_path / "plain")
    job = job_of(recipe, validate=lambda step, folder, ranks: ValidationResult("mIoU", float(torch.rand(1))))
    train(measuring(recipe), job, tmp_path / "measured")
    same(tmp_path / "plain", tmp_path / "measured")


# ---- export


def test_export_writes_the_plain_folder_byte_by_byte(tmp_path, capsys):
    recipe = recipe_of()
    job = job_of(recipe)
    train(recipe, job, tmp_path / "run")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/notes.txt").write_text("mine")
    assert uniresxx(["export", str(tmp_path / "run"), str(tmp_path / "plain")]) == 0
    assert {path.name for path in (tmp_path / "plain").glob("[!.]*")} == {
        "config.json", "model.safetensors", "notes.txt", "tokenizer.json",
    }  # fmt: skip
    back = read_tensors(tmp_path / "plain/model.safetensors")
    assert all(torch.equal(value, back[name]) for name, value in job.model.state_dict().items())


@pytest.mark.parametrize(
    ("run", "out", "line"),
    [
        ("nothing", "plain", "nothing does not exist"),
        ("run", "file", "file is a file: name a folder"),
        ("run/checkpoints/step_00000008", "run/checkpoints/step_00000008", "is the checkpoint itself"),
        ("hurt", "plain", "no undamaged checkpoint"),
    ],
)
def test_export_of_a_wrong_path_is_one_line(tmp_path, capsys, run, out, line):
    recipe = recipe_of(save_every=100)
    train(recipe, job_of(recipe), tmp_path / "run")
    checkpoint.shutil.copytree(tmp_path / "run", tmp_path / "hurt")
    (checkpoint.step_folder(tmp_path / "hurt", STEPS) / "model.safetensors").write_bytes(b"")
    (tmp_path / "file").write_text("x")
    capsys.readouterr()
    assert uniresxx(["export", str(tmp_path / run), str(tmp_path / out)]) == 2
    text = capsys.readouterr().err.strip().splitlines()
    assert line in text[-1] and not (tmp_path / "plain/config.json").exists()


def test_a_copy_that_differs_replaces_nothing(tmp_path, monkeypatch):
    recipe = recipe_of()
    train(recipe, job_of(recipe), tmp_path / "run")
    monkeypatch.setattr(checkpoint.shutil, "copyfile", lambda a, b: Path(b).write_bytes(b"x"))
    assert uniresxx(["export", str(tmp_path / "run"), str(tmp_path / "plain")]) == 1
    assert list((tmp_path / "plain").iterdir()) == []


# ---- what the program says


def ends_with(error, monkeypatch, tmp_path):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(
        "train.assemble.open_job", lambda recipe, data, newest: Job(None, lambda step, micro: None)
    )
    monkeypatch.setattr("train.loop.train", fail)
    monkeypatch.setattr("train.plan.forecast", lambda recipe, gpus: "")  # tests/test_plan.py has it
    return main(["tiny_scenes", "--engine.device", "cpu", "--out", str(tmp_path / "x")])


def test_out_of_memory_names_the_knobs(monkeypatch, tmp_path, capsys):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
    assert ends_with(error, monkeypatch, tmp_path) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "Tried to allocate 2 GiB" in text and "and more" not in text
    for knob in (
        "data.batch_images",
        "data.accumulate",
        "expressions_per_image",
        "precision",
        "zero_stage",
        "offload",
    ):
        assert knob in text


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), RuntimeError("a bug")])
def test_a_bug_in_a_job_is_shown_before_the_communication_ends(bug, monkeypatch, tmp_path, capfd):
    """Ending it may hang, and a traceback that waits for that is never seen."""
    happened = []

    class Joined(Ranks):
        def on_all_ranks(self, function):
            return function()

        def on_rank0(self, function):
            return function()

        def close(self, wait):
            happened.append(("closed", wait))

    def end(code):
        happened.append((code, f"{type(bug).__name__}: a bug" in capfd.readouterr().err))

    monkeypatch.setattr(
        "train.engines.choose.join_ranks", lambda config: Joined(world_size=2, group=object())
    )
    monkeypatch.setattr("train.distributed.os._exit", end)
    with pytest.raises(type(bug)):
        ends_with(bug, monkeypatch, tmp_path)
    assert happened == [(1, True), ("closed", False)]  # nothing is left where the process really ends


@pytest.mark.parametrize("rank", [0, 1])
def test_only_rank_0_prints_what_is_opened(rank, monkeypatch, tmp_path, capsys):
    def open_job(recipe, data, newest):
        print("the table of what is trained")
        return Job(None, lambda step, micro: None)

    monkeypatch.setattr("train.engines.choose.join_ranks", lambda config: Ranks(rank, world_size=2))
    monkeypatch.setattr("train.assemble.open_job", open_job)
    monkeypatch.setattr("train.loop.train", lambda *arguments: print("step 1") or DONE)
    assert main(["tiny_scenes", "--engine.device", "cpu", "--out", str(tmp_path / "x")]) == DONE
    assert capsys.readouterr().out.splitlines() == ["the table of what is trained", "step 1"][rank:]


def test_a_full_disk_of_another_process_is_one_line(monkeypatch, tmp_path, capsys):
    """A cache of features opens on every process, and the disks are of several machines."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache/low")

    def no_room():
        raise full

    class Sharing(Ranks):
        def gather(self, value):
            text.append(value)
            return text

    text = []
    with pytest.raises(OtherRankError):
        Sharing(rank=1, world_size=2, group=object()).on_all_ranks(no_room)
    text.insert(0, None)  # what process 0 has to tell
    with pytest.raises(OSError, match="process 1") as found:
        Sharing(world_size=2, group=object()).on_all_ranks(lambda: None)
    assert ends_with(found.value, monkeypatch, tmp_path) == 1
    assert capsys.readouterr().err == "error: [Errno 28] process 1: No space left on device: 'cache/low'\n"


def test_out_of_cpu_memory_gives_the_same_message(monkeypatch, tmp_path, capsys):
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60, dtype=torch.uint8)
    worker = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")  # as torch says it
    for error in (found.value, MemoryError("Unable to allocate 9 TiB"), MemoryError(), worker):
        assert ends_with(error, monkeypatch, tmp_path) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: out of memory (") and "data.batch_images" in text
        assert text.count("\n") == 1 and "()" not in text


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] "
LOST = (  # as the binaries of torch 2.13 have them
    RuntimeError(GLOO + "Connection closed by peer [10.0.0.1]:3"),
    RuntimeError(GLOO + "Read error [10.0.0.1]:3: Connection reset by peer"),
    RuntimeError(GLOO + "writev [10.0.0.1]:3: Broken pipe"),
    RuntimeError(GLOO + "connect [10.0.0.1]:3: Connection refused"),
    RuntimeError(GLOO + "connect [10.0.0.1]:3: No route to host"),
    RuntimeError(GLOO + "Read timeout [10.0.0.1]:3"),
    RuntimeError(GLOO + "Socket closed [10.0.0.1]:3"),
    RuntimeError(GLOO + "Socket unexpectedly closed [10.0.0.1]:3"),
    RuntimeError(GLOO + "state_ >= CONNECTED. 3 vs 4. Pair is not connected ([::1]:1 <--> [::1]:2)"),
    RuntimeError(GLOO + "Timed out waiting 30000ms for recv operation to complete"),
    RuntimeError(GLOO + "Timed out waiting 30000ms for send operation to complete"),
    RuntimeError(GLOO + "timed out connecting: SO_ERROR: no error, remote=[::1]:2"),
    RuntimeError("Gloo connectFullMesh failed with [socket.cc:1] connect: Network is unreachable"),
    RuntimeError("Application timeout caused pair closure"),  # gloo, without its name
    RuntimeError("Operation timed out!"),
    dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed. Did the server crash?"),
    dist.DistNetworkError("Broken pipe"),
    dist.DistNetworkError("Connection reset by peer"),
    dist.DistNetworkError("Remote peer closed the connection."),
    dist.DistNetworkError("The client socket has timed out after 9ms while trying to connect to (node1, 1)."),
    dist.DistStoreError("Timed out after 31 seconds waiting for clients. 1/2 clients joined."),
    dist.DistStoreError("wait timeout after 30000ms, keys: /default_pg/0/store_based_barrier_key:1"),
    dist.DistStoreError("Socket Timeout"),
    dist.DistBackendError("NCCL communicator was aborted on rank 0: Watchdog caught a timeout"),
)
NOT_LOST = (
    RuntimeError("shapes do not match"),
    RuntimeError("a file timed out"),
    RuntimeError("[Errno 32] Broken pipe"),
    RuntimeError(
        GLOO + "op.preamble.length <= op.nbytes. 8 vs 4. Received data size doesn't match expected size."
    ),
    dist.DistNetworkError("The server socket has failed to listen on any local network address. code: -98"),
)


@pytest.mark.parametrize("error", LOST, ids=str)
def test_errors_that_mean_a_lost_rank(error):
    assert is_lost(error)


@pytest.mark.parametrize("error", NOT_LOST, ids=str)
def test_other_failures_keep_their_traceback(error):
    assert not is_lost(error)


def test_a_lost_rank_is_one_line(monkeypatch, tmp_path, capsys):
    error = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:3")
    assert ends_with(error, monkeypatch, tmp_path) == 1
    assert capsys.readouterr().err.startswith("error: another process of the job is gone or silent ([../gloo")


def test_a_process_exits_at_once_when_others_may_be_gone(monkeypatch):
    codes = []
    monkeypatch.setattr("train.distributed.os._exit", codes.append)
    Ranks().exit_now(1)  # alone, nobody can be lost
    Ranks(world_size=2, group=object()).exit_now(75)
    assert codes == [75]


def test_a_job_of_one_process_needs_no_communication():
    ranks = Ranks()
    assert ranks.sum([1, True, 0.5]) == [1.0, 1.0, 0.5] and ranks.gather("x") == ["x"]
    assert ranks.on_rank0(lambda: 3) == ranks.on_all_ranks(lambda: 3) == 3
    with pytest.raises(InputError, match="no"):
        ranks.on_rank0(lambda: (_ for _ in ()).throw(InputError("no")))
    ranks.close(wait=True)
