"""Mask losses at three resolutions: equal where they must be, cheaper where they may be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mllm.tokens import Vocabulary
from tests.test_model import CONFIG, batch_of, picture
from uniresxx.errors import InputError
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.config import LossConfig, UniRESPlusPlusConfig
from uniresxx.model.losses import (
    at_centres,
    at_points,
    cells,
    choose_points,
    mask_point_sums,
    mask_sums,
    photo_sums,
    shown_logits,
    true_iou,
)
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES


def some(side: int = 64, grid: int = 16, count: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smooth logits on a coarse grid, round truths on the frame, and a photo that fills part of the square."""
    generator = torch.Generator().manual_seed(0)
    logits = F.interpolate(
        torch.randn(count, 1, 5, 5, generator=generator) * 3, size=(grid, grid), mode="bilinear"
    )
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centre = torch.randint(10, side - 20, (count, 2), generator=generator)
    truth = (y - centre[:, 0, None, None]) ** 2 + (x - centre[:, 1, None, None]) ** 2 < 150
    valid = torch.zeros(count, side, side, dtype=torch.bool)
    valid[:, : side * 3 // 4] = True
    return logits[:, 0], truth & valid, valid


def upsampled(logits: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(logits[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]


def test_low_resolution_equals_full_where_the_grids_agree() -> None:
    logits, truth, valid = some()
    full = upsampled(logits, 64)
    covered, on_photo = cells(truth, valid, (64, 64))
    for a, b in zip(mask_sums(full, truth, valid), mask_sums(full, covered, on_photo), strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_low_resolution_bce_is_that_of_blockwise_constant_logits() -> None:
    """BCE is linear in the truth: the covered share of a cell gives what its pixels would give."""
    logits, truth, valid = some()
    covered, on_photo = cells(truth, valid, (16, 16))
    low = mask_sums(logits, covered * on_photo, on_photo)[0]
    blocks = logits.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert float(low) == pytest.approx(float(mask_sums(blocks, truth, valid)[0]), rel=1e-5)
    assert on_photo.sum() == 6 * 12 * 16


def test_uniform_points_estimate_the_full_loss() -> None:
    """With no preference for uncertain points, many points give the full-resolution BCE and dice."""
    logits, truth, valid = some()
    torch.manual_seed(0)
    bce, dice = mask_sums(upsampled(logits, 64), truth, valid, 0.0)
    sampled = mask_point_sums(
        logits, truth, valid, LossConfig(points=60_000, oversample=1, uncertain=0.0), 0.0
    )
    assert float(sampled[0]) == pytest.approx(float(bce), rel=0.02)
    assert float(sampled[1]) == pytest.approx(float(dice), rel=0.02)


def test_few_points_are_right_on_average() -> None:
    logits, truth, valid = some()
    torch.manual_seed(0)
    config = LossConfig(points=50, oversample=1, uncertain=0.0)
    runs = torch.stack([mask_point_sums(logits, truth, valid, config, 0.0)[0] for _ in range(400)])
    expected = float(mask_sums(upsampled(logits, 64), truth, valid)[0])
    assert float(runs.mean()) == pytest.approx(expected, abs=4 * float(runs.std()) / 20)


def test_chosen_points_are_uncertain_random_and_on_the_photo() -> None:
    logits, _, _ = some()
    torch.manual_seed(0)
    extent = torch.tensor([[1.0, 0.75]]).expand(6, 2)
    points = choose_points(logits, extent, 200, 3, 0.75)
    assert points.shape == (6, 200, 2)
    assert (points >= 0).all() and (points <= extent[:, None]).all()
    sizes = at_points(logits, points).abs()
    assert (sizes[:, :150].mean(1) < 0.5 * sizes[:, 150:].mean(1)).all()


def test_points_keep_no_map_of_the_frame_for_the_backward_pass() -> None:
    logits, truth, valid = some(side=128, grid=32)
    logits = logits.requires_grad_()
    saved = {}

    def run(name: str, work: object) -> None:
        total = 0

        def pack(value: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += value.numel() * value.element_size() if value.is_floating_point() else 0
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            sum(work()).backward()
        saved[name] = total

    run("full", lambda: mask_sums(upsampled(logits, 128), truth, valid))
    run("low", lambda: mask_sums(logits, *cells(truth, valid, (32, 32))))
    run("points", lambda: mask_point_sums(logits, truth, valid, LossConfig(points=256), 1.0))
    assert saved["low"] < saved["full"] / 10 and saved["points"] < saved["full"] / 10


@pytest.mark.parametrize("size", [(40, 64), (64, 48), (90, 33), (200, 130)])
def test_loss_at_the_photo_s_size_is_that_of_its_pixels_one_by_one(size: tuple[int, int]) -> None:
    """Against pixel centres of the photo looked up in the frame's logits, mask by mask, by hand."""
    box, frame = Letterbox.fit(*size, 64), (64, 64)
    logits = some()[0]
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(6, *size, generator=generator) > 0.6
    bce, dice = photo_sums(logits, [truth], 64, 1.0)
    found = []
    for one, own in zip(upsampled(logits, frame[0]), truth, strict=True):
        inner = one[: box.inner_height, : box.inner_width]
        y = (torch.arange(size[0]) + 0.5) * box.inner_height / size[0] - 0.5
        x = (torch.arange(size[1]) + 0.5) * box.inner_width / size[1] - 0.5
        at = inner_bilinear(inner, y, x)
        p, g = at.sigmoid(), own.float()
        share = (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)
        found.append((F.binary_cross_entropy(p.double(), g.double()), 1 - share))
    assert float(bce) == pytest.approx(float(sum(f[0] for f in found)), rel=1e-4)
    assert float(dice) == pytest.approx(float(sum(f[1] for f in found)), rel=1e-4)


@pytest.mark.parametrize("shown", [(48, 64), (64, 33), (1, 64), (64, 64), (37, 50)])
@pytest.mark.parametrize("side", [64, 72])
def test_the_shown_part_of_resized_logits_is_resized_alone(shown: tuple[int, int], side: int) -> None:
    """Also where cells and pixels of the frame do not fit; only padding behind the photo may differ."""
    logits = some()[0]
    found = shown_logits(logits, side, shown)
    assert found.shape == (len(logits), *shown)
    torch.testing.assert_close(found, upsampled(logits, side)[:, : shown[0], : shown[1]])


def test_a_batch_knows_how_much_of_its_frames_is_shown() -> None:
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)
    batch = batch_of([picture(0, 20, 32), picture(1, 24, 32)], vocabulary, CONFIG)
    assert batch.shown == (24, 32) and not batch.pixel_valid_BHW[:, 24:].any()
    wide = batch_of([picture(0, 20, 32), picture(1, 32, 24)], vocabulary, CONFIG)
    assert wide.shown == (32, 32) and wide.to("meta").shown == (32, 32)


def inner_bilinear(map_hw: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    h, w = map_hw.shape
    y, x = y.clamp(0, h - 1), x.clamp(0, w - 1)
    top, left = y.floor().long(), x.floor().long()
    bottom, right = (top + 1).clamp(max=h - 1), (left + 1).clamp(max=w - 1)
    dy, dx = (y - top)[:, None], (x - left)[None]
    above = map_hw[top][:, left] * (1 - dx) + map_hw[top][:, right] * dx
    below = map_hw[bottom][:, left] * (1 - dx) + map_hw[bottom][:, right] * dx
    return above * (1 - dy) + below * dy


def test_photos_of_the_frame_s_size_give_the_full_loss_image_by_image() -> None:
    logits, truth, _ = some()
    valid = torch.ones(3, 64, 64, dtype=torch.bool)
    images = torch.tensor([0, 0, 2, 2, 2, 2])
    parts = [truth[:2], truth[:0], truth[2:]]  # the second picture has no target
    bce, dice = photo_sums(logits, parts, 64, 1.0)
    full = upsampled(logits, 64)
    expected = mask_sums(full, truth, valid[images])
    assert float(bce) == pytest.approx(float(expected[0]), rel=1e-6)
    assert float(dice) == pytest.approx(float(expected[1]), rel=1e-6)


def test_the_iou_of_a_mask_at_the_centres_of_the_grid_s_cells() -> None:
    """Blobs of whole cells have the IoU of their pixels; the grid may be any size."""
    blobs = torch.rand(6, 16, 16, generator=torch.Generator().manual_seed(3)) > 0.5
    pixels = blobs.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(at_centres(pixels, (16, 16)), blobs)
    assert torch.equal(at_centres(blobs, (5, 16))[:, 1], blobs[:, 4])  # (1 + 0.5) * 16 / 5 = 4.8
    other = torch.roll(blobs, 1, 0)
    wide = torch.roll(pixels, 1, 0)
    everywhere = torch.ones_like(pixels)
    found = true_iou(
        torch.where(other, 3.0, -3.0), at_centres(pixels, (16, 16)), at_centres(everywhere, (16, 16))
    )
    assert torch.equal(found, true_iou(torch.where(wide, 3.0, -3.0), pixels, everywhere))


@pytest.mark.parametrize("resolution", ["full", "low", "points", "photo"])
def test_the_model_trains_at_every_resolution(resolution: str) -> None:
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)
    loss = replace(CONFIG.loss, resolution=resolution, points=500)
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(replace(CONFIG, loss=loss), vocabulary).eval()
    batch = batch_of([picture(0), picture(1, 20, 32)], vocabulary, model.config)
    terms = model.loss(model(batch), batch)
    terms.total(model.counts(batch)).backward()
    assert model.head.mask[2].weight.grad.any()
    plain = UniRESPlusPlusModel(replace(CONFIG, loss=LossConfig(dense=0.5)), vocabulary).eval()
    plain.load_state_dict(model.state_dict())
    full = plain.loss(plain(batch), batch).sums
    for name in ("mask", "dice"):
        close = {"full": 1e-6, "low": 0.15, "points": 0.6, "photo": 0.15}[resolution]
        assert float(terms.sums[name].detach()) == pytest.approx(float(full[name].detach()), rel=close)


def test_unknown_words_and_useless_numbers_are_refused() -> None:
    values = UniRESPlusPlusConfig().to_dict()
    for wrong in ({"resolution": "half"}, {"points": 0}, {"uncertain": 1.5}):
        with pytest.raises(InputError, match="loss"):
            UniRESPlusPlusConfig.from_dict(values | {"loss": values["loss"] | wrong})


def test_dice_smoothing_of_the_lisa_family() -> None:
    """Their dice divides by 1000 and adds 1e-6: the same as a smoothing of 0.001 pixel."""
    logits, truth, valid = some(count=1)
    p, g = upsampled(logits, 64).sigmoid().double() * valid, truth.double()
    theirs = 1 - (2 * (p / 1000 * g).sum() + 1e-6) / ((p / 1000).sum() + (g / 1000).sum() + 1e-6)
    assert float(mask_sums(upsampled(logits, 64), truth, valid, 0.001)[1]) == pytest.approx(
        float(theirs), rel=1e-5
    )


def test_sums_keep_their_precision_under_autocast():
    torch.manual_seed(0)
    logits, truth = torch.randn(2, 64, 64), torch.rand(2, 64, 64) > 0.5
    expected = mask_sums(logits, truth, torch.ones_like(truth))
    with torch.autocast("cpu", torch.bfloat16):
        found = mask_sums(logits, truth, torch.ones_like(truth))
    torch.testing.assert_close(found, expected)
