"""Published weights in small: random tensors in the published layout, loaded as training loads them, against
transformers' own forward."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)

from mllm.chat import ChatTurn, Mark, render
from mllm.config import MLLMConfig
from mllm.modeling import Boxes
from mllm.pretrained_config import build_config
from mllm.tower_families import PIXEL_STATS, clip_vit, convnext
from tests.test_language_models import FAMILIES, SIZES
from tests.test_language_models import published as published_language_model
from tests.test_loading import TIMM, rewrite, scrambled
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


def published(release: Release, folder: Path, tokenizer_model: Any, **tower: int) -> Any:
    """The release in `folder`, with these changes of the tower; returns transformers' model of it."""
    own, _, tokenizer = FAMILIES[release.family]
    rows = 380 if release.slow_tokenizer else 590
    text = build_config(SIZES | own, "llm", vocab_size=rows, tie_word_embeddings=release.tied)
    clip = release.tower == "clip"
    sizes = TOWER | tower
    vision = CLIPVisionConfig(**sizes) if clip else SiglipVisionConfig(**sizes, vision_use_head=False)
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
        count_padding=False, fusion_starts_as_low=True,
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

    for before in ("", "it is", " it is ", "it is:"):  # one id, whatever the tokenizer writes before words
        row = render([ChatTurn("the car", (before, Mark.SEG, "."))], mllm.vocabulary, chat=config.chat)
        assert row.ids_T.count(mllm.vocabulary.seg) == 1


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


@torch.no_grad()
def test_the_linear_projector_of_the_first_llava_loads(tmp_path: Path, tokenizer_model: Any) -> None:
    release = replace(RELEASES["liuhaotian/llava-v1.6-vicuna-7b"], slow_tokenizer=False)
    published(release, tmp_path, tokenizer_model)
    file = tmp_path / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if "mm_projector" not in k}
    weight, bias = torch.randn(32, 32), torch.randn(32)
    save_file(tensors | {"model.mm_projector.weight": weight, "model.mm_projector.bias": bias}, file)
    config = json.loads((tmp_path / "config.json").read_text()) | {"mm_projector_type": "linear"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"give --model\.mllm\.projector linear$"):
        built(whole(small(release), llava=str(tmp_path)))
    model, _ = built(whole(replace(small(release), projector="linear"), llava=str(tmp_path)))
    tower = torch.randn(2, 4, 32)
    close(model.mllm.image_tokens.low(tower), tower @ weight.T + bias)
    (tmp_path / "config.json").write_text(json.dumps(config | {"mm_projector_type": "mlp2x_res"}))
    with pytest.raises(
        InputError, match=r"'mlp2x_res', mllm\.projector is 'mlp2x_gelu': it cannot be used here"
    ):
        built(whole(small(release), llava=str(tmp_path)))


def two_towers(folder: Path) -> CLIPModel:
    """A CLIP of both towers, as openai publishes it: pickled, in older names, with position ids."""
    text = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=99,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(3)
    theirs = scrambled(CLIPModel(CLIPConfig(vision_config=TOWER, text_config=text)))
    theirs.config.save_pretrained(folder)
    tensors = dict(theirs.state_dict())
    for tower in ("vision", "text"):
        tensors[f"{tower}_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(tensors, folder / "pytorch_model.bin")
    return theirs


@torch.no_grad()
def test_clip_loads_from_its_pickle_after_conversion(tmp_path: Path, converting_here: Any) -> None:
    (tmp_path / "hub").mkdir()
    theirs = two_towers(tmp_path / "hub")
    config = small(RELEASES["llava-hf/llava-1.5-7b-hf"])
    with pytest.raises(InputError, match=r"--model\.weights\.low: .*pickles .*uniresxx convert"):
        built(whole(config, low=str(tmp_path / "hub")))
    with converting_here():
        assert uniresxx_main(["convert", str(tmp_path / "hub"), str(tmp_path / "clip")]) == 0
    model, lines = built(whole(config, low=str(tmp_path / "clip")))
    assert "not used (logit_scale" in lines[0]
    pixels = torch.randn(2, 3, SIZE, SIZE)
    close(model.mllm.low(pixels), by_hand(theirs.vision_model, pixels, 2)[:, 1:])


def test_a_hub_repository_without_safetensors_is_refused_with_the_command_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_towers(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()  # never asked for
    asked: list[dict[str, Any]] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append(options)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    name = "openai/clip-vit-large-patch14-336"
    config = small(RELEASES["llava-hf/llava-1.5-7b-hf"])
    with pytest.raises(InputError, match=f"^--model.weights.low: {name} .*`uniresxx convert hub:{name} OUT`"):
        built(whole(config, low=name))
    files = ["model-00001-of-00002.safetensors", "consolidated.safetensors", "onnx/model.safetensors"]
    files += ["pytorch_model.bin", "model.py", "config.json", "chat_template.jinja", "original/config.json"]
    wanted = {key: asked[0][key] for key in ("allow_patterns", "ignore_patterns")}
    kept = [files[0], "config.json", "chat_template.jinja"]
    assert list(filter_repo_objects(files, **wanted)) == kept


@torch.no_grad()
def test_a_convnext_of_open_clip_gives_its_own_stage_maps(tmp_path: Path) -> None:
    """As laion publishes it: timm's names below visual.trunk, the text tower beside them."""
    torch.manual_seed(4)
    theirs = scrambled(ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])))
    theirs.save_pretrained(tmp_path)
    rewrite(rewrite(tmp_path, TIMM), [("^", "visual.trunk.")])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {name: torch.ones(3) for name in ("logit_scale", "text_projection", "visual.head.proj.weight")}
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").unlink()  # open_clip has open_clip_config.json
    (tmp_path / "open_clip_config.json").write_text("{}")
    base = small(RELEASES["llava-hf/llava-1.5-7b-hf"])
    config = replace(base, high=convnext((8, 16, 24, 32), (1, 1, 2, 1), 4, 1e-6), high_size=64)
    model, _ = built(whole(config, high=str(tmp_path)))
    pixels = torch.randn(2, 3, 64, 64)
    x, high = theirs.embeddings(pixels), model.mllm.high
    for number, (stage, found) in enumerate(zip(theirs.encoder.stages, high(pixels), strict=True), 1):
        x = stage(x)
        close(found, high.backbone.hidden_states_norms[f"stage{number}"](x))


@pytest.mark.parametrize(
    ("side", "patch", "count"), [(224, 14, 256), (336, 14, 576), (384, 16, 576), (378, 14, 729)]
)
@torch.no_grad()
def test_a_picture_has_as_many_tokens_as_llava_gives_it(
    side: int, patch: int, count: int, tmp_path: Path, tokenizer_model: Any
) -> None:
    release = RELEASES["llava-hf/llava-1.5-7b-hf"]
    theirs = published(release, tmp_path, tokenizer_model, image_size=side, patch_size=patch)
    config = replace(small(release), low=clip_vit(32, 3, 2, 48, patch), low_size=side)
    model = built(whole(config, llava=str(tmp_path)))[0].mllm
    low, high = torch.randn(1, 3, side, side), torch.randn(1, 3, 32, 32)
    none = torch.zeros(1, 7, dtype=torch.bool)
    boxes = torch.zeros(1, 7, 4)
    features = model.encode_image(low, high, Boxes(boxes[:, :3], none[:, :3], boxes[:, 3:], none[:, 3:]))
    expected = torch.stack(list(theirs.model.get_image_features(low, vision_feature_layer=-2).pooler_output))
    found = features.prefix_BLD[:, features.layout.image]
    assert found.shape == (1, count, 32) and features.prefix_BLD.shape[1] == model.prefix_length
    close(found, expected)
