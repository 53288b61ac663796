"""Finetuning: a checkpoint, the page's own example prepared into a store, and the program between them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch
from PIL import Image, ImageDraw

from mllm.config import MLLMConfig, tiny_llama
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit
from train.__main__ import main
from train.command_line import parse_finetune
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.checkpoints.tensors import load_weights
from uniresxx.cli.data import prepare
from uniresxx.errors import InputError
from uniresxx.model.build import build_for_training, open_vocabulary
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.segmenters.film_unet.config import FilmUNetConfig
from uniresxx.segmenters.film_unet.modeling import FilmUNet
from uniresxx.segmenters.load import load_segmenter

PAGE = Path(__file__).resolve().parents[1] / "docs" / "train.md"
SMALL = MLLMConfig(
    low=clip_vit(layers=1),
    llm=tiny_llama(num_hidden_layers=1, intermediate_size=128, vocab_size=400),
    max_objects=4,
    max_parts=4,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, a checkpoint that knows nothing, and `stores/mine`, made as the page says."""
    folder = tmp_path_factory.mktemp("own")
    vocabulary = Vocabulary.train(["the mug", "the blue mug"], SMALL.token_count)
    torch.manual_seed(0)
    save_pretrained(folder / "model", UniRESPlusPlusModel(UniRESPlusPlusConfig(mllm=SMALL), vocabulary))
    photos = folder / "mine" / "images" / "train2014"
    photos.mkdir(parents=True)
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).rectangle((8, 8, 40, 40), fill="red")
    picture.save(photos / "kitchen.png")
    text = PAGE.read_text(encoding="utf-8").split("## Your own data")[1]
    [example] = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    [command] = re.findall(r"^uniresxx data prepare (.*)$", text, re.M)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(example, str(PAGE), "exec"), {})
        assert prepare.main(command.split()) == 0
    return folder


def words(place: Path, *more: str) -> list[str]:
    start, store = str(place / "model"), str(place / "stores" / "mine")
    return ["--from", start, "--data", store, "--out", str(place / "run"), "--refusal_pictures", "0", *more]


def test_the_loss_falls_and_the_run_continues(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    options = [
        "--optim.steps",
        "24",
        "--optim.warmup_steps",
        "2",
        "--optim.lr",
        "3e-3",
        "--data.batch_images",
        "2",
    ]
    assert main(["finetune", *words(place, *options)]) == 0
    losses = [json.loads(line)["loss"] for line in (place / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 24 and fmean(losses[-4:]) < 0.6 * fmean(losses[:4])
    capsys.readouterr()
    assert main(["finetune", *words(place, *options)]) == 0
    assert "is finished" in capsys.readouterr().out
    found, start = load_segmenter(place / "run"), load_segmenter(place / "model")
    assert found.tokenizer.to_json() == start.tokenizer.to_json()
    assert main(["finetune", *words(place, *options, "--seed", "1")]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_the_checkpoint_decides_the_model_and_the_store_the_data(place: Path) -> None:
    found = parse_finetune(words(place))
    assert found.recipe.model.mllm == SMALL and found.recipe.model.weights.start == str(place / "model")
    assert found.data is None and found.recipe.data.source == str(place / "stores" / "mine")
    assert found.recipe.data.split == "train"
    named = parse_finetune(
        [*words(place)[:2], "--data", str(place / "mine"), "--out", "x", "--data.source", "grefcoco"]
    )
    assert named.data == place / "mine" and named.recipe.data.source == "grefcoco"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--data stores/mine --out x", "--from is missing"),
        ("--from nothing --data stores/mine --out x", "does not exist"),
        ("--from mine --data stores/mine --out x", "is not a checkpoint"),
        ("--from film --data stores/mine --out x", "FiLM-UNet"),
        ("--from model --data stores/mine", "--out"),
        ("--from model --out x", "--data is missing"),
        ("--from model --data mine --out x", "is no prepared store"),
        ("--from model --data stores/mine --data.source refcoco --out x", "is a store"),
        ("--from model --data stores/mine --optim.steps 0 --out x", "optim.steps"),
    ],
)
def test_wrong_finetune_options_are_one_line(
    place: Path, line: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if not (place / "film").exists():
        config = FilmUNetConfig(inputs=UniRESPlusPlusConfig(mllm=SMALL))
        save_pretrained(place / "film", FilmUNet(config, Vocabulary.train([], SMALL.token_count)))
    assert main(["finetune", *line.split()]) == 2
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1


def test_a_model_of_other_sizes_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", *words(place, "--model.mllm.llm", "num_hidden_layers=2")]) == 2
    assert "--model.weights.start" in capsys.readouterr().err


def test_help_needs_no_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_finetune(["--help"])
    assert end.value.code == 0 and "--from" in capsys.readouterr().out


def test_a_relative_store_is_recorded_by_its_full_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    line = "--from model --data stores/mine/train --out x"
    assert parse_finetune(line.split()).recipe.data.source == str(place / "stores" / "mine")
    with pytest.raises(InputError, match="no prepared store"):
        parse_finetune(["--from", "model", "--data", "stores/other", "--out", "x"])


def test_a_run_continues_where_its_start_is_gone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    shutil.copytree(place / "model", start)
    options = [
        "--data",
        str(place / "stores" / "mine"),
        "--data.batch_images",
        "2",
        "--log.overlay_every",
        "99",
    ]
    options += [
        "--refusal_pictures",
        "0",
        "--optim.decay",
        "constant",
        "--engine.device",
        "cpu",
        "--engine.threads",
        "1",
    ]

    def tune(out: str, steps: int, *more: str) -> int:
        words = ["--from", str(start), "--out", str(tmp_path / out), "--optim.steps", str(steps)]
        return main(["finetune", *words, *options, *more])

    assert tune("whole", 4) == 0
    assert tune("cut", 2) == 0
    shutil.rmtree(start)
    monkeypatch.setattr("uniresxx.model.build.load_sources", lambda *_: pytest.fail("the start was opened"))
    loaded: list[Path] = []
    monkeypatch.setattr(
        "uniresxx.model.from_folder.load_weights",
        lambda model, folder, device: loaded.append(folder) or load_weights(model, folder, device),
    )
    monkeypatch.setattr("train.loop.load_weights", lambda *_: pytest.fail("loaded twice"))
    assert tune("cut", 4) == 0
    assert loaded == [tmp_path / "cut" / "checkpoints" / "step_00000002"]
    hexes = [
        [json.loads(line)["loss_hex"] for line in (tmp_path / out / "log.jsonl").read_text().splitlines()]
        for out in ("whole", "cut")
    ]
    assert hexes[0] == hexes[1] and len(hexes[0]) == 4
    capsys.readouterr()
    assert tune("cut", 6, "--fresh") == 2
    assert "does not exist" in capsys.readouterr().err
    assert tune("another", 2) == 2


def test_a_run_starts_from_a_hub_id(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("mllm.loading.folder_of", lambda name: asked.append(name) or place / "model")
    recipe = parse_finetune(
        ["--from", "hub:mine/model@v1", *words(place)[2:4], "--out", str(tmp_path)]
    ).recipe
    assert recipe.model.weights.start == "hub:mine/model@v1" and recipe.model.mllm == SMALL
    model = build_for_training(recipe.model, open_vocabulary(recipe.model, []), lambda line: None)
    assert set(asked) == {"mine/model@v1", str(place / "model")}
    saved = load_segmenter(place / "model").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": recipe.to_dict()}))
    asked.clear()
    again = parse_finetune(["--from", "hub:mine/model@v1", *words(place)[2:4], "--out", str(tmp_path)]).recipe
    assert again == recipe and asked == []
