"""The launch of a whole training: its commands, its checks, and how it continues."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import launch
from tools.launch import FAMILIES, Step, main, parser, run_steps, steps_of

ROOT = Path(__file__).resolve().parents[1]
MINI_REAL = ROOT.parent / "shared" / "mini_real"
real = pytest.mark.skipif(not MINI_REAL.is_dir(), reason="needs ../shared/mini_real")


def steps(*words: str) -> list[Step]:
    return steps_of(parser().parse_args([*words, "--data", "d", "--out", "o"]))


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of the prediction of memory, which takes minutes of the full size: 7 M parameters, 20 GB of a GPU."""
    found = SimpleNamespace(
        parameters=7e6, trained=2e5, peak=20e9, line=lambda: "plan predicts 20.0 GB per GPU"
    )
    monkeypatch.setattr(launch, "predicted", lambda command, gpus: found)
    return found


def test_each_stage_starts_from_the_one_before() -> None:
    found = steps("uniresxx_7b", "--weights", "llava=w/llava", "high=w/high", "--mixture", "b=paco=1")
    start = "python -m torch.distributed.run --nproc_per_node 8 -m "
    assert [step.name for step in found] == ["stage A", "stage B", "stage C", "export", "evaluation"]
    assert [step.line.removeprefix(start) for step in found] == [
        "train uniresxx_7b_align --engine.zero_stage 2 --model.weights.llava w/llava --model.weights.high w/high "
        "--data d --out o/a",
        "train uniresxx_7b_ground --engine.zero_stage 2 --model.weights.start o/a --data d --out o/b "
        "--data.mixture paco=1",
        "train uniresxx_7b --engine.zero_stage 2 --model.weights.start o/b --data d --out o/c",
        "python -m uniresxx export o/c o/model",
        "eval reproduce --checkpoint o/model --data d --out o/eval",
    ]
    alone = steps("uniresxx_7b", "--first-stage", "c", "--gpus", "0", "--weights", "llava=x")
    assert [step.program[0] for step in alone] == ["train", "uniresxx", "eval"]
    assert "--model.weights.llava x" in alone[0].line and launch.LAUNCHER not in alone[0].line
    for words in (["--mixture", "d=paco=1"], ["--mixture", "paco"], ["--weights", "llava="]):
        with pytest.raises(ValueError, match="write NAME=VALUE"):
            steps("uniresxx_7b", *words)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_commands_that_their_programs_read(family: str) -> None:
    commands = launch.parsed(steps(family, "--options", "--optim.steps 7 --data.workers 2"))
    assert [command.recipe.name for command in commands.values()] == [
        f"{family}_align", f"{family}_ground", family
    ]  # fmt: skip
    assert {command.recipe.optim.steps for command in commands.values()} == {7}


def test_a_command_that_its_program_refuses_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["uniresxx_7b", "--data", "d", "--out", "o", "--options", "--optim.lrr 1", "--dry-run"]
    assert main(words) == 2
    assert "stage A: " in (shown := capsys.readouterr().err) and "lrr" in shown


@real
def test_a_dry_run_names_everything_that_is_missing_and_starts_nothing(
    plans: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda k: SimpleNamespace(total_memory=(24e9, 16e9)[k])
    )
    plans.parameters = 1e15
    out = tmp_path / "out"
    words = [
        "uniresxx_7b",
        "--data",
        str(MINI_REAL),
        "--out",
        str(out),
        "--weights",
        "llava=./nowhere",
        "--dry-run",
    ]
    assert main(words) == 2
    shown = capsys.readouterr()
    problems = [line.removeprefix("problem: ") for line in shown.err.splitlines()]
    for text in (
        "give --model.weights.high FOLDER_OR_HUB_ID --model.weights.sam", "--weights llava=./nowhere: no such folder",
        "stage A: llava_pretrain/train: ", "stage A: visual_genome/train: ", "stage B: paco/train: ",
        "stage C: refcoco+/train: ", "2 GPUs are visible, 8 are asked for", "stage B needs 20.0 GB per GPU",
        "GB are needed: give another --out",
    ):  # fmt: skip
        assert any(text in problem for problem in problems), text
    assert not any("refcoco/train" in problem or "grefcoco/train" in problem for problem in problems)
    assert "to evaluate: refcoco/val" in shown.out and "missing: RefCOCO+" in shown.out
    assert all(f"\n{step.name}: {step.line}\n" in shown.out for step in steps_of(parser().parse_args(words)))
    assert not out.exists()


@real
def test_a_dry_run_on_data_that_is_there(
    plans: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the same words and without --dry-run the steps begin."""
    words = ["uniresxx_7b", "--data", str(MINI_REAL), "--out", str(tmp_path / "out"), "--gpus", "0"]
    words += ["--zero-stage", "0", "--first-stage", "c", "--mixture", "c=refcoco=1,grefcoco[multi+none]=1"]
    words += ["--weights", f"llava={tmp_path}", "high=laion/convnext", f"sam={tmp_path}"]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "high=laion/convnext: no folder here, so an id of the hub" in shown.out
    asked: list[str] = []
    monkeypatch.setattr(
        launch, "run_steps", lambda steps, out, gpus: asked.extend(s.name for s in steps) or 75
    )
    assert main(words) == 75 and asked == ["stage C", "export", "evaluation"]


def test_versions_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(launch.wrong_versions(with_engine=False))
    monkeypatch.setattr(launch, "version", lambda name: "0.0.1")
    found = list(launch.wrong_versions(with_engine=True))
    assert any(line.startswith("deepspeed") and "0.0.1 is installed" in line for line in found)


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps are real processes: one that works, and one that fails until its file is there."""
    file = tmp_path / "later.json"
    done = [Step("first", ("json.tool", "--help")), Step("second", ("json.tool", str(file)))]
    assert run_steps(done, tmp_path, 0) == 2
    assert "second ended with exit code 2; the same command continues" in capsys.readouterr().err
    file.write_text("{}")
    assert run_steps(done, tmp_path, 0) == 0
    assert "first: done\nsecond: python -m json.tool" in capsys.readouterr().out
    other = [Step("first", ("json.tool", "-h")), done[1]]
    assert run_steps(other, tmp_path, 0) == 0
    assert "first: python -m json.tool -h\nsecond: done" in capsys.readouterr().out


SAVES = """
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(1)
    pathlib.Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.mark.system
def test_a_stop_signal_waits_for_the_step_to_save(tmp_path: Path) -> None:
    (tmp_path / "saves.py").write_text(SAVES)
    program = (
        "import sys, pathlib; from tools.launch import Step, run_steps;"
        "sys.exit(run_steps([Step('stage', ('saves',))], pathlib.Path('out'), 0))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75 and (tmp_path / "saved").exists()
    assert not (tmp_path / "out" / launch.RECORD).exists()


@real
@pytest.mark.system
def test_the_real_plan_of_a_small_model(tmp_path: Path) -> None:
    """A process as a user starts it, with the prediction of memory; one layer, so that it takes seconds."""
    shutil.copytree(MINI_REAL, data := tmp_path / "data", ignore=shutil.ignore_patterns("awkward"))
    words = ["uniresxx_7b", "--data", data, "--out", tmp_path / "out", "--gpus", "0", "--zero-stage", "0"]
    words += ["--first-stage", "c", "--mixture", "c=refcoco=1,grefcoco=1", "--dry-run"]
    words += ["--weights", *(f"{name}={tmp_path}" for name in ("llava", "high", "sam"))]
    words += ["--options", "--model.mllm.llm num_hidden_layers=1 --data.batch_images 1"]
    command = [sys.executable, "-m", "tools.launch", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    problems = [line for line in done.stderr.splitlines() if "give another --out" not in line]  # of this disk
    assert not [line for line in problems if line.startswith(("problem", "error"))], done.stderr
    assert "plan predicts" in done.stdout and "stage C: python -m train uniresxx_7b" in done.stdout
