"""Several instances per [SEG]: the matching, the union, what is learned, and the truth from file to batch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mllm.tokens import Vocabulary
from tests.test_heads import SAM2, all_on
from tests.test_model import CONFIG, batch_of, picture
from train.plan import plan
from train.recipe import Recipe
from train.recipes import KNOWN
from uniresxx.data.mixture.augment import mirrored
from uniresxx.data.scenes.record import scene_record
from uniresxx.data.store.rows import record_of, row_of
from uniresxx.errors import InputError
from uniresxx.hub.head_program import export_mask_head
from uniresxx.imaging import masks
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.collate import framed_instances
from uniresxx.model.config import LossConfig, UniRESPlusPlusConfig
from uniresxx.model.heads.instances import InstanceOutput
from uniresxx.model.matching import matched_queries
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.prediction import Instance, Prediction
from uniresxx.scoring.predictions import from_json, to_json
from uniresxx.types import RLE, Decoding, Granularity, ImageRecord

Q = 3


def config_of(kind: str = "pyramid") -> UniRESPlusPlusConfig:
    return replace(
        CONFIG, mask_head=kind, sam2=all_on(SAM2), instances=Q, dense_classes=(0, 0, 0),
        loss=replace(CONFIG.loss, dense=0.0, mask=4.0, dice=2.0),
    )  # fmt: skip


def iou(a: RLE, b: RLE) -> float:
    shared = masks.intersection_area(a, b)
    return shared / (masks.area(a) + masks.area(b) - shared)


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)


def pair(index: int, height: int = 32, width: int = 32) -> ImageRecord:
    """Two squares, asked for together and alone, and a thing that is not there."""
    record = picture(index, height, width)
    red, blue, both, nothing = record.expressions
    assert red.rle is not None and blue.rle is not None
    return replace(
        record, expressions=(red, replace(both, instances=(red.rle, blue.rle)), nothing), dialogues=()
    )


def drawn(seed: int, counts: tuple[int, ...], queries: int = 4) -> tuple[InstanceOutput, Tensor, Tensor]:
    """Random answers for some expressions and random instances of each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    E = len(counts)
    output = InstanceOutput(3 * draw(E, queries, 5, 6), draw(E, queries), draw(E, queries))
    owner = torch.arange(E).repeat_interleave(torch.tensor(counts))
    return output, (draw(len(owner), 5, 6) > 0).float(), owner


def cost(output: InstanceOutput, truth: Tensor, valid: Tensor, e: int, q: int, loss: LossConfig) -> float:
    """The loss of one pair, from the formulas."""
    p, t = output.masks_EQhw[e, q][valid].double().sigmoid(), truth[valid].double()
    bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    dice = 1 - (2 * (p * t).sum() + loss.dice_smooth) / (p.sum() + t.sum() + loss.dice_smooth)
    return float(loss.mask * bce + loss.dice * dice - loss.presence * output.presence_EQ[e, q].sigmoid())


@pytest.mark.parametrize("seed", range(4))
def test_the_matching_is_the_cheapest_of_all(seed: int) -> None:
    loss, counts = LossConfig(), (2, 0, 4, 1)
    output, truth, owner = drawn(seed, counts)
    valid = torch.ones(len(owner), 5, 6, dtype=torch.bool)
    valid[..., 4:] = False
    found = matched_queries(output, truth, valid, owner, loss).tolist()
    for e, count in enumerate(counts):
        own = [n for n, expression in enumerate(owner.tolist()) if expression == e]

        def total(queries: tuple[int, ...], e: int = e, own: list[int] = own) -> float:
            return sum(
                cost(output, truth[n], valid[n], e, q, loss) for n, q in zip(own, queries, strict=True)
            )

        best = min(itertools.permutations(range(4), count), key=total)
        assert tuple(found[n] for n in own) == best


def test_the_matching_follows_the_order_of_instances_and_of_queries() -> None:
    output, truth, owner = drawn(0, (3,))
    valid, order, queries = torch.ones(3, 5, 6, dtype=torch.bool), [2, 0, 1], [3, 1, 0, 2]
    first = matched_queries(output, truth, valid, owner, LossConfig())
    assert torch.equal(matched_queries(output, truth[order], valid, owner, LossConfig()), first[order])
    shuffled = InstanceOutput(*(value[:, queries] for value in output))
    found = matched_queries(shuffled, truth, valid, owner, LossConfig())
    assert [queries[q] for q in found.tolist()] == first.tolist()


def test_the_union_is_of_the_accepted_alone_and_never_empty() -> None:
    masks_EQhw = torch.tensor([[[[1.0, -1.0]], [[-2.0, 2.0]], [[9.0, 9.0]]]]).repeat(2, 1, 1, 1)
    presence = torch.tensor([[0.5, 0.1, -1.0], [-3.0, -2.0, -4.0]])
    output = InstanceOutput(masks_EQhw, torch.tensor([[0.1, 0.2, 0.9]] * 2), presence)
    assert output.accepted().tolist() == [[True, True, False], [False, True, False]]
    united = output.united()
    assert united.masks_Ehw.tolist() == [[[1.0, 2.0]], [[-2.0, 2.0]]]
    assert united.quality_E.tolist() == pytest.approx([0.2, 0.2])
    assert united.presence_E.tolist() == pytest.approx([0.5, -2.0])


@pytest.mark.parametrize("kind", ["pyramid", "sam2"])
def test_the_loss_depends_on_no_order_and_reaches_the_queries(kind: str, words: Vocabulary) -> None:
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(config_of(kind), words).eval()
    losses = []
    for turn in (1, -1):
        record = pair(0)
        red, both, nothing = record.expressions
        assert both.instances is not None
        record = replace(record, expressions=(red, replace(both, instances=both.instances[::turn]), nothing))
        batch = batch_of([record, pair(1)], words, model.config)
        counts = model.counts(batch)
        assert {name: counts[name] for name in ("mask", "dice", "quality", "presence")} == {
            "mask": 6, "dice": 6, "quality": 6, "presence": Q * 6,
        }  # fmt: skip
        losses.append(model.loss(model(batch), batch).total(counts))
    torch.testing.assert_close(losses[0], losses[1])
    losses[0].backward()
    assert model.instances is not None and model.instances.offsets_QD.grad.abs().sum(dim=1).all()


@pytest.mark.parametrize("resolution", ["full", "low", "points"])
@pytest.mark.parametrize("kind", ["pyramid", "sam2"])
def test_a_batch_without_any_expression_or_target_has_a_finite_loss(
    kind: str, resolution: str, words: Vocabulary
) -> None:
    config = config_of(kind)
    config = replace(config, loss=replace(config.loss, resolution=resolution, points=20))
    model = UniRESPlusPlusModel(config, words).eval()
    empty = replace(pair(0), expressions=())
    absent = replace(pair(0), expressions=pair(0).expressions[2:])
    for records in ([empty], [absent], [empty, absent]):
        batch = batch_of(records, words, config)
        loss = model.loss(model(batch), batch).total(model.counts(batch))
        loss.backward()
        assert torch.isfinite(loss)


def test_two_instances_are_told_apart_after_a_little_training(words: Vocabulary) -> None:
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(config_of(), words)
    records = [pair(i) for i in range(3)]
    batch = batch_of(records, words, model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    counts = model.counts(batch)
    for _ in range(220):
        optimizer.zero_grad()
        model.loss(model(batch), batch).total(counts).backward()
        optimizer.step()
    model.eval()
    photos = [record.pixels for record in records if record.pixels is not None]
    asked = [[e.text for e in record.expressions] for record in records]
    decoding = Decoding(max_new_tokens=3, rule="token_and_presence")
    answers = model.answer(model.encode_images(photos), asked, decoding)
    for record, (red, both, nothing) in zip(
        records, zip(answers[::3], answers[1::3], answers[2::3], strict=True), strict=True
    ):
        assert nothing.rejected and nothing.instances == () and len(red.instances) == 1
        assert len(both.instances) == 2
        truth = record.expressions[1].instances
        assert truth is not None and both.rle is not None
        ious = [[iou(found.rle, one) for one in truth] for found in both.instances]
        assert min(max(row) for row in ious) > 0.6 and np.argmax(ious[0]) != np.argmax(ious[1])
        assert all(found.score is not None and 0 < found.score <= 1 for found in both.instances)
    for answer in answers:  # the mask of the benchmarks is the union of the instances
        if answer.instances:
            united = masks.union([found.rle for found in answer.instances], (32, 32))
            assert united == answer.rle


def test_instances_are_written_and_read_back() -> None:
    square = np.zeros((4, 5), dtype=bool)
    square[1:3, 1:3] = True
    rle = masks.encode(square)
    answer = Prediction(False, rle, "[SEG].", 0.5, 0.1, instances=(Instance(rle, 0.25), Instance(rle, None)))
    line = to_json("a", answer)
    assert line["instances"] == [{"mask": rle, "score": 0.25}, {"mask": rle, "score": None}]
    assert from_json(line, (4, 5)) == answer
    assert "instances" not in to_json("a", replace(answer, instances=()))
    for wrong in ({"mask": rle}, [{"score": 1}], ["x"], [{"mask": rle, "score": "high"}]):
        with pytest.raises(InputError, match="instances"):
            from_json(line | {"instances": wrong}, (4, 5))


def test_more_instances_than_queries_keep_their_union() -> None:
    record, letterbox = picture(0), Letterbox.fit(32, 32, 32)
    squares = []
    for i, side in enumerate((2, 9, 4, 3)):
        square = np.zeros((32, 32), dtype=bool)
        square[8 * i : 8 * i + side, :side] = True
        squares.append(square)
    whole = np.any(squares, axis=0)
    rles = [masks.encode(square) for square in squares]
    found = framed_instances(whole, rles, 3, record, letterbox)
    assert [int(mask.sum()) for mask in found] == [81, 16, 13 - int((squares[0] & squares[3]).sum())]
    assert (np.any(found, axis=0) == whole).all()
    assert framed_instances(whole, None, 3, record, letterbox) == [whole]


def test_the_batch_has_every_instance_once_and_only_where_it_is_asked_for(words: Vocabulary) -> None:
    records = [pair(0), replace(picture(1, 20, 32), expressions=()), pair(2)]
    batch = batch_of(records, words, config_of())
    assert batch.instance_masks_NHW is not None and batch.expr_of_instance_N is not None
    assert batch.expr_of_instance_N.tolist() == [
        0,
        1,
        1,
        3,
        5,
        6,
        6,
    ]  # 2 and 7 are not there, 4 is of a dialogue
    for e in range(len(batch.present_E)):
        own = batch.instance_masks_NHW[batch.expr_of_instance_N == e]
        assert torch.equal(own.any(dim=0), batch.masks_EHW[e])
    assert batch_of(records, words, CONFIG).instance_masks_NHW is None


def test_groups_of_the_scenes_have_their_instances_in_the_mirror_and_the_store(tmp_path: Path) -> None:
    seen = 0
    for index in range(6):
        record = scene_record("scenes_easy", "train", index)
        flipped = mirrored(record)
        stored = record_of(row_of(record, "train", None), None)
        for number, expression in enumerate(record.expressions):
            assert (expression.instances is not None) == (expression.granularity is Granularity.MULTI)
            assert stored.expressions[number].instances == expression.instances
            if expression.instances is None:
                continue
            seen += 1
            assert len(expression.instances) > 1
            assert masks.union(list(expression.instances), (64, 64)) == expression.rle
            if flipped is not None:
                alone = flipped.expressions[number].instances
                assert alone is not None
                assert masks.union(list(alone), (64, 64)) == flipped.expressions[number].rle
    assert seen > 5


def test_what_does_not_go_with_instances_is_refused(tmp_path: Path, words: Vocabulary) -> None:
    for wrong in (-1, 1):
        with pytest.raises(ValueError, match=f"instances={wrong}"):
            replace(CONFIG, instances=wrong)
    with pytest.raises(ValueError, match="photo"):
        replace(CONFIG, instances=Q, loss=replace(CONFIG.loss, resolution="photo"))
    with pytest.raises(InputError, match="instances=3 cannot be exported"):
        export_mask_head(UniRESPlusPlusModel(config_of(), words), tmp_path, "torch")
    recipe: Recipe = KNOWN["tiny_scenes"]()
    with pytest.raises(InputError, match="instances=3 has no plan"):
        plan(replace(recipe, model=replace(recipe.model, instances=3)))
