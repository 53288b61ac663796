"""The model card beside exported weights: what a checkpoint and its run recorded, and nothing else.

Recipe and data (with what the leak guard did) come from the checkpoint's recipe.json, the step from its state.json,
scores of exactly these weights from the run's metrics.json. Names of local folders are cut to their last part: a card
may be published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniresxx.checkpoints.folders import BEST, CARD, CHECKPOINTS, RECIPE, STATE, checkpoint_identity
from uniresxx.checkpoints.tensors import CONFIG, read_json
from uniresxx.data.catalog import SCENES
from uniresxx.data.guard import lines_of_report
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.scoring.tally import parts_scored

METRICS = "metrics.json"
SHOWN = ("gIoU", "cIoU", "Pr@0.5", "N-acc", "T-acc")
UNKNOWN = "Not recorded beside these weights."
_HUB_ID = re.compile(r"[\w-]+/[\w.-]+(@[\w./-]+)?")


def card_of(config: UniRESPlusPlusConfig, source: Path | None) -> str:
    """The card of a model loaded from `source` (None: never trained or saved).

    An exported folder has no recipe.json: its card is copied, but for the line of the adapters, which may have
    been merged or taken out since.
    """
    if source is not None and not (source / RECIPE).is_file() and (source / CARD).is_file():
        card = (source / CARD).read_text(encoding="utf-8")
        return re.sub(r"^- adapters: .*$", lambda _: _adapted(config), card, flags=re.MULTILINE)
    about = _json(source, RECIPE)
    run = source.parent.parent if source is not None and source.parent.name == CHECKPOINTS else source
    data = [item for item in about.get("training_data", []) if isinstance(item, dict)]
    parts = [
        _head(config, data),
        "# UniRES++\n\nPoint at a part, an object, several objects or something that is not there, with words, "
        "and get its mask.",
        "## Use\n\n```python\nfrom transformers import AutoModel, AutoProcessor\n"
        "from uniresxx import register_auto_classes\n\nregister_auto_classes()\n"
        'model, processor = AutoModel.from_pretrained("FOLDER"), AutoProcessor.from_pretrained("FOLDER")\n'
        'answers = model.predict(processor(images="photo.jpg", text=["the left wheel of the red car"]))\n```\n\n'
        "The classes are those of the package `uniresxx`; no code of this repository is executed.",
        f"## Recipe\n\n{_recipe(config, about, source)}",
        f"## Data and guard\n\n{_data(data)}",
        f"## Metrics\n\n{_metrics(run, source)}",
        f"## Licence\n\n{_licence(config, data)}",
    ]
    return "\n\n".join(parts) + "\n"


def saw_only_scenes(folder: Path) -> bool:
    """Whether the model of a checkpoint was trained from random weights on the project's drawn scenes alone."""
    data = [item for item in _json(folder, RECIPE).get("training_data", []) if isinstance(item, dict)]
    weights = read_json(folder / CONFIG).get("weights")
    named = isinstance(weights, dict) and any(weights.values())
    return bool(data) and not named and all(_is_drawn(item) for item in data)


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    return read_json(folder / name) if folder is not None and (folder / name).is_file() else {}


def _head(config: UniRESPlusPlusConfig, data: Sequence[Mapping[str, Any]]) -> str:
    """The block that the Hub reads."""
    free = not _pretrained(config) and data and all(_is_drawn(item) for item in data)
    licence = "apache-2.0" if free else "other"
    return (
        f"---\nlicense: {licence}\nlibrary_name: transformers\npipeline_tag: image-segmentation\n"
        "tags:\n- uniresxx\n- referring-expression-segmentation\n---"
    )


def _is_drawn(item: Mapping[str, Any]) -> bool:
    """Whether an entry of the training data is drawn by the project itself; own data may have any name."""
    guard = item.get("guard")
    mode = guard.get("mode") if isinstance(guard, dict) else None
    return str(item.get("data", "")).partition("/")[0] in SCENES and mode in (None, "drawn")


def _pretrained(config: UniRESPlusPlusConfig) -> dict[str, str]:
    """Named pretrained parts, local folders by their last part."""
    w = config.weights
    named = {"llava": w.llava, "low": w.low, "high": w.high, "sam": w.sam, "owlv2": w.owlv2,
             "start": w.start}  # fmt: skip
    return {part: source if _HUB_ID.fullmatch(source) else Path(source).name
            for part, source in named.items() if source}  # fmt: skip


def _recipe(config: UniRESPlusPlusConfig, about: Mapping[str, Any], source: Path | None) -> str:
    m = config.mllm
    lines = [
        f"- LLM: {m.llm['model_type']}, {m.llm_config.num_hidden_layers} layers of width {m.llm_width}; "
        f"towers: {m.low_size} px and {m.high_size} px",
        f"- mask head: {config.mask_head}; boxes: {config.boxes}; decision rule: {config.decision_rule}",
        _adapted(config),
    ]
    lines += [f"- pretrained {part}: {name}" for part, name in _pretrained(config).items()]
    recipe = about.get("recipe")
    if not isinstance(recipe, dict):
        return "\n".join([*lines, "", UNKNOWN if source else "Random weights: never trained."])
    optim, data = recipe.get("optim", {}), recipe.get("data", {})
    images = data.get("batch_images", 0) * data.get("accumulate", 1)
    step = _json(source, STATE).get("step")
    lines.insert(0, f"- recipe: `python -m train {recipe.get('name')}`, seed {recipe.get('seed')}")
    lines.append(
        f"- {step if step is not None else 'unknown'} of {optim.get('steps')} steps, {images} images per step, up to "
        f"{data.get('expressions_per_image')} expressions per image, learning rate {optim.get('lr')}"
    )
    return "\n".join(lines)


def _adapted(config: UniRESPlusPlusConfig) -> str:
    t = config.tuning
    lora = f"rank {t.lora_rank} on {', '.join(t.lora_targets)}" if t.lora_rank else "none"
    return f"- adapters: {lora}; frozen: {', '.join(t.frozen) or 'nothing'}"


def _data(data: Sequence[Mapping[str, Any]]) -> str:
    """One line per data set: its share of the expressions, and what kept benchmark photos out of training."""
    if not data:
        return UNKNOWN
    lines = ["| data | share | fingerprint | leak guard |", "|---|---|---|---|"]
    for item in data:
        guard = item.get("guard")
        known = isinstance(guard, dict) and "mode" in guard
        text = " ".join(lines_of_report(guard)) if known else UNKNOWN  # type: ignore[arg-type]
        name = str(item.get("data"))
        name = Path(name).name if name.startswith((".", "/", "~")) else name
        fingerprint = str(item.get("fingerprint") or "")[:12]
        lines.append(f"| {name} | {float(item.get('share', 0)):.0%} | {fingerprint} | {text} |")
    return "\n".join(lines)


def _metrics(run: Path | None, source: Path | None) -> str:
    """What was measured of these weights; in percent, a dash where a score is not defined."""
    best = _json(None if run is None else run / CHECKPOINTS, BEST)
    lines = []
    if best and source is not None and source.name.endswith(f"{best.get('step', -1):08d}"):
        lines = [f"Best of its run by {best.get('metric')}: {best.get('value')}.", ""]
    entries = [] if run is None or source is None else _entries(run, source)
    if not entries:
        return "\n".join([*lines, UNKNOWN])
    lines += [
        f"| benchmark | protocol | expressions | {' | '.join(SHOWN)} |",
        "|---" * (3 + len(SHOWN)) + "|",
    ]
    for entry in entries:
        overall = entry.get("overall", {})
        numbers = " | ".join("-" if overall.get(k) is None else f"{overall[k]:.1f}" for k in SHOWN)
        name = f"{entry.get('benchmark')}/{entry.get('split')}"
        lines.append(f"| {name} | {_asked(entry)} | {entry.get('n_expressions')} | {numbers} |")
    return "\n".join(lines)


def _entries(run: Path, source: Path) -> list[dict[str, Any]]:
    """Scores of exactly these weights. A run's metrics.json may also hold another checkpoint's or another model's:
    `python -m eval` writes the hash of the weights beside each. Without any, those of training at this step."""
    found = [
        entry
        for folder in (run, run / "eval")
        for entry in _listed(folder / METRICS)
        if entry.get("checkpoint")
    ]
    if found:
        own = checkpoint_identity(source).rpartition(":")[2]
        found = [entry for entry in found if str(entry["checkpoint"]).rpartition(":")[2] == own]
    return found or _listed(run / "eval" / source.name / METRICS)


def _listed(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found


def _asked(entry: Mapping[str, Any]) -> str:
    """The protocol, and every difference from scoring the whole benchmark by the model's own rule."""
    rejection = entry.get("rejection") or {}
    rule = rejection.get("rule") or "flag"
    above = "" if rejection.get("threshold") is None else f" above {rejection['threshold']:.4g}"
    parts = (
        str(entry.get("protocol")),
        "" if rule == "flag" else f"rejected by {rule}{above}",
        *(f"only {part}" for part in parts_scored(entry)),
        f"padded as for {entry['padded_world_size']} processes" if entry.get("padded_world_size") else "",
    )
    return ", ".join(part for part in parts if part)


def _licence(config: UniRESPlusPlusConfig, data: Sequence[Mapping[str, Any]]) -> str:
    """The terms that the project knows of."""
    lines = ["The code that makes and uses these weights is Apache-2.0."]
    parts, real = _pretrained(config), [str(item.get("data")) for item in data if not _is_drawn(item)]
    if parts:
        lines.append(f"The weights also carry the terms of the pretrained parts ({', '.join(parts)}).")
    if real:
        lines.append(
            "They were trained on annotations and photographs with terms of their own; see the data above."
        )
    lines += [f"Licence of {item.get('data')}: {item['licence']}." for item in data if item.get("licence")]
    if not parts and not real and data:
        lines.append("The weights come from drawn pictures alone and are Apache-2.0 too.")
    return " ".join(lines)
