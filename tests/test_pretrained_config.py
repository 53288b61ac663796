"""Configs of pretrained models as plain dicts: checked by transformers, changed by words of a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.pretrained_config import build_config, read_config, with_changes

LLAMA = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4}


def test_a_dict_names_what_differs_from_the_defaults_of_transformers() -> None:
    config = build_config(LLAMA | {"rope_theta": 5e5}, "mllm.llm", vocab_size=7)
    assert (config.hidden_size, config.vocab_size, config.rms_norm_eps) == (32, 7, 1e-6)
    assert config.rope_parameters["rope_theta"] == 5e5  # the former name of published files


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "lama"}, "model_type 'lama' is unknown to transformers; did you mean 'llama'"),
        ({"model_type": None}, "model_type None is unknown to transformers"),
        ({"hiden_size": 3}, "mllm.llm: llama has no hiden_size; did you mean hidden_size"),
        ({"hidden_size": "32"}, "mllm.llm: .*hidden_size.*expected int"),
        ({"hidden_size": 30}, "mllm.llm: .*30.*not a multiple"),
    ],
)
def test_wrong_values_are_refused_with_their_place(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        build_config(LLAMA | changes, "mllm.llm")
    assert "\n" not in str(refused.value)


def test_words_change_a_dict_and_leave_the_given_one_alone() -> None:
    before = {"model_type": "llama", "rope_parameters": {"rope_type": "default"}}
    words = [
        "num_hidden_layers=2",
        "rope_parameters.rope_theta=1e6",
        "tie_word_embeddings=True",
        "hidden_act=gelu",
    ]
    assert with_changes(before, words) == {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
        "hidden_act": "gelu",
    }
    assert before == {"model_type": "llama", "rope_parameters": {"rope_type": "default"}}
    assert with_changes(before, ["model_type=qwen3", "hidden_size=8"]) == {
        "model_type": "qwen3",
        "hidden_size": 8,
    }


def test_a_published_config_takes_the_place_of_the_dict(tmp_path: Path) -> None:
    published = {"architectures": ["X"], "model_type": "mistral", "hidden_size": 64, "left_over": 1}
    (tmp_path / "config.json").write_text(json.dumps(published))
    words = [str(tmp_path), "num_hidden_layers=1"]
    assert with_changes(LLAMA, words) == {"model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 1}
    with pytest.raises(ValueError, match=r"gone.* is not the config\.json of a model"):
        with_changes(LLAMA, [str(tmp_path / "gone")])
    with pytest.raises(ValueError, match="is not the config"):
        read_config(tmp_path / "config.txt")
