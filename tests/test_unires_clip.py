"""UniRES from the folder of a CLIP: transformers' own outputs, interpolated positions, folders that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from mllm.tower_families import PIXEL_STATS, clip_vit
from train.__main__ import WRONG_INPUT
from train.__main__ import main as train
from train.finetune import recipe_of
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.errors import InputError
from uniresxx.segmenters.unires.build import build_unires_for_training, open_unires_vocabulary
from uniresxx.segmenters.unires.config import UniresConfig, clip_text
from uniresxx.segmenters.unires.modeling import Unires
from uniresxx.segmenters.unires.vocabulary import ClipVocabulary

VISION, TEXT = clip_vit(32, 4, 2, 64, 8), clip_text(24, 2, 2, 48, rows=300)
CONFIG = UniresConfig(
    vision=VISION, text=TEXT, size=32, pixel_stats="clip", low_groups=3, high_groups=2, width=32, heads=2,
    pretrained=True,
)  # fmt: skip


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(5)
    return CLIPModel(CLIPConfig(vision_config=VISION | {"image_size": 32}, text_config=TEXT)).eval()


@pytest.fixture
def folder(clip: CLIPModel, tmp_path: Path) -> Path:
    """A CLIP in transformers' layout, with a tokenizer and the published statistics."""
    place = tmp_path / "clip"
    clip.save_pretrained(place)
    (place / "tokenizer.json").write_text(ClipVocabulary.train(["the left square"] * 4, 300).to_json())
    mean, std = ([v / 255 for v in values] for values in PIXEL_STATS["clip"])
    (place / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    return place


def built(config: UniresConfig, log: list[str] | None = None) -> Unires:
    lines: list[str] = [] if log is None else log
    return build_unires_for_training(config, open_unires_vocabulary(config, []), lines.append).eval()


def test_both_encoders_are_those_of_the_folder(clip: CLIPModel, folder: Path) -> None:
    log: list[str] = []
    model = built(replace(CONFIG, low_groups=0, high_groups=0, clip=str(folder)), log)
    pixels_B3HW, ids_EQ = torch.randn(2, 3, 32, 32), torch.randint(2, 300, (3, 7))
    with torch.no_grad():
        image, text = model.vision(pixels_B3HW).tokens_BTD, model.text(ids_EQ).last_hidden_state
        expected = clip.vision_model(pixels_B3HW).last_hidden_state
        assert (image - expected).abs().max() <= 1e-5
        assert (text - clip.text_model(ids_EQ).last_hidden_state).abs().max() <= 1e-5
    assert [line.split(":")[0] for line in log] == ["image encoder", "text encoder"]


def test_positions_are_interpolated_as_transformers_does_it(clip: CLIPModel, folder: Path) -> None:
    model = built(replace(CONFIG, size=56, low_groups=0, high_groups=0, clip=str(folder)))
    pixels_B3HW = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        found = model.vision(pixels_B3HW).tokens_BTD
        expected = clip.vision_model(pixels_B3HW, interpolate_pos_encoding=True).last_hidden_state
    assert found.shape == (2, 50, 32) and (found - expected).abs().max() <= 1e-5


def test_the_words_are_those_of_transformers_tokenizer(tmp_path: Path) -> None:
    """CLIP's own tokenizer with few merges, and its file read here."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    names = [*letters, *(f"{c}</w>" for c in letters), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({n: i for i, n in enumerate(names)}, [("t", "h"), ("th", "e</w>")])
    tokenizer.save_pretrained(tmp_path)
    vocabulary = ClipVocabulary.load(tmp_path / "tokenizer.json")
    for text in ("the red cat", "The CAT", "a"):
        assert vocabulary.encode(text, 77) == tokenizer(text)["input_ids"]


def test_keys_that_old_releases_wrote_into_the_config_change_nothing(folder: Path) -> None:
    """The config.json of openai/clip-vit-* holds in both parts what transformers 4.16 knew of any model."""
    values = json.loads((folder / "config.json").read_text())
    old = {
        "add_cross_attention": False,
        "is_decoder": False,
        "pruned_heads": {},
        "top_k": 50,
        "eos_token_id": 2,
    }
    for part in ("text_config", "vision_config"):
        values[part] |= old
    (folder / "config.json").write_text(json.dumps(values))
    assert built(replace(CONFIG, clip=str(folder))).config.clip == str(folder)


def without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def with_tensor(name: str, *shape: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors") | {name: torch.zeros(shape)}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def with_values(file: str, path: tuple[str, ...], value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = inner = json.loads((folder / file).read_text())
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (folder / file).write_text(json.dumps(values))

    return change


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "a block is missing": (
        without("vision_model.encoder.layers.1.mlp.fc1.weight"), "1 missing: encoder.layers.1.mlp.fc1.weight",
    ),
    "a word is missing": (without("text_model.final_layer_norm.bias"), "1 missing: final_layer_norm.bias"),
    "one too many": (with_tensor("text_model.encoder.layers.9.mlp.fc1.bias", 48), "1 unexpected"),
    "nobody knows it": (with_tensor("audio_model.weight", 2), "1 unexpected: audio_model.weight"),
    "another shape": (
        with_tensor("vision_model.pre_layrnorm.weight", 16), "1 of another shape: pre_layrnorm.weight",
    ),
    "other heads": (
        with_values("config.json", ("vision_config", "num_attention_heads"), 4),
        "num_attention_heads is 4 there and 2 in vision",
    ),
    "another activation": (
        with_values("config.json", ("text_config", "hidden_act"), "gelu"), "'gelu' there and 'quick_gelu' in text",
    ),
    "other pixels": (
        with_values("preprocessor_config.json", ("image_mean",), [0.5] * 3), "pixel_stats='clip' has others",
    ),
    "another model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "clip_vision_model"}') and None,
        "not a CLIP with both encoders",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "another tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}") and None, "is not a tokenizer of CLIP",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "uniresxx convert"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(name: str, folder: Path) -> None:
    change, words = WRONG[name]
    change(folder)
    with pytest.raises(InputError) as refused:
        built(replace(CONFIG, clip=str(folder)))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_full_size_recipe_names_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.source", "scenes_easy", "--data.mixture", "", "--out", str(tmp_path / "run")]
    assert train(["unires_vit_b", *words]) == WRONG_INPUT
    error = capsys.readouterr().err
    assert "--model.clip" in error and "--model.start" in error and error.count("\n") == 1


def test_a_later_run_starts_from_an_earlier_one(tmp_path: Path) -> None:
    config = replace(CONFIG, pretrained=False)
    before = built(config)
    save_pretrained(tmp_path / "before", before)
    recipe = recipe_of(str(tmp_path / "before"))
    assert recipe.model.start == str((tmp_path / "before").resolve()) and recipe.data.dialogue_share == 0.0
    after = built(recipe.model)
    assert after.tokenizer.to_json() == before.tokenizer.to_json()
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name
    with pytest.raises(InputError, match=r"--model.start: .*does not fit"):
        built(replace(recipe.model, width=64))
    with pytest.raises(InputError, match=r"pretrained weights .* --model.clip"):
        built(CONFIG)
