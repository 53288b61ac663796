"""docs/weights.md: its table and the recipes name the same weights, and its options are those of the command line."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from mllm.config import MLLMConfig
from mllm.pretrained_config import build_config, published_values
from mllm.source_config import FREE_IN_LANGUAGE_MODEL, FREE_IN_TOWER, refuse_other_config
from train.command_line import parse_plan
from train.recipes import KNOWN

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
HUB_ID = re.compile(r"[A-Za-z][\w-]*/[\w.-]*\w")


def rows() -> list[list[str]]:
    """The cells of the table of what training starts from."""
    table = PAGE.split("## What training starts from")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def ids_of(cell: str) -> list[str]:
    return [found for code in re.findall(r"`([^`]*)`", cell) for found in HUB_ID.findall(code)]


def docstrings() -> str:
    texts = []
    for path in sorted((ROOT / "train" / "recipes").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in (tree, *ast.walk(tree)):
            if isinstance(node, ast.Module | ast.FunctionDef):
                texts.append(ast.get_docstring(node) or "")
    return "\n".join(texts)


def test_the_table_and_the_docstrings_of_the_recipes_name_the_same_weights() -> None:
    table = [name for row in rows() for name in ids_of(row[1])]
    assert len(table) == len(set(table)) > 25
    owners = {name.partition("/")[0] for name in table}
    named = {found for found in HUB_ID.findall(docstrings()) if found.partition("/")[0] in owners}
    assert named == set(table)


def test_every_row_has_all_cells() -> None:
    for row in rows():
        assert len(row) == 5 and all(row), row
        sizes = re.findall(r"[\d.]+", row[2])
        assert not sizes or len(sizes) in (1, len(ids_of(row[1]))), row


@pytest.mark.parametrize("row", [row for row in rows() if "--model" in row[4]], ids=lambda row: row[0])
def test_the_options_of_a_row_are_accepted(row: list[str]) -> None:
    words = " ".join(code for code in re.findall(r"`([^`]*)`", row[4]) if code.startswith("--")).split()
    words += ["--model.mllm.high_stats", "clip"] if "owlv2" in row[4] else []
    for name in ids_of(row[1]):
        parse_plan(["uniresxx_7b", *(name if word == "ID" else word for word in words)], KNOWN)


def test_the_command_for_another_llava_gives_its_language_model() -> None:
    line = next(line for line in PAGE.splitlines() if "llava-v1.6-mistral-7b-hf --model" in line)
    words = shlex.split(line)[3:]
    model = parse_plan(words[: words.index("--out")], KNOWN).recipe.model.mllm
    check(MISTRAL, model, "llm")


# What the config.json of these repositories has beside keys that change no output.
VICUNA = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064}
VICUNA_AS_FIRST_PUBLISHED = {
    "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
MISTRAL = {
    "model_type": "mistral", "intermediate_size": 14336, "max_position_embeddings": 32768, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32064,
}  # fmt: skip
QWEN = {
    "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
    "intermediate_size": 9728, "max_position_embeddings": 40960, "max_window_layers": 36, "num_attention_heads": 32,
    "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
    "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
    "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
}  # fmt: skip


def check(values: dict[str, Any], model: MLLMConfig, part: str) -> None:
    """A published config is that of the recipe."""
    ours, free = {
        "llm": (model.llm_config, FREE_IN_LANGUAGE_MODEL),
        "low": (model.low_config, FREE_IN_TOWER),
    }[part]
    theirs = build_config(published_values(values, "x"), "x")
    refuse_other_config("x", theirs, ours, f"mllm.{part}", free)


@pytest.mark.parametrize(
    ("recipe", "part", "values"),
    [
        ("uniresxx_7b_align", "llm", VICUNA),
        ("uniresxx_7b_24gb_align", "llm", VICUNA_AS_FIRST_PUBLISHED),
        ("uniresxx_7b_align", "low", CLIP),
        ("uniresxx_qwen3_4b_align", "llm", QWEN),
        ("uniresxx_qwen3_4b_align", "low", SIGLIP),
    ],
)
def test_the_recipes_have_the_configs_of_the_weights_that_they_name(
    recipe: str, part: str, values: dict[str, Any]
) -> None:
    model = KNOWN[recipe]().model.mllm
    check(values, model, part)
    with pytest.raises(ValueError, match="num_attention_heads is 8 there"):
        check(values | {"num_attention_heads": 8}, model, part)
