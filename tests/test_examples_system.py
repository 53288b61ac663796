"""The three examples with real processes: fine-tune on own classes, compare with the start, a folder to COCO."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from mllm.config import MLLMConfig, tiny_llama
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit
from tests.test_system_flow import program
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
SIDE = 64


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, a checkpoint that knows nothing, six photos and their COCO file."""
    folder = tmp_path_factory.mktemp("examples")
    llm = tiny_llama(num_hidden_layers=1, intermediate_size=128, vocab_size=400)
    config = MLLMConfig(low=clip_vit(layers=1), llm=llm, max_objects=4, max_parts=4)
    torch.manual_seed(0)
    vocabulary = Vocabulary.train(["the mug", "the plate"], config.token_count)
    save_pretrained(folder / "model", UniRESPlusPlusModel(UniRESPlusPlusConfig(mllm=config), vocabulary))
    content: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 1, "name": "mug"}, {"id": 2, "name": "plate"}]
    (folder / "photos").mkdir()
    for number in range(6):
        name, left = f"{number}.png", 4 * number + 2
        picture = Image.new("RGB", (SIDE, SIDE), "steelblue")
        ImageDraw.Draw(picture).rectangle((left, 8, left + 20, 40), fill="firebrick")
        picture.save(folder / "photos" / name)
        content["images"].append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        outline = [left, 8, left + 21, 8, left + 21, 41, left, 41]
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1 + number % 2, "segmentation": [outline]}
        )
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def test_finetune_compare_and_export(place: Path) -> None:
    own = ("--photos", place / "photos", "--annotations", place / "instances.json")
    few = ("--optim.steps", 3, "--optim.warmup_steps", 1, "--data.batch_images", 2, "--refusal_pictures", 0)
    said = program(
        "examples.finetune_own_classes", *own, "--checkpoint", place / "model", "--out", place / "mine", *few
    )
    scores = place / "mine" / "scores" / "metrics.json"
    assert said.endswith(f"scores: {scores}\n")
    [metrics] = json.loads(scores.read_text())
    assert metrics["n_expressions"] == 2 and metrics["split"] == "val"  # photos 0 and 5

    run, photos = place / "mine" / "run", sorted((place / "photos").glob("*.png"))
    asked = ("--photos", *photos[:2], "--sentences", "the mug", "the plate", "--out", place / "compared")
    program("examples.compare_two_models", place / "model", run, *asked)
    rows = list(csv.DictReader((place / "compared" / "agreement.csv").open(newline="")))
    assert len(rows) == 4 and all(0 <= float(row["iou"]) <= 1 for row in rows)
    differ = [row for row in rows if float(row["iou"]) < 0.9]
    assert len(list((place / "compared").glob("*.png"))) == len(differ)

    program(
        "examples.folder_to_coco", place / "photos", "the mug", "--checkpoint", run, "--out", place / "coco"
    )
    found = COCO(place / "coco" / "instances.json")
    assert len(found.dataset["images"]) == 6
    assert all(found.annToMask(item).sum() == item["area"] for item in found.dataset["annotations"])


def test_a_checkpoint_that_is_not_there_is_one_line(place: Path) -> None:
    words = (place / "photos", "the mug", "--checkpoint", place / "nothing", "--out", place / "none")
    said = program("examples.folder_to_coco", *words, code=2)
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not (place / "none").exists()
