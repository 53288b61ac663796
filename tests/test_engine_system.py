"""Real 2-rank jobs over gloo: ZeRO 1-3, data parallel and one process agree, resume exactly and elastically.

The tiny model with LoRA on its language model (its other weights are frozen). Run as a script by a launcher
(`python test_engine_system.py PLAN.json`) this file runs the command lines of a plan one after the other.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mllm.config import MLLMConfig, tiny_llama
from train.assemble import open_job, overlay
from train.command_line import parse, without_rank
from train.engines.choose import join_ranks
from train.log import read_log
from train.loop import train
from train.recipe import DataConfig, EngineConfig, LogConfig, OptimConfig, Recipe
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints import shards
from uniresxx.checkpoints.tensors import load_weights, read_tensors
from uniresxx.cli.export import main as export
from uniresxx.data.scenes import scene_record
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.segmenters import load

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 900  # seconds for a launch on a machine that is busy with other work
STEPS, HALF = 4, 2
ENGINES = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}
OPTIONS = {
    "bf16_zero3": "lora --engine.zero_stage 3 --engine.precision bf16",
    "offload_optimizer": "lora --engine.zero_stage 2 --engine.offload optimizer",
    "offload_all": "lora --engine.zero_stage 3 --engine.offload all",
    "dropout_zero2": "dropout --engine.zero_stage 2",
}
SHARDED = [*(f"{name}_shards" for name in ENGINES), "zero3_async_shards"]
AGAIN = "_again"  # ends the name of a run that goes on from a checkpoint of the run so named without it
ALONE = {"one": 0, "one_zero1": 1, "one_zero2": 2, "one_zero3": 3}  # one process


def lora() -> Recipe:
    """The tiny model; `with_lora` freezes most of it."""
    return Recipe(
        "lora",
        UniRESPlusPlusConfig(
            mllm=MLLMConfig(
                llm=tiny_llama(num_hidden_layers=2, intermediate_size=64, vocab_size=400),
            )
        ),
        DataConfig("scenes_easy", batch_images=4, expressions_per_image=3),
        OptimConfig(steps=STEPS, lr=1e-3, warmup_steps=2, weight_decay=0.01),
        EngineConfig(device="cpu", threads=1),
        LogConfig(save_every=HALF, keep_last=9, overlay_every=STEPS, print_every_seconds=0),
    )


def with_lora(model, dropout=0.0):
    """LoRA on the attention of the language model; its other weights and both towers frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    model.mllm.requires_grad_(False)
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=dropout)
    inject_adapter_in_model(config, model.mllm.llm)
    return model


def as_script(path):
    """Every line of the plan as one run, all in the same job."""
    known = {"lora": lora, "dropout": lora, "poisoned": lora}
    lines = json.loads(Path(path).read_text())
    plan = [parse(line.split(), known) for line in lines]
    ranks = join_ranks(max((c.recipe.engine for c in plan), key=lambda engine: engine.zero_stage))
    codes, base = [], open_job(lora(), None)
    checkpoint.write_file = note_own_files(checkpoint.write_file)
    for line, command in zip(lines, plan, strict=True):
        recipe = command.recipe
        model = with_lora(copy.deepcopy(base.model), 0.2 if line.startswith("dropout") else 0.0)
        if command.out.name.endswith(AGAIN):
            whole = command.out.with_name(command.out.name.removesuffix(AGAIN))
            ranks.on_rank0(partial(interrupted, whole, command.out))
        cut = {"batch_images": recipe.data.batch_images, "accumulate": recipe.data.accumulate}
        batches = replace(base.batches, **cut)
        job = replace(
            base, model=model, batches=Poisoned(batches) if line.startswith("poisoned") else batches
        )
        with_shards = "_shards" in command.out.name
        shards.LEAST_BYTES = 400_000 if with_shards else ONE_FILE
        job = replace(job, overlay=partial(picture, model) if recipe.engine.zero_stage == 3 else None)
        codes.append(train(recipe, job, command.out, command.fresh, "again", ranks))
        if with_shards:
            written = [path.name for path in command.out.rglob("*-of-*.safetensors") if path in OWN]
            (command.out / f"written_by_{ranks.rank}.json").write_text(json.dumps(written))
    ranks.close(wait=True)
    return max(codes)


ONE_FILE, OWN = shards.LEAST_BYTES, set()


def note_own_files(write):
    """`write_file` that remembers what this process wrote, under its final name."""

    def noted(path, content):
        OWN.add(path.parent.with_suffix("") / path.name)
        write(path, content)

    return noted


def picture(model, step):
    """What a run draws; stage 3 has to gather weights for it."""
    return overlay(model, [scene_record("scenes_easy", "val", 0)], step)


def open_lora(recipe):
    job = open_job(recipe, None)
    with_lora(job.model)
    return job


class Poisoned:
    """The batches of a job, with something that is not a number in rank 1's share of one step."""

    def __init__(self, batches, rank=0):
        self.batches, self.rank = batches, rank

    def for_rank(self, rank, world_size):
        return Poisoned(self.batches.for_rank(rank, world_size), rank)

    def __call__(self, step, micro):
        batch = self.batches(step, micro)
        if step == 1 and self.rank == 1:
            batch.object_boxes_BO4[0, 0] = torch.nan
        return batch


# ---- jobs of several processes

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]


def environment(**more):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": path}
    if sys.platform == "linux":
        fixed["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the machine's name resolves to
    return os.environ | fixed | more


def free_port():
    """A port below those that systems hand out: between here and its use nobody gets it by chance."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError("no free port")


def launched(*command, **options):
    process = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, **({"env": environment()} | options),
    )  # fmt: skip
    return process


def ended(process, code=0):
    try:
        output = process.communicate(timeout=PATIENCE)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, f"exit {process.returncode}\n{output[-6000:]}"
    return output


def with_deepspeed(*words):
    return ("deepspeed", "--num_gpus", "2", "--master_port", free_port(), *words)


def with_torchrun(*words):
    return ("torchrun", "--nproc_per_node", "2", "--master_port", free_port(), *words)


def plan_of(folder, lines):
    path = folder / f"plan_{free_port()}.json"
    path.write_text(json.dumps(lines))
    return path


def interrupted(run, copy):
    """A run folder as a process leaves it that died after the checkpoint of step HALF."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / f"checkpoints/step_{STEPS:08d}")
    return copy


def losses(run):
    return [record["loss"] for record in read_log(run / "log.jsonl")]


def tensors(run, name="model"):
    files = sorted((run / f"checkpoints/step_{STEPS:08d}").glob(f"{name}*.safetensors"))
    return {key: value for file in files for key, value in read_tensors(file).items()}


def assert_close(run, other):
    assert losses(run) == pytest.approx(losses(other), abs=1e-5)
    assert len(losses(run)) == STEPS
    left, right = tensors(run), tensors(other)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.allclose(left[name], right[name], atol=2e-4), (
            name
        )  # AdamW: lr 1e-3 times a rounding's sign


def assert_same(run, other):
    hexes = [[record["loss_hex"] for record in read_log(r / "log.jsonl")] for r in (run, other)]
    assert hexes[0] == hexes[1] and len(hexes[0]) == STEPS
    for name in ("model", "optimizer"):
        left, right = tensors(run, name), tensors(other, name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Undisturbed runs: one process, and each engine on two ranks (started by DeepSpeed's launcher)."""
    folder = tmp_path_factory.mktemp("engines")
    lines = [f"lora --engine.zero_stage {stage} --out {folder}/{name}" for name, stage in ENGINES.items()]
    lines.append(f"lora --data.batch_images 2 --data.accumulate 2 --out {folder}/ddp_cut")
    lines.append(
        f"lora --data.batch_images 2 --data.accumulate 2 --engine.zero_stage 2 --out {folder}/zero2_cut"
    )
    lines.append(f"lora --log.save_async True --engine.zero_stage 3 --out {folder}/zero3_async")
    for name, stage in ENGINES.items():
        lines.append(f"lora --engine.zero_stage {stage} --out {folder}/{name}_shards")
    lines.append(f"lora --log.save_async True --engine.zero_stage 3 --out {folder}/zero3_async_shards")
    ended(launched(*with_deepspeed(__file__, plan_of(folder, lines))))
    lines = [f"lora --engine.zero_stage {stage} --out {folder}/{name}" for name, stage in ALONE.items()]
    lines.append(f"lora --data.batch_images 1 --data.accumulate 4 --out {folder}/one_cut")
    ended(launched(sys.executable, __file__, plan_of(folder, lines)))
    return folder


@pytest.mark.parametrize(
    "name", [*ENGINES, *ALONE, *SHARDED, "ddp_cut", "zero2_cut", "zero3_async", "one_cut"]
)
def test_engines_cuts_and_world_sizes_agree(runs, name):
    assert_close(runs / name, runs / "one")


@pytest.mark.parametrize("name", SHARDED)
def test_every_process_writes_its_own_files(runs, name):
    """The same tensors as in one file, whoever wrote them; the manifest has them all."""
    folder = runs / name / f"checkpoints/step_{STEPS:08d}"
    assert checkpoint.damage(folder) is None
    listed = {file for file in checkpoint.read_json(folder / "manifest.json")["files"] if "-of-" in file}
    assert {file.split("-")[0] for file in listed} == {"model", "optimizer"}
    written = [set(json.loads((runs / name / f"written_by_{rank}.json").read_text())) for rank in (0, 1)]
    assert written[0] | written[1] == listed and not written[0] & written[1] and all(written)
    whole, atol = name.removesuffix("_shards"), 0.0 if "zero3" in name else 2e-4  # others differ by rounding
    for kind in ("model", "optimizer"):
        left, right = tensors(runs / name, kind), tensors(runs / whole, kind)
        assert left.keys() == right.keys()
        for key, value in left.items():
            torch.testing.assert_close(value, right[key], atol=atol, rtol=0.0, msg=key)


def test_frozen_parts_stay_and_lora_learns(runs):
    before, after = open_lora(lora()).model.state_dict(), tensors(runs / "zero3")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name, p in open_lora(lora()).model.named_parameters() if p.requires_grad}
    assert changed <= trained and any("lora_B" in name for name in changed)
    moments = {key.rpartition("/")[0] for key in tensors(runs / "zero3", "optimizer") if "rng/" not in key}
    assert moments == trained


@pytest.mark.parametrize("name", [*ENGINES, "one"])
def test_export_equals_the_model_in_memory(runs, name, tmp_path):
    assert export([str(runs / name), str(tmp_path / "plain")]) == 0
    model = open_lora(lora()).model
    load_weights(model, tmp_path / "plain")
    saved = tensors(runs / name)
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert not (tmp_path / "plain/manifest.json").exists()


@pytest.fixture(scope="module")
def continued(runs, tmp_path_factory):
    """Interrupted runs, continued on two ranks (started by torchrun)."""
    folder = tmp_path_factory.mktemp("continued")
    lines = []
    for name, stage in ENGINES.items():
        out = interrupted(runs / name, folder / name)
        lines.append(f"lora --engine.zero_stage {stage} --out {out}")
    for name, stage in (("ddp", 0), ("zero2", 2), ("zero3", 3)):
        out = interrupted(runs / "one", folder / f"one_to_{name}")
        lines.append(f"lora --engine.zero_stage {stage} --out {out}")
    out = interrupted(runs / "zero3_shards", folder / "zero3_shards_to_ddp")
    lines.append(f"lora --engine.zero_stage 0 --out {out}")
    out = interrupted(runs / "zero3", folder / "zero3_to_zero1")
    lines.append(f"lora --engine.zero_stage 1 --out {out}")
    for name, stage in ENGINES.items():
        lines.append(f"poisoned --engine.zero_stage {stage} --out {folder}/poisoned_{name}")
    for name, line in OPTIONS.items():
        lines += [f"{line} --out {folder}/{name}{end}" for end in ("", AGAIN)]
    ended(launched(*with_torchrun(__file__, plan_of(folder, lines))))
    return folder


@pytest.mark.parametrize("name", ENGINES)
def test_resume_is_exact(runs, continued, name):
    assert_same(runs / name, continued / name)


@pytest.mark.parametrize(
    "name", ["one_to_ddp", "one_to_zero2", "one_to_zero3", "zero3_to_zero1", "zero3_shards_to_ddp"]
)
def test_a_run_continues_on_two_ranks_and_in_another_stage(runs, continued, name):
    assert_close(runs / "one", continued / name)


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_of_two_ranks_continues_on_one(runs, name, tmp_path):
    out = interrupted(runs / name, tmp_path / name)
    recipe = replace(lora(), engine=EngineConfig(device="cpu", threads=1))
    assert train(recipe, open_lora(recipe), out) == 0
    assert_close(runs / "one", out)


def test_one_rank_resumes_exactly(runs, tmp_path):
    lines = []
    for name, stage in ALONE.items():
        out = interrupted(runs / name, tmp_path / name)
        lines.append(f"lora --engine.zero_stage {stage} --out {out}")
    ended(launched(sys.executable, __file__, plan_of(tmp_path, lines)))
    for name in ALONE:
        assert_same(runs / name, tmp_path / name)


@pytest.mark.parametrize("name", ENGINES)
def test_all_ranks_skip_what_is_not_finite_on_one(continued, name):
    records = read_log(continued / f"poisoned_{name}" / "log.jsonl")
    assert [record["step"] for record in records if record["skipped"]] == [2]
    assert len(records) == STEPS and all(record["loss"] for record in records if record["step"] != 2)
    assert all(torch.isfinite(value).all() for value in tensors(continued / f"poisoned_{name}").values())
    assert losses(continued / f"poisoned_{name}")[2:] == pytest.approx(
        losses(continued / "poisoned_ddp")[2:], abs=1e-5
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_resume_is_exact_in_bf16_with_offload_and_with_dropout(continued, name):
    assert_same(continued / name, continued / f"{name}{AGAIN}")


def test_dropout_is_really_on(runs, continued):
    assert losses(continued / "dropout_zero2") != pytest.approx(losses(runs / "one"), abs=1e-4)


def test_bf16_and_offload_stay_near(runs, continued):
    assert losses(continued / "bf16_zero3") == pytest.approx(losses(runs / "one"), abs=0.2)
    assert {value.dtype for value in tensors(continued / "bf16_zero3").values()} == {torch.float32}
    assert_close(continued / "offload_optimizer", runs / "one")
    assert_close(continued / "offload_all", runs / "one")


# ---- the command line itself, signals, deaths

LONG = 60  # steps: many more than pass between a look at the log and a signal
SMALL = (
    "train", "tiny_scenes", "--data.batch_images", "2", "--data.expressions_per_image", "2",
    "--optim.steps", str(LONG), "--log.save_every", "5", "--log.overlay_every", "1000",
    "--log.overlay_first_seconds", "100000", "--engine.device", "cpu", "--optim.max_minutes", "None",
)  # fmt: skip


def wait_for_step(run, step, process):
    deadline = time.monotonic() + PATIENCE
    while len(read_log(run / "log.jsonl")) < step:
        assert process.poll() is None, process.communicate()[0][-6000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(process):
    """Process ids of the ranks, by rank: of the launcher's descendants those that train."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            values = dict(
                line.split(b"=", 1) for line in (path / "environ").read_bytes().split(b"\0") if b"=" in line
            )
            parent, group = (path / "stat").read_text().rpartition(")")[2].split()[1:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(group) == process.pid and b"train" in words and b"RANK" in values:
            found.setdefault(int(values[b"RANK"]), {})[int(path.name)] = int(parent)
    return {  # the others are its data workers
        rank: next(number for number, parent in parents.items() if parent not in parents)
        for rank, parents in found.items()
    }


def test_sigterm_to_one_rank_saves_on_all_and_the_same_command_continues(tmp_path):
    out = tmp_path / "run"
    stage = ("--engine.zero_stage", "2", "--data.workers", "1")
    process = launched(*with_deepspeed("--module", *SMALL, *stage, "--out", out))
    wait_for_step(out, 1, process)
    second = children(process)[1]  # looked for early: the run must not be over by then
    wait_for_step(out, 7, process)
    os.kill(second, signal.SIGTERM)
    output = ended(process, 75)
    step = len(read_log(out / "log.jsonl"))
    assert 7 <= step < LONG and f"stopped and saved at step {step} of {LONG}" in output
    assert output.count("stopped and saved") == 1
    assert checkpoint.newest_verified(out, print).name == f"step_{step:08d}"
    again = ended(launched(*with_torchrun("-m", *SMALL, *stage, "--out", out)))
    assert f"continuing {out} after step {step}" in again
    assert len(read_log(out / "log.jsonl")) == LONG
    assert load.load_segmenter(out) is not None


def two_ranks(*words, more=()):
    """Two processes without a launcher; `more` goes to the second alone."""
    port = free_port()
    return [
        launched(
            sys.executable, "-m", *words, *(more if rank else ()),
            env=environment(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            ),
        )
        for rank in (0, 1)
    ]  # fmt: skip


def errors(output):
    return [line for line in output.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_dead_or_silent_ends_the_job_with_one_line(tmp_path, number):
    out = tmp_path / "run"
    patience = "1.5" if number == signal.SIGSTOP else "30"  # also how far apart the two may start
    one, other = two_ranks(*SMALL, "--engine.timeout_minutes", patience, "--out", out)
    try:
        wait_for_step(out, 7, one)
        other.send_signal(number)
        output = ended(one, 1)
    finally:
        other.kill()  # one that was stopped would stay for ever
        other.communicate()
    assert len(errors(output)) == 1 and "another process of the job is gone or silent" in errors(output)[0]
    assert "Traceback" not in output
    if number == signal.SIGKILL:
        ended(launched(sys.executable, "-m", *SMALL, "--out", out))  # goes on, on one rank
        assert len(read_log(out / "log.jsonl")) == LONG


GROUPS = """
import sys
from dataclasses import replace
import torch
from train.engines.choose import build_engine, join_ranks
from train.assemble import open_job
from train.recipe import EngineConfig
from train.recipes import KNOWN
for stage in (1, 3):
    config = EngineConfig(device="cpu", threads=1, zero_stage=stage, timeout_minutes=7.0)
    recipe = replace(KNOWN["tiny_scenes"](), engine=config)
    engine = build_engine(open_job(recipe, None).model, recipe, join_ranks(config))
    groups = (engine.zero.dp_process_group, torch.distributed.group.WORLD, engine.ranks.group)
    print(stage, *{group._get_backend(torch.device("cpu")).options._timeout for group in groups})
"""


def test_deepspeed_waits_as_long_as_the_recipe_says():
    output = ended(launched(sys.executable, "-c", GROUPS))
    assert [line for line in output.splitlines() if line[:2] in ("1 ", "3 ")] == ["1 0:07:00", "3 0:07:00"]


def test_data_missing_on_one_machine_ends_all_with_its_message(tmp_path):
    data = ROOT.parent / "shared/mini_real"
    if not data.exists():
        pytest.skip(f"no photographs at {data}")
    words = ("train", "mini_real", "--engine.device", "cpu", "--out", tmp_path / "run")
    one, other = two_ranks(*words, "--data", data, more=("--data", tmp_path / "nowhere"))
    output = ended(one, 2), ended(other, 2)
    assert len(errors(output[0])) == 1 and errors(output[0])[0].startswith("error: process 1: ")
    assert "nowhere" in errors(output[0])[0] and errors(output[1]) == []


def test_wrong_input_is_one_line_for_the_whole_job(tmp_path):
    command = with_deepspeed("--module", *SMALL, "--data.batch_images", "5", "--out", tmp_path / "run")
    lines = errors(ended(launched(*command), 2))
    assert len(lines) == 1 and "5 does not divide over 2 processes: start 1, 5 processes" in lines[0]
    assert "--data.batch_images 4 or 6" in lines[0]


if __name__ == "__main__":
    sys.exit(as_script(without_rank(sys.argv[1:])[0]))
