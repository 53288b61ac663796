"""The page about own data: its Python and its commands are run as they stand, in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from eval.__main__ import main as evaluate
from mllm.config import MLLMConfig, tiny_llama
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit
from train.__main__ import main as train
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.cli import main as program
from uniresxx.data.store.read import Store
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own_data.md"
SMALL = MLLMConfig(
    low=clip_vit(layers=1),
    llm=tiny_llama(num_hidden_layers=1, intermediate_size=128, vocab_size=400),
    max_objects=4,
    max_parts=4,
)


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    """The blocks of the page as (language, text), in a folder with a checkpoint runs/tiny that knows nothing."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    vocabulary = Vocabulary.train(["the mug", "all plate"], SMALL.token_count)
    save_pretrained(Path("runs/tiny"), UniRESPlusPlusModel(UniRESPlusPlusConfig(mllm=SMALL), vocabulary))
    return re.findall(r"^```(python|bash)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def run(line):
    match shlex.split(line):
        case ["uniresxx", *words]:
            return program(words)
        case ["python", "-m", "train", *words]:
            return train(words)
        case ["python", "-m", "eval", *words]:
            return evaluate(words)
    raise AssertionError(f"nothing runs {line!r}")


def test_the_page_runs_verbatim(blocks, capsys):
    for language, text in blocks:
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.splitlines():
            assert run(line) == 0, (line, capsys.readouterr().err)
    store = Store.open(Path("stores/kitchen"))
    counts = {split: entry["counts"]["expressions"] for split, entry in store.meta["splits"].items()}
    assert counts == {"train": 4, "val": 2}
    assert {item.text for item in store[0].expressions} == {"all mug", "the plate"}
    assert min(Image.open("kitchen.png").size) > 100
    printed = capsys.readouterr().out
    assert "photos: 3 of 3 found" in printed and "nothing wrong" in printed and "kitchen/val" in printed


def test_a_set_in_which_nothing_is_there_is_measured_but_not_trained_on(blocks, capsys):
    Path("photos").mkdir()
    Image.new("RGB", (64, 64), "white").save("photos/a.png")
    Path("s.csv").write_text("photo,mask,sentence\na.png,,the dog\n")
    words = "--photos photos --sentences s.csv --name nothing --licence own --out stores/nothing"
    assert program(["data", "prepare", "own", *words.split()]) == 0
    assert "no target" in capsys.readouterr().err
    command = "python -m train finetune --from runs/tiny --data stores/nothing --out runs/x"
    assert run(command) == 2
    error = capsys.readouterr().err
    assert "nothing/train: no target" in error and error.count("\n") == 1
    assert run("python -m eval run --checkpoint runs/tiny --benchmark stores/nothing --out runs/x") == 0


def test_the_card_of_a_model_names_own_data_and_its_licence(blocks, capsys):
    from uniresxx.hub.card import card_of

    exec(compile(blocks[0][1], str(PAGE), "exec"), {})
    words = (
        "--photos kitchen/photos --annotations kitchen/instances.json --name scenes --licence mine --out s"
    )
    assert program(["data", "prepare", "own", *words.split()]) == 0
    steps = "--optim.steps 1 --data.batch_images 1"
    assert run(f"python -m train finetune --from runs/tiny --data s --out runs/x {steps}") == 0
    (checkpoint,) = Path("runs/x/checkpoints").glob("step_*")
    card = card_of(UniRESPlusPlusConfig(mllm=SMALL), checkpoint)
    assert "| scenes/train | 100% |" in card and "Licence of scenes/train: mine." in card
    assert "license: other" in card and "own data is compared with no benchmark" in card
