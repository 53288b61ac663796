"""Region tokens painted into the maps of the mask heads: against a plain loop, switched off, exported, trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mllm.config import MLLMConfig
from mllm.tokens import Vocabulary
from tests.test_heads import SAM, SAM2, all_on
from tests.test_model import CONFIG, batch_of, picture
from tests.test_portable import runnable
from train.recipe_changes import recipe_differences
from uniresxx.hub.head_program import Form, export_mask_head
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.heads.base import HeadInputs, RegionBoxes
from uniresxx.model.heads.painting import RegionPainting, cell_weights
from uniresxx.model.heads.pyramid import PyramidHead
from uniresxx.model.heads.sam import Sam2Head, SamHead
from uniresxx.model.modeling import BOX_FIELDS, UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES

D, SIDE = 24, 48.0
HEADS = ("pyramid", "sam", "sam2")


def painting_config(kind: str, mllm: MLLMConfig = CONFIG.mllm) -> UniRESPlusPlusConfig:
    return replace(
        CONFIG, mask_head=kind, mllm=mllm, head=replace(CONFIG.head, paint_regions=True), dense_classes=(0, 0, 0),
        sam=all_on(SAM), sam2=all_on(SAM2),
        loss=replace(CONFIG.loss, dense=0.0),
    )  # fmt: skip


def painting_model(kind: str, mllm: MLLMConfig = CONFIG.mllm) -> UniRESPlusPlusModel:
    """Random weights everywhere, gates included."""
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, "the red square"] * 3, 340)
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(painting_config(kind, mllm), vocabulary).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def some_boxes(images: int = 2) -> RegionBoxes:
    """Boxes of all sizes, whole pixels or not; some thinner than a cell, some invalid, some over the edge."""
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        corner = torch.rand(images, count, 2, generator=generator) * 40
        size = 1 + 30 * torch.rand(images, count, 2, generator=generator) ** 3
        boxes = torch.cat((corner, (corner + size)), dim=-1)
        boxes[:, ::2] = boxes[:, ::2].round()
        return boxes, torch.rand(images, count, generator=generator) > 0.3

    return RegionBoxes(*draw(5), *draw(9), SIDE)


def painted_by_a_loop(made: RegionPainting, map_BChw: Tensor, regions: Tensor, boxes: RegionBoxes) -> Tensor:
    expected = map_BChw.double().clone()
    B, _, h, w = map_BChw.shape
    O = boxes.objects_BO4.shape[1]
    streams = (
        (made.objects, regions[:, :O], boxes.objects_BO4, boxes.object_valid_BO),
        (made.parts, regions[:, O:], boxes.parts_BP4, boxes.part_valid_BP),
    )
    for index, (project, tokens, corners, valid) in enumerate(streams):
        gate = 1.0 if made.gate is None else float(made.gate[index])
        for b in range(B):
            for y in range(h):
                for x in range(w):
                    total, weight_sum = torch.zeros(map_BChw.shape[1], dtype=torch.double), 0.0
                    for o in range(corners.shape[1]):
                        inside = bool(valid[b, o])
                        x0, y0, x1, y1 = corners[b, o].double().tolist()
                        area = (x1 - x0) * (y1 - y0)
                        for low, high, cell, at in ((x0, x1, SIDE / w, x), (y0, y1, SIDE / h, y)):
                            if high - low < cell:
                                low, high = (low + high - cell) / 2, (low + high + cell) / 2
                            inside = inside and low <= (at + 0.5) * cell < high
                        if inside:
                            total += project(tokens[b, o]).double() / area**2
                            weight_sum += 1 / area**2
                    if weight_sum:
                        expected[b, :, y, x] += gate * total / weight_sum
    return expected


@pytest.mark.parametrize(("gated", "size"), [(False, (8, 8)), (True, (6, 12)), (False, (5, 16))])
def test_painting_equals_a_loop_over_boxes_and_cells(gated: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    made, boxes = RegionPainting(D, 16, gated), some_boxes()
    if made.gate is not None:
        made.gate.data = torch.tensor([0.7, -0.4])
    map_BChw, regions = torch.randn(2, 16, *size), torch.randn(2, 14, D)
    with torch.no_grad():
        painted = made(map_BChw, regions, boxes)
        expected = painted_by_a_loop(made, map_BChw, regions, boxes)
    torch.testing.assert_close(painted.double(), expected, atol=1e-5, rtol=1e-5)
    changed = (painted != map_BChw).any(dim=1)
    assert changed.any() and not changed.all()


def test_every_valid_box_reaches_a_cell_and_shares_sum_to_one() -> None:
    corner = torch.rand(1, 200, 2, generator=torch.Generator().manual_seed(0)) * 47
    boxes = torch.cat((corner, corner + 0.9), dim=-1)  # on a grid of 6 px cells
    for o in range(200):
        weights = cell_weights(boxes[:, o : o + 1], torch.ones(1, 1, dtype=torch.bool), SIDE, (8, 8))
        assert weights.sum() == weights.max() == 1
    sums = cell_weights(boxes, torch.ones(1, 200, dtype=torch.bool), SIDE, (8, 8)).sum(dim=1)
    torch.testing.assert_close(sums, (sums > 0.5).float())


def test_the_smaller_box_comes_first() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 48.0, 48.0], [12.0, 12.0, 24.0, 24.0]]])
    weights = cell_weights(boxes, torch.ones(1, 2, dtype=torch.bool), SIDE, (4, 4))
    assert weights[0, :, 0, 0].tolist() == [1.0, 0.0]
    assert weights[0, 1, 1, 1] == pytest.approx(256 / 257, abs=1e-6)  # a sixteenth of the area


def test_invalid_boxes_and_no_boxes_paint_nothing_with_finite_gradients() -> None:
    torch.manual_seed(0)
    made, boxes = RegionPainting(D, 16), some_boxes()
    nothing = boxes._replace(
        objects_BO4=torch.zeros_like(boxes.objects_BO4),
        object_valid_BO=torch.zeros_like(boxes.object_valid_BO),
        part_valid_BP=torch.zeros_like(boxes.part_valid_BP),
    )
    none = RegionBoxes(
        torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), torch.zeros(2, 0, 4),
        torch.zeros(2, 0, dtype=torch.bool), SIDE,
    )  # fmt: skip
    for given, count in ((nothing, 14), (none, 0)):
        map_BChw, regions = torch.randn(2, 16, 8, 8), torch.randn(2, count, D, requires_grad=True)
        painted = made(map_BChw, regions, given)
        assert torch.equal(painted, map_BChw)
        painted.square().sum().backward()
        assert regions.grad is not None and not regions.grad.any()
        for parameter in made.parameters():
            assert parameter.grad is not None and not parameter.grad.any()
            parameter.grad = None


def test_two_equal_regions_get_different_maps_when_their_tokens_differ() -> None:
    """A convolution gives equal things equal features; the token of each box tells them apart."""
    torch.manual_seed(0)
    head = PyramidHead(PyramidHeadConfig(width=16, heads=2, paint_regions=True), D, (8, 16, 24, 32)).eval()
    head.place.weight.data.zero_()  # no coordinates: only tokens may tell the places apart
    stages = [torch.ones(1, c, s, s) for c, s in ((8, 16), (16, 8), (24, 4), (32, 2))]
    objects = torch.tensor([[[9.0, 15.0, 18.0, 33.0], [27.0, 15.0, 36.0, 33.0]]])  # 6 cells apart
    valid, parts = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 0, 4)
    boxes = RegionBoxes(objects, valid, parts, torch.zeros(1, 0, dtype=torch.bool), SIDE)
    token = torch.randn(1, 1, D)
    differences = []
    for other in (token, token + 1):
        tokens = torch.cat((token, other), dim=1)
        with torch.no_grad():
            inputs = HeadInputs(stages, torch.ones(1, D, 4, 4), tokens, valid, boxes)
            fine = head.encode(inputs).fine_BChw
        differences.append(float((fine[0, :, 8, 4] - fine[0, :, 8, 10]).abs().max()))
    assert differences[0] < 1e-4 and differences[1] > 0.1


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_step_0_is_the_published_decoder_and_then_painting_matters(kind: str) -> None:
    torch.manual_seed(0)
    make = {
        "sam": lambda on: SamHead(replace(SAM, paint_regions=on), D, (8, 16)),
        "sam2": lambda on: Sam2Head(replace(SAM2, paint_regions=on), D, (8, 16)),
    }[kind]
    painting, plain = make(True).eval(), make(False).eval()
    with torch.no_grad():
        for name, parameter in painting.named_parameters():
            if "gate" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    weights = {name: x for name, x in painting.state_dict().items() if not name.startswith("painting.")}
    assert not any(plain.load_state_dict(weights))
    pixels, regions, boxes = torch.randn(2, 3, 64, 64), torch.randn(2, 14, D), some_boxes()
    states, image_of = torch.randn(3, D), torch.tensor([0, 1, 1])
    none = torch.empty(0)

    def run(head: nn.Module) -> tuple[Tensor, ...]:
        features = head.encode(HeadInputs([], none, regions, none, boxes, pixels))
        return tuple(head(features, states, image_of))

    for a, b in zip(run(painting), run(plain), strict=True):
        assert torch.equal(a, b)
    gates = [parameter for name, parameter in painting.named_parameters() if "gate" in name]
    assert len(gates) == (1 if kind == "sam" else 3)
    run(painting)[0].sum().backward()
    for gate in gates:
        assert gate.grad is not None and gate.grad.all() and gate.grad.isfinite().all()
        for index in range(2):  # objects, parts
            gate.data[index] = 0.5
            assert not torch.allclose(run(painting)[0], run(plain)[0])
            gate.data.zero_()


@pytest.mark.parametrize("kind", HEADS)
def test_a_batch_is_painted_as_its_images_alone(kind: str) -> None:
    model = painting_model(kind)
    photos = [picture(0).pixels, picture(1, 20, 32).pixels, picture(2, 50, 33).pixels]
    together = model.encode_images(photos).features
    for b, photo in enumerate(photos):
        alone = model.encode_images([photo]).features
        if kind == "pyramid":
            torch.testing.assert_close(together.fine_BChw[b], alone.fine_BChw[0], atol=2e-5, rtol=1e-4)
            continue
        pairs = zip((together.image_BChw, *together.fine), (alone.image_BChw, *alone.fine), strict=True)
        for a, one in pairs:
            torch.testing.assert_close(a[b], one[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("off", ["use_objects", "use_parts", "blind_to_image"])
def test_a_stream_that_is_switched_off_is_not_painted(kind: str, off: str) -> None:
    value = off == "blind_to_image"
    model = painting_model(kind, replace(CONFIG.mllm, **{off: value}))
    seen: list[RegionBoxes] = []
    painting = model.head.painting if kind != "sam2" else model.head.painting[0]

    def record(_: nn.Module, inputs: tuple[Tensor, Tensor, RegionBoxes]) -> None:
        seen.append(inputs[2])

    painting.register_forward_pre_hook(record)
    batch = batch_of([picture(0)], model.vocabulary, model.config)
    with torch.no_grad():
        first = model(batch).head.masks_Ehw
        for stream in ("objects", "parts"):
            projection = getattr(painting, stream)
            kept = projection.bias.clone()
            projection.bias.add_(1.0)  # changes every cell that is painted
            switched_off = value or off == f"use_{stream}"
            assert torch.equal(model(batch).head.masks_Ehw, first) is switched_off, stream
            projection.bias.copy_(kept)
    assert bool(seen[0].object_valid_BO.any()) is (off == "use_parts")
    assert bool(seen[0].part_valid_BP.any()) is (off == "use_objects")


@pytest.mark.parametrize("kind", HEADS)
def test_painting_learns(kind: str) -> None:
    model = painting_model(kind)
    batch = batch_of([picture(0), picture(1)], model.vocabulary, model.config)
    model.loss(model(batch), batch).total(model.counts(batch)).backward()
    names = [name for name, _ in model.head.named_parameters() if name.startswith("painting")]
    assert len(names) == {"pyramid": 4, "sam": 5, "sam2": 15}[kind]
    for name in names:
        assert model.head.get_parameter(name).grad.any(), name


@pytest.mark.parametrize("kind", HEADS)
def test_painting_takes_and_gives_what_zero_3_looks_into(kind: str) -> None:
    """DeepSpeed finds tensors only in tuples, lists and dicts."""
    model = painting_model(kind)
    plain = (Tensor, float, int, type(None))
    calls = 0

    def check(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal calls
        calls += 1
        for value in (*inputs, output):
            nested = value if isinstance(value, tuple) else (value,)
            assert all(isinstance(item, plain) for item in nested), type(value)

    for module in model.modules():
        if isinstance(module, RegionPainting):
            module.register_forward_hook(check)
    model.encode_images([picture(0).pixels])
    assert calls == (3 if kind == "sam2" else 1)


def test_painting_in_bf16_stays_near_fp32() -> None:
    torch.manual_seed(0)
    made, boxes = RegionPainting(D, 16), some_boxes()
    map_BChw, regions = torch.randn(2, 16, 8, 8), torch.randn(2, 14, D)
    with torch.no_grad():
        exact = made(map_BChw, regions, boxes)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = made(map_BChw, regions, boxes)
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("form", "kind"),
    [("torch", "pyramid"), ("torch", "sam"), ("onnx", "pyramid")]
    + [pytest.param(*pair, marks=pytest.mark.system) for pair in (("torch", "sam2"), ("onnx", "sam2"))],
)
def test_an_exported_head_takes_the_boxes(form: Form, kind: str, tmp_path: Path) -> None:
    """`export_mask_head` itself compares with eager, on other boxes than it was traced with."""
    runnable(form)
    export_mask_head(painting_model(kind), tmp_path, form)
    inputs = json.loads((tmp_path / "mask_head.json").read_text())["encode"]["inputs"]
    assert list(inputs)[-4:] == list(BOX_FIELDS)
    assert inputs["object_boxes_BO4"] == [1, 3, 4] and inputs["regions_BMD"] == [1, 7, 32]


def test_files_of_earlier_versions_mean_no_painting() -> None:
    values = UniRESPlusPlusConfig().to_dict()
    for head in ("head", "sam", "sam2"):
        del values[head]["paint_regions"]
    config = UniRESPlusPlusConfig.from_dict(values)
    assert not (config.head.paint_regions or config.sam.paint_regions or config.sam2.paint_regions)
    now = {"recipe": {"model": UniRESPlusPlusConfig().to_dict()}}
    assert recipe_differences({"recipe": {"model": values}}, now) == []
    now["recipe"]["model"]["head"]["paint_regions"] = True
    assert recipe_differences({"recipe": {"model": values}}, now) == [
        "model.head.paint_regions: false -> true"
    ]
