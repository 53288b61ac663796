"""What lies at a click: the heads of SAM and SAM 2 against transformers' whole models, and the way to the page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Sam2Model, SamModel

from mllm.tokens import Vocabulary
from tests.test_heads import SAM, SAM2, SAMS, head, inputs
from tests.test_model import CONFIG
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.heads.clicks import mask_at
from uniresxx.model.heads.sam import SamHead
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.segmenters.base import FindsAtClick


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square"] * 3, 340)


@pytest.mark.parametrize("kind", SAMS)
@pytest.mark.parametrize("place", [(3.0, 5.0), (40.0, 60.0), (0.0, 63.0)])
def test_a_click_is_that_of_transformers_own_model(kind: str, place: tuple[float, float]) -> None:
    made, given = head(kind, closed=True), inputs(2)
    theirs = (SamModel if isinstance(made, SamHead) else Sam2Model)(made.sam.config).eval()
    theirs.load_state_dict(made.sam.state_dict())
    with torch.no_grad():
        expected = theirs(
            pixel_values=given.pixels_B3SS[1:],
            input_points=torch.tensor([[[place]]]),
            input_labels=torch.ones(1, 1, 1, dtype=torch.int),
            multimask_output=True,
        )
        got = mask_at(made, made.encode(given), 1, place[0] + 0.5, place[1] + 0.5)
    best = expected.iou_scores[0, 0].argmax()
    assert expected.pred_masks.shape[2] == 3 and expected.iou_scores[0, 0].std() > 0
    torch.testing.assert_close(got, expected.pred_masks[0, 0, best], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_a_click_into_a_photo_is_one_into_the_frame_of_the_head(kind: str, vocabulary: Vocabulary) -> None:
    """A wide photo: its pixels lie in the upper half of the frame, at half their size."""
    torch.manual_seed(0)
    loss = replace(CONFIG.loss, dense=0.0)
    config = replace(CONFIG, mask_head=kind, sam=SAM, sam2=SAM2, dense_classes=(0, 0, 0), loss=loss)
    model = UniRESPlusPlusModel(config, vocabulary).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    photo = np.random.default_rng(0).integers(0, 255, (48, 128, 3), dtype=np.uint8)
    encoded = model.encode_images([photo])
    found = model.region_at(encoded, 100.0, 20.0)
    logits = mask_at(model.head, encoded.features, 0, 50.0, 10.0)
    assert found.shape == (48, 128) and found.dtype == bool and 0 < found.mean() < 1
    assert np.array_equal(found, Letterbox.fit(48, 128, 64).unmask_logits(logits.numpy()))
    assert not np.array_equal(found, model.region_at(encoded, 10.0, 40.0))


def test_a_head_that_is_no_sam_leaves_the_click_to_others(vocabulary: Vocabulary) -> None:
    model = UniRESPlusPlusModel(CONFIG, vocabulary).eval()
    assert isinstance(model, FindsAtClick)
    assert model.region_at(model.encode_images([np.zeros((20, 30, 3), dtype=np.uint8)]), 3.0, 4.0) is None
