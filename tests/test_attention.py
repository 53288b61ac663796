"""FlexAttention and flash-attn in the paths that use them, against sdpa; what needs a GPU is marked `gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers.utils import is_flash_attn_2_available

from mllm.prefix import check_packed
from mllm.tokens import Vocabulary
from tests.test_model import CONFIG, batch_of, picture
from train.assemble import check_attention_of
from train.recipes.tiny_scenes import tiny_scenes
from uniresxx.errors import InputError
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """transformers compiles the kernel at its first call; here its plain form runs and notes `training`."""
    from transformers.integrations import flex_attention as integration

    used: list[bool] = []

    class Plain:
        def __init__(self, training: bool) -> None:
            used.append(training)

        def __call__(self) -> object:
            return flex_attention

    monkeypatch.setattr(integration, "WrappedFlexAttention", Plain)
    yield used


def made(vocabulary: Vocabulary, attention: str) -> UniRESPlusPlusModel:
    torch.manual_seed(0)
    config = replace(CONFIG, mllm=replace(CONFIG.mllm, attention=attention))
    return UniRESPlusPlusModel(config, vocabulary).train()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("bf16", [False, True])
def test_flex_computes_the_losses_of_sdpa_in_training(
    vocabulary: Vocabulary, not_compiled: list[bool], bf16: bool
) -> None:
    """The whole forward pass and loss of packed rows of unequal length, in training mode."""
    sdpa, flex = made(vocabulary, "sdpa"), made(vocabulary, "flex_attention")
    batch = batch_of([picture(0), picture(1, 20, 32)], vocabulary, CONFIG)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        expected, found = (model.loss(model(batch), batch).sums for model in (sdpa, flex))
    assert not_compiled == [True] * CONFIG.mllm.llm_config.num_hidden_layers
    tolerance = {"rtol": 0.02, "atol": 0.05} if bf16 else {"rtol": 1e-4, "atol": 1e-5}
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value.float(), **tolerance)


def test_flex_is_refused_where_it_has_no_backward_pass() -> None:
    check_packed("flex_attention", torch.device("cuda"))
    check_packed("sdpa", torch.device("cpu"))
    with pytest.raises(ValueError, match="has no backward pass on cpu: train with 'sdpa'"):
        check_packed("flex_attention", torch.device("cpu"))


def test_training_with_flex_on_a_cpu_is_refused_with_a_line() -> None:
    recipe = tiny_scenes()
    recipe = replace(recipe, engine=replace(recipe.engine, device="cpu"))
    check_attention_of(recipe)
    flex = replace(recipe.model, mllm=replace(recipe.model.mllm, attention="flex_attention"))
    with pytest.raises(InputError, match=r"--model\.mllm\.attention: .*no backward pass on cpu"):
        check_attention_of(replace(recipe, model=flex))


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("bf16", [False, True])
def test_flex_trains_as_sdpa_does_on_a_gpu(vocabulary: Vocabulary, bf16: bool) -> None:
    """Compiled, forward and backward: losses and the gradient of the first query weights."""
    found = []
    for attention in ("sdpa", "flex_attention"):
        model = made(vocabulary, attention).cuda()
        batch = batch_of([picture(0), picture(1, 20, 32)], vocabulary, CONFIG)
        counts, batch = model.counts(batch), batch.to("cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss = model.loss(model(batch), batch).total(counts)
        loss.backward()
        gradient = model.mllm.llm.model.layers[0].self_attn.q_proj.weight.grad
        found.append((loss.detach(), gradient))
    tolerance = {"rtol": 0.05, "atol": 0.02} if bf16 else {"rtol": 1e-3, "atol": 1e-4}
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, **tolerance)


@pytest.mark.gpu
@ON_GPU
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs flash-attn 2.3.3 or later")
def test_flash_encodes_the_prefix_as_sdpa_does_on_a_gpu(vocabulary: Vocabulary) -> None:
    caches = []
    for attention in ("sdpa", "flash_attention_2"):
        model = made(vocabulary, attention).eval().cuda().bfloat16()
        with torch.autocast("cuda", torch.bfloat16):
            caches.append(model.encode_images([picture(0).pixels, picture(1).pixels]).prefix)
    valid = caches[0].valid_BL[:, None, :, None]
    for (keys, values), (other_keys, other_values) in zip(caches[0].layers, caches[1].layers, strict=True):
        torch.testing.assert_close(other_keys * valid, keys * valid, rtol=0.05, atol=0.05)
        torch.testing.assert_close(other_values * valid, values * valid, rtol=0.05, atol=0.05)


@pytest.mark.gpu
@ON_GPU
def test_a_training_step_waits_for_the_gpu_only_for_its_numbers(vocabulary: Vocabulary) -> None:
    """torch itself names every wait inside forward, loss and backward."""
    model = made(vocabulary, "sdpa").cuda()
    host = batch_of([picture(0), picture(1, 20, 32)], vocabulary, CONFIG)
    counts, batch = model.counts(host), host.pin_memory().to("cuda")
    model.loss(model(batch), batch).total(counts).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.loss(model(batch), batch).total(counts).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
