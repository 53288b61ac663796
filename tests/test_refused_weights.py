"""Weights that do not fit a model are refused in one line that says why, and none of their tensors is loaded."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mllm.loading_llm import load_llava
from mllm.pretrained_config import with_changes
from mllm.tower_families import clip_vit
from tests.test_language_models import FAMILIES, SIZES
from tests.test_published_weights import RELEASES, SIGLIP, built, published, small, whole
from uniresxx.errors import InputError
from uniresxx.model.build import open_vocabulary
from uniresxx.model.modeling import UniRESPlusPlusModel


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def llava_folder(tmp_path: Path, tokenizer_model: Any) -> Path:
    published(RELEASES["llava-hf/llava-1.5-7b-hf"], tmp_path / "llava", tokenizer_model)
    return tmp_path / "llava"


def refused(folder: Path, message: str, **changes: Any) -> None:
    """One line that names the option; no tensor of the model changes."""
    config = whole(replace(small(RELEASES["llava-hf/llava-1.5-7b-hf"]), **changes), llava=str(folder))
    model = UniRESPlusPlusModel(config, open_vocabulary(config, [])).mllm
    before = tensors_of(model)
    with pytest.raises(ValueError, match=message) as caught:
        load_llava(model, str(folder), with_tower=True)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match=r"^--model\.weights\.llava: "):
        built(config)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("language_model.model.norm.weight", None, r"1 missing: model\.norm\.weight"),
        ("vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias", None, "1 missing: encoder"),
        ("language_model.model.norm.extra", torch.ones(2), r"1 unexpected: model\.norm\.extra"),
        ("resampler.weight", torch.ones(2), r"1 unexpected: resampler\.weight"),
        ("multi_modal_projector.linear_2.bias", torch.ones(5), r"2\.bias \(5,\) instead of \(32,\)"),
        ("vision_tower.vision_model.post_layernorm.bias", torch.ones(5), r"\(5,\) instead of \(32,\)"),
        ("language_model.model.embed_tokens.weight", torch.ones(300, 32), "300 token rows and .*=590"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_loaded(
    name: str, change: Tensor | None, message: str, llava_folder: Path
) -> None:
    file = llava_folder / "model.safetensors"
    tensors = load_file(file)
    assert name in tensors or "extra" in name or "resampler" in name
    save_file(
        {k: v for k, v in tensors.items() if k != name} | ({} if change is None else {name: change}), file
    )
    refused(llava_folder, message)


def test_all_that_does_not_fit_is_in_one_line(llava_folder: Path) -> None:
    file = llava_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["language_model.model.norm.weight"]
    tensors["language_model.model.norm.extra"] = torch.ones(2)
    tensors["language_model.model.layers.0.mlp.up_proj.weight"] = torch.ones(48, 31)
    save_file(tensors, file)
    refused(
        llava_folder,
        r"1 missing: .*; 1 unexpected: .*; 1 of another shape: .*\(48, 31\) instead of \(48, 32\)",
    )


def test_a_truncated_shard_is_refused_before_anything_is_loaded(llava_folder: Path) -> None:
    file = llava_folder / "model.safetensors"
    tensors = load_file(file)
    where = {name: f"model-0000{1 + name.startswith('vision')}-of-00002.safetensors" for name in tensors}
    for shard in sorted(set(where.values())):
        save_file({name: tensors[name] for name in tensors if where[name] == shard}, llava_folder / shard)
    file.unlink()
    index = llava_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    last = llava_folder / "model-00002-of-00002.safetensors"
    last.write_bytes(last.read_bytes()[:-7])
    refused(llava_folder, "model-00002-of-00002.safetensors is not a readable safetensors file")
    save_file({"vision_tower.other": torch.ones(1)}, last)
    refused(llava_folder, "has no vision_tower.*, which its index promises")
    last.unlink()
    refused(llava_folder, "names model-00002-of-00002.safetensors, missing in .*copy all shards")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm": SIZES | FAMILIES["qwen 2"][0]}, "model_type is 'llama' there and 'qwen2' in mllm.llm"),
        ({"llm": SIZES | {"model_type": "llama"}}, "num_key_value_heads is 4 there and 2 in mllm.llm"),
        ({"low": clip_vit(32, 3, 4, 48, 14)}, "num_attention_heads is 2 there and 4 in mllm.low"),
        ({"low": SIGLIP}, "model_type is 'clip_vision_model' there and 'siglip_vision_model'"),
        ({"low_select_layer": -1}, "layer 2 of its tower .*give --model.mllm.low_select_layer 2"),
        ({"low_select_layer": 3}, "layer 2 of its tower .*give --model.mllm.low_select_layer 2"),
        ({"projector": "linear"}, "give --model.mllm.projector mlp2x_gelu"),
        ({"low_stats": "imagenet"}, "set mllm.low_stats to 'clip'"),
    ],
)
def test_a_llava_of_another_kind_is_refused_though_its_tensors_fit(
    changes: Mapping[str, Any], message: str, llava_folder: Path
) -> None:
    refused(llava_folder, message, **changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "vipllava", "architectures": ["VipLlavaForConditionalGeneration"]},
            "VipLlavaForConditionalGeneration' is no LLaVA that is read here",
        ),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            r"LlamaForCausalLM' is no LLaVA .*--model\.weights\.llm",
        ),
        ({"vision_feature_layer": [-2, -5]}, r"vision_feature_layer=\[-2, -5\]"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
    ],
)
def test_a_llava_of_another_generation_is_refused(
    values: Mapping[str, Any], message: str, llava_folder: Path
) -> None:
    file = llava_folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    refused(llava_folder, message)


@pytest.mark.parametrize(
    "name", ["llava-hf/llava-v1.6-mistral-7b-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf"]
)
def test_the_options_of_the_refusals_are_what_another_llava_needs(
    name: str, tmp_path: Path, tokenizer_model: Any
) -> None:
    """Starting from the recipe of LLaVA-1.5, each line is obeyed, and at last the model is built."""
    published(RELEASES[name], tmp_path / "llava", tokenizer_model)
    mllm = replace(small(RELEASES["llava-hf/llava-1.5-7b-hf"]), chat=small(RELEASES[name]).chat)
    for _ in range(6):
        try:
            built(whole(mllm, llava=str(tmp_path / "llava")))
            break
        except InputError as error:
            field, *words = shlex.split(str(error).split("give --model.mllm.")[1])
            value = getattr(mllm, field)
            new = with_changes(value, words) if isinstance(value, dict) else int(words[0])
            mllm = replace(mllm, **{field: new})
    else:
        pytest.fail("the lines do not lead to a model that fits")


def test_a_tokenizer_of_another_model_is_refused(llava_folder: Path) -> None:
    file = llava_folder / "tokenizer.json"
    values = json.loads(file.read_text())
    added = values["added_tokens"][-1]
    size = max([*values["model"]["vocab"].values(), *(token["id"] for token in values["added_tokens"])]) + 1
    more = [added | {"id": size + i, "content": f"<extra {i}>"} for i in range(590 - size + 2)]
    file.write_text(json.dumps(values | {"added_tokens": values["added_tokens"] + more}))
    llm = small(RELEASES["llava-hf/llava-1.5-7b-hf"]).llm | {"vocab_size": 640}
    refused(llava_folder, "590 token rows, too few for 2 tokens of its tokenizer, such as '<extra", llm=llm)
