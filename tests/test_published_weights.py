"""Published weights in small: random tensors in the published layout, loaded as training loads them, against
transformers' own forward."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)

from mllm.config import MLLMConfig
from mllm.pretrained_config import build_config
from mllm.tower_families import PIXEL_STATS, clip_vit, convnext
from tests.test_language_models import FAMILIES, SIZES
from tests.test_language_models import published as published_language_model
from tests.test_loading import rewrite, scrambled
from uniresxx.cli import main as uniresxx_main
from uniresxx.errors import InputError
from uniresxx.model.build import build_for_training, open_vocabulary
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig, WeightsConfig
from uniresxx.model.modeling import UniRESPlusPlusModel

SIZE = 28
TOWER = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=SIZE, patch_size=14
)  # fmt: skip
SIGLIP = {"model_type": "siglip_vision_model"} | {k: v for k, v in TOWER.items() if k != "image_size"}
IN_MEMORY_NAMES = [(r"^vision_tower\.(vision_model\.)?", "vision_tower.vision_model.")]
FIRST_NAMES = [
    (r"^language_model\.", ""), (r"^image_newline", "model.image_newline"),
    (r"^multi_modal_projector\.linear_1", "model.mm_projector.0"),
    (r"^multi_modal_projector\.linear_2", "model.mm_projector.2"),
    (r"^vision_tower\.(vision_model\.)?", "model.vision_tower.vision_tower.vision_model."),
]  # fmt: skip


@dataclass(frozen=True)
class Release:
    """A LLaVA as it is published."""

    model: Any  # transformers' class
    config: Any
    family: str  # of the language model
    tower: str = "clip"
    first: str | None = None  # the class of the first release, None: transformers' own layout
    has_tower: bool = True
    slow_tokenizer: bool = False
    pickled: bool = False
    tied: bool = False


NEXT = (LlavaNextForConditionalGeneration, LlavaNextConfig)
ONEVISION = (LlavaOnevisionForConditionalGeneration, LlavaOnevisionConfig)
ONE_POINT_FIVE = (LlavaForConditionalGeneration, LlavaConfig)
RELEASES = {
    "llava-hf/llava-1.5-7b-hf": Release(*ONE_POINT_FIVE, "llama 2"),
    "llava-hf/llava-v1.6-vicuna-7b-hf": Release(*NEXT, "llama 2"),
    "llava-hf/llava-v1.6-mistral-7b-hf": Release(*NEXT, "mistral"),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": Release(*ONEVISION, "qwen 2", "siglip", tied=True),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": Release(*ONEVISION, "qwen 2", "siglip"),
    "liuhaotian/llava-v1.5-7b": Release(
        *ONE_POINT_FIVE,
        "llama 2",
        first="LlavaLlamaForCausalLM",
        has_tower=False,
        slow_tokenizer=True,
        pickled=True,
    ),
    "liuhaotian/llava-v1.6-vicuna-7b": Release(
        *NEXT, "llama 2", first="LlavaLlamaForCausalLM", slow_tokenizer=True
    ),
    "liuhaotian/llava-v1.6-mistral-7b": Release(
        *NEXT, "mistral", first="LlavaMistralForCausalLM", slow_tokenizer=True
    ),
    "lmms-lab/llava-onevision-qwen2-7b-ov": Release(
        *ONEVISION, "qwen 2", "siglip", first="LlavaQwenForCausalLM"
    ),
}


def published(release: Release, folder: Path, tokenizer_model: Any) -> Any:
    """The release in `folder`; returns transformers' model of it."""
    own, _, tokenizer = FAMILIES[release.family]
    rows = 380 if release.slow_tokenizer else 590
    text = build_config(SIZES | own, "llm", vocab_size=rows, tie_word_embeddings=release.tied)
    clip = release.tower == "clip"
    vision = CLIPVisionConfig(**TOWER) if clip else SiglipVisionConfig(**TOWER, vision_use_head=False)
    layer = -2 if clip else -1
    config = release.config(
        vision_config=vision, text_config=text, vision_feature_layer=layer, image_token_index=rows - 1,
        tie_word_embeddings=release.tied,
    )  # fmt: skip
    torch.manual_seed(2)
    theirs = scrambled(release.model(config))
    theirs.save_pretrained(folder)
    means, deviations = ([v / 255 for v in values] for values in PIXEL_STATS[release.tower])
    statistics = {"image_mean": means, "image_std": deviations}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    if release.slow_tokenizer:
        (folder / "tokenizer.model").write_bytes(tokenizer_model())
    else:
        tokenizer.save(str(folder / "tokenizer.json"))
    if release.first is None:
        rewrite(folder, IN_MEMORY_NAMES)
    else:
        as_first_published(release, folder, text.to_dict())
    return theirs


def as_first_published(release: Release, folder: Path, text: dict[str, Any]) -> None:
    """Names, config and files of the first releases."""
    rewrite(folder, FIRST_NAMES, drop="^$" if release.has_tower else r"^model\.vision_tower")
    values = text | {
        "model_type": "llava",
        "architectures": [release.first],
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 32,
    }
    values |= {"mm_vision_select_layer": -2, "mm_vision_tower": "owner/name", "mm_use_im_start_end": False}
    (folder / "config.json").write_text(json.dumps(values))
    if not release.pickled:
        return
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    file.unlink()
    names, index = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def small(release: Release) -> MLLMConfig:
    """What a recipe of this release has, in small."""
    own, chat, _ = FAMILIES[release.family]
    clip = release.tower == "clip"
    return MLLMConfig(
        low=clip_vit(32, 3, 2, 48, 14) if clip else SIGLIP, low_size=SIZE, low_select_layer=-2 if clip else 3,
        low_stats="family", high=convnext((8, 16, 24, 32)), high_size=32, projector="mlp2x_gelu",
        llm=SIZES | own | {"tie_word_embeddings": release.tied}, chat=chat, max_objects=3, max_parts=4, mgfe_heads=4,
        count_padding=False,
    )  # fmt: skip


def whole(mllm: MLLMConfig, **weights: str) -> UniRESPlusPlusConfig:
    return UniRESPlusPlusConfig(
        mllm=mllm, head=PyramidHeadConfig(width=16, heads=2), weights=WeightsConfig(**weights)
    )


def built(config: UniRESPlusPlusConfig) -> tuple[UniRESPlusPlusModel, list[str]]:
    """The model as training builds it, and the lines it prints."""
    lines: list[str] = []
    model = build_for_training(config, open_vocabulary(config, []), lines.append)
    return model.eval(), lines


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def by_hand(tower: nn.Module, pixels: Tensor, layers: int) -> Tensor:
    """The output of some layers of transformers' CLIP or SigLIP, before any norm after them."""
    x = tower.embeddings(pixels)
    x = tower.pre_layrnorm(x) if "pre_layrnorm" in dict(tower.named_children()) else x
    for layer in tower.encoder.layers[:layers]:
        x = layer(x, None)
    return x


@pytest.mark.parametrize("name", RELEASES)
@torch.no_grad()
def test_a_released_llava_gives_its_own_outputs(
    name: str, tmp_path: Path, tokenizer_model: Any, converting_here: Any
) -> None:
    release, folder = RELEASES[name], tmp_path / "release"
    theirs = published(release, folder, tokenizer_model)
    weights = {"llava": str(folder)}
    config = small(release)
    if release.slow_tokenizer:
        with pytest.raises(InputError, match=rf"--model\.weights\.llava: .*uniresxx convert {folder} OUT"):
            built(whole(config, **weights))
        with converting_here():
            assert uniresxx_main(["convert", str(folder), str(tmp_path / "converted")]) == 0
        weights["llava"] = str(tmp_path / "converted")
    if not release.has_tower:
        with pytest.raises(InputError, match=r"no tower inside.*--model\.weights\.low"):
            built(whole(config, **weights))
        theirs.model.vision_tower.save_pretrained(tmp_path / "clip")
        weights["low"] = str(tmp_path / "clip")
    model, lines = built(whole(config, **weights))
    printed = "\n".join(lines)
    assert ("1 not used" in printed and "image_newline" in printed) == (
        release.model is not ONE_POINT_FIVE[0]
    )
    assert ("2 not used" in printed and "inv_freq" in printed) == release.pickled

    clip, mllm = release.tower == "clip", model.mllm
    pixels, ids = torch.randn(2, 3, SIZE, SIZE), torch.randint(5, 370, (2, 9))
    tower = by_hand(theirs.model.vision_tower, pixels, 2 if clip else 3)[:, int(clip) :]
    close(mllm.low(pixels), tower)
    close(mllm.image_tokens.low(tower), theirs.model.multi_modal_projector(tower))
    rows = theirs.lm_head.weight.shape[0]
    plain = [row for row in range(rows) if row not in mllm.vocabulary.special]  # ours start elsewhere
    ids[torch.isin(ids, torch.tensor(sorted(mllm.vocabulary.special)))] = 7
    expected = theirs.lm_head(theirs.model.language_model(input_ids=ids).last_hidden_state)
    close(mllm.llm(input_ids=ids).logits[..., plain], expected[..., plain])


# ---- other parts


@pytest.mark.parametrize("family", ["llama 3", "mistral", "qwen 2", "qwen 3"])
@torch.no_grad()
def test_a_language_model_alone_gives_its_own_logits(family: str, tmp_path: Path) -> None:
    theirs = published_language_model(tmp_path, family, rows=595)
    own, chat, _ = FAMILIES[family]
    base = small(RELEASES["llava-hf/llava-1.5-7b-hf"])
    model, _ = built(
        whole(replace(base, llm=SIZES | own | {"vocab_size": 610}, chat=chat), llm=str(tmp_path))
    )
    ids = torch.arange(20, 60)[None]
    plain = [row for row in range(595) if row not in model.mllm.vocabulary.special]
    close(model.mllm.llm(ids).logits[..., plain], theirs(ids).logits[..., plain])
