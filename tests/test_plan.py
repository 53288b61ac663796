"""The plan: activations against measured ones, states against those of the engines, limits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mllm.config import MLLMConfig, TuningConfig, tiny_llama
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit, convnext
from train import __main__ as program
from train.engines.base import Engine
from train.memory_estimate import ActivationMemory, Sizes, estimate_activations, model_without_memory
from train.optim import optimizer_tensors
from train.plan import CONTEXT, GB, PER_JOB, Model, Plan, plan, sizes_of, states_of
from train.recipe import DataConfig, EngineConfig, Recipe, share_of
from train.recipes import KNOWN
from train.recipes.uniresxx_7b import BENCHMARKS
from uniresxx.data.mixture.batches import Batches, SceneSource
from uniresxx.model.collate import PackedCollator
from uniresxx.model.config import LossConfig, PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.types import Batch

ROOT = Path(__file__).resolve().parents[1]
BOUND = 0.1  # our choice of what a prediction of activations may be off
SMALL = MLLMConfig(
    llm=tiny_llama(num_hidden_layers=2, intermediate_size=256, vocab_size=512),
)
MIDDLE = MLLMConfig(
    low=clip_vit(patch=14), low_size=112, high=convnext(patch=4), high_size=192,
    llm=tiny_llama(
        num_hidden_layers=4, hidden_size=256, num_attention_heads=8, intermediate_size=512, vocab_size=512
    ),
    mgfe_width=64,
)  # fmt: skip
LORA = TuningConfig(frozen=("low", "high"), lora_rank=4, token_rows="new")

CONFIGS = {
    "tiny": UniRESPlusPlusConfig(mllm=SMALL),
    "learned boxes": UniRESPlusPlusConfig(mllm=SMALL, boxes="learned"),
    "middle": UniRESPlusPlusConfig(mllm=MIDDLE, boxes="learned", head=PyramidHeadConfig(width=96)),
    "lora": UniRESPlusPlusConfig(mllm=MIDDLE, tuning=LORA, loss=LossConfig(resolution="points", points=500)),
    "text alone": UniRESPlusPlusConfig(mllm=SMALL, loss=LossConfig().text_only()),
    "checkpointing": UniRESPlusPlusConfig(
        mllm=replace(MIDDLE, activation_checkpointing=True), tuning=LORA, loss=LossConfig(resolution="low")
    ),
}


def real(config: UniRESPlusPlusConfig, images: int, expressions: int) -> tuple[nn.Module, Batch]:
    """A model with memory and a drawn batch."""
    vocabulary = Vocabulary.train(["the red star on the left"], config.mllm.token_count)
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(config, vocabulary)
    source = SceneSource("scenes_easy", 0)
    return model, Batches(source, PackedCollator(config, vocabulary), 0, images, 1, expressions)(0, 0)


def measured(model: nn.Module, batch: Batch) -> int:
    """Bytes of all storages that autograd keeps for the backward pass, but for the model's own."""
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(model(batch), batch).total(model.counts(batch))
    return sum(storage.nbytes() for storage in kept.values())


def sizes_like(batch: Batch) -> Sizes:
    """The sizes of a drawn batch; its rows are as long as the longest."""
    images, decisions = len(batch.token_ids_BT), len(batch.expression_ids)
    labels = int((batch.labels_BT >= 0).sum()) // decisions
    return Sizes(images, round(decisions / images), batch.token_ids_BT.shape[1] * images // decisions, labels)


@pytest.mark.parametrize("name", CONFIGS)
def test_activations_are_those_measured(name: str) -> None:
    model, batch = real(CONFIGS[name], images=2, expressions=6)
    batch.present_E[:] = True  # the plan counts a mask for every expression
    found = measured(model, batch)
    predicted = estimate_activations(CONFIGS[name], sizes_like(batch), mixed=False)
    assert predicted.saved == pytest.approx(found, rel=BOUND)
    assert predicted.peak >= predicted.saved


def test_a_layer_of_the_llm_keeps_what_can_be_counted_by_hand() -> None:
    """From the difference of two depths: fp32 numbers per token, in a row of S tokens."""
    config, sizes = CONFIGS["tiny"], Sizes(1, 4, 12)
    deeper = replace(config, mllm=replace(config.mllm, llm=config.mllm.llm | dict(num_hidden_layers=3)))
    added = (
        estimate_activations(deeper, sizes, False).saved - estimate_activations(config, sizes, False).saved
    )
    m = config.mllm
    S = 3 + m.low_grid**2 + m.max_objects + m.max_parts + 4 * 12
    norm = 3 * m.llm_width + 1  # input, normed, times weight (which the projections keep); root per row
    # q, k after rotation, v, the result of prefix and text apart, and joined; log-sum per head
    attention = 5 * m.llm_width + m.llm_config.num_attention_heads
    mlp = 4 * m.llm_config.intermediate_size  # gate, its silu, up, their product
    assert added == 4 * S * (2 * norm + attention + mlp)


def test_a_wrong_number_of_expressions_is_out_of_bounds() -> None:
    model, batch = real(CONFIGS["tiny"], images=2, expressions=6)
    half = replace(sizes_like(batch), expressions=3)
    assert estimate_activations(CONFIGS["tiny"], half, False).saved < (1 - BOUND) * measured(model, batch)


def recipe(**engine: object) -> Recipe:
    return Recipe(
        "planned",
        CONFIGS["lora"],
        data=DataConfig(batch_images=8, expressions_per_image=4),
        engine=replace(EngineConfig(), **engine),
    )


SHORT = UniRESPlusPlusConfig(mllm=replace(SMALL, low=clip_vit(layers=1)), tuning=LORA)


def test_more_expressions_and_images_need_more() -> None:
    few = estimate_activations(SHORT, Sizes(1, 2, 8), False)
    for more in (Sizes(1, 16, 8), Sizes(2, 2, 8)):
        found = estimate_activations(SHORT, more, False)
        assert found.peak > few.peak and found.saved > few.saved


def test_a_stage_without_masks_is_planned_with_captions_and_needs_less() -> None:
    stages = [KNOWN["uniresxx_7b_align"](), KNOWN["uniresxx_7b"]()]
    data = replace(stages[1].data, compose_dialogues=False)
    align, joint = (sizes_of(replace(stage, data=data), 8) for stage in stages)
    assert (align.images, align.expressions) == (joint.images, joint.expressions)
    assert align.tokens > joint.tokens and align.labels > joint.labels
    assert sizes_of(stages[0], 8, tokens=20).tokens == 20
    config, sizes = CONFIGS["text alone"], Sizes(1, 4, 12)
    found = estimate_activations(config, sizes, False)
    assert found.saved < estimate_activations(CONFIGS["tiny"], sizes, False).saved
    assert found.saved < estimate_activations(config, replace(sizes, expressions=8), False).saved


def test_checkpointing_and_mixed_precision_need_less() -> None:
    sizes = Sizes(1, 8, 16)
    layered = replace(SHORT, mllm=replace(SHORT.mllm, activation_checkpointing=True))
    whole = estimate_activations(SHORT, sizes, False)
    assert estimate_activations(layered, sizes, False).saved < whole.saved
    assert estimate_activations(SHORT, sizes, True).saved < whole.saved


BIG = Model(parameters=7_500_000_000, trained=500_000_000, frozen_bytes=14_000_000_000)


def on_gpu(stage: int, gpus: int, offload: str = "none") -> int:
    found = states_of(BIG, recipe(zero_stage=stage, offload=offload), gpus)
    return found.weights + found.gradients + found.optimizer + found.communication


def test_states_fall_with_the_stage_and_the_number_of_processes() -> None:
    stages = [on_gpu(stage, 8) for stage in range(4)]
    assert stages == sorted(stages, reverse=True) and len(set(stages)) == 4
    for stage in (1, 2, 3):
        worlds = [on_gpu(stage, gpus) for gpus in (1, 2, 8, 64)]
        assert worlds == sorted(worlds, reverse=True) and worlds[0] > worlds[-1]
    assert on_gpu(3, 8, "all") < on_gpu(3, 8, "optimizer") < on_gpu(3, 8)


def test_offloaded_states_are_in_cpu_memory() -> None:
    plain = states_of(BIG, recipe(zero_stage=2), 4)
    moved = states_of(BIG, recipe(zero_stage=2, offload="optimizer"), 4)
    assert moved.host == plain.optimizer + plain.gradients and moved.optimizer == moved.gradients == 0


def test_states_of_one_process_are_those_of_the_engine() -> None:
    model, batch = real(CONFIGS["lora"], images=1, expressions=2)
    planned = states_of(Model.of(model), recipe(), 1)
    engine = Engine(model, recipe())
    engine.backward(model.loss(engine.forward(batch), batch).total(model.counts(batch)))
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    engine.update(0, 0.0, lambda norm: True)
    moments = {key: t for key, t in optimizer_tensors(engine.optimizer).items() if not key.endswith("/step")}
    weights = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    assert planned.weights == weights
    assert planned.optimizer == sum(value.nbytes for value in moments.values())
    assert 0.9 * planned.gradients <= gradients <= planned.gradients  # parts without work have none


ZERO = """
import sys
sys.path.insert(0, "tests")
from test_plan import CONFIGS, Model, real, recipe, states_of
from train.engines.choose import join_ranks
from train.engines.zero import Zero

for stage in (1, 2, 3):
    model, batch = real(CONFIGS["lora"], 1, 2)
    work = recipe(zero_stage=stage)
    planned = states_of(Model.of(model), work, 1)
    engine = Zero(model, work, join_ranks(work.engine))
    master = engine.zero.fp32_partitioned_groups_flat if stage == 3 else engine.zero.single_partition_of_fp32_groups
    moments = [t for state in engine.optimizer.state.values() for key, t in state.items() if key != "step"]
    print(stage, sum(t.nbytes for t in (*master, *moments)), planned.optimizer)
"""


@pytest.mark.system
def test_the_optimizer_s_states_are_those_deepspeed_keeps() -> None:
    """To within its padding: stages 1 to 3 on one process."""
    run = subprocess.run([sys.executable, "-c", ZERO], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [line.split() for line in run.stdout.splitlines() if re.fullmatch(r"[123] \d+ \d+", line)]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    for _, kept, planned in rows:
        assert int(kept) == pytest.approx(int(planned), rel=1e-4)


def test_a_plan_adds_up() -> None:
    found = plan(recipe(zero_stage=2), gpus=2, activations=ActivationMemory(10, 1000))
    parts = found.weights + found.gradients + found.optimizer + found.communication + found.activations
    assert found.peak == parts + found.context and found.images_per_gpu == 4
    assert f"{found.peak / GB:.1f} GB per GPU" in found.line()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = program.main(["plan", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_a_table_or_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("tiny_scenes", "--data.batch_images", "2", "--data.expressions_per_image", "2")
    code, out, _ = run(capsys, *options, "--json")
    found = Plan(**json.loads(out))
    assert code == 0 and found.images_per_gpu == 2 and found.peak > found.saved > 0
    code, out, _ = run(capsys, *options)
    assert code == 0 and f"{found.peak / GB:,.2f}" in out and "not measured" in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "the recipe's name comes first"),
        (("nothing",), "unknown recipe"),
        (("tiny_scenes", "--gpus", "5"), "does not divide over 5"),
        (("tiny_scenes", "--gpus", "0"), "--gpus 0"),
        (("tiny_scenes", "--tokens", "1"), "--tokens 1"),
        (("film_unet_scenes",), "plan works for UniRES++ and UniRES, not for FilmUNetConfig"),
        (("tiny_scenes", "--model.mllm.high_size", "63"), "multiple"),
    ],
)
def test_wrong_input_is_one_line(
    words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *words)
    assert code == 2 and text in err and err.count("\n") == 1


FULL = [name for name in KNOWN if name.startswith("uniresxx_")]


@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_keeps_its_global_batch(name: str) -> None:
    found = KNOWN[name]()
    gpus = 1 if "24gb" in name else 8
    assert share_of(found.data, gpus) >= 1
    assert found.data.batch_images * found.data.accumulate == (256 if name.endswith("align") else 80)
    align = name.endswith("align")
    assert found.data.expressions_per_image == 8 and found.eval.benchmarks == (() if align else BENCHMARKS)
    assert found.data.mixture == ("captions" if align else "ground" if name.endswith("ground") else "joint")
    talks = round(
        1.9 * 8 * found.data.dialogue_share / (1 - found.data.dialogue_share)
    )  # phrases of conversations
    assert sizes_of(found, gpus).expressions == (8 if align else 8 + talks)
    assert found.data.compose_dialogues is not align


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_fits_its_gpus(name: str) -> None:
    found, gpus, limit = KNOWN[name](), 8, 80
    if "24gb" in name:
        gpus, limit = 1, 24
    else:
        found = replace(found, engine=replace(found.engine, zero_stage=2))
    assert plan(found, gpus).peak <= limit * GB


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["uniresxx_7b", "uniresxx_7b_align", "uniresxx_13b", "uniresxx_7b_24gb", "uniresxx_qwen3_4b"]
)
def test_the_peak_of_a_full_recipe_rises_with_expressions_and_falls_with_the_stage(name: str) -> None:
    found = KNOWN[name]()
    found = replace(found, data=replace(found.data, batch_images=8))
    few, many = (estimate_activations(found.model, Sizes(1, count, 32), True) for count in (2, 8))
    peaks = [
        plan(replace(found, engine=replace(found.engine, zero_stage=stage)), 8, activations=use).peak
        for stage, use in ((0, many), (0, few), (1, few), (2, few), (3, few))
    ]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)


def documented() -> list[list[float]]:
    """The table of the page: stage, then GB."""
    text = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    lines = text.split("| `engine.zero_stage` |")[1].split("\n\n")[0].splitlines()[2:]
    return [[float(cell) for cell in line.strip("|").split("|")] for line in lines]


def test_the_documented_stages_are_those_of_the_plan() -> None:
    """All but the activations, which the test below computes anew."""
    found, rows = KNOWN["uniresxx_7b"](), documented()
    assert [row[0] for row in rows] == [0, 1, 2, 3]
    model = Model.of(model_without_memory(found.model))
    for stage, weights, gradients, optimizer, activations, rest, peak in rows:
        states = states_of(model, replace(found, engine=replace(found.engine, zero_stage=int(stage))), 8)
        shown = (states.weights, states.gradients, states.optimizer, states.communication + CONTEXT + PER_JOB)
        assert (weights, gradients, optimizer, rest) == tuple(round(value / GB, 1) for value in shown)
        running = weights + gradients + optimizer + activations + rest
        loading = (states.start + CONTEXT + PER_JOB) / GB  # the whole model, before stage 3 divides it
        assert peak == pytest.approx(max(running, loading), abs=0.3)


@pytest.mark.system
def test_the_documented_activations_are_those_of_the_plan() -> None:
    found = plan(KNOWN["uniresxx_7b"](), 8)
    assert {row[4] for row in documented()} == {round(found.activations / GB, 1)}
    assert documented()[0][6] == round(found.peak / GB, 1)


def test_an_out_of_memory_message_has_the_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> int:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(program, "_train", fail)
    small = ["--data.batch_images", "1", "--data.expressions_per_image", "2", "--out", "x"]
    assert program.main(["tiny_scenes", *small]) == 1
    text = capsys.readouterr().err
    assert "out of memory" in text and "--data.batch_images" in text and "plan predicts" in text
    assert text.count("\n") == 1
