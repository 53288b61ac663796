"""A pretrained model's own config as a plain dict: the keys of its config.json, `model_type` among them.

Such a dict names what differs from the defaults of transformers for that `model_type`. It holds JSON values only
(lists, no tuples), so that a config file gives it back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Keys of published files that say nothing about the model, and former names that transformers still accepts.
_BOOKKEEPING = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
_FORMER_NAMES = ("rope_theta", "rope_scaling")
_WORDS = {"True": True, "False": False, "None": None}


def build_config(values: Mapping[str, Any], field: str, **changes: Any) -> PreTrainedConfig:
    """The transformers config of such a dict.

    Args:
        values: the dict.
        field: where it stands, for error messages, such as "mllm.llm".
        changes: values that the caller decides.

    Raises:
        ValueError: unknown `model_type`, unknown keys, or values that the model refuses.
    """
    kind = _class_of(values, field)
    unknown = sorted(values.keys() - _known_keys(kind))
    if unknown:
        near = get_close_matches(unknown[0], sorted(_known_keys(kind)), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{field}: {values['model_type']} has no {', '.join(unknown)}{hint}")
    given = {key: value for key, value in values.items() if key not in ("model_type", *_BOOKKEEPING)}
    try:
        return kind(**(given | changes))
    except Exception as error:  # transformers' checks raise classes that differ from release to release
        raise ValueError(f"{field}: {' '.join(str(error).split())}") from error


def _class_of(values: Mapping[str, Any], field: str) -> type[PreTrainedConfig]:
    from transformers import CONFIG_MAPPING  # loads torch, which a command line must not wait for

    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        near = get_close_matches(str(model_type), list(CONFIG_MAPPING), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{field}: model_type {model_type!r} is unknown to transformers{hint}")
    kind: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return kind


def _known_keys(kind: type[PreTrainedConfig]) -> set[str]:
    return {*kind().to_dict(), *kind.attribute_map, *_BOOKKEEPING, *_FORMER_NAMES}


def read_config(path: Path) -> dict[str, Any]:
    """The dict of a published config.json, or of the folder that holds it, without keys that its model does not have.

    Raises:
        ValueError: no such file, or none of a model that transformers knows.
    """
    file = path / "config.json" if path.is_dir() else path
    return published_values(read_values(file), str(file))


def read_values(file: Path) -> dict[str, Any]:
    """All of a config.json as it is; ValueError where there is no such file, or it holds something else."""
    try:
        values = json.loads(file.read_text())
        return {**values}
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not the config.json of a model ({error!r})") from error


def published_values(values: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A published dict without keys that its model does not have; ValueError: its `model_type` is unknown."""
    known = _known_keys(_class_of(values, field)) - {*_BOOKKEEPING}
    return {key: value for key, value in values.items() if key in known}


def with_changes(values: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """The dict with the changes of a command line, one after another.

    Args:
        values: the dict before; it is not changed.
        words: `key=value`, with a JSON value or plain text, and dots for a dict inside
            (`rope_parameters.rope_theta=1e6`); `model_type=NAME` starts from the defaults of another model; a word
            without "=" is a config.json or the folder that holds it, and takes the place of all before it.

    Raises:
        ValueError: a word is neither.
    """
    changed = dict(values)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            changed = read_config(Path(word).expanduser())
            continue
        value = _value(text)
        if key == "model_type" and value != changed.get("model_type"):
            changed = {"model_type": value}
        else:
            changed = _with_value(changed, key.split("."), value)
    return changed


def _with_value(values: Mapping[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    first, *rest = keys
    inside = values.get(first)
    new = _with_value(inside if isinstance(inside, Mapping) else {}, rest, value) if rest else value
    return {**values, first: new}


def _value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
