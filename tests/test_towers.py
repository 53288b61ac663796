"""Every family of towers: through the whole model, against transformers by hand, and from published folders."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from mllm.config import MLLMConfig, tiny_llama
from mllm.modeling import MLLM, Boxes
from mllm.tokens import Vocabulary
from mllm.tower_families import HIGH_FAMILIES, LOW_FAMILIES, PIXEL_STATS, clip_vit, convnext
from mllm.tower_loading import load_high, load_low, resize_positions
from mllm.towers import HighTower, LowTower
from train.command_line import parse
from train.recipe_changes import recipe_differences
from train.recipes import KNOWN
from uniresxx.errors import InputError
from uniresxx.model.build import check_sources
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.processing import tensors_of, view_photo

VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14}
MLP = {"intermediate_size": 48}
LOW: dict[str, dict[str, Any]] = {
    "clip_vision_model": VIT | MLP,
    "siglip_vision_model": VIT | MLP,
    "siglip2_vision_model": VIT | MLP | {"num_patches": 16},
    "dinov2": VIT | {"mlp_ratio": 2},
    "dinov2_with_registers": VIT | {"mlp_ratio": 2, "num_register_tokens": 4},
    "dinov3_vit": VIT | MLP | {"num_register_tokens": 3},
}
FIRST = {  # CLS and registers before the patches
    "clip_vision_model": 1, "siglip_vision_model": 0, "siglip2_vision_model": 0, "dinov2": 1,
    "dinov2_with_registers": 5, "dinov3_vit": 4,
}  # fmt: skip
STAGES = {"depths": [1, 1, 2, 1]}
HIGH: dict[str, dict[str, Any]] = {
    "convnext": STAGES | {"hidden_sizes": [8, 16, 24, 32]},
    "convnextv2": STAGES | {"hidden_sizes": [8, 16, 24, 32]},
    "dinov3_convnext": STAGES | {"hidden_sizes": [8, 16, 24, 32]},
    "swin": STAGES | {"embed_dim": 8, "num_heads": [1, 2, 2, 4], "window_size": 7},
    "hiera": STAGES | {"embed_dim": 8, "num_heads": [1, 2, 2, 4]},
}
REST: dict[str, Any] = dict(
    llm=tiny_llama(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=340),
    max_objects=3, max_parts=4, mgfe_heads=4,
)  # fmt: skip
NAMES = [f"stage{i}" for i in range(1, 5)]
assert (LOW.keys(), HIGH.keys()) == (LOW_FAMILIES.keys(), HIGH_FAMILIES.keys())


def config_of(low: str, high: str, **changes: Any) -> MLLMConfig:
    values = {"low_size": 56, "high_size": 96, "low_stats": "family", "high_stats": "family"} | REST | changes
    return MLLMConfig(low={"model_type": low} | LOW[low], high={"model_type": high} | HIGH[high], **values)


def scrambled(module: nn.Module) -> Any:
    """Every tensor random: some are zero or one at first, which would hide a wrong key."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def holder(config: MLLMConfig) -> Any:
    """The towers alone, where the loader looks for them."""
    model = nn.Module()
    model.config, model.low, model.high = config, LowTower(config).eval(), HighTower(config).eval()
    return model


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["segment the left wheel of the red car"] * 5, 340)


def some_boxes(images: int, side: float) -> Boxes:
    boxes = torch.rand(images, 7, 4, generator=torch.Generator().manual_seed(3)).sort(-1).values * side
    valid = torch.ones(images, 7, dtype=torch.bool)
    return Boxes(boxes[:, :3], valid[:, :3], boxes[:, 3:], valid[:, 3:])


def by_hand_low(theirs: nn.Module, kind: str, pixels: Tensor) -> tuple[Tensor, ...]:
    """All hidden states and the last output of transformers' model, in its own input format."""
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if kind == "siglip2_vision_model":  # as its image processor cuts patches
        B, C, h, w = pixels.shape
        cut = pixels.reshape(B, C, h // 14, 14, w // 14, 14).permute(0, 2, 4, 3, 5, 1)
        mask = torch.ones(B, h // 14 * (w // 14), dtype=torch.long)
        inputs = {"pixel_values": cut.reshape(B, -1, 14 * 14 * C), "pixel_attention_mask": mask}
        inputs["spatial_shapes"] = torch.tensor([[h // 14, w // 14]] * B)
    output = theirs(**inputs, output_hidden_states=True)
    return (*output.hidden_states[:-1], output.last_hidden_state)


@pytest.mark.parametrize(
    ("low", "high"), [(low, "convnext") for low in LOW] + [("clip_vision_model", high) for high in HIGH]
)
def test_every_family_goes_through_the_whole_model(vocabulary: Vocabulary, low: str, high: str) -> None:
    torch.manual_seed(0)
    config = config_of(low, high)
    model = MLLM(config, vocabulary)
    pixels = torch.randn(2, 3, 56, 56), torch.randn(2, 3, 96, 96)
    features = model.encode_image(*pixels, some_boxes(2, 96.0))
    assert features.prefix_BLD.shape == (2, 16 + 3 + 4 + 3, 32)
    stages = zip(config.high_widths, config.high_strides, strict=True)
    sizes = [(2, width, 96 // stride, 96 // stride) for width, stride in stages]
    assert [tuple(stage.shape) for stage in features.stages] == sizes
    ids = torch.tensor([[5, 6, 7]] * 2)
    states = model(features, ids, torch.zeros_like(ids), torch.arange(3).expand(2, -1))
    assert torch.isfinite(states).all()
    states.square().mean().backward()
    for tower in (model.low, model.high):
        taught = [p for p in tower.parameters() if p.grad is not None and p.grad.any()]
        assert len(taught) > 0.8 * len(list(tower.parameters()))


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", LOW)
def test_a_low_tower_gives_the_patch_tokens_of_transformers(tmp_path: Path, kind: str, layer: int) -> None:
    theirs = scrambled(AutoModel.from_config(CONFIG_MAPPING[kind](**({"image_size": 56} | LOW[kind]))))
    theirs.save_pretrained(tmp_path)
    model = holder(config_of(kind, "convnext", low_select_layer=layer))
    load_low(model, str(tmp_path))
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = by_hand_low(theirs, kind, pixels)[layer][:, FIRST[kind] :]
        torch.testing.assert_close(model.low(pixels), expected, atol=1e-5, rtol=1e-5)
    assert model.low(pixels).shape == (2, 16, 32)


@pytest.mark.parametrize("kind", HIGH)
def test_a_high_tower_gives_the_stage_maps_of_transformers(tmp_path: Path, kind: str) -> None:
    size = {"image_size": [96, 96]} if kind == "hiera" else {}
    whole = CONFIG_MAPPING[kind](**HIGH[kind], **size, out_features=NAMES)
    theirs = scrambled(AutoBackbone.from_config(whole))
    theirs.save_pretrained(tmp_path)
    model = holder(config_of("clip_vision_model", kind))
    report = load_high(model, str(tmp_path))
    assert all("swin.layernorm" in name for name in report.new)  # which transformers leaves out, too
    pixels = torch.randn(2, 3, 96, 96)  # Swin's windows of 7 do not divide maps of 24, 12, 6 and 3 cells
    for ours, expected in zip(model.high(pixels), theirs(pixels).feature_maps, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_tiny_towers_have_the_weights_and_outputs_they_had_as_flat_sizes() -> None:
    """Golden values of the towers before they were configs of transformers: seed 0, default sizes."""
    torch.manual_seed(0)
    low, high = LowTower(MLLMConfig()).eval(), HighTower(MLLMConfig()).eval()
    pixels = torch.linspace(-2, 2, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64).sin()
    with torch.no_grad():
        tokens, stages = low(pixels), high(pixels)
    assert tokens.abs().sum().item() == pytest.approx(19248.376953125, rel=1e-5)
    first = torch.tensor([0.190241277217865, -2.464679002761841, -0.22710365056991577, 1.3022834062576294])
    torch.testing.assert_close(tokens[0, 5, :4], first, atol=1e-4, rtol=1e-4)
    last = torch.tensor([0.9570726752281189, 0.8256017565727234, -2.155440330505371])
    torch.testing.assert_close(stages[3][1, :3, 1, 0], last, atol=1e-4, rtol=1e-4)
    assert (len(low.state_dict()), len(high.state_dict())) == (55, 64)


@pytest.mark.parametrize(
    "kind", ["clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers"]
)
def test_positions_of_another_input_size_are_those_that_transformers_interpolates(
    tmp_path: Path, kind: str
) -> None:
    theirs = scrambled(AutoModel.from_config(CONFIG_MAPPING[kind](**({"image_size": 56} | LOW[kind]))))
    theirs.save_pretrained(tmp_path)
    model = holder(config_of(kind, "convnext", low_size=84))
    load_low(model, str(tmp_path))
    pixels = torch.randn(1, 3, 84, 84)
    always = "dinov2" in kind  # has no switch
    with torch.no_grad():
        output = theirs(pixels, **({} if always else {"interpolate_pos_encoding": True})).last_hidden_state
        torch.testing.assert_close(model.low(pixels), output[:, FIRST[kind] :], atol=1e-5, rtol=1e-5)


def test_hiera_takes_sizes_of_whole_mask_units_and_interpolates_its_positions(tmp_path: Path) -> None:
    whole = CONFIG_MAPPING["hiera"](**HIGH["hiera"], image_size=[64, 64], out_features=NAMES)
    theirs = scrambled(AutoBackbone.from_config(whole))
    theirs.save_pretrained(tmp_path)
    model = holder(config_of("clip_vision_model", "hiera"))
    load_high(model, str(tmp_path))
    table = theirs.embeddings.position_embeddings
    expected = theirs.embeddings.interpolate_pos_encoding(torch.zeros(1, 24 * 24, 8), table, 96, 96)
    torch.testing.assert_close(model.high.backbone.embeddings.position_embeddings, expected)
    with pytest.raises(ValueError, match="high_size=336 is not a multiple of 32: choose 320 or 352"):
        HighTower(config_of("clip_vision_model", "hiera", high_size=336))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1))
@settings(deadline=None, max_examples=30)
def test_resized_positions_keep_cls_and_constant_tables(old: int, new: int, first: int) -> None:
    table = torch.full((old**2 + first, 3), 0.5)
    table[:first] = 7.0
    got = resize_positions(table, new**2 + first)
    if first + old**2 > 2 and first + new**2 > 2:  # one or two rows may be read in both ways
        assert got.shape == (new**2 + first, 3)
        torch.testing.assert_close(got[first:], torch.full((new**2, 3), 0.5))
        assert (got[:first] == 7.0).all()


@pytest.mark.parametrize(
    ("low", "size", "grid"),
    [
        (clip_vit(patch=14), 224, 16),
        (clip_vit(patch=14), 336, 24),
        (clip_vit(patch=16), 384, 24),
        ({"model_type": "siglip_vision_model", "patch_size": 14}, 378, 27),
        ({"model_type": "dinov3_vit"}, 512, 32),
    ],
)
def test_the_grid_follows_from_the_input_and_the_patch(low: dict[str, Any], size: int, grid: int) -> None:
    assert MLLMConfig(low=low, low_size=size).low_grid == grid


def test_widths_and_strides_follow_from_the_towers_config() -> None:
    swin = MLLMConfig(high={"model_type": "swin", "embed_dim": 12, "patch_size": 4})
    assert (swin.high_widths, swin.high_strides) == ((12, 24, 48, 96), (4, 8, 16, 32))
    hiera = {"model_type": "hiera", "num_query_pool": 2, "masked_unit_attention": [True, True, False, False]}
    assert MLLMConfig(high=hiera).high_strides == (4, 8, 16, 16)
    assert MLLMConfig(high={"model_type": "dinov3_convnext"}).high_widths == (96, 192, 384, 768)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"low": {"model_type": "vit"}},
            "mllm.low: model_type 'vit' is not .*clip_vision_model, siglip.*dinov3_vit",
        ),
        (
            {"high": {"model_type": "resnet"}},
            "mllm.high: model_type 'resnet' is not .*convnext, .*swin, hiera",
        ),
        ({"high": {}}, "mllm.high: model_type None is not"),
        (
            {"low": clip_vit(patch=14), "low_size": 384},
            "low_size=384 is not a multiple of 14: choose 378 or 392",
        ),
        ({"high_size": 0}, "high_size=0 is not a multiple of 16: choose 16$"),
        ({"low": clip_vit() | {"hidden_sizes": 3}}, "mllm.low: clip_vision_model has no hidden_sizes"),
    ],
)
def test_towers_that_do_not_work_are_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    config = MLLMConfig(**changes)
    with pytest.raises(ValueError, match=says) as refused:
        LowTower(config), HighTower(config)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=says):
        check_sources(UniRESPlusPlusConfig(mllm=config))


def test_each_view_has_the_pixel_statistics_of_its_tower() -> None:
    mllm = config_of("siglip2_vision_model", "convnext", high_stats="clip")
    assert mllm.pixel_stats == ("siglip", "clip")
    assert config_of("dinov3_vit", "swin").pixel_stats == ("imagenet", "imagenet")
    config = UniRESPlusPlusConfig(mllm=mllm)
    white = np.full((96, 96, 3), 255, np.uint8)
    tensors = tensors_of([view_photo(white, config)], config)
    model = UniRESPlusPlusModel(config, Vocabulary.train(["a red square"], 300))
    torch.testing.assert_close(model.normalise_low(tensors["pixels_low_B3hw"]), torch.ones(1, 3, 56, 56))
    mean, std = (torch.tensor(values) for values in PIXEL_STATS["clip"])
    high_3 = model.normalise_high(tensors["pixels_high_B3HW"])[0, :, 9, 9]
    torch.testing.assert_close(high_3, (255 - mean) / std)


def test_weights_with_other_pixel_statistics_are_refused(tmp_path: Path) -> None:
    kind = "siglip_vision_model"
    AutoModel.from_config(CONFIG_MAPPING[kind](**({"image_size": 56} | LOW[kind]))).save_pretrained(tmp_path)
    published = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 1 / 255}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    load_low(holder(config_of(kind, "convnext")), str(tmp_path))
    with pytest.raises(ValueError, match=r"low_stats='half' has others: set mllm.low_stats to 'siglip'"):
        load_low(holder(config_of(kind, "convnext", low_stats="half")), str(tmp_path))


@pytest.mark.parametrize(
    "kind", ["dinov2", "dinov2_with_registers", "convnext", "convnextv2", "swin", "hiera"]
)
def test_a_classifiers_folder_gives_its_tower_in_the_names_of_memory_and_of_files(
    tmp_path: Path, kind: str
) -> None:
    low = kind in LOW
    values = {"image_size": [96, 96]} if kind == "hiera" else {"image_size": 56} if low else {}
    whole = CONFIG_MAPPING[kind](**((LOW | HIGH)[kind] | values))
    theirs = scrambled(AutoModelForImageClassification.from_config(whole))
    loaded = []
    for name in ("files", "memory"):
        folder = tmp_path / name
        theirs.save_pretrained(folder)
        if name == "memory":
            save_file(theirs.state_dict(), folder / "model.safetensors")
        torch.manual_seed(1)  # norms of the stage maps are ours alone
        model = holder(config_of(kind, "convnext") if low else config_of("clip_vision_model", kind))
        report = (load_low if low else load_high)(model, str(folder))
        assert all("hidden_states_norms" in name or "swin.layernorm" in name for name in report.new)
        loaded.append(model.low if low else model.high)
    a, b = (tower.state_dict() for tower in loaded)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    inner = next(part for name, part in theirs.named_children() if "classifier" not in name)
    mine = {
        name.removeprefix("swin."): value
        for name, value in next(iter(loaded[0].children())).state_dict().items()
    }
    shared = [name for name in inner.state_dict() if name in mine and "layernorm" not in name.split(".")[0]]
    assert len(shared) > 20 and all(torch.equal(inner.state_dict()[name], mine[name]) for name in shared)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_the_image_half_of_a_two_tower_model_is_loaded(tmp_path: Path, kind: str) -> None:
    text = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    vision = LOW[f"{kind}_vision_model"] | ({"image_size": 56} if kind == "siglip" else {})
    config, built = {"siglip": (SiglipConfig, SiglipModel), "siglip2": (Siglip2Config, Siglip2Model)}[kind]
    theirs = scrambled(built(config(text_config=text, vision_config=vision)))
    theirs.save_pretrained(tmp_path)
    model = holder(config_of(f"{kind}_vision_model", "convnext"))
    load_low(model, str(tmp_path))
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        expected = by_hand_low(theirs.vision_model, f"{kind}_vision_model", pixels)[-1]
        torch.testing.assert_close(model.low(pixels), expected, atol=1e-5, rtol=1e-5)


def test_a_folder_of_another_family_is_refused_by_its_config_and_by_its_tensors(tmp_path: Path) -> None:
    AutoModel.from_config(CONFIG_MAPPING["dinov2"](**({"image_size": 56} | LOW["dinov2"]))).save_pretrained(
        tmp_path
    )
    model = holder(config_of("siglip_vision_model", "convnext"))
    with pytest.raises(
        ValueError, match=r"model_type is 'dinov2' there.*give --model\.mllm\.low model_type=dinov2"
    ):
        load_low(model, str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"does not fit the model: .*missing"):
        load_low(model, str(tmp_path))


FLAT = {
    "low_size": 128, "low_patch": 16, "low_width": 96, "low_layers": 2, "low_heads": 3, "low_mlp": None,
    "low_activation": "gelu", "low_select_layer": -2, "high_size": 320, "high_patch": 4,
    "high_widths": [16, 32, 64, 128], "high_depths": [1, 2, 3, 1], "high_layer_scale": 1e-6, "pixel_stats": "clip",
    "roi_size": 7,
}  # fmt: skip


def test_flat_sizes_of_earlier_versions_become_the_towers_configs() -> None:
    now = UniRESPlusPlusConfig().to_dict()
    rest = {key: value for key, value in now["mllm"].items() if not key.startswith(("low", "high"))}
    weights = {"clip": "a", "convnext": "b", "required": ["llava", "convnext"]}
    m = UniRESPlusPlusConfig.from_dict(now | {"mllm": rest | FLAT, "weights": weights})
    assert m.mllm.low == clip_vit(96, 2, 3, 288, 16) | {"hidden_act": "gelu"}
    assert m.mllm.high == convnext((16, 32, 64, 128), (1, 2, 3, 1), 4, 1e-6)
    assert (m.mllm.low_size, m.mllm.low_select_layer, m.mllm.high_size) == (128, -2, 320)
    assert m.mllm.pixel_stats == ("clip", "clip")
    assert (m.weights.low, m.weights.high, m.weights.required) == ("a", "b", ("llava", "high"))
    assert UniRESPlusPlusConfig.from_dict(json.loads(json.dumps(m.to_dict()))) == m


def test_a_recipe_with_flat_sizes_continues_and_shows_a_change_by_its_key() -> None:
    mllm = asdict(MLLMConfig())
    flat = {key: value for key, value in mllm.items() if not key.startswith(("low", "high"))}
    flat |= {
        "low_size": 64,
        "low_patch": 8,
        "low_width": 128,
        "low_layers": 3,
        "low_heads": 4,
        "low_select_layer": -1,
    }
    flat |= {"high_size": 64, "high_patch": 2, "high_widths": [32, 64, 96, 128], "high_depths": [1, 1, 2, 1]}
    saved = {
        "recipe": {"model": {"mllm": flat | {"roi_size": 4}, "weights": {"clip": None, "convnext": None}}}
    }
    now = {"recipe": {"model": {"mllm": mllm, "weights": {"low": None, "high": None}}}}
    assert recipe_differences(saved, now) == []
    mllm["low"] = clip_vit(layers=4)
    (line,) = recipe_differences(saved, now)
    assert line.startswith("model.mllm.low.num_hidden_layers: 3 -> 4")


def test_the_command_line_changes_a_tower_by_its_own_keys() -> None:
    words = ["tiny_scenes", "--out", "x", "--model.mllm.low", "num_hidden_layers=1", "--model.mllm.high"]
    model = parse([*words, "model_type=swin", "embed_dim=8"], KNOWN).recipe.model
    assert model.mllm.low == clip_vit(layers=1) and model.mllm.high == {"model_type": "swin", "embed_dim": 8}
    with pytest.raises(InputError, match=r"low_width is now --model\.mllm\.low hidden_size="):
        parse(["tiny_scenes", "--out", "x", "--model.mllm.low_width", "3"], KNOWN)
