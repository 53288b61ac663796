"""Where UniRES's groups look: against a forward pass that keeps its attention, and the two tools on a toy model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_film_unet import RECORDS, SIDE
from tests.test_unires import PLAIN, TOY, make, toy_vocabulary
from tools import explain_unires, group_coverage
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.imaging.geometry import Letterbox
from uniresxx.segmenters.unires.config import UniresConfig
from uniresxx.segmenters.unires.explain import group_attention, groups_read, scores
from uniresxx.segmenters.unires.vocabulary import ClipVocabulary

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vocabulary() -> ClipVocabulary:
    return toy_vocabulary()


def test_groups_look_where_transformers_eager_attention_says(vocabulary: ClipVocabulary) -> None:
    vision = make(vocabulary).vision
    pixels_B3HW, kept = torch.randn(2, 3, SIDE, SIDE), []
    found = group_attention(vision, pixels_B3HW)
    vision.clip.set_attn_implementation("eager")
    for layers in vision.halves:
        layers[-1].self_attn.register_forward_hook(lambda *args: kept.append(args[2][1]))
    with torch.no_grad():
        vision(pixels_B3HW)
    for look_BGN, weights, groups in zip(found, kept, (3, 2), strict=True):
        expected = weights[:, :, 17:, 1:17]  # CLS is 0, the groups themselves are last
        expected = (expected / expected.sum(-1, keepdim=True)).mean(dim=1)
        assert look_BGN.shape == (2, groups, 16)
        assert (look_BGN - expected).abs().max() <= 1e-5


def test_scores_are_those_of_the_attention_they_explain(vocabulary: ClipVocabulary) -> None:
    """Weights times values, through the output layer, is what the layer gives."""
    cross = make(vocabulary).stage2[-1].cross
    query, memory = torch.randn(1, 5, 32), torch.randn(1, 4, 32)
    weights = scores(cross.q(query), cross.k(memory), cross.heads)
    values = cross.v(memory).unflatten(-1, (cross.heads, -1)).transpose(1, 2)
    mixed = cross.out((weights @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(mixed, cross(query, memory, memory, None), atol=1e-5)


def test_what_patches_read_adds_up_to_one(vocabulary: ClipVocabulary) -> None:
    model = make(vocabulary)
    read_NM = groups_read(model, model.encode_images([RECORDS[0].pixels]), "the left square")
    assert read_NM.shape == (16, 5) and torch.allclose(read_NM.sum(1), torch.ones(16), atol=1e-5)


def test_patches_of_a_mask_are_those_it_covers() -> None:
    mask_yx, box = np.zeros((8, 8), dtype=bool), Letterbox.fit(8, 8, 8)
    mask_yx[:4, 4:] = True
    assert explain_unires.patches_of(mask_yx, box, 2).tolist() == [False, True, False, False]
    assert explain_unires.patches_of(None, box, 2).all()


def test_a_region_that_is_a_part_covers_a_part() -> None:
    box = Letterbox.fit(8, 8, 8)
    look_GN = np.array([[1.0, 0, 0, 0], [0.25] * 4])  # one patch; everywhere alike: half
    regions = group_coverage.regions_of(look_GN, box, 2)
    assert regions[0, :4, :4].all() and regions[0].sum() == 16 and regions[1].sum() == 32
    assert group_coverage.moved(regions, np.random.default_rng(0)).sum() == 48
    part, other = regions[:1], np.ones((1, 8, 8), dtype=bool)
    found = group_coverage.best_iou(regions, part), group_coverage.best_iou(regions, other)
    assert found[0][0] == 1.0 and found[1][0] == 0.25 and found[0][1] == 0.5
    overlap = group_coverage.Overlap(*(np.stack([f, f[::-1]]) for f in found))
    assert group_coverage.shares([overlap]).tolist() == [[50.0, 50.0]]


@pytest.mark.parametrize("config", [PLAIN, TOY], ids=["plain", "presence"])
def test_the_picture_has_a_row_for_each_level(
    config: UniresConfig,
    tmp_path: Path,
    vocabulary: ClipVocabulary,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_pretrained(tmp_path / "m", make(vocabulary, config))
    Image.fromarray(RECORDS[1].pixels).save(tmp_path / "photo.png")
    words = [
        str(tmp_path / "m"),
        str(tmp_path / "photo.png"),
        "the left square",
        "--out",
        str(tmp_path / "x.png"),
    ]
    assert explain_unires.main(words) == 0
    picture = Image.open(tmp_path / "x.png")
    assert picture.width > 700 and picture.height > 700 and len(picture.getcolors(1 << 20) or [()] * 9) > 8
    assert capsys.readouterr().out.strip() == str(tmp_path / "x.png")


def test_other_models_are_refused(
    tmp_path: Path,
    vocabulary: ClipVocabulary,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_pretrained(tmp_path / "none", make(vocabulary, replace(TOY, low_groups=0, high_groups=0)))
    save_pretrained(tmp_path / "uneven", make(vocabulary))
    assert explain_unires.main([str(tmp_path / "none"), "x.png", "y"]) == 2
    assert "has no group tokens" in capsys.readouterr().err
    assert group_coverage.main([str(tmp_path / "uneven"), "scenes_easy/val"]) == 2
    assert "3 and 2 groups" in capsys.readouterr().err


def test_coverage_of_scenes_is_a_table(
    tmp_path: Path,
    vocabulary: ClipVocabulary,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_pretrained(tmp_path / "m", make(vocabulary, replace(TOY, high_groups=3)))
    assert group_coverage.main([str(tmp_path / "m"), "scenes_easy/val", "--pictures", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 pictures" and [line[:6] for line in lines[3:5]] == ["| low ", "| high"]
