"""The align stage: text loss alone, no mask head, and published weights that reach the next stage unrounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mllm.config import TuningConfig
from tests.test_loading import SMALL, whole
from tests.test_model import batch_of, picture
from tests.test_text_data import photo
from train.engines.base import Engine
from train.finetune import recipe_of
from train.log import read_log
from train.recipe import Recipe
from train.recipes import KNOWN
from train.recipes.uniresxx_7b import align
from train.step import do_step
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.errors import InputError
from uniresxx.model.build import build_for_training, open_vocabulary
from uniresxx.model.config import BoxHeadConfig, PyramidHeadConfig, UniRESPlusPlusConfig, WeightsConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.tuning import part_of, rounded_parts
from uniresxx.types import Dialogue, ImageRecord, Turn

ROOT = Path(__file__).resolve().parents[1]
ALIGNS = [name for name in KNOWN if name.endswith("_align")]


def described(index: int, regions: bool) -> ImageRecord:
    """A picture with two captions, of itself or of its squares."""
    turns = [Turn(f"What is at ({place},3),(99,99)?", answer="a red square") for place in (1, 2)]
    asked = tuple(Dialogue(f"toy/train/{index}_{place}", (turn,)) for place, turn in enumerate(turns))
    boxes = {"region": np.array([[2, 3, 11, 12], [18, 3, 27, 12]], dtype=np.float32)} if regions else {}
    return replace(picture(index), expressions=(), dialogues=asked, boxes=boxes, dense=None)


def joint() -> Recipe:
    """The last stage with small numbers, a pyramid head, and a high tower that is trained."""
    recipe = KNOWN["uniresxx_7b"]()
    model = replace(
        recipe.model,
        mllm=SMALL,
        mask_head="pyramid",
        head=PyramidHeadConfig(width=16, heads=2),
        box_head=BoxHeadConfig(width=16, convs=1),
        tuning=replace(recipe.model.tuning, frozen=("low",), lora_rank=4),
    )
    return replace(recipe, model=model)


def stage_a(tmp_path: Path, **tuning: object) -> UniRESPlusPlusConfig:
    config = align("small_align", joint()).model
    return replace(config, weights=whole(tmp_path).weights, tuning=replace(config.tuning, **tuning))


def stage_b(start: Path, **changes: object) -> UniRESPlusPlusConfig:
    return replace(joint().model, weights=WeightsConfig(start=str(start)), **changes)


def saved(tmp_path: Path, config: UniRESPlusPlusConfig) -> Path:
    save_pretrained(
        tmp_path / "a", build_for_training(config, open_vocabulary(config, []), lambda line: None)
    )
    return tmp_path / "a"


def built(config: UniRESPlusPlusConfig, lines: list[str] | None = None) -> UniRESPlusPlusModel:
    return build_for_training(
        config, open_vocabulary(config, []), (lines if lines is not None else []).append
    )


# ---- what is learned


def test_only_what_the_stage_trains_gets_a_gradient_and_the_mask_head_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, config = align("small_align", joint()), stage_a(tmp_path)
    model = built(config)
    monkeypatch.setattr(model.head, "encode", lambda *arguments: pytest.fail("the mask head was run"))
    monkeypatch.setattr(model.head, "forward", lambda *arguments: pytest.fail("the mask head was run"))
    batch = batch_of([described(0, True), described(1, False)], model.vocabulary, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = do_step(Engine(model.train(), recipe), model, [batch], 200)
    assert not result.skipped and set(result.terms) == {"text"} == set(model.counts(batch))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {part_of(name) for name in moved} == {"fusion", "regions", "exploitation", "llm"}
    assert all(name.endswith("rows_RD") for name in moved if name.startswith("mllm.llm."))
    streams = {name.split(".")[1] for name in moved if part_of(name) == "regions"}
    assert streams == {"object_tokens", "part_tokens"}  # captioned regions teach both
    assert model.box_head is None


def test_region_tokens_see_the_boxes_of_captioned_regions_and_descriptions_have_none(tmp_path: Path) -> None:
    config = stage_a(tmp_path)
    vocabulary = open_vocabulary(config, [])
    batch = batch_of([described(0, True), described(1, False)], vocabulary, config)
    assert batch.object_valid_BO.sum(dim=1).tolist() == batch.part_valid_BP.sum(dim=1).tolist() == [2, 0]
    scale = config.mllm.high_size / 32
    assert batch.part_boxes_BP4[0, 1].tolist() == [18 * scale, 3 * scale, 27 * scale, 12 * scale]
    with pytest.raises(InputError, match="boxes='truth'"):  # expressions have to be found somewhere
        batch_of([picture(0)], vocabulary, config)


@pytest.mark.parametrize("recipe", ALIGNS)
def test_the_stage_keeps_what_later_stages_train_in_fp32(recipe: str) -> None:
    align, joint = (KNOWN[name]().model for name in (recipe, recipe.removesuffix("_align")))
    assert not align.loss.teaches_masks and align.loss.text == 1.0 and not align.loss.box
    assert {*align.tuning.frozen} >= {"low", "high", "llm", "head", "mask_encoder"}
    later = {part for part in align.tuning.frozen if part not in joint.tuning.frozen}
    assert {*align.tuning.keep_fp32} == later - {"llm"}  # LoRA never trains the LLM's own weights


def test_a_step_without_any_mask_is_finite_and_teaches_no_mask_head(tmp_path: Path) -> None:
    """Plain answers in a stage that trains masks: a whole step may have no expression."""
    recipe = joint()
    config = replace(recipe.model, weights=whole(tmp_path).weights)
    model = built(config)
    texts = batch_of([described(0, True), described(1, False)], model.vocabulary, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    alone = do_step(Engine(model.train(), recipe), model, [texts], 200)
    assert not alone.skipped and alone.terms["mask"] == alone.terms["box"] == 0 < alone.terms["text"]
    moved = {part_of(name) for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert "llm" in moved and not moved & {"head", "box_head"}
    both = do_step(
        Engine(model, recipe), model, [texts, batch_of([picture(0)], model.vocabulary, config)], 200
    )
    assert not both.skipped and both.terms["mask"] > 0


# ---- the next stage


def test_the_high_tower_has_its_published_bits_after_the_align_stage(tmp_path: Path) -> None:
    config, lines = stage_a(tmp_path), []
    folder = saved(tmp_path, config)
    model = built(stage_b(folder), lines)
    never_rounded = built(replace(joint().model, weights=config.weights, tuning=TuningConfig()))
    published, own = never_rounded.mllm.high.state_dict(), model.mllm.high.state_dict()
    assert published.keys() == own.keys()
    assert all(
        torch.equal(own[name], value) and own[name].dtype == value.dtype for name, value in published.items()
    )
    assert not all(torch.equal(value, value.bfloat16().float()) for value in published.values())
    kept = load_file(folder / "model.safetensors")
    assert torch.equal(kept["head.prompt.0.weight"], model.head.prompt[0].weight)
    dtypes = [kept[name].dtype for name in ("head.prompt.0.weight", "mllm.llm.model.norm.weight")]
    assert dtypes == [torch.float32, torch.bfloat16]
    assert lines[0] == f"box head: new, {folder} has none" and model.box_head is not None


def test_a_stage_that_trains_rounded_weights_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, stage_a(tmp_path, keep_fp32=()))
    with pytest.raises(InputError, match=r"part\(s\) high head .*rounded to bf16.*keep_fp32 high head"):
        built(stage_b(folder))
    tuning = stage_b(folder).tuning
    built(stage_b(folder, tuning=replace(tuning, frozen=("low", "high", "head"))))  # stay frozen
    folder = saved(tmp_path / "whole_llm", stage_a(tmp_path / "whole_llm"))
    with pytest.raises(InputError, match=r"part\(s\) llm "):
        built(stage_b(folder, tuning=replace(tuning, lora_rank=0, token_rows="all")))


def test_rounded_parts_are_those_frozen_in_bf16_and_trained_now(tmp_path: Path) -> None:
    model = built(stage_b(saved(tmp_path, stage_a(tmp_path))))
    assert rounded_parts(model, TuningConfig(frozen=("low", "high", "llm"), frozen_dtype="bf16")) == ["high"]
    assert rounded_parts(model, TuningConfig(frozen=("low", "high", "llm"))) == []
    assert rounded_parts(model, model.config.tuning) == []  # what stage C does with stage B


def test_only_an_aligned_start_may_go_on_with_boxes_of_another_source(tmp_path: Path) -> None:
    config = stage_a(tmp_path)
    trained_with_truth = replace(config, loss=stage_b(tmp_path).loss)
    folder = saved(tmp_path, trained_with_truth)
    with pytest.raises(InputError, match="region tokens mean what their boxes are"):
        built(stage_b(folder))


def test_finetune_refuses_a_checkpoint_of_the_stage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="align stage, which trains no masks"):
        recipe_of(str(saved(tmp_path, stage_a(tmp_path))))


# ---- on several processes


TEXT_ALONE = (
    "--model.boxes truth --model.loss.mask 0 --model.loss.dice 0 --model.loss.quality 0 --model.loss.presence 0 "
    "--model.loss.dense 0 --model.loss.box 0 --model.tuning.frozen low high llm head --model.tuning.token_rows new"
)


@pytest.mark.system
@pytest.mark.parametrize(("stage", "options"), [(0, ""), (2, ""), (3, TEXT_ALONE)])
def test_two_processes_train_on_captions_alone(tmp_path: Path, stage: int, options: str) -> None:
    """With a mask head in the loss, and no mask in any step of any process; and without."""
    rows = [
        {
            "image": f"{i}.png",
            "width": 40,
            "height": 30,
            "regions": [{"xyxy": [0, 0, 9, 9], "caption": "a cup"}],
        }
        for i in range(4)
    ]
    for row in rows:
        photo(tmp_path / "data/region_captions" / row["image"])
    (tmp_path / "data/region_captions/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = (
        "tiny_scenes --data.source region_captions --data.warmup_images 0 "
        "--data.batch_images 4 --optim.steps 2 "
        f"--engine.zero_stage {stage} --engine.device cpu --data {tmp_path}/data --out {tmp_path}/run {options}"
    ).split()
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "train",
    ]
    run = subprocess.run(
        launch + words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    steps = list(read_log(tmp_path / "run/log.jsonl"))
    assert len(steps) == 2 and all(step["text"] > 0 and not step["skipped"] for step in steps)
    assert [step.get("mask") for step in steps] == ([None] * 2 if options else [0, 0])
    assert [step["drawn"]["region_captions/train texts"] for step in steps] == [4, 4]
