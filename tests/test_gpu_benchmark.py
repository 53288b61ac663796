"""The GPU benchmark runs end to end on a CPU with tiny sizes, and its FLOPs are those torch counts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from benchmarks._common import finish
from mllm.lora import adapter_tensors
from train.engines.base import Engine
from uniresxx.model.modeling import UniRESPlusPlusModel


def small_model() -> tuple[UniRESPlusPlusModel, gpu.Recipe, gpu.Vocabulary]:
    recipe = gpu.recipe_of(gpu.SMALL, "pyramid", 3)
    mllm = replace(recipe.model.mllm, attention="eager", activation_checkpointing=False)
    recipe = replace(recipe, model=replace(recipe.model, mllm=mllm))
    vocabulary = gpu.vocabulary_of(mllm)
    return gpu.build(recipe, vocabulary, torch.device("cpu")), recipe, vocabulary


def test_it_runs_small_and_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--small"]) == 0
    lines = capsys.readouterr().out.splitlines()
    headline = json.loads(lines[-1])
    assert headline == {
        "mfu": None, "train_expressions_per_s_k8": None, "infer_expressions_per_s_k7": None, "peak_gb": None,
    }  # fmt: skip
    details = dict(line.split(": ", 1) for line in lines[:-1])
    for count in gpu.TRAIN_K:
        for name in (
            "train_seconds",
            "train_tokens_per_s",
            "train_expressions_per_s",
            "train_tflop",
            "train_planned_gb",
        ):
            assert float(details[f"{name}_pyramid_k{count}"]) > 0
    for name in ("train_seconds_sam_k8", "infer_seconds_sam_k7", "head_seconds_sam_k7", "encode_seconds_sam"):
        assert float(details[name]) > 0
    for count in gpu.INFER_K:
        assert float(details[f"infer_expressions_per_s_pyramid_k{count}"]) > 0


def test_it_refuses_what_it_cannot_measure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, says in (([], "finds no GPU"), (["--small", "--record"], "leave out --record")):
        assert gpu.main(words) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1


def test_the_flops_of_the_llm_are_those_torch_counts() -> None:
    """LoRA, frozen weights, label positions; torch counts eager attention over all pairs, the formula those seen."""
    model, recipe, vocabulary = small_model()
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    m, batch = recipe.model.mllm, gpu.batch_of(recipe, vocabulary, 3)
    prefix, llm = model.mllm.prefix_length, model.mllm.llm
    S = prefix + batch.token_ids_BT.shape[1]
    hidden = torch.randn(1, S, m.llm_width, requires_grad=True)
    labels = int((batch.labels_BT[0] >= 0).sum())
    with FlopCounterMode(display=False) as counter:
        states = llm.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        llm.lm_head(states[0, :labels]).square().sum().backward()
    assert adapter_tensors(llm) and not llm.model.layers[0].mlp.up_proj.weight.requires_grad
    row = batch.branch_BT[0]
    branches = [int((row == k).sum()) for k in range(3)]
    assert sum(branches) == batch.token_ids_BT.shape[1]
    pairs = prefix * (prefix + 1) / 2 + sum(t * prefix + t * (t + 1) / 2 for t in branches)
    per_pair = 12 * m.attention_width * m.llm_config.num_hidden_layers
    expected = gpu.llm_flops(model, prefix, branches, labels) + per_pair * (S * S - pairs)
    rows = 6 * len(model.vocabulary.special) * m.llm_width * labels  # the trained token rows
    assert counter.get_total_flops() == pytest.approx(expected + rows, rel=0.01)


def test_flops_of_a_step_count_frozen_parts_once_and_grow_with_k() -> None:
    model, recipe, vocabulary = small_model()
    engine = Engine(model, replace(recipe, engine=replace(recipe.engine, device="cpu")))
    one, three = (gpu.step_flops(engine, model, gpu.batch_of(recipe, vocabulary, k)) for k in (1, 3))
    assert 0 < one < three
    batch = gpu.batch_of(recipe, vocabulary, 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.mllm.low(model.normalise_low(batch.pixels_low_B3hw).to(torch.bfloat16))
    low = counter.get_total_flops()
    for parameter in model.mllm.low.parameters():
        parameter.requires_grad_(True)
    trained = gpu.step_flops(engine, model, batch)
    assert low > 0 and trained - one == pytest.approx(2 * low)


def test_the_prefix_is_as_long_as_the_benchmark_says() -> None:
    model, recipe, vocabulary = small_model()
    batch = gpu.batch_of(recipe, vocabulary, 1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        view = gpu.make_sample(_record(), gpu.photo_of(_record()), (), (), [], recipe.model, vocabulary).view
        encoded = model.encode_views([view])
    assert encoded.prefix.length == model.mllm.prefix_length
    assert (batch.branch_BT[0] >= 0).sum() == pytest.approx(25, abs=5)


def _record() -> gpu.ImageRecord:
    return gpu.ImageRecord("0", gpu.HEIGHT, gpu.WIDTH, (), pixels=gpu.photograph(0))


def test_what_was_not_measured_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    finish("x", {"ratio": 2.0, "mfu": None}, {}, False)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"ratio": 2.0, "mfu": None}
