"""Boxes that the model finds itself: the learned head and OWLv2, the same in training and answering."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Owlv2Config, Owlv2ForObjectDetection

from mllm.tokens import Vocabulary
from mllm.towers import HighTower
from tests.test_model import CONFIG, batch_of, picture
from train.recipes import KNOWN
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.data.mixture.batches import Batches
from uniresxx.data.mixture.mix import Mixture, OpenedPart
from uniresxx.data.scenes import scene_record
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.imaging.boxes import boxes_of_masks
from uniresxx.imaging.geometry import Letterbox, box_iou
from uniresxx.model.build import attach_detector
from uniresxx.model.collate import PackedCollator, truth_boxes
from uniresxx.model.config import BoxHeadConfig, UniRESPlusPlusConfig, WeightsConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.processing import PixelNorm, pixels
from uniresxx.model.regions.classical import NMS_IOU as CLASSICAL_NMS
from uniresxx.model.regions.classical import propose
from uniresxx.model.regions.learned import (
    NMS_IOU,
    BoxHead,
    BoxOutput,
    assign,
    best_boxes,
    centreness,
    greedy_nms,
    iou_and_giou,
    pairwise_iou,
)
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding, Granularity

HEAD = BoxHeadConfig(width=16, stages=(0, 1, 2), convs=1, min_score=0.0)  # random heads propose too
CLIP_PIXELS = replace(CONFIG, mllm=replace(CONFIG.mllm, high_stats="clip"))
LEARNED = replace(CONFIG, boxes="learned", box_head=HEAD)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)


def new_model(vocabulary: Vocabulary, config: UniRESPlusPlusConfig = LEARNED) -> UniRESPlusPlusModel:
    torch.manual_seed(0)
    return UniRESPlusPlusModel(config, vocabulary).eval()


def greedy(boxes: np.ndarray, scores: np.ndarray, count: int) -> list[int]:
    """NMS written out: best first, drop boxes that overlap a chosen one."""
    chosen: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] >= 0 and all(box_iou(boxes[[index]], boxes[[k]])[0, 0] <= NMS_IOU for k in chosen):
            chosen.append(int(index))
    return chosen[:count]


@given(st.integers(0, 10_000), st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_batched_nms_equals_the_loop(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 30, (2, 20, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(2, 30, (2, 20, 2))), axis=-1).astype(np.float32)
    scores = rng.uniform(size=(2, 20)).astype(np.float32)
    extent = torch.tensor([[64.0, 64.0], [64.0, 64.0]])
    got, valid = best_boxes(torch.from_numpy(boxes), torch.from_numpy(scores), extent, count, 20)
    assert got.shape == (2, count, 4) and valid.shape == (2, count)
    for b in range(2):
        expected = boxes[b][greedy(boxes[b], scores[b], count)]
        np.testing.assert_allclose(got[b][valid[b]].numpy(), expected, rtol=1e-5)
        assert not got[b][~valid[b]].any()
    assert NMS_IOU == CLASSICAL_NMS


def loop_over(clash: np.ndarray, valid: np.ndarray, count: int) -> list[int]:
    """Greedy NMS on a matrix, written out."""
    kept: list[int] = []
    for k in np.flatnonzero(valid):
        if not clash[k, kept].any():
            kept.append(int(k))
    return kept[:count]


@given(
    st.integers(0, 10_000),
    st.integers(1, 24),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.02, 0.2, 0.9, 1.0]),
)
@settings(deadline=None, max_examples=60)
def test_greedy_nms_equals_the_loop_on_any_clashes(seed: int, K: int, count: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    half = rng.uniform(size=(3, K, K)) < share
    clash, valid = half | half.transpose(0, 2, 1), rng.uniform(size=(3, K)) < 0.8
    places, found = greedy_nms(torch.from_numpy(clash), torch.from_numpy(valid), count)
    assert places.shape == found.shape == (3, min(count, K))
    for b in range(3):
        assert places[b][found[b]].tolist() == loop_over(clash[b], valid[b], count)


@pytest.mark.parametrize("step", [0.0, 0.5, 1.4, 1.9, 3.0])
def test_chains_ties_and_duplicates_are_thinned_as_by_the_loop(step: float) -> None:
    """A row of 10 px boxes, each of which clashes only with its next neighbours: keeping one frees the one after."""
    left = step * np.arange(40, dtype=np.float32)
    boxes = np.stack((left, 0 * left, left + 10, 0 * left + 10), axis=1)
    extent = torch.full((1, 2), 500.0)
    falling, equal = np.linspace(1, 0.1, 40, dtype=np.float32), np.full(40, 0.5, dtype=np.float32)
    for count in (1, 7, 60):
        got, valid = best_boxes(
            torch.from_numpy(boxes)[None], torch.from_numpy(falling)[None], extent, count, 40
        )
        assert got[0][valid[0]].tolist() == boxes[greedy(boxes, falling, count)].tolist()
    got, valid = best_boxes(torch.from_numpy(boxes)[None], torch.from_numpy(equal)[None], extent, 60, 40)
    overlaps = box_iou(
        got[0][valid[0]].numpy(), boxes
    )  # whichever of equals comes first: apart, and all covered
    assert (overlaps > NMS_IOU).any(axis=0).all()
    assert (box_iou(got[0][valid[0]].numpy(), got[0][valid[0]].numpy()) > NMS_IOU).sum() == valid.sum()


def test_a_candidate_below_zero_is_never_a_box() -> None:
    boxes = torch.tensor([[[0.0, 0, 9, 9], [20, 0, 29, 9]]])
    got, valid = best_boxes(boxes, torch.tensor([[-1.0, -1.0]]), torch.tensor([[64.0, 64.0]]), 2, 2)
    assert not valid.any() and not got.any()


def test_boxes_are_cut_to_the_photo_and_never_empty() -> None:
    boxes = torch.tensor([[[-5.0, 2, 40, 20], [33, 1, 40, 9], [3, 3, 3.5, 9], [0, 0, 10, 10]]])
    got, valid = best_boxes(boxes, torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.tensor([[32.0, 16.0]]), 6, 4)
    assert got[valid].tolist() == [[0, 2, 32, 16], [0, 0, 10, 10]]
    assert int(valid.sum()) == 2 and valid.shape == (1, 6)


def test_overlap_measures_equal_their_definitions() -> None:
    a, b = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4]])
    assert pairwise_iou(a[None], b[None]).item() == pytest.approx(8 / 24)
    assert iou_and_giou(a, b)[1].item() == pytest.approx(8 / 24 - 0.0)
    assert iou_and_giou(a, torch.tensor([[8.0, 0, 12, 4]]))[1].item() == pytest.approx(-(48 - 32) / 48)
    points = torch.tensor([[5.0, 5.0], [2.5, 5.0], [20.0, 5.0]])
    box = torch.tensor([0.0, 0, 10, 10]).expand(1, 1, 3, 4)
    assert centreness(points, box)[0, 0].tolist() == pytest.approx([1.0, (2.5 / 7.5) ** 0.5, 0.0])


def test_every_truth_box_has_a_responsible_location_on_one_stage() -> None:
    head = BoxHead(BoxHeadConfig(width=16, stages=(0, 1, 2), convs=1), (8, 16, 24, 32), (4, 8, 16, 32))
    out = head([torch.randn(1, c, s, s) for c, s in ((8, 32), (16, 16), (24, 8), (32, 4))])
    rng = np.random.default_rng(0)
    for _ in range(50):
        corner, size = rng.uniform(0, 100, 2), rng.uniform(1.5, 28, 2) * rng.choice([1, 4])
        high = np.minimum(corner + size, 128)
        truth = torch.tensor([*corner, *high], dtype=torch.float32).expand(1, 2, 1, 4)
        valid = torch.tensor([[[True], [False]]])
        found = assign(out.points_A2, out.stride_A, truth, valid)
        strides = out.stride_A[found[0, 0] == 0].unique()
        assert len(strides) == 1 and 1 <= int((found[0, 0] == 0).sum()) <= 9
        assert (found[0, 1] == -1).all()
    small_wins = torch.tensor([[0.0, 0, 30, 30], [10, 10, 20, 20]]).expand(1, 2, 2, 4)
    found = assign(out.points_A2, out.stride_A, small_wins, torch.ones(1, 2, 2, dtype=torch.bool))
    centre = ((out.points_A2 - 15).abs() < 3).all(dim=1) & (out.stride_A == 4)
    assert (found[0, 0][centre] == 1).all()


def test_the_head_learns_to_find_what_masks_show(vocabulary: Vocabulary) -> None:
    """From the box loss alone: over-fits two pictures to recall 1 at IoU 0.5 on both levels."""
    torch.manual_seed(0)
    head = BoxHead(HEAD, CONFIG.mllm.high_widths, CONFIG.mllm.high_strides)
    model = new_model(vocabulary)
    batch = batch_of([picture(0), picture(1)], vocabulary, LEARNED)
    assert batch.truth_boxes_BGM4 is not None and batch.truth_boxes_valid_BGM is not None
    extent = torch.full((2, 2), 32.0)
    with torch.no_grad():
        stages = model.mllm.high(model.normalise_high(batch.pixels_high_B3HW))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(150):
        loss = head.loss_sum(
            head(stages), batch.truth_boxes_BGM4, batch.truth_boxes_valid_BGM, batch.boxes_complete_BG, extent
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = head.propose(head(stages), extent, 3, 4)
    for g, boxes in enumerate((found.objects_BO4, found.parts_BP4)):
        for b in range(2):
            truth = batch.truth_boxes_BGM4[b, g][batch.truth_boxes_valid_BGM[b, g]]
            assert len(truth) == 1
            assert pairwise_iou(truth[None], boxes[b : b + 1]).max() > 0.5


def test_truth_boxes_are_those_of_all_masks_of_the_image() -> None:
    record = picture(0, 32, 64)
    letterbox = Letterbox.fit(32, 64, 32)
    objects, parts = truth_boxes(record, letterbox)
    assert len(objects) == len(parts) == 1  # "both squares" is no object, the absent one has no mask
    own = replace(record, boxes={"object": np.array([[0.0, 0, 64, 32]]), "part": np.zeros((0, 4))})
    objects, parts = truth_boxes(own, letterbox)
    assert objects.tolist() == [[0, 0, 32, 16]] and parts.shape == (0, 4)


def test_learned_boxes_are_the_same_in_training_and_answering(vocabulary: Vocabulary, tmp_path: Path) -> None:
    model = new_model(vocabulary)
    records = [picture(0), picture(1)]
    batch = batch_of(records, vocabulary, LEARNED)
    found = model._find_boxes(
        model.normalise_high(batch.pixels_high_B3HW), None, torch.full((2, 2), 32.0)
    ).boxes
    encoded = model.encode_images([r.pixels for r in records])
    for b, regions in enumerate(model.regions(encoded)):
        np.testing.assert_allclose(
            regions["object"], found.objects_BO4[b][found.object_valid_BO[b]].numpy(), atol=1e-3
        )
        np.testing.assert_allclose(
            regions["part"], found.parts_BP4[b][found.part_valid_BP[b]].numpy(), atol=1e-3
        )
    save_pretrained(tmp_path, model)
    loaded = load_segmenter(tmp_path)
    ask = [["the red square"], ["both squares"]]
    photos = [r.pixels for r in records]
    assert loaded.answer(loaded.encode_images(photos), ask, Decoding(max_new_tokens=3)) == model.answer(
        encoded, ask, Decoding(max_new_tokens=3)
    )


def test_the_box_loss_trains_the_box_head_and_does_not_depend_on_how_a_step_is_cut(
    vocabulary: Vocabulary,
) -> None:
    model = new_model(vocabulary)
    records = [picture(i) for i in range(3)]
    whole = batch_of(records, vocabulary, LEARNED)
    counts = model.counts(whole)
    assert counts["box"] == 6
    together = model.loss(model(whole), whole).total(counts)
    together.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.box_head.parameters())
    apart = sum(
        float(model.loss(model(b), b).total(counts).detach())
        for b in (batch_of([r], vocabulary, LEARNED) for r in records)
    )
    assert float(together.detach()) == pytest.approx(apart, rel=1e-5)


def test_what_is_not_asked_for_is_still_an_object(vocabulary: Vocabulary) -> None:
    """Of a picture with many expressions few are asked; a part of a mixture asks for groups alone."""
    record = picture(0)
    known = boxes_of_masks(record)
    assert {name: len(boxes) for name, boxes in known.items()} == {"object": 1, "part": 1}
    groups = OpenedPart("toy[multi]", [record], 4, granularities=(Granularity.MULTI,), all_boxes=True)
    for pool in (OpenedPart("toy", [record], 1), groups):
        source = Mixture((pool,), 0)
        for slot in range(6):
            batch = Batches(source, PackedCollator(LEARNED, vocabulary), 3, 1, 1, 1, 0.0)(slot, 0)
            assert len(batch.expression_ids) == 1
            assert batch.truth_boxes_BGM4[0, :, 0].tolist() == [
                known[k][0].tolist() for k in ("object", "part")
            ]
    assert {e.granularity for e in groups.record(0).expressions} == {"multi"}


def test_a_level_without_truth_boxes_adds_no_loss(vocabulary: Vocabulary) -> None:
    model = new_model(vocabulary)
    only_object = replace(picture(0), expressions=picture(0).expressions[:1], dialogues=())
    only_none = replace(picture(0), expressions=picture(0).expressions[3:], dialogues=())
    for record, boxes in ((only_object, 1), (only_none, 0)):
        batch = batch_of([record], vocabulary, LEARNED)
        terms = model.loss(model(batch), batch)
        assert model.counts(batch)["box"] == boxes
        assert torch.isfinite(terms.total(model.counts(batch)))
        model.zero_grad()
        terms.sums["box"].backward()
        grad = model.box_head.out.bias.grad.view(2, 6)
        assert not grad[1].any() and bool(grad[0].any()) is bool(boxes)


@pytest.mark.parametrize("boxes", ["learned", "classical"])
def test_the_time_of_proposals_is_measured_alone(boxes: str, vocabulary: Vocabulary) -> None:
    model = new_model(vocabulary, replace(LEARNED, boxes=boxes))
    photos = [picture(0).pixels, picture(1).pixels]
    before = perf_counter()
    seconds = model.proposal_seconds(model.encode_images(photos))
    assert 0 < seconds < perf_counter() - before


def owlv2(folder: Path) -> str:
    """A random OWLv2 of 4 x 4 patches."""
    torch.manual_seed(0)
    vision = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32,
        patch_size=8,
    )  # fmt: skip
    text = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = Owlv2ForObjectDetection(Owlv2Config(vision_config=vision, text_config=text, projection_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return str(folder)


def test_owlv2_boxes_are_those_of_its_own_forward(vocabulary: Vocabulary, tmp_path: Path) -> None:
    source = owlv2(tmp_path / "owl")
    config = replace(CLIP_PIXELS, boxes="owlv2", weights=WeightsConfig(owlv2=source))
    model = new_model(vocabulary, config)
    photo = picture(0).pixels
    with pytest.raises(InputError, match=r"--model\.weights\.owlv2"):
        model.encode_images([photo])
    attach_detector(model)
    encoded = model.encode_images([photo])
    regions = model.regions(encoded)[0]

    theirs = Owlv2ForObjectDetection.from_pretrained(source).eval()
    batch = batch_of([picture(0)], vocabulary, config)
    with torch.no_grad():
        out = theirs(
            pixel_values=model.normalise_high(batch.pixels_high_B3HW),
            input_ids=torch.tensor([[0, 5, 1, 2]]),
            attention_mask=torch.tensor([[1, 1, 1, 0]]),
        )
    centre, size = out.pred_boxes[0].split(2, dim=-1)
    boxes = (32 * torch.cat((centre - size / 2, centre + size / 2), dim=-1)).clamp(0, 32).numpy()
    scores = out.objectness_logits[0].sigmoid().numpy()
    scores[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) < 1] = -1  # slivers are no proposals
    best = boxes[greedy(boxes, scores, config.mllm.max_objects)]
    assert len(best) > 1
    np.testing.assert_allclose(regions["object"], best, atol=1e-3)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (regions["part"], regions["object"])]
    if len(areas[0]):
        assert areas[0].max() <= 0.5 * areas[1].max() + 1e-3
    assert "detector" not in "".join(model.state_dict())
    terms = model.loss(model(batch), batch)
    assert torch.isfinite(terms.total(model.counts(batch)))


def test_a_checkpoint_keeps_where_its_boxes_come_from(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="high_stats='half' must be 'clip'"):
        replace(CONFIG, boxes="owlv2")
    config = replace(CLIP_PIXELS, boxes="owlv2", weights=WeightsConfig(owlv2=str(tmp_path / "gone")))
    save_pretrained(tmp_path / "m", new_model(vocabulary, config))
    with pytest.raises(InputError, match=r"owlv2: .*neither a folder"):
        load_segmenter(tmp_path / "m")


@pytest.mark.slow
def test_the_learned_head_finds_about_what_the_classical_proposer_finds_on_scenes() -> None:
    """The head and its tower alone, 500 steps of 12 easy scenes; recall at IoU 0.5, as in docs/log.md."""
    torch.manual_seed(0)
    config = KNOWN["tiny_scenes"]().model.mllm
    tower = HighTower(config)
    head = BoxHead(BoxHeadConfig(width=32, stages=(0, 1, 2)), config.high_widths, config.high_strides)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=2e-3)
    letterbox = Letterbox.fit(64, 64, 64)

    def pictures(split: str, first: int, count: int) -> tuple[list, torch.Tensor, torch.Tensor, torch.Tensor]:
        records = [scene_record("scenes_easy", split, i) for i in range(first, first + count)]
        pairs = [truth_boxes(record, letterbox) for record in records]
        most = max(len(boxes) for pair in pairs for boxes in pair)
        truth, valid = torch.zeros(count, 2, most, 4), torch.zeros(count, 2, most, dtype=torch.bool)
        for b, pair in enumerate(pairs):
            for g, boxes in enumerate(pair):
                truth[b, g, : len(boxes)], valid[b, g, : len(boxes)] = torch.from_numpy(boxes), True
        photos = [photo_of(record) for record in records]
        return photos, PixelNorm("half")(pixels(photos)), truth, valid

    for step in range(500):
        _, photos, truth, valid = pictures("train", 12 * step, 12)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / 500)
        loss = head.loss_sum(
            head(tower(photos)), truth, valid, torch.ones(12, 2, dtype=torch.bool), torch.full((12, 2), 64.0)
        )
        optimizer.zero_grad()
        (loss / int(valid.sum())).backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
    photos, inputs, truth, valid = pictures("val", 0, 40)
    with torch.no_grad():
        found = head.propose(head(tower(inputs)), torch.full((40, 2), 64.0), 12, 24)
    classical = [propose(photo, 12, 24) for photo in photos]
    learned = (found.objects_BO4, found.parts_BP4)
    for g, name in enumerate(("objects", "parts")):
        found_by_learned = pairwise_iou(truth[:, g], learned[g]).amax(dim=2)[valid[:, g]] > 0.5
        other = [
            pairwise_iou(truth[b : b + 1, g], torch.from_numpy(getattr(boxes, name))[None]).amax(dim=2)[
                valid[b : b + 1, g]
            ]
            > 0.5
            for b, boxes in enumerate(classical)
            if len(getattr(boxes, name))
        ]
        print(name, float(found_by_learned.float().mean()), float(torch.cat(other).float().mean()))
        assert found_by_learned.float().mean() > {"objects": 0.95, "parts": 0.9}[name]


def test_only_complete_boxes_teach_background() -> None:
    """Two photos with one box of 8 x 8 and four locations; in the second one only the referent's box is known."""
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0], [4.0, 12.0], [12.0, 12.0]])
    objectness = torch.zeros(2, 2, 4, requires_grad=True)
    predicted = torch.tensor([0.0, 0.0, 8.0, 4.0]).expand(2, 2, 4, 4)  # IoU and GIoU 0.5 with the truth
    output = BoxOutput(objectness, torch.zeros(2, 2, 4), predicted, points, torch.full((4,), 8.0))
    truth = torch.tensor([0.0, 0.0, 8.0, 8.0]).expand(2, 2, 1, 4)
    valid = torch.tensor([[[True], [False]]]).expand(2, 2, 1)
    complete = torch.tensor([[True, True], [False, False]])
    head = BoxHead(HEAD, (8, 16, 24, 32), (4, 8, 16, 32))
    loss = head.loss_sum(output, truth, valid, complete, torch.full((2, 2), 16.0))
    log2 = np.log(2)
    focal = 0.25 * 0.25 * log2 + 3 * 0.75 * 0.25 * log2
    both = 2 * (0.5 + log2)  # 1 - GIoU and the centre-ness of the one responsible location
    assert loss.item() == pytest.approx((focal + log2 + both) / 9, rel=1e-6)
    loss.backward()
    assert objectness.grad[0, 0].ne(0).all() and not objectness.grad[0, 1].any()
    assert not objectness.grad[1].any()  # sigmoid(0) is the IoU already; no other location is taught
    with torch.no_grad():
        objectness += 1
    objectness.grad = None
    head.loss_sum(output, truth, valid, complete, torch.full((2, 2), 16.0)).backward()
    expected = (torch.tensor(1.0).sigmoid().item() - 0.5) / 9
    assert objectness.grad[1, 0].tolist() == pytest.approx([expected, 0, 0, 0])


def test_a_batch_says_which_boxes_are_complete(vocabulary: Vocabulary) -> None:
    """Those of the data set are, those of the masks are not; also after expressions are left out and mirrored."""
    record = picture(0)
    own = replace(record, boxes={"object": np.array([[1, 2, 9, 9], [4, 4, 8, 8]], np.float32)})
    asked = OpenedPart("toy[multi]", [own], 4, granularities=(Granularity.MULTI,), all_boxes=True)
    for pool in (OpenedPart("toy", [own], 4), asked):
        for flip in (0.0, 1.0):
            source = Mixture((pool,), 0)
            batch = Batches(source, PackedCollator(LEARNED, vocabulary), 3, 1, 1, 4, 0.0, flip)(0, 0)
            assert batch.boxes_complete_BG.tolist() == [[True, False]]
            assert batch.truth_boxes_valid_BGM.sum(dim=2).tolist() == [[2, 1]]
            objects = [[23, 2, 31, 9], [24, 4, 28, 8]] if flip else [[1, 2, 9, 9], [4, 4, 8, 8]]
            assert batch.truth_boxes_BGM4[0, 0].tolist() == objects
            x0, _, x1, _ = boxes_of_masks(record)["part"][0].tolist()
            x0, x1 = (32 - x1, 32 - x0) if flip else (x0, x1)
            assert batch.truth_boxes_BGM4[0, 1, 0, [0, 2]].tolist() == [x0, x1]
    assert batch_of([record], vocabulary, LEARNED).boxes_complete_BG.tolist() == [[False, False]]
    assert batch_of([record], vocabulary, CONFIG).boxes_complete_BG is None
