"""Every family of towers: through the whole model, against transformers by hand, and from published folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoBackbone,
    AutoModel,
)

from mllm.config import MLLMConfig
from mllm.loading import load_high, load_low
from mllm.modeling import MLLM, Boxes
from mllm.tokens import Vocabulary
from mllm.towers import HighTower, LowTower

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
    llm_width=32, llm_layers=1, llm_heads=4, llm_mlp=64, vocabulary=340, max_objects=3, max_parts=4, mgfe_heads=4
)  # fmt: skip
NAMES = [f"stage{i}" for i in range(1, 5)]


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
    nn.init.normal_(model.image_tokens.high.weight, std=0.1)  # starts at zero
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
    model = nn.Module()
    model.config = config_of(kind, "convnext", low_select_layer=layer)
    model.low = LowTower(model.config).eval()
    load_low(model, str(tmp_path))
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = by_hand_low(theirs, kind, pixels)[layer][:, FIRST[kind] :]
        torch.testing.assert_close(model.low(pixels), expected, atol=1e-5, rtol=1e-5)
    assert model.low(pixels).shape == (2, 16, 32)


def stage_maps(theirs: nn.Module, pixels: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(theirs(pixels).feature_maps)


@pytest.mark.parametrize("kind", HIGH)
def test_a_high_tower_gives_the_stage_maps_of_transformers(tmp_path: Path, kind: str) -> None:
    size = {"image_size": [96, 96]} if kind == "hiera" else {}
    whole = CONFIG_MAPPING[kind](**HIGH[kind], **size, out_features=NAMES)
    theirs = scrambled(AutoBackbone.from_config(whole))
    theirs.save_pretrained(tmp_path)
    model = nn.Module()
    model.config = config_of("clip_vision_model", kind)
    model.high = HighTower(model.config).eval()
    report = load_high(model, str(tmp_path))
    assert all("swin.layernorm" in name for name in report.new)  # which transformers leaves out, too
    pixels = torch.randn(2, 3, 96, 96)  # Swin's windows of 7 do not divide maps of 24, 12, 6 and 3 cells
    for ours, expected in zip(model.high(pixels), stage_maps(theirs, pixels), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
