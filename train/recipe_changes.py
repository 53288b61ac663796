"""What may differ when a run continues, and the former names in the recipes of earlier versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from uniresxx.model.config import FORMER_DEFAULTS, FORMER_VALUES
from uniresxx.model.former_config import (
    LLM_FIELDS,
    TOWER_FIELDS,
    WEIGHTS_FIELDS,
    current_mllm,
    current_weights,
)

# Fields that change no weight: they may differ when a run continues.
FREE = (
    "log.", "eval.", "data.workers", "data.images", "data.max_bad_fraction",
    "engine.zero_stage", "engine.offload", "engine.device", "engine.threads", "engine.timeout_minutes",
)  # fmt: skip
GROWING = ("optim.steps", "optim.max_minutes")  # may become larger; None is no limit

# Former field -> its name today; None: the field is gone and changed no weight.
FORMER_FIELDS: dict[str, str | None] = {
    "data.lesson_images": "data.warmup_images",
    "data.bad_share": "data.max_bad_fraction",
    "data.feature_cache": None,
}
FORMER_FIELDS |= {f"model.mllm.{former}": f"model.mllm.llm {key}=" for former, (key, _) in LLM_FIELDS.items()}
FORMER_FIELDS |= {f"model.mllm.{former}": new and f"model.mllm.{new}" for former, new in TOWER_FIELDS.items()}
FORMER_FIELDS |= {f"model.weights.{former}": f"model.weights.{new}" for former, new in WEIGHTS_FIELDS.items()}

# Fields added since, and what the runs that lack them did.
ADDED_FIELDS: dict[str, Any] = {
    **{f"model.{head}.paint_regions": False for head in ("head", "sam", "sam2")},
    **{f"model.{head}.region_memory": False for head in ("sam", "sam2")},
    "model.sam2.fuse_early": False,
    "model.instances": 0,
    **{f"{model}.mllm.fusion_starts_as_low": False for model in ("model", "model.inputs")},
    "model.tuning.keep_fp32": [],
    "model.tuning.quantization": "none",
    **{f"{model}.weights.llm": None for model in ("model", "model.inputs")},
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def recipe_values(about: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe.json by dotted field, under the names of today, with the fingerprint of the data.

    How a step is cut into micro-batches may change, so only its number of images is among them. Sizes of a box head
    that the model does not have are not.
    """
    values: dict[str, Any] = {}
    for key, value in flatten(_with_current_names(about.get("recipe", {}))).items():
        name = FORMER_FIELDS.get(key, key)
        if name is not None:
            last = name.rpartition(".")[2]
            values[name] = FORMER_VALUES.get((last, value), value) if isinstance(value, str) else value
    if values.get("model.boxes") == "learned":
        values = flatten(FORMER_DEFAULTS, "model.") | values
    else:
        values = {key: value for key, value in values.items() if ".box_head." not in key}
    cut = "data.batch_images", "data.accumulate"
    if all(key in values for key in cut):
        values[" * ".join(cut)] = values.pop(cut[0]) * values.pop(cut[1])
    return values | {"data set": about.get("data", "")}


def _with_current_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's nested dicts with every `mllm` and `weights` under its present names."""
    current = {"mllm": current_mllm, "weights": current_weights}
    return {
        key: current.get(key, _with_current_names)(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
    }


def recipe_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines "field: saved -> now" for what forbids to continue the run of one recipe.json with another."""
    old, new = recipe_values(saved), recipe_values(now)
    old = {key: value for key, value in ADDED_FIELDS.items() if key in new} | old
    for key in GROWING:
        if key in old and key in new and _at_least(new[key], old[key]):
            del old[key], new[key]
    lines = differences(old, new)
    return [
        f"{line} (a run can become longer, not shorter)" if line.startswith(GROWING) else line
        for line in lines
    ]


def _at_least(value: float | None, least: float | None) -> bool:
    return value is None or (least is not None and value >= least)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines "key: saved -> now" for all keys but the `FREE` ones."""
    old, new = flatten(saved), flatten(now)
    return [
        f"{key}: {_shown(old, key)} -> {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if not key.startswith(FREE) and _shown(old, key) != _shown(new, key)
    ]


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(absent)"
