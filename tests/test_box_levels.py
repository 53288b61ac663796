"""Levels of the learned box head: off where the training data has no boxes, on again where later data has them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mllm.tokens import Vocabulary
from tests.test_model import CONFIG, batch_of, picture
from train.assemble import open_job
from train.finetune import recipe_for
from train.job import Job
from train.loop import DONE, train
from train.recipe import DataConfig, EvalConfig, OptimConfig, Recipe
from train.recipe_changes import recipe_differences
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.data.mixture.counts import box_kinds
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import Preparation, write_store
from uniresxx.errors import InputError
from uniresxx.model.config import BoxHeadConfig, UniRESPlusPlusConfig, WeightsConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.regions.learned import BoxHead
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Batch, Decoding, Granularity, ImageRecord

HEAD = BoxHeadConfig(width=16, stages=(0, 1, 2), convs=1, min_score=0.0)  # random heads propose too
LEARNED = replace(
    CONFIG, boxes="learned", box_head=HEAD, dense_classes=(0, 0, 0), loss=replace(CONFIG.loss, dense=0.0)
)
OFF = "box head: the part level is off"


def without_parts(index: int) -> ImageRecord:
    record = picture(index)
    kept = tuple(e for e in record.expressions if e.granularity != Granularity.PART)
    return replace(record, expressions=kept)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Stores: `objects` has no part expression, `parts` has them, `boxes` has part boxes but no part expression."""
    boxes = {"object": np.zeros((0, 4), np.float32), "part": np.array([[1, 2, 9, 9]], np.float32)}
    records = {
        "objects": [without_parts(i) for i in range(3)],
        "parts": [picture(i) for i in range(3)],
        "boxes": [without_parts(0), replace(without_parts(1), boxes=boxes)],
    }
    for name, found in records.items():
        found = [replace(record, dense=None) for record in found]
        write_store(tmp_path / "stores" / name, Preparation(name, {"train": lambda found=found: (found, {})}))
    return tmp_path


def recipe_on(source: str, **head: object) -> Recipe:
    return Recipe(
        "toy",
        replace(LEARNED, box_head=replace(HEAD, **head)),
        DataConfig(source=source, batch_images=2, expressions_per_image=4),
        OptimConfig(steps=2, warmup_steps=1),
    )


def part_gradients(job: Job) -> torch.Tensor:
    """Gradient of the last layer's outputs for parts, from the whole loss of one batch."""
    batch = job.batches(0, 0)
    job.model.zero_grad()
    job.model.loss(job.model(batch), batch).total(job.model.counts(batch)).backward()
    grad: torch.Tensor = job.model.box_head.out.bias.grad.view(2, 6)[1]
    return grad


def part_valid(model: UniRESPlusPlusModel, batch: Batch) -> torch.Tensor:
    """Validity of the part boxes of a training forward, and that its other level is still on."""
    extent = torch.full((len(batch.pixels_high_B3HW), 2), 32.0)
    found = model._find_boxes(model.normalise_high(batch.pixels_high_B3HW), None, extent).boxes
    assert found.object_valid_BO.any()
    return found.part_valid_BP


def parts_of(model: UniRESPlusPlusModel) -> int:
    [regions] = model.regions(model.encode_images([picture(0).pixels]))
    assert len(regions["object"])
    return len(regions["part"])


def test_a_level_without_truth_is_off_everywhere_and_after_reload(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = open_job(recipe_on("objects"), data)
    assert [line for line in job.messages if OFF in line] and job.model.config.box_head.levels == ("object",)
    assert not part_valid(job.model, job.batches(0, 0)).any()
    assert not part_gradients(job).any()
    assert train(recipe_on("objects"), job, data / "run") == DONE
    printed = capsys.readouterr().out
    assert printed.count(OFF) == 1 and "there are no part tokens" in printed
    [config] = (data / "run").glob("checkpoints/step_*/config.json")
    assert json.loads(config.read_text())["box_head"]["levels"] == ["object"]
    assert json.loads((data / "run/recipe.json").read_text())["recipe"]["model"]["box_head"]["levels"] == [
        "object"
    ]
    assert parts_of(job.model.eval()) == parts_of(load_segmenter(data / "run")) == 0


@pytest.mark.parametrize("source", ["parts", "boxes"])
def test_a_level_with_truth_is_on_and_learns(data: Path, source: str) -> None:
    job = open_job(recipe_on(source), data)
    assert not [line for line in job.messages if "box head" in line]
    assert job.model.config.box_head.levels == ("object", "part")
    assert part_valid(job.model, job.batches(0, 0)).any() and part_gradients(job).any()
    assert parts_of(job.model.eval()) > 0


def test_a_level_that_the_recipe_names_must_have_truth(data: Path) -> None:
    with pytest.raises(InputError, match=r"--model.box_head.levels object part: .* no part boxes"):
        open_job(recipe_on("objects", levels=("object", "part")), data)
    job = open_job(recipe_on("parts", levels=("object",)), data)  # a level may be left out on purpose
    assert job.messages == open_job(recipe_on("parts"), data).messages
    assert not part_gradients(job).any() and not part_valid(job.model, job.batches(0, 0)).any()
    batch = job.batches(0, 0)
    assert job.model.counts(batch)["box"] == 2  # the denominator counts no box that is not learned
    with pytest.raises(ValueError, match="must be of object, part"):
        replace(HEAD, levels=("objects",))
    with pytest.raises(ValueError, match="min_score=1"):
        replace(HEAD, min_score=1.0)


def test_part_data_turns_the_level_on_again(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(recipe_on("objects"), open_job(recipe_on("objects"), data), data / "run") == DONE
    capsys.readouterr()
    start = str(data / "run")
    later = recipe_on("parts")
    later = replace(later, model=replace(later.model, weights=WeightsConfig(start=start)))
    finetuned = recipe_for(load_segmenter(data / "run").config, start)
    finetuned = replace(finetuned, data=later.data)
    for recipe in (later, finetuned):
        job = open_job(recipe, data)
        assert "box head: the part level, off in " in capsys.readouterr().out
        assert job.model.config.box_head.levels == ("object", "part") and part_gradients(job).any()


def test_a_run_does_not_continue_with_other_levels(data: Path) -> None:
    assert train(recipe_on("objects"), open_job(recipe_on("objects"), data), data / "run") == DONE
    about = json.loads((data / "run/recipe.json").read_text())
    now = json.loads(json.dumps(about))
    now["recipe"]["model"]["box_head"]["levels"] = ["object", "part"]
    assert recipe_differences(about, about) == []
    assert recipe_differences(about, now) == ['model.box_head.levels: ["object"] -> ["object", "part"]']
    del about["recipe"]["model"]["box_head"]["levels"]  # an earlier version had both levels and no threshold
    assert recipe_differences(about, now) == []
    for model in (about["recipe"]["model"], now["recipe"]["model"]):
        model["boxes"] = "classical"
    now["recipe"]["model"]["box_head"]["min_score"] = 0.9  # a model without a box head
    assert recipe_differences(about, now) == []


def test_a_checkpoint_of_an_earlier_version_proposes_as_before() -> None:
    values = replace(LEARNED, box_head=replace(HEAD, min_score=0.15, levels=("object",))).to_dict()
    assert UniRESPlusPlusConfig.from_dict(json.loads(json.dumps(values))).box_head.levels == ("object",)
    del values["box_head"]["min_score"], values["box_head"]["levels"]
    head = UniRESPlusPlusConfig.from_dict(values).box_head
    assert head.min_score == 0.0 and head.levels == ("object", "part")


def test_kinds_of_boxes_are_read_from_a_store_as_from_records(data: Path) -> None:
    for name, kinds in (("objects", set()), ("boxes", {"part"})):
        records = Store.open(data / "stores" / name).records("train")
        assert box_kinds(records) == box_kinds([records[i] for i in range(len(records))]) == kinds


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_head_proposes_nothing(seed: int) -> None:
    """Of the full size, on maps of unit variance: not 64 of 64."""
    torch.manual_seed(seed)
    widths = (192, 384, 768, 1536)
    head = BoxHead(BoxHeadConfig(), widths, (4, 8, 16, 32))
    with torch.no_grad():
        output = head([torch.randn(1, c, 192 // 2**i, 192 // 2**i) for i, c in enumerate(widths)])
    extent = torch.full((1, 2), 768.0)
    found = head.propose(output, extent, 32, 64)
    assert not found.object_valid_BO.any() and not found.part_valid_BP.any()
    assert not found.objects_BO4.any() and found.parts_BP4.shape == (1, 64, 4)
    head.config = replace(head.config, min_score=0.0)
    assert head.propose(output, extent, 32, 64).part_valid_BP.all()  # what it did before


def test_an_image_without_valid_boxes_trains_and_answers(tmp_path: Path) -> None:
    """The tokens of boxes that are not valid change nothing, and the answers are those of the loaded model."""
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, "the red square"] * 3, 340)
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(replace(LEARNED, box_head=replace(HEAD, min_score=0.9)), vocabulary)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(1.0)
    batch = batch_of([picture(0), picture(1)], vocabulary, model.config)
    terms = model.loss(model(batch), batch)
    total = terms.total(model.counts(batch))
    total.backward()
    assert torch.isfinite(total) and all(
        p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters()
    )
    model.eval()
    encoded = model.encode_images([picture(0).pixels])
    assert [len(boxes) for boxes in model.regions(encoded)[0].values()] == [0, 0]
    before = model.answer(encoded, [["the red square"]], Decoding(max_new_tokens=3))
    with torch.no_grad():
        for tokens in (model.mllm.object_tokens, model.mllm.part_tokens):
            for parameter in tokens.parameters():
                parameter.add_(torch.randn_like(parameter))
    encoded = model.encode_images([picture(0).pixels])
    assert model.answer(encoded, [["the red square"]], Decoding(max_new_tokens=3)) == before
    save_pretrained(tmp_path, model)
    loaded = load_segmenter(tmp_path)
    again = loaded.encode_images([picture(0).pixels])
    (found,), (expected,) = loaded.answer(again, [["the red square"]], Decoding(max_new_tokens=3)), before
    # weights mapped from a file lie elsewhere in memory, which can change the last bit of a sum
    assert (found.score, found.p_absent) == pytest.approx((expected.score, expected.p_absent), abs=1e-6)
    assert replace(found, score=None, p_absent=None) == replace(expected, score=None, p_absent=None)


def test_a_validation_prints_the_proposal_recall_of_each_level(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = str(data / "stores/parts/train")
    recipe = replace(recipe_on("parts"), eval=EvalConfig((benchmark,), every=1, limit=2))
    assert train(recipe, open_job(recipe, data), data / "run") == DONE
    lines = [line for line in capsys.readouterr().out.splitlines() if "proposal recall" in line]
    assert len(lines) == 2
    for line in lines:
        assert "parts/train: proposal recall at box IoU 0.5: object " in line
        assert line.count(" % of 2") == 2 and ", part " in line
