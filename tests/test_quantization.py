"""Language models in 8 and 4 bits: what is quantised, what comes out, training, checkpoints, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from PIL import Image
from torch import nn

from eval.__main__ import main as evaluate
from mllm import quantization
from mllm.config import TuningConfig, tiny_llama
from mllm.lora import adapter_tensors
from mllm.quantization import (
    KINDS,
    Int8Matrix,
    Nf4Matrix,
    full_precision,
    parameter_counts,
    quantization_of,
    quantize,
    quantized_in,
)
from mllm.tokens import Vocabulary
from tests.test_film_unet import TOY
from tests.test_model import CONFIG, batch_of, picture
from tests.test_tuning import LORA, shake, step
from train.assemble import open_job
from train.log import read_log
from train.loop import train
from train.memory_estimate import Sizes, estimate_activations, model_without_memory, parameter_bytes
from train.plan import GB, Model, plan, table
from train.recipe import DataConfig, EngineConfig, EvalConfig, LogConfig, OptimConfig, Recipe
from train.recipes import KNOWN
from train.throughput import cost_counter
from uniresxx import Predictor, load_segmenter
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.checkpoints.tensors import read_tensors
from uniresxx.cli import main as command
from uniresxx.errors import InputError
from uniresxx.model.build import build_for_training, load_model
from uniresxx.model.config import UniRESPlusPlusConfig, WeightsConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.placement import computed_on, placement_of
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.model.tuning import parameter_table
from uniresxx.segmenters.film_unet.modeling import FilmUNet
from uniresxx.types import Decoding

BITS = ("int8", "nf4")
BF16 = replace(LORA, frozen_dtype="bf16")
PHOTO, ASKED = picture(0).pixels, [["the red square", "both squares", "wheel"]]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)


@pytest.fixture(params=BITS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def trainable(
    vocabulary: Vocabulary, tuning: TuningConfig, llm: dict[str, Any] | None = None, **weights: str
) -> UniRESPlusPlusModel:
    torch.manual_seed(0)
    config = replace(CONFIG, tuning=tuning, weights=WeightsConfig(**weights))
    if llm is not None:
        config = replace(config, mllm=replace(config.mllm, llm=llm))
    return build_for_training(config, vocabulary, log=lambda line: None)


def precision_of(tuning: TuningConfig) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if tuning.frozen_dtype == "bf16" else nullcontext()


def logits(model: UniRESPlusPlusModel, vocabulary: Vocabulary) -> torch.Tensor:
    with torch.no_grad(), precision_of(model.config.tuning):
        return model.eval()(batch_of([picture(0), picture(1)], vocabulary)).logits_YV


def answers(model: Any) -> list[Any]:
    return model.answer(model.encode_images([PHOTO]), ASKED, Decoding(max_new_tokens=5))


def linear_layers(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


# ---- what is quantised


@pytest.mark.parametrize(
    "tuning",
    [
        LORA,
        TuningConfig(lora_rank=2, lora_targets=("q_proj", "down_proj")),
        TuningConfig(frozen=("low", "high", "llm", "head"), token_rows="new"),
    ],
)
def test_seven_matrices_of_each_layer_are_quantised_and_nothing_else(
    tuning: TuningConfig, kind: Any, vocabulary: Vocabulary
) -> None:
    llm = CONFIG.mllm.llm | {"num_hidden_layers": 2}
    plain = trainable(vocabulary, tuning, llm)
    model = trainable(vocabulary, replace(tuning, quantization=kind), llm)
    found = quantized_in(model)
    assert {name.removesuffix(".base_layer").rpartition(".")[2] for name in found} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert len(found) == 7 * 2 and all(".llm.model.layers." in name for name in found)
    assert linear_layers(plain) - linear_layers(model) == set(found)
    rest, before = dict(full_precision(model)), dict(plain.named_parameters())
    assert {name: (p.shape, p.dtype) for name, p in rest.items()} == {
        name: (p.shape, p.dtype) for name, p in before.items() if name.removesuffix(".weight") not in found
    }
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in plain.named_parameters() if p.requires_grad
    }


def test_biases_and_tied_rows_stay_as_they_are(kind: Any, vocabulary: Vocabulary) -> None:
    llm = tiny_llama(
        model_type="qwen2", hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, vocab_size=340, tie_word_embeddings=True,
    )  # fmt: skip
    plain, model = (trainable(vocabulary, t, llm) for t in (LORA, replace(LORA, quantization=kind)))
    own = dict(plain.named_parameters())
    biases = {name: p for name, p in model.named_parameters() if name.endswith("proj.base_layer.bias")}
    assert len(biases) == 3 and all(torch.equal(p, own[name]) for name, p in biases.items())
    assert model.mllm.llm.lm_head.weight is model.mllm.embed.weight
    assert model.mllm.embed.weight.dtype == torch.float32
    found, exact = logits(model, vocabulary), logits(plain, vocabulary)
    assert (found - exact).std() < 0.4 * exact.std()


def test_the_full_size_has_as_many_quantised_numbers_as_its_layers_have(vocabulary: Vocabulary) -> None:
    """7B: 32 layers of 4 x 4096^2 + 3 x 4096 x 11008 numbers, in 4 bits with 8 per 64 and 32 per 16384."""
    config = KNOWN["uniresxx_7b_24gb"]().model
    model = model_without_memory(replace(config, tuning=replace(config.tuning, quantization="nf4")))
    found = quantized_in(model)
    numbers = sum(matrix.in_features * matrix.out_features for matrix in found.values())
    assert len(found) == 32 * 7 and numbers == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    stored = sum(p.nbytes for matrix in found.values() for p in matrix.stored().values())
    assert stored == pytest.approx(numbers * (0.5 + 1 / 64 + 4 / 16384), rel=1e-6)
    assert not any(name.startswith(("mllm.low", "mllm.high", "head", "mllm.image_tokens")) for name in found)


# ---- what comes out


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients_equal_those_of_bitsandbytes_own_layers(
    dtype: torch.dtype, bias: bool, kind: Any
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(160, 96, bias=bias)
    if kind == "nf4":
        theirs = bitsandbytes.nn.Linear4bit(
            160, 96, bias, compute_dtype=dtype, compress_statistics=True, quant_type="nf4"
        )
    else:
        theirs = bitsandbytes.nn.Linear8bitLt(160, 96, bias, has_fp16_weights=False, threshold=6.0)
    theirs.load_state_dict(linear.state_dict())
    theirs = theirs.to("cpu").train()
    ours = KINDS[kind](linear, torch.device("cpu")).train()
    ours.pack(linear.weight.detach())
    x = torch.randn(2, 5, 160)
    x[0, 0, 3] = 30.0  # an outlier
    found = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        y = layer(given.to(dtype))
        (y.float() ** 2).sum().backward()
        found.append((y, given.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    exact = linear(x)
    assert (found[0][0].float() - exact).std() < (0.15 if kind == "nf4" else 0.03) * exact.std()


def test_the_dequantised_matrix_is_what_the_layer_computes_with() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(100, 33, bias=False), torch.randn(7, 100)
    for made, error in ((Nf4Matrix, 1e-5), (Int8Matrix, 0.03)):  # 8 bits round the inputs too
        matrix = made(linear, torch.device("cpu"))
        matrix.pack(linear.weight.detach())
        torch.testing.assert_close(matrix.eval()(x), x @ matrix.dequantized().T, atol=error, rtol=error)


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("nf4", 0.3)])
def test_a_checkpoint_opens_in_few_bits_and_answers_nearly_the_same(
    kind: str, error: float, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    plain = trainable(vocabulary, TuningConfig())
    save_pretrained(tmp_path / "m", plain)
    model = load_model(tmp_path / "m", placement_of("cpu", quantization=kind))
    assert quantization_of(model) == kind and len(quantized_in(model)) == 7
    found, exact = logits(model, vocabulary), logits(plain, vocabulary)
    assert 0 < (found - exact).std() < error * exact.std()
    assert computed_on(model) == {"device": "cpu", "dtype": "float32", "quantization": kind}
    answered = answers(Predictor.from_pretrained(tmp_path / "m", device="cpu", quantization=kind).segmenter)
    assert answered == answers(model)
    save_pretrained(tmp_path / "again", model)  # what was quantised on the way in can be saved
    assert answers(load_segmenter(tmp_path / "again", device="cpu")) == answered


def test_scales_stay_exact_whatever_the_dtype_of_the_rest(
    kind: Any, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    save_pretrained(tmp_path, trainable(vocabulary, replace(LORA, quantization=kind)))
    whole, half = (load_model(tmp_path, placement_of("cpu", dtype)) for dtype in ("float32", "bfloat16"))
    for name, matrix in quantized_in(half).items():
        for key, value in matrix.stored().items():
            other = dict(whole.named_parameters())[f"{name}.{key}"]
            assert value.dtype == other.dtype and torch.equal(value, other)
    assert {p.dtype for _, p in full_precision(half)} == {torch.bfloat16}
    assert len(answers(half)) == 3


# ---- training


@pytest.mark.parametrize("tuning", [LORA, BF16])
def test_adapters_learn_also_after_answers_in_between(
    tuning: TuningConfig, kind: Any, vocabulary: Vocabulary
) -> None:
    """bitsandbytes' own 4-bit layers get no gradient on some CPUs after one forward pass in eval mode."""
    model = trainable(vocabulary, replace(tuning, quantization=kind))
    batch, before = batch_of([picture(0), picture(1)], vocabulary), model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for index in range(12):
        if index == 3:
            model.eval()
            answers(model)
        model.train()
        with precision_of(tuning):
            loss = model.loss(model(batch), batch).total(model.counts(batch))
        loss.backward()
        losses.append(float(loss))
        lora = {name: p.grad for name, p in model.named_parameters() if ".lora_" in name}
        assert len(lora) == 8 and all(grad is not None for grad in lora.values())
        assert all(bool(grad.any()) for name, grad in lora.items() if ".lora_B." in name)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.75 * losses[0]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(".lora_A." in name for name in moved)
    assert not any(name.startswith(tuple(quantized_in(model))) for name in moved)


def qlora(steps: int) -> Recipe:
    llm = tiny_llama(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=400
    )
    model = UniRESPlusPlusConfig(
        mllm=replace(CONFIG.mllm, llm=llm, low_size=32, high_size=64),
        tuning=TuningConfig(lora_rank=2, token_rows="new", quantization="nf4"),
    )
    return Recipe(
        "qlora", model,
        DataConfig("scenes_easy", batch_images=2, expressions_per_image=2),
        OptimConfig(steps=steps, lr=1e-3, warmup_steps=1, decay="constant"),
        EngineConfig(device="cpu", threads=1),
        LogConfig(save_every=2, keep_last=9, overlay_every=99, overlay_first_seconds=1e9, print_every_seconds=0),
        EvalConfig(("scenes_easy/val",), every=2, limit=1),
    )  # fmt: skip


def test_a_run_that_continues_is_exact_and_its_answers_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert train(qlora(4), open_job(qlora(4), None), whole) == 0
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints" / "step_00000004")
    job = open_job(qlora(4), None)
    assert train(qlora(4), job, half) == 0
    last = "checkpoints/step_00000004/model.safetensors"
    found, expected = read_tensors(half / last), read_tensors(whole / last)
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)
    assert [r["loss_hex"] for r in read_log(half / "log.jsonl") if "loss_hex" in r] == [
        r["loss_hex"] for r in read_log(whole / "log.jsonl") if "loss_hex" in r
    ]
    packed = {name: value for name, value in found.items() if name.endswith("q_proj.base_layer.weight")}
    assert [value.dtype for value in packed.values()] == [torch.uint8]
    loaded = load_segmenter(half / "checkpoints" / "step_00000004", device="cpu")
    job.model.eval()
    assert answers(loaded) == answers(job.model)


def test_a_stage_starts_from_the_quantised_weights_of_the_one_before(
    kind: Any, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    frozen = TuningConfig(frozen=("low", "high", "llm"), token_rows="new", quantization=kind)
    first = trainable(vocabulary, frozen)
    save_pretrained(tmp_path / "first", first)
    save_pretrained(tmp_path / "plain", trainable(vocabulary, replace(frozen, quantization="none")))
    exact = logits(first, vocabulary)
    tuning = replace(LORA, quantization=kind)
    for folder in ("first", "plain"):  # quantised there, or quantised now from the same weights
        second = trainable(vocabulary, tuning, start=str(tmp_path / folder))
        torch.testing.assert_close(logits(second, vocabulary), exact, atol=1e-6, rtol=1e-6)
    step(second.train(), vocabulary)
    other = "int8" if kind == "nf4" else "nf4"
    for now in ("none", other):
        with pytest.raises(InputError, match=rf"in {kind}, and this run has '{now}'.* --merge"):
            trainable(vocabulary, replace(tuning, quantization=now), start=str(tmp_path / "first"))


# ---- programs and exports


def test_every_command_takes_the_option(kind: Any, vocabulary: Vocabulary, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", trainable(vocabulary, BF16))
    options = ["--checkpoint", str(tmp_path / "m"), "--device", "cpu", "--quantization", kind]
    out = tmp_path / "e"
    assert (
        evaluate(["run", "--benchmark", "scenes_easy/val", "--limit", "1", "--out", str(out), *options]) == 0
    )
    (entry,) = json.loads((out / "metrics.json").read_text())
    assert entry["n_expressions"] > 0
    assert entry["computed_on"] == {"device": "cpu", "dtype": "bfloat16, float32", "quantization": kind}
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    words = ["segment", str(tmp_path / "photo.png"), "the red square", "--out", str(tmp_path / "o")]
    assert command([*words, *options]) == 0


def test_a_merged_export_needs_no_bitsandbytes(
    vocabulary: Vocabulary, tmp_path: Path, without_bitsandbytes: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as there:
        there.setitem(sys.modules, "bitsandbytes", bitsandbytes)
        model = trainable(vocabulary, replace(LORA, quantization="nf4"))
        shake(model)
        save_pretrained(tmp_path / "m", model)
        expected = logits(model, vocabulary)
        assert command(["export", str(tmp_path / "m"), str(tmp_path / "merged"), "--merge"]) == 0
        assert command(["export", str(tmp_path / "m"), str(tmp_path / "adapter"), "--adapter"]) == 0
        words = [
            "export",
            str(tmp_path / "merged"),
            str(tmp_path / "apart"),
            "--unmerge",
            str(tmp_path / "adapter"),
        ]
        assert command(words) == 0
    quantization._bitsandbytes.cache_clear()
    for folder in ("merged", "apart"):
        plain = load_model(tmp_path / folder)
        assert plain.config.tuning.quantization == "none" and not quantized_in(plain)
        torch.testing.assert_close(logits(plain, vocabulary), expected, atol=1e-5, rtol=1e-5)
    assert adapter_tensors(load_model(tmp_path / "apart")).keys() == adapter_tensors(model).keys()
    with pytest.raises(InputError, match="needs the package bitsandbytes"):
        load_model(tmp_path / "m")


# ---- the plan


def test_the_plan_counts_the_bytes_that_a_quantised_model_has(kind: Any, vocabulary: Vocabulary) -> None:
    tuning = replace(BF16, quantization=kind)
    real, planned = trainable(vocabulary, tuning), model_without_memory(replace(CONFIG, tuning=tuning))
    assert parameter_bytes(real, trained=False) == parameter_bytes(planned, trained=False)
    plain = trainable(vocabulary, BF16)
    numbers = sum(m.in_features * m.out_features for m in quantized_in(real).values())
    stored = sum(p.nbytes for m in quantized_in(real).values() for p in m.stored().values())
    assert parameter_bytes(plain, False) - parameter_bytes(real, False) == 2 * numbers - stored
    assert parameter_table(real) == parameter_table(plain)
    assert replace(Model.of(real), frozen_bytes=0) == replace(Model.of(plain), frozen_bytes=0)
    assert sum(parameter_counts(real).values()) == sum(p.numel() for p in plain.parameters())
    batch = batch_of([picture(0)], vocabulary)
    assert cost_counter(real, real.config)(batch) == cost_counter(plain, plain.config)(batch)


def test_the_plan_adds_the_largest_matrix_to_the_peak(vocabulary: Vocabulary) -> None:
    config = replace(CONFIG, tuning=replace(BF16, quantization="nf4"))
    few, many = (
        estimate_activations(c, Sizes(1, 2, 8), True) for c in (replace(CONFIG, tuning=BF16), config)
    )
    assert many.saved == few.saved and many.peak - few.peak == 2 * 32 * 64
    shown = plan(qlora(4), activations=many)
    assert shown.quantization == "nf4" and "matrices of the LLM in nf4" in table(shown)


def test_13b_in_4_bits_leaves_a_third_of_24_gb_after_its_weights() -> None:
    found = Model.of(model_without_memory(KNOWN["uniresxx_13b_24gb"]().model))
    whole = Model.of(model_without_memory(KNOWN["uniresxx_13b"]().model))
    assert found.parameters > 13.9e9 and found.frozen_bytes < 8.7 * GB < whole.frozen_bytes / 3


# ---- refusals


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    quantization._bitsandbytes.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    yield monkeypatch
    quantization._bitsandbytes.cache_clear()


def test_without_bitsandbytes_the_line_says_how_to_install_it(
    without_bitsandbytes: pytest.MonkeyPatch, vocabulary: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    line = r"quantization needs the package bitsandbytes .*: pip install -e '\.\[quant\]', or leave it out"
    with pytest.raises(InputError, match=line):
        placement_of("cpu", quantization="nf4")
    with pytest.raises(InputError, match=f"--model.tuning.quantization: {line}"):
        trainable(vocabulary, replace(LORA, quantization="nf4"))
    assert command(["segment", "a.png", "x", "--out", "o", "--checkpoint", "m", "--quantization", "nf4"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert placement_of("cpu").quantization == "none"
    assert quantized_in(model_without_memory(qlora(4).model))  # a plan needs none


def test_devices_and_models_that_cannot_are_refused(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(InputError, match="quantization 'nf4' needs a CUDA GPU or the CPU, not mps"):
        placement_of("mps", quantization="nf4")
    with pytest.raises(InputError, match="quantization 'fp4' is not one of none, int8, nf4"):
        placement_of("cpu", quantization="fp4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="is for one device, and device_map 'auto' for several"):
        placement_of("cuda:0", device_map="auto", quantization="int8")
    monkeypatch.undo()
    save_pretrained(tmp_path / "film", FilmUNet(TOY, vocabulary))
    with pytest.raises(InputError, match="has no language model; leave it out"):
        load_segmenter(tmp_path / "film", device="cpu", quantization="nf4")
    save_pretrained(tmp_path / "nf4", trainable(vocabulary, replace(LORA, quantization="nf4")))
    with pytest.raises(InputError, match="holds its language model in nf4: leave quantization 'int8' out"):
        load_segmenter(tmp_path / "nf4", device="cpu", quantization="int8")
    same, again = (load_segmenter(tmp_path / "nf4", device="cpu", quantization=q) for q in (None, "nf4"))
    assert answers(same) == answers(again)


def test_runs_that_would_train_or_divide_quantised_matrices_are_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(
        InputError, match=r"quantised matrices are never trained; give --model\.tuning\.lora_rank"
    ):
        trainable(vocabulary, TuningConfig(quantization="nf4"))
    divided = replace(qlora(4), engine=EngineConfig(zero_stage=3))
    with pytest.raises(InputError, match=r"ZeRO stage 3 divides weights.*use --engine.zero_stage 2"):
        open_job(divided, None)
    with pytest.raises(ValueError, match="quantization='int4'; known: none, int8, nf4"):
        TuningConfig(quantization="int4")  # type: ignore[arg-type]


def test_a_model_without_plain_linear_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the decoder layers of Sequential have no nn\.Linear"):
        quantize(nn.Sequential(), {}, "nf4")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_and_answers_in_few_bits(kind: Any, vocabulary: Vocabulary, tmp_path: Path) -> None:
    model = trainable(vocabulary, replace(BF16, quantization=kind)).to("cuda")
    step(model, vocabulary)
    model.eval()
    save_pretrained(tmp_path, model)
    assert answers(load_segmenter(tmp_path, device="cuda")) == answers(model)
