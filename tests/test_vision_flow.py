"""Image tokens that start as LLaVA's, and the mean of a map over boxes of any size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mllm.config import MLLMConfig, llava_7b
from mllm.loading_llm import load_llava
from mllm.modeling import MLLM, Boxes
from mllm.tokens import Vocabulary
from mllm.vision_flow import ImageTokens, box_mean
from tests.test_loading import CORPUS, SMALL, llava

SIDE, GRID = 384.0, 96


def bilinear(map_hw: np.ndarray, x: float, y: float) -> float:
    """Value at a point given in cells, centres at half-integers, clamped at the outermost centres."""
    h, w = map_hw.shape
    u, v = min(max(x - 0.5, 0.0), w - 1.0), min(max(y - 0.5, 0.0), h - 1.0)
    i, j = min(int(u), max(w - 2, 0)), min(int(v), max(h - 2, 0))
    a, b = u - i, v - j
    right, below = min(i + 1, w - 1), min(j + 1, h - 1)
    upper = (1 - a) * map_hw[j, i] + a * map_hw[j, right]
    lower = (1 - a) * map_hw[below, i] + a * map_hw[below, right]
    return float((1 - b) * upper + b * lower)


def roi_align_mean(map_hw: np.ndarray, box: np.ndarray, bins: int, samples: int | None) -> float:
    """Mean of RoIAlign by a loop, box in cells; `samples` per bin and axis, None: by its size (as torchvision)."""
    x0, y0, x1, y1 = box
    counts = [samples or max(1, math.ceil((end - start) / bins)) for start, end in ((x0, x1), (y0, y1))]
    values = []
    for row in range(bins * counts[1]):
        for column in range(bins * counts[0]):
            x = x0 + (column + 0.5) * (x1 - x0) / (bins * counts[0])
            y = y0 + (row + 0.5) * (y1 - y0) / (bins * counts[1])
            values.append(bilinear(map_hw, x, y))
    return float(np.mean(values))


def mean_of(map_hw: np.ndarray, box: np.ndarray) -> float:
    """`box_mean` of one map and one box in cells."""
    cells = torch.from_numpy(box / map_hw.shape[0] * SIDE)[None, None].float()
    return box_mean(torch.from_numpy(map_hw)[None, None].float(), cells, SIDE).item()


@pytest.mark.parametrize(("cells", "single_points_miss"), [(0.8, False), (9.0, False), (60.0, True)])
def test_the_mean_over_a_box_is_the_dense_mean_whatever_its_size(
    cells: float, single_points_miss: bool
) -> None:
    random = np.random.default_rng(0)
    errors: dict[str, list[float]] = {"ours": [], "by size": [], "single points": []}
    spread = []
    for _ in range(4):
        map_hw = random.normal(size=(GRID, GRID))
        corner = random.uniform(0, GRID - 1.5 * cells, 2)
        box = np.concatenate((corner, corner + cells * random.uniform(0.8, 1.4, 2)))
        dense = roi_align_mean(map_hw, box, bins=1, samples=400)
        spread.append(dense)
        errors["ours"].append(mean_of(map_hw, box) - dense)
        errors["by size"].append(roi_align_mean(map_hw, box, 7, None) - dense)
        errors["single points"].append(roi_align_mean(map_hw, box, 7, 1) - dense)
    worst = {name: float(np.abs(values).max()) for name, values in errors.items()}
    assert worst["ours"] < 2e-4, worst
    assert worst["by size"] < 0.03
    assert (worst["single points"] > 0.05) == single_points_miss, worst


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_the_weights_of_a_box_are_a_mean(seed: int, h: int, w: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, 5, 2, generator=generator) * SIDE * 1.2 - 0.1 * SIDE
    size = torch.rand(2, 5, 2, generator=generator) * SIDE * 0.5
    boxes = torch.cat((corner, corner + size), dim=-1)
    boxes[:, -1] = 0.0  # padding
    torch.testing.assert_close(
        box_mean(torch.full((2, 3, h, w), 2.0), boxes, SIDE), torch.full((2, 5, 3), 2.0)
    )
    values = torch.rand(2, 1, h, w, generator=generator)
    got = box_mean(values, boxes, SIDE)
    assert torch.isfinite(got).all()
    for b in range(2):
        assert values[b].min() - 1e-4 <= got[b].min() and got[b].max() <= values[b].max() + 1e-4


def test_a_linear_map_has_its_value_at_the_middle_of_the_box() -> None:
    ramp = (torch.arange(GRID) + 0.5).expand(1, 1, GRID, GRID).contiguous()
    boxes = torch.tensor([[[40.0, 8.0, 200.0, 370.0], [100.0, 100.0, 100.0, 100.0]]])
    got = box_mean(ramp, boxes, SIDE).flatten()
    torch.testing.assert_close(got, torch.tensor([120.0, 100.0]) / SIDE * GRID, rtol=1e-5, atol=1e-3)


def test_the_gradient_of_the_mean_is_right_in_any_memory_layout() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[[3.0, 5.0, 9.0, 30.0], [0.0, 0.0, 0.0, 0.0], [20.0, 1.0, 31.0, 31.9]]])
    values = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: box_mean(m, boxes, 32.0), values)
    last = values.detach().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(box_mean(last, boxes, 32.0), box_mean(values.detach(), boxes, 32.0))
    boxes.requires_grad_()  # differences along a side of a box, against the slope of its mean
    box_mean(values.detach().float(), boxes, 32.0).sum().backward()
    step = torch.zeros_like(boxes)
    step[0, 0, 2] = 0.05
    with torch.no_grad():
        ends = [box_mean(values.float(), boxes + sign * step, 32.0).sum().item() for sign in (1, -1)]
    assert boxes.grad is not None
    assert boxes.grad[0, 0, 2].item() == pytest.approx((ends[0] - ends[1]) / 0.1, rel=0.02)


def test_the_mean_over_boxes_is_exported_without_sizes_from_the_data() -> None:
    class Pool(torch.nn.Module):
        def forward(self, values: Tensor, boxes: Tensor) -> Tensor:
            return box_mean(values, boxes, SIDE)

    inputs = torch.randn(2, 3, 8, 8), torch.rand(2, 4, 4).cumsum(-1) * 90
    program = torch.export.export(Pool(), inputs)
    called = {str(node.target).split(".")[1] for node in program.graph.nodes if "aten." in str(node.target)}
    assert "matmul" in called and not called & {"item", "_local_scalar_dense", "nonzero", "masked_select"}
    torch.testing.assert_close(program.module()(*inputs), Pool()(*inputs))


def no_boxes(images: int) -> Boxes:
    valid = torch.zeros(images, 7, dtype=torch.bool)
    boxes = torch.zeros(images, 7, 4)
    return Boxes(boxes[:, :3], valid[:, :3], boxes[:, 3:], valid[:, 3:])


def test_image_tokens_are_llavas_before_the_first_step_and_then_see_the_high_tower(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs, model = llava(), MLLM(SMALL, Vocabulary.train(CORPUS, 320))
    theirs.save_pretrained(tmp_path)
    load_llava(model, str(tmp_path), with_tower=True)
    low, high = torch.randn(2, 3, 28, 28), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.model.get_image_features(low, vision_feature_layer=-2).pooler_output
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taught = []
    for step in range(2):
        features = model.encode_image(low, high, no_boxes(2))
        image = features.prefix_BLD[:, features.layout.image]
        if step == 0:
            torch.testing.assert_close(image, torch.stack(list(expected)), atol=1e-5, rtol=1e-5)
        optimizer.zero_grad()
        image.square().mean().backward()
        stem = model.high.backbone.embeddings.patch_embeddings.weight.grad
        branch = model.image_tokens.high.weight.grad
        assert stem is not None and branch is not None
        taught.append((bool(branch.any()), bool(stem.any())))
        optimizer.step()
    assert taught == [(True, False), (True, True)]  # the branch at once, the tower behind it one step later
    changed = model.encode_image(low, high, no_boxes(2)).prefix_BLD
    other = model.encode_image(low, high + 1, no_boxes(2)).prefix_BLD
    assert not torch.equal(changed, other)


@pytest.mark.parametrize("as_low", [False, True])
def test_only_a_model_with_pretrained_tokens_starts_from_its_low_tower_alone(as_low: bool) -> None:
    torch.manual_seed(0)
    tokens = ImageTokens(MLLMConfig(fusion_starts_as_low=as_low))
    low, stages = torch.randn(2, 64, 128), [torch.randn(2, c, 8, 8) for c in (32, 64, 96, 128)]
    assert torch.equal(tokens(low, stages), tokens.low(low)) == as_low
    assert llava_7b().fusion_starts_as_low and not MLLMConfig().fusion_starts_as_low
