"""What is frozen, adapted and trained: adapters saved apart, merged, un-merged; only new token rows move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mllm.config import TuningConfig
from mllm.lora import (
    RowEmbedding,
    RowLinear,
    adapter_tensors,
    load_adapter_tensors,
    merged_tensors,
)
from mllm.tokens import Vocabulary
from tests.test_model import CONFIG, batch_of, picture
from train.optim import build_adamw
from train.recipe import OptimConfig
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.checkpoints.tensors import read_tensors, write_tensors
from uniresxx.errors import InputError
from uniresxx.model.build import build_for_training, open_vocabulary
from uniresxx.model.config import UniRESPlusPlusConfig, WeightsConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.model.tuning import cast_frozen, format_table, parameter_table
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding

LORA = TuningConfig(lora_rank=4, lora_alpha=8, token_rows="new", frozen=("low", "high"))
LISA = TuningConfig(lora_rank=8, lora_alpha=16, lora_targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)


def tuned(vocabulary: Vocabulary, tuning: TuningConfig) -> UniRESPlusPlusModel:
    torch.manual_seed(0)
    return UniRESPlusPlusModel(replace(CONFIG, tuning=tuning), vocabulary).eval()


def shake(model: nn.Module) -> None:
    """Adapters start at zero effect; give them one."""
    with torch.no_grad():
        for value in adapter_tensors(model).values():
            value.add_(0.1 * torch.randn_like(value))


def outputs(model: UniRESPlusPlusModel, vocabulary: Vocabulary) -> torch.Tensor:
    with torch.no_grad():
        return model(batch_of([picture(0), picture(1)], vocabulary)).logits_YV


def step(model: UniRESPlusPlusModel, vocabulary: Vocabulary) -> None:
    batch = batch_of([picture(0), picture(1)], vocabulary)
    optimizer = build_adamw(model, OptimConfig(lr=1e-2))
    model.loss(model(batch), batch).total(model.counts(batch)).backward()
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    optimizer.step()


def test_only_parameters_that_the_table_lists_as_trained_change(vocabulary: Vocabulary) -> None:
    model = tuned(vocabulary, LORA)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, vocabulary)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert (
        {n for n in trained if "gate" in n} <= moved <= trained
    )  # gates start closed: what they close moves later
    llm = {name for name in moved if name.startswith("mllm.llm.")}
    assert llm and all(".lora_" in name or name.endswith("rows_RD") for name in llm)
    assert not any(name.startswith(("mllm.low.", "mllm.high.")) for name in moved)
    rows = {row.part: row for row in parameter_table(model)}
    assert rows["all"].trained + rows["all"].adapters == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    assert rows["all"].total == sum(p.numel() for p in model.parameters())
    assert rows["llm"].adapters == 4 * 4 * 64 + 2 * 9 * 32
    assert format_table(list(rows.values())).count("\n") == len(rows)


def test_lisa_mode_adapts_two_projections_and_trains_whole_token_matrices(vocabulary: Vocabulary) -> None:
    model = tuned(vocabulary, LISA)
    trained = {n for n, p in model.mllm.llm.named_parameters() if p.requires_grad}
    assert {n for n in trained if "lora" not in n} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert {n.split(".")[4] for n in trained if "lora" in n} == {"q_proj", "v_proj"}
    frozen = tuned(vocabulary, replace(LISA, frozen=("llm",))).mllm.llm
    assert all("lora" in n for n, p in frozen.named_parameters() if p.requires_grad)


def test_a_fresh_adapter_changes_no_output(vocabulary: Vocabulary) -> None:
    plain, adapted = tuned(vocabulary, TuningConfig()), tuned(vocabulary, LORA)
    state = plain.state_dict()
    own = {n.replace(".base_layer.", "."): v for n, v in adapted.state_dict().items()}
    for name, value in own.items():
        if name in state:
            value.copy_(state[name])
    for matrix in (adapted.mllm.llm.model.embed_tokens, adapted.mllm.llm.lm_head):
        matrix.rows_RD.data.copy_(matrix.weight[matrix.row_ids_R])
    torch.testing.assert_close(outputs(plain, vocabulary), outputs(adapted, vocabulary), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tuning", [LORA, LISA])
def test_adapters_saved_apart_give_the_same_output(
    vocabulary: Vocabulary, tuning: TuningConfig, tmp_path: Path
) -> None:
    model = tuned(vocabulary, tuning)
    shake(model)
    expected = outputs(model, vocabulary)
    apart = adapter_tensors(model)
    write_tensors(tmp_path / "adapters.safetensors", apart)
    assert sum(v.numel() for v in apart.values()) < 0.3 * sum(p.numel() for p in model.parameters())

    again = tuned(vocabulary, tuning)  # the same base weights by the same seed, other adapters
    if tuning is LISA:  # its token matrices are trained as a whole and belong to the checkpoint
        again.load_state_dict({k: v for k, v in model.state_dict().items() if "lora" not in k}, strict=False)
    torch.manual_seed(9)
    shake(again)
    assert not torch.allclose(outputs(again, vocabulary), expected)
    load_adapter_tensors(again, read_tensors(tmp_path / "adapters.safetensors"))
    torch.testing.assert_close(outputs(again, vocabulary), expected, atol=1e-5, rtol=1e-5)


def test_a_merged_state_is_that_of_a_model_without_adapters(vocabulary: Vocabulary) -> None:
    model = tuned(vocabulary, LORA)
    shake(model)
    plain = tuned(vocabulary, TuningConfig())
    assert plain.state_dict().keys() == merged_tensors(model).keys()
    plain.load_state_dict({name: merge() for name, (_, merge) in merged_tensors(model).items()})
    expected = outputs(model, vocabulary)
    torch.testing.assert_close(outputs(plain, vocabulary), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs(model, vocabulary), expected, atol=0, rtol=0)  # left as it was


def test_a_checkpoint_with_adapters_answers_as_the_model_does(vocabulary: Vocabulary, tmp_path: Path) -> None:
    model = tuned(vocabulary, LORA)
    shake(model)
    save_pretrained(tmp_path, model)
    loaded = load_segmenter(tmp_path)
    ask, photos = [["the red square", "both squares"]], [picture(3).pixels]
    assert loaded.answer(loaded.encode_images(photos), ask, Decoding()) == model.answer(
        model.encode_images(photos), ask, Decoding()
    )


def test_adapters_of_another_shape_are_refused(vocabulary: Vocabulary) -> None:
    model = tuned(vocabulary, LORA)
    tensors = adapter_tensors(model)
    name = min(tensors)
    with pytest.raises(ValueError, match="1 adapter tensors do not fit"):
        load_adapter_tensors(model, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(ValueError, match="name no projection"):
        tuned(vocabulary, TuningConfig(lora_rank=2, lora_targets=("qkv",)))


def test_trained_rows_equal_those_of_peft() -> None:
    """Same forward and same gradient of the rows as peft's trainable_token_indices."""

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed_tokens, self.lm_head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.q_proj = nn.Linear(8, 8)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.lm_head(self.q_proj(self.embed_tokens(ids)))

    rows, ids = [3, 17, 5], torch.tensor([[3, 4, 17], [5, 5, 0]])
    ours = Tiny()
    ours.embed_tokens, ours.lm_head = RowEmbedding(ours.embed_tokens, rows), RowLinear(ours.lm_head, rows)
    theirs = get_peft_model(
        Tiny(),
        LoraConfig(
            r=1, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": rows, "lm_head": rows}
        ),
    )
    a, b = ours(ids), theirs(ids)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    deltas = {n: p.grad for n, p in theirs.named_parameters() if "trainable_tokens_delta" in n}
    order = [sorted(rows).index(r) for r in rows]
    for name, ours_rows in (("embed_tokens", ours.embed_tokens.rows_RD), ("lm_head", ours.lm_head.rows_RD)):
        found = next(g for n, g in deltas.items() if name in n)
        assert any(torch.allclose(ours_rows.grad[o], found, atol=1e-5) for o in (order, [0, 1, 2]))
    assert ours.embed_tokens.weight.grad is None and ours.lm_head.weight.grad is None


def test_frozen_weights_in_bf16_train_and_answer(vocabulary: Vocabulary) -> None:
    model = tuned(vocabulary, LORA)
    cast_frozen(model, replace(LORA, frozen_dtype="bf16"))
    batch = batch_of([picture(0)], vocabulary)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch)
    model.loss(output, batch).total(model.counts(batch)).backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert grads and all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads)
    answer = model.answer(
        model.encode_images([picture(0).pixels]), [["the red square"]], Decoding(max_new_tokens=2)
    )
    assert answer[0].p_absent is not None


def test_activation_checkpointing_gives_the_same_gradients(vocabulary: Vocabulary) -> None:
    found = []
    for on in (False, True):
        config = replace(CONFIG, mllm=replace(CONFIG.mllm, activation_checkpointing=on))
        torch.manual_seed(0)
        model = UniRESPlusPlusModel(config, vocabulary).train()
        batch = batch_of([picture(0)], vocabulary)
        model.loss(model(batch), batch).total(model.counts(batch)).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-5, msg=name)


def test_tuning_survives_the_config_file() -> None:
    config = replace(CONFIG, tuning=LORA)
    assert UniRESPlusPlusConfig.from_dict(config.to_dict()) == config


def test_a_stage_starts_from_an_earlier_one(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """A without adapters, B with new ones, C with those of B; the text of the start folder is the vocabulary's."""
    stage_a = tuned(vocabulary, TuningConfig(frozen=("llm", "head"), token_rows="new"))
    shake(stage_a)
    save_pretrained(tmp_path / "a", stage_a)
    lines: list[str] = []

    def next_stage(start: str) -> UniRESPlusPlusModel:
        config = replace(CONFIG, tuning=LORA, weights=WeightsConfig(start=start, required=("llava",)))
        torch.manual_seed(5)
        return build_for_training(config, open_vocabulary(config, []), lines.append).eval()

    stage_b = next_stage(str(tmp_path / "a"))
    assert "16 new" not in lines[0] and "8 new" in lines[0] and "lora" in lines[0]
    torch.testing.assert_close(outputs(stage_b, vocabulary), outputs(stage_a, vocabulary))
    shake(stage_b)
    save_pretrained(tmp_path / "b", stage_b)
    stage_c = next_stage(str(tmp_path / "b"))
    assert " new" not in lines[2]
    torch.testing.assert_close(outputs(stage_c, vocabulary), outputs(stage_b, vocabulary))
    with pytest.raises(InputError, match="boxes='classical' and would go on with 'grid'"):
        config = replace(CONFIG, tuning=LORA, boxes="grid", weights=WeightsConfig(start=str(tmp_path / "b")))
        build_for_training(config, vocabulary)
    with pytest.raises(InputError, match=r"--model\.weights\.start: .*8 unexpected: .*lora"):
        config = replace(CONFIG, weights=WeightsConfig(start=str(tmp_path / "b")))
        build_for_training(replace(config, tuning=replace(LORA, lora_rank=0)), vocabulary)
