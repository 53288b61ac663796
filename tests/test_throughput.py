"""Throughput, validation during training, trackers, the reference curve."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mllm.config import MLLMConfig, TuningConfig, tiny_llama
from mllm.modeling import Boxes
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit
from tools import compare_curves
from train.__main__ import main
from train.assemble import open_job
from train.distributed import Ranks
from train.log import draw_curve, rates, read_log, read_steps
from train.loop import DONE, train
from train.recipe import EngineConfig, EvalConfig, LogConfig, check
from train.recipes import KNOWN
from train.throughput import Cost, ThroughputMeter, cost_counter, memory_of, peak_of
from train.trackers import numbers_of
from train.validation import value_of
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.tensors import read_tensors
from uniresxx.data.catalog import open_benchmark
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.evaluation.run import evaluate
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]
ONE_STEP = {
    "step": 1, "loss": 2.0, "loss_hex": "0x1p+1", "text": 1.0, "lr": 0.1, "expressions_per_s": 9.0, "skipped": False,
    "text_tokens_per_s": 70.0, "visual_tokens_per_s": 30.0, "mfu": 0.41, "data_wait": 0.03, "memory_gb": 1.25,
}  # fmt: skip


class StopAtError(Exception):
    pass


def killed_at(batches, last):
    """The batches of a process that dies when it asks for step number `last` (from 0)."""

    def get(step, micro):
        if step == last:
            raise StopAtError
        return batches(step, micro)

    return get


# ---- what a step costs


class Clock:
    """Moves only when the test moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_rates_leave_out_the_time_between_steps():
    clock = Clock()
    meter = ThroughputMeter(
        Ranks(), EngineConfig(), torch.device("cpu"), lambda batch: Cost(10, 100, 1e9), clock
    )
    lines = []
    for _ in meter.waiting([1, 2]):
        clock.now += 3.0  # computing
        lines.append(meter.record(["one", "two"]))
        clock.now += 50.0  # saving
    assert lines[-1]["text_tokens_per_s"] == round(40 / 6, 1) and lines[-1]["data_wait"] == 0.0
    assert lines[-1]["visual_tokens_per_s"] == round(400 / 6, 1) and lines[-1]["mfu"] is None
    assert 0 < lines[-1]["memory_gb"] == pytest.approx(memory_of(torch.device("cpu")) / 1e9, abs=1e-3)


def test_the_wait_for_data_is_a_share_of_the_time():
    clock = Clock()

    def slow():
        for item in range(3):
            clock.now += 1.0
            yield item

    meter = ThroughputMeter(Ranks(), EngineConfig(), torch.device("cpu"), None, clock)
    for _ in meter.waiting(slow()):
        clock.now += 3.0
        line = meter.record([0])
    assert line["data_wait"] == 0.25 and line["text_tokens_per_s"] is None


def test_mfu_is_needed_flops_over_the_peak_of_all_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("train.throughput.memory_of", lambda device: 5_000_000_000)
    clock = Clock()
    ranks = SimpleNamespace(world_size=2, sum=lambda values: [2 * value for value in values])
    engine = EngineConfig(precision="bf16")
    meter = ThroughputMeter(ranks, engine, torch.device("cuda", 0), lambda batch: Cost(1, 1, 989e12), clock)
    for _ in meter.waiting([0]):
        clock.now += 4.0
        line = meter.record([0])
    assert line["mfu"] == 0.25 and line["memory_gb"] == 5.0
    assert "MFU 25%" in rates({"expressions_per_s": 1.0} | line)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA L40S", 362), ("NVIDIA A10G", None), ("Something else", None),
    ],
)  # fmt: skip
def test_golden_peaks(name, teraflops):
    assert peak_of(name, "bf16") == (None if teraflops is None else teraflops * 1e12)
    assert peak_of(name, "fp32") is None


@pytest.mark.parametrize(("lora", "frozen"), [(0, ()), (4, ("low",))])
def test_counted_flops_are_what_torch_counts(lora, frozen):
    """Forward passes under torch's own counter; the backward factors follow from what is trained."""
    m = MLLMConfig(
        llm=tiny_llama(num_hidden_layers=2, vocab_size=300),
    )
    tuning = TuningConfig(lora_rank=lora, frozen=frozen)
    config = UniRESPlusPlusConfig(mllm=m, boxes="grid", tuning=tuning)
    model = UniRESPlusPlusModel(config, Vocabulary.train(["segment the red car"], 300))
    B, T, visual = 2, 9, 64 + m.max_objects + m.max_parts + 3
    branch = torch.tensor([[0] * 5 + [1] * 4, [0] * 6 + [-1] * 3])
    position = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 0, 0, 0]])
    labels = torch.full((B, T), -100)
    batch = SimpleNamespace(branch_BT=branch, position_BT=position, labels_BT=labels)
    found = cost_counter(model, config)(batch)
    assert (found.text_tokens, found.visual_tokens) == (15, 2 * visual)

    low = torch.zeros(B, 3, 64, 64)
    boxes = Boxes(
        torch.zeros(B, m.max_objects, 4), torch.zeros(B, m.max_objects).bool(),
        torch.zeros(B, m.max_parts, 4), torch.zeros(B, m.max_parts).bool(),
    )  # fmt: skip
    with torch.no_grad():
        sight = model.mllm.encode_image(low, torch.zeros(B, 3, 64, 64), boxes)
        with FlopCounterMode(display=False) as llm:
            model.mllm(sight, torch.zeros(B, T, dtype=torch.long), branch, position)
        with (
            FlopCounterMode(display=False) as tower,
            sdpa_kernel(SDPBackend.MATH),
        ):  # the other is not counted
            model.mllm.low(low)
        with FlopCounterMode(display=False) as high:
            model.mllm.high(torch.zeros(B, 3, 64, 64))
    real = (2 * visual + 15) / (2 * visual + 18)  # torch computes the padding as well
    products = llm.get_flop_counts()["Global"]
    linear = real * sum(n for op, n in products.items() if op.__name__.startswith(("mm", "addmm")))
    pairs = sum(visual * (visual + 1) // 2 + sum((visual + 1) * n + n * (n - 1) // 2 for n in lengths)
                for lengths in ((5, 4), (6,)))  # fmt: skip
    attention = 4 * m.llm_config.num_hidden_layers * m.llm_width * pairs
    low_times, llm_times = (1, 2) if frozen else (3, 3)
    seen = llm_times * linear + 3 * attention
    seen += low_times * tower.get_total_flops() + 3 * high.get_total_flops()
    assert found.flops == pytest.approx(seen, rel=0.02)


# ---- measuring while training


def little(steps=4, **config):
    """The tiny recipe, smaller still."""
    full = KNOWN["tiny_scenes"]()
    llm = full.model.mllm.llm | dict(num_hidden_layers=1, intermediate_size=64, vocab_size=400)
    mllm = replace(full.model.mllm, llm=llm, low=clip_vit(layers=1))
    return replace(
        full,
        model=replace(full.model, mllm=mllm, head=PyramidHeadConfig(width=16, heads=2)),
        data=replace(full.data, batch_images=2, expressions_per_image=3),
        optim=replace(full.optim, steps=steps, warmup_steps=1, max_minutes=None),
        engine=EngineConfig(device="cpu", threads=1),
        log=LogConfig(save_every=100, overlay_every=100, print_every_seconds=0, **config),
    )


@pytest.fixture(autouse=True, scope="module")
def _short_corpus():
    """The vocabulary of a few texts: quicker, and enough for all but the committed curve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.assemble.CORPUS_LINES", 300)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training plain, measured, and measured and cut after its first measurement."""
    out, recipe = tmp_path_factory.mktemp("runs"), little()
    measured = replace(recipe, eval=EvalConfig(("scenes_easy/val",), every=2, limit=2, metric="object/mIoU"))
    assert train(recipe, open_job(recipe, None), out / "plain") == DONE
    assert train(measured, open_job(measured, None), out / "measured") == DONE
    checkpoint.shutil.copytree(out / "measured", out / "cut")
    checkpoint.shutil.rmtree(out / "cut/checkpoints/step_00000004")
    (out / "cut/checkpoints/best.json").unlink()
    assert train(measured, open_job(measured, None), out / "cut") == DONE
    return out


def losses(run):
    return [record["loss_hex"] for record in read_steps(run / "log.jsonl")]


def test_validation_changes_no_bit(runs):
    assert losses(runs / "plain") == losses(runs / "measured") == losses(runs / "cut")
    weights = [
        read_tensors(checkpoint.step_folder(runs / name, 4) / "model.safetensors")
        for name in ("plain", "measured", "cut")
    ]
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())


@pytest.mark.parametrize("name", ["measured", "cut"])
def test_scores_overlay_and_best_mark_of_a_validation(runs, name):
    run = runs / name
    lines = [record for record in read_log(run / "log.jsonl") if "eval" in record]
    assert [record["step"] for record in lines] == [2, 4]
    values = []
    for record in lines:
        folder = run / f"eval/step_{record['step']:08d}"
        (entry,) = json.loads((folder / "metrics.json").read_text())
        assert (entry["benchmark"], entry["split"], entry["limit"]) == ("scenes_easy", "val", 2)
        assert entry["n_expressions"] == len((folder / entry["predictions"]).read_text().splitlines())
        assert record["eval"]["scenes_easy/val"]["mIoU"] == entry["overall"]["mIoU"]
        assert Image.open(folder / "overlay.png").size[0] > 100
        values.append(value_of(entry, "object/mIoU"))
    best = json.loads((run / "checkpoints/best.json").read_text())
    assert best == {"step": 2 if values[0] >= values[1] else 4, "metric": "object/mIoU", "value": max(values)}
    assert resolve(run, print).name == f"step_{best['step']:08d}"


def test_log_lines_have_the_throughput(runs):
    record = read_steps(runs / "measured/log.jsonl")[-1]
    assert record["text_tokens_per_s"] > 0 and record["visual_tokens_per_s"] > 0
    assert record["mfu"] is None and 0 <= record["data_wait"] <= 1 and record["memory_gb"] > 0.05
    assert read_steps(runs / "plain/log.jsonl")[-1].keys() == record.keys()


@pytest.mark.system
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_validate_together(tmp_path, stage):
    """A real job: the scores are those of the weights it saved, and only rank 0 wrote them."""
    words = [
        "-m", "train", "tiny_scenes", "--optim.steps", "2", "--optim.max_minutes", "None", "--data.batch_images", "2",
        "--engine.device", "cpu", "--engine.threads", "1", "--engine.zero_stage", str(stage), "--eval.every", "1",
        "--eval.limit", "2", "--eval.metric", "gIoU", "--log.overlay_every", "1000", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    port = str(SystemRandom().randrange(20_000, 30_000))  # below those that systems hand out
    launcher = ["torchrun", "--nproc_per_node", "2", "--master_port", port]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        launcher + words, cwd=ROOT, capture_output=True, text=True, timeout=1700, check=False,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "run"
    lines = [record for record in read_log(run / "log.jsonl") if "eval" in record]
    assert [record["step"] for record in lines] == [1, 2] and len(read_steps(run / "log.jsonl")) == 2
    records = open_benchmark("scenes_easy/val", None)[:2]
    for record in lines:
        model = load_segmenter(checkpoint.step_folder(run, record["step"]))
        answered = evaluate(
            model, records, "scenes_easy/val", Decoding(), tmp_path / f"again_{record['step']}"
        )
        again = score_file(answered, records, "scenes_easy/val")["overall"]
        for key in ("gIoU", "cIoU", "N-acc"):
            assert record["eval"]["scenes_easy/val"][key] == pytest.approx(again[key], abs=0.5)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (EvalConfig(("scenes/val",), every=5, metric="wheel/mIoU"), "--eval.metric wheel/mIoU: unknown"),
        (EvalConfig(("scenes/val",), every=5, metric="iou"), "a score .*as part/mIoU"),
        (EvalConfig((), every=5), "name the benchmarks by --eval.benchmarks"),
        (EvalConfig(("scenes/val",), every=0), "--eval.every 0: must be above 0"),
    ],
)
def test_an_impossible_validation_is_refused(config, line):
    with pytest.raises(InputError, match=line):
        check(replace(little(), eval=config))


def test_no_checkpoint_is_chosen_on_a_test_split():
    recipe = replace(little(), eval=EvalConfig(("scenes_easy/test",), every=5))
    with pytest.raises(InputError, match="chosen on val or train, never on a test split"):
        open_job(recipe, None)


# ---- the curve picture and the trackers


def test_the_curve_shows_validation_scores(tmp_path):
    log = tmp_path / "log.jsonl"
    scores = {"scenes/val": {"mIoU": 30.0, "N-acc": None}}
    lines = [ONE_STEP, {"step": 1, "eval": scores}]
    sizes = []
    for shown in (lines[:1], lines):
        log.write_text("".join(json.dumps(line) + "\n" for line in shown))
        draw_curve(log, tmp_path / "curve.png")
        sizes.append((tmp_path / "curve.png").read_bytes())
    assert sizes[0] != sizes[1]


def test_numbers_of_a_line():
    record = {
        "step": 3,
        "loss": 1.0,
        "mfu": None,
        "skipped": False,
        "eval": {"a/val": {"mIoU": 2}},
        "loss_hex": "x",
    }
    assert numbers_of(record) == {"loss": 1.0, "eval/a/val/mIoU": 2.0}


def test_tensorboard_has_every_step_once_after_a_restart(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an option of the user's")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = little(4, tensorboard=True)
    recipe = replace(recipe, log=replace(recipe.log, save_every=2))
    job = open_job(recipe, None)

    with pytest.raises(StopAtError):
        train(
            recipe, replace(job, batches=killed_at(job.batches, 3)), tmp_path
        )  # step 3 is done and not saved
    assert train(recipe, job, tmp_path) == DONE
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == [1, 2, 3, 4]
    logged = [record["loss"] for record in read_steps(tmp_path / "log.jsonl")]
    assert [point.value for point in points] == pytest.approx(logged, rel=1e-6)
    assert {"train/lr", "train/data_wait", "train/memory_gb", "train/text"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_a_service_receives_the_numbers(tmp_path, monkeypatch, package):
    """A stand-in with the three calls both packages have; neither is installed for the tests."""
    text = []
    fake = ModuleType(package)
    fake.init = lambda **words: text.append(("init", words))
    fake.log = lambda numbers, step: text.append((step, numbers))
    fake.finish = lambda: text.append(("finish", None))
    monkeypatch.setitem(sys.modules, package, fake)
    recipe = little(2, tracker=package)
    train(recipe, open_job(recipe, None), tmp_path / "run")
    assert [what for what, _ in text] == ["init", 1, 2, "finish"]
    words = text[0][1]
    assert (words["project"], words["name"], words["resume"]) == ("uniresxx", "run", "allow")
    assert words["config"]["recipe"]["name"] == "tiny_scenes" and ("id" in words) == (package == "wandb")
    assert text[1][1]["train/loss"] == read_log(tmp_path / "run/log.jsonl")[0]["loss"]


@pytest.mark.parametrize(
    "option", [("--log.tensorboard", "True"), ("--log.tracker", "trackio"), ("--log.tracker", "wandb")]
)
def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch, capsys, tmp_path, option):
    monkeypatch.setattr("train.trackers.find_spec", lambda name: None)
    for name in ("tensorboard", "trackio", "wandb"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["tiny_scenes", *option, "--out", str(tmp_path / "run")]) == 2
    text = capsys.readouterr().err
    assert (
        text.count("\n") == 1 and "is not installed: pip install" in text and not (tmp_path / "run").exists()
    )


# ---- the reference curve


def write_log(path, curve):
    path.write_text(
        "".join(json.dumps(ONE_STEP | {"step": s} | values) + "\n" for s, values in curve.items())
    )


def test_the_committed_curve_is_complete():
    curve = compare_curves.read_reference(compare_curves.REFERENCE)
    assert list(curve) == list(range(1, len(curve) + 1)) and len(curve) >= 150
    assert {"loss", "text", "mask", "dice"} <= set(curve[1])
    weights = KNOWN["tiny_scenes"]().model.loss
    for losses_ in curve.values():
        assert losses_["loss"] == pytest.approx(
            sum(getattr(weights, name) * value for name, value in losses_.items() if name != "loss"), rel=1e-4
        )
    first = compare_curves.REFERENCE.read_text().splitlines()[0]
    assert {"cpu", "torch", "commit", "date"} <= json.loads(first.partition("; ")[2]).keys()


def test_verdicts(tmp_path, capsys):
    reference = compare_curves.read_reference(compare_curves.REFERENCE)
    log = tmp_path / "log.jsonl"
    shifts = {
        "the same": (lambda step: 1.0, 0),
        "rounding that grows": (lambda step: 1.0 + min(1e-3 * step, 0.1), 0),
        "another first step": (lambda step: 1.02 if step == 1 else 1.0, 1),
        "learns worse": (lambda step: 1.0 if step <= 50 else 1.5, 1),
        "not a number": (lambda step: float("nan") if step == 90 else 1.0, 1),
    }
    for name, (factor, code) in shifts.items():
        curve = {
            s: {k: v * factor(s) if factor(s) == factor(s) else None for k, v in values.items()}
            for s, values in reference.items()
        }
        for values in curve.values():
            values.pop("none", None)
        write_log(log, curve)
        assert compare_curves.main([str(log)]) == code, name
        output = capsys.readouterr().out
        assert ("DIFFERS" in output) == bool(code)
        assert output.splitlines()[-1].endswith(f"over {len(reference)} steps")


@pytest.mark.parametrize("lines", [None, [], [{"step": 7}], [{"step": 1, "extra": 1.0}]])
def test_no_comparison_is_wrong_input(tmp_path, capsys, lines):
    log = tmp_path / "log.jsonl"
    if lines is not None:
        log.write_text("".join(json.dumps(ONE_STEP | line) + "\n" for line in lines))
    assert compare_curves.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_short_run_follows_the_committed_curve(tmp_path, capsys, monkeypatch):
    """Three steps of the recipe; then its log with one of them changed."""
    monkeypatch.setattr("train.assemble.CORPUS_LINES", 4_000)
    full = KNOWN["tiny_scenes"]()
    recipe = replace(
        full, optim=replace(full.optim, max_minutes=None), engine=EngineConfig(device="cpu", threads=1)
    )
    job = open_job(recipe, None)

    with pytest.raises(StopAtError):
        train(recipe, replace(job, batches=killed_at(job.batches, 3), overlay=None), tmp_path)
    capsys.readouterr()
    assert compare_curves.main([str(tmp_path)]) == 0
    assert "follows the reference in all 3 comparisons over 3 steps" in capsys.readouterr().out
    records = read_log(tmp_path / "log.jsonl")
    records[1]["loss"] *= 1.05
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert compare_curves.main([str(tmp_path)]) == 1


# ---- the benchmark


def test_the_training_step_benchmark_runs_small():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_step", "--small"], cwd=ROOT, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    headline = json.loads(done.stdout.splitlines()[-1])
    assert set(headline) == {"expressions_ratio", "expressions_ratio_gsva_packing"}
    assert all(value > 0 for value in headline.values()) and "gpu: not measured" in done.stdout


def test_the_benchmark_has_the_full_prefix_and_the_recorded_rows_say_where():
    from benchmarks.training_step import EXPRESSIONS, full

    m = full().mllm
    assert (m.low_grid**2, m.max_objects, m.max_parts) == (576, 32, 64) and EXPRESSIONS == 7
    assert (m.llm_width, m.llm_config.num_hidden_layers) == (256, 4)
    path = ROOT / "benchmarks/results/training_step.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    details = json.loads(rows[-1]["details"])
    assert float(rows[-1]["expressions_ratio"]) >= 3  # what the project promises against LISA's way
    assert details["prefix_tokens"] == 675 and rows[-1]["cpu"] and len(details["load_average"]) == 2
