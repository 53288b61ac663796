"""What runs for every box, mask and pixel: on the device, all at once, and equal to the plain way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from benchmarks.operations import SMALL, Operations, count_answer, count_step, counted, make_batch, make_model
from uniresxx.imaging.geometry import Letterbox
from uniresxx.imaging.masks import area, encode, intersection_area
from uniresxx.model import processing
from uniresxx.model.processing import PixelNorm, photo_masks, pixels, upsampled, view_photo
from uniresxx.model.regions.learned import best_boxes
from uniresxx.types import Batch

SIDES = st.integers(1, 700)


@given(SIDES, SIDES, st.sampled_from([(64, 64), (96, 24), (128, 32), (768, 192)]), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_masks_resized_by_torch_are_those_of_numpy(
    height: int, width: int, frame: tuple[int, int], seed: int
) -> None:
    (side, cells), box = frame, Letterbox.fit(height, width, frame[0])
    coarse = torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    logits = F.interpolate(coarse, size=(cells, cells), mode="bicubic")[:, 0]
    ours, theirs = upsampled(logits, box).numpy(), box.unmask_logits_many(logits.numpy())
    assert ours.shape == (3, height, width) and side == box.side
    different = int((ours != theirs).sum())  # rounding decides where a logit is 0 to a millionth
    assert different <= max(2, 1e-4 * ours.size)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (333, 500), (1500, 2000), (100, 80)])
def test_masks_of_usual_photos_have_an_iou_of_one(size: tuple[int, int]) -> None:
    """Full-size frames, photos larger and smaller than the grid: at least 0.9999."""
    box = Letterbox.fit(*size, 768)
    y, x = torch.meshgrid(torch.linspace(0, 1, 192), torch.linspace(0, 1, 192), indexing="ij")
    logits = torch.stack(
        [r - ((y - 0.3) ** 2 + (x - c) ** 2).sqrt() * 8 for r, c in ((2.0, 0.3), (1.0, 0.6))]
    )
    for ours, theirs in zip(
        upsampled(logits, box).numpy(), box.unmask_logits_many(logits.numpy()), strict=True
    ):
        a, b = encode(ours), encode(theirs)
        both = intersection_area(a, b)
        assert area(b) and both >= 0.9999 * (area(a) + area(b) - both)


def test_masks_of_several_photos_come_image_by_image_however_many_at_once(monkeypatch) -> None:
    config = make_model(SMALL).config
    views = [view_photo(np.zeros((*size, 3), np.uint8), config) for size in ((30, 40), (50, 20), (64, 64))]
    logits = torch.randn(5, 16, 16)
    images = [0, 0, 2, 2, 2]  # none of the second photo
    found = photo_masks(logits, images, views)
    assert [mask.shape for mask in found] == [(30, 40)] * 2 + [(64, 64)] * 3
    assert all(mask.dtype == np.bool_ for mask in found)
    monkeypatch.setattr(processing, "UPSAMPLED_ON_CPU", 1)
    for one, other in zip(photo_masks(logits, images, views), found, strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(AssertionError, match="image by image"):
        photo_masks(logits, [1, 0, 2, 2, 2], views)


def test_no_float_mask_leaves_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.dtype] = []
    plain = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self.dtype) or plain(self))
    view = view_photo(np.zeros((30, 40, 3), np.uint8), make_model(SMALL).config)
    photo_masks(torch.randn(4, 16, 16), [0] * 4, [view])
    assert moved == [torch.bool]


def test_pixels_travel_as_bytes_and_are_normalised_in_the_model() -> None:
    model = make_model(SMALL)
    batch = make_batch(model, 2)
    assert batch.pixels_low_B3hw.dtype == batch.pixels_high_B3HW.dtype == torch.uint8
    assert not any("normalise" in name for name in model.state_dict())
    photo = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert torch.equal(pixels([photo, photo])[1], torch.from_numpy(photo).permute(2, 0, 1))
    with pytest.raises(AssertionError, match="float32"):
        PixelNorm("half")(torch.zeros(1, 3, 2, 2))
    with torch.no_grad():
        seen: list[torch.Tensor] = []
        model.mllm.high.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(batch)
    assert torch.equal(seen[0], (batch.pixels_high_B3HW - 127.5) / 63.75)


def test_places_of_labels_and_masks_are_found_before_the_batch_is_moved() -> None:
    batch = make_batch(make_model(SMALL), 2)
    labels = batch.labels_BT.flatten()
    assert torch.equal(labels[batch.labelled_Y], labels[labels != -100])
    assert torch.equal(batch.present_P, batch.present_E.nonzero()[:, 0])
    assert batch.most_expressions == int(batch.image_of_expr_E.bincount().max())
    other = replace(batch, labels_BT=torch.full_like(batch.labels_BT, -100))
    assert not len(other.labelled_Y)
    moved = batch.to("meta")
    tensors = [getattr(moved, name) for name in Batch.__dataclass_fields__]
    assert all(value.is_meta for value in tensors if isinstance(value, torch.Tensor))
    assert moved.most_expressions == batch.most_expressions and not batch.labelled_Y.is_meta


def test_a_step_waits_for_the_device_only_for_its_numbers() -> None:
    """The batch is counted on the host; of the step itself only the gradient's norm is read while it runs."""
    model = make_model(SMALL)
    batch = make_batch(model, SMALL.images)
    inside = counted(lambda: model.loss(model(batch), batch).total(model.counts(batch)).backward())
    assert set(inside.syncs) <= {"_local_scalar_dense"}
    assert inside.syncs.total() <= 2  # counts of boxes and dense pixels, of the batch on the host
    assert count_step(model, batch).syncs.total() <= 3


def nms_operations(images: int, candidates: int, count: int) -> Operations:
    boxes = torch.rand(images, candidates, 4) * 20
    boxes[..., 2:] += boxes[..., :2] + 2
    extent = torch.full((images, 2), 64.0)
    return counted(lambda: best_boxes(boxes, torch.rand(images, candidates), extent, count, candidates))


def test_nms_loops_neither_over_candidates_nor_over_images_and_never_waits() -> None:
    few, many = nms_operations(1, 40, 16), nms_operations(8, 400, 16)
    assert few.names.total() == many.names.total() <= 80 + 4 * 16
    assert not many.syncs


def test_operations_of_a_step_and_of_an_answer_have_a_ceiling() -> None:
    """A loop over boxes or masks would go over it; the ceilings are about 10 % over what was counted."""
    model = make_model(SMALL)
    two, four = (count_step(model, make_batch(model, images)).names.total() for images in (2, 4))
    assert two <= 6000 and abs(four - two) <= 10, (two, four)
    assert count_answer(model).names.total() <= 14_000
