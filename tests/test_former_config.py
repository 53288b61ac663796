"""Configs and recipes of earlier versions, with flat sizes of a Llama, mean what they meant."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from mllm.chat_templates import ChatTemplate
from mllm.config import MLLMConfig, tiny_llama
from train.command_line import parse
from train.recipe_changes import recipe_differences
from train.recipes import KNOWN
from uniresxx.errors import InputError
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.former_config import current_mllm

# What commit 576708e wrote for its defaults.
FLAT: dict[str, Any] = {
    "llm_width": 128, "llm_layers": 3, "llm_heads": 4, "llm_mlp": 384, "vocabulary": 1024, "llm_eps": 1e-6,
    "llm_rope_theta": 10000.0, "llm_context": 4096, "bos": None,
}  # fmt: skip


def former(**changes: Any) -> dict[str, Any]:
    """The `mllm` of a config.json of that version."""
    today = asdict(MLLMConfig())
    return {k: v for k, v in today.items() if k not in ("llm", "chat", "count_padding")} | FLAT | changes


def test_the_defaults_of_an_earlier_version_are_those_of_today() -> None:
    values = UniRESPlusPlusConfig().to_dict() | {"mllm": former()}
    del values["weights"]["llm"]
    assert UniRESPlusPlusConfig.from_dict(values) == UniRESPlusPlusConfig()


def test_flat_sizes_become_the_config_of_the_language_model() -> None:
    found = UniRESPlusPlusConfig.from_dict(
        UniRESPlusPlusConfig().to_dict()
        | {"mllm": former(llm_width=64, llm_eps=1e-5, llm_rope_theta=5e4, llm_context=512, bos=1)}
    ).mllm
    own = found.llm_config
    assert (own.hidden_size, own.rms_norm_eps, own.max_position_embeddings) == (64, 1e-5, 512)
    assert own.rope_parameters["rope_theta"] == 5e4 and own.num_key_value_heads == 4
    assert found.chat == ChatTemplate(before_image="<s><image>") and found.count_padding
    assert current_mllm(asdict(found)) == asdict(found)
    with pytest.raises(InputError, match=r"mllm\.bos=7"):
        UniRESPlusPlusConfig.from_dict(UniRESPlusPlusConfig().to_dict() | {"mllm": former(bos=7)})


@pytest.mark.parametrize("name", ["tiny_scenes", "film_unet_scenes"])
def test_a_run_of_an_earlier_version_continues(name: str) -> None:
    now = {"recipe": KNOWN[name]().to_dict()}
    saved = {"recipe": KNOWN[name]().to_dict()}
    model = saved["recipe"]["model"]
    inputs = model.get("inputs", model)
    sizes = inputs["mllm"]["llm"]
    inputs["mllm"] = {k: v for k, v in inputs["mllm"].items() if k not in ("llm", "chat", "count_padding")} | {
        **FLAT, "llm_layers": 2, "llm_mlp": 256, "vocabulary": sizes["vocab_size"],
    }  # fmt: skip
    del inputs["weights"]["llm"]
    assert recipe_differences(saved, now) == []
    inputs["mllm"]["llm_layers"] = 3
    (line,) = recipe_differences(saved, now)
    assert line.endswith("mllm.llm.num_hidden_layers: 3 -> 2")


def test_a_recipe_takes_changes_of_the_language_model() -> None:
    words = [
        "tiny_scenes",
        "--out",
        "x",
        "--model.mllm.llm",
        "num_hidden_layers=4",
        "rope_parameters.rope_theta=1e6",
    ]
    recipe = parse([*words, "--seed", "3"], KNOWN).recipe
    assert recipe.seed == 3
    expected = KNOWN["tiny_scenes"]().model.mllm.llm | {
        "num_hidden_layers": 4,
        "rope_parameters": {"rope_theta": 1e6},
    }
    assert recipe.model.mllm.llm == expected
    assert recipe.to_dict()["model"]["mllm"]["llm"] == expected
    again = UniRESPlusPlusConfig.from_dict(recipe.model.to_dict())
    assert again == recipe.model
    unchanged = parse(words[:3], KNOWN).recipe
    assert unchanged == KNOWN["tiny_scenes"]()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--model.mllm.llm_layers", "2"],
            "--model.mllm.llm_layers is now --model.mllm.llm num_hidden_layers=",
        ),
        (["--model.mllm.lm", "a=2"], "did you mean '--model.mllm.llm'?"),
        (["--model.mllm.llm", "gone"], "--model.mllm.llm: gone is not the config.json of a model"),
    ],
)
def test_wrong_changes_get_one_line(words: list[str], says: str) -> None:
    with pytest.raises(InputError) as error:
        parse(["tiny_scenes", "--out", "x", *words], KNOWN)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_sizes_are_read_from_the_config_alone() -> None:
    config = MLLMConfig(llm=tiny_llama(hidden_size=64, vocab_size=77))
    assert (config.llm_width, config.token_count, config.attention_width) == (64, 77, 64)
    wide = replace(
        config, llm={"model_type": "qwen3", "hidden_size": 64, "num_attention_heads": 4, "head_dim": 32}
    )
    assert (wide.llm_width, wide.attention_width, wide.token_count) == (64, 128, 151936)
