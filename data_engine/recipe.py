"""Recipes: which steps run, in which order, with which models and limits. Built in, or a JSON file.

A file has the same content that `python -m data_engine plan RECIPE --json` prints: {"name", "steps": [{"step":
"detect", "model": {"kind", "source"}, …}, …], "pictures_per_shard", "budget"}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from data_engine.model import Model
from data_engine.steps.base import Step
from data_engine.steps.checks import Absent, RoundTrip
from data_engine.steps.given import Boxes
from data_engine.steps.groups import Combine
from data_engine.steps.objects import Detect, Segment
from data_engine.steps.parts import Parts
from data_engine.steps.words import Caption, Match
from uniresxx.cli import did_you_mean
from uniresxx.data.scenes.presets import preset_of
from uniresxx.errors import InputError

EASY = "scenes_easy"  # preset of the drawn scenes
STEPS: Mapping[str, type[Step]] = {
    step.NAME: step for step in (Detect, Boxes, Segment, Parts, Caption, Match, Combine, Absent, RoundTrip)
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run does.

    Args:
        name: of the data set; expression ids start with it.
        steps: in order.
        pictures_per_shard: about so many are done and kept together.
        budget: the share of the pictures that may fail before the run stops.
    """

    name: str
    steps: tuple[Step, ...]
    pictures_per_shard: int = 32
    budget: float = 0.02

    def as_json(self) -> dict[str, Any]:
        """The content of a recipe file; every option is named."""
        return {
            "name": self.name,
            "steps": [{"step": step.NAME, **asdict(step)} for step in self.steps],
            "pictures_per_shard": self.pictures_per_shard,
            "budget": self.budget,
        }


def drawn() -> Recipe:
    """Drawn scenes (scenes_easy), by components that know 200 labelled ones, checked by the model that we ship.

    For tests, and to see a whole run in a minute on a CPU; says nothing about photographs.
    """
    steps = (*_classical(200), RoundTrip(model=Model(kind="segmenter")))
    return Recipe("drawn", steps)


def drawn_1000() -> Recipe:
    """Drawn scenes by components that know 1,000 labelled ones (the first of scenes_easy/train), and by nothing else.

    The truth test of docs/data_engine.md.
    """
    return Recipe("drawn_1000", _classical(1000), pictures_per_shard=128)


def _classical(labelled: int) -> tuple[Step, ...]:
    """The steps for drawn scenes that need no weights."""
    scenes = Model(kind="drawn", source=f"{EASY}:{labelled}")
    return (
        Detect(model=scenes, vocabulary="drawn", min_score=0.5),
        Segment(model=scenes, min_quality=0.5, min_stability=0.8, min_area=0.004),
        Parts(model=scenes, vocabulary="drawn", min_score=0.6),
        Caption(model=scenes),
        Combine(vocabulary="drawn", colours=" ".join(preset_of(EASY).colours)),
    )


def photographs() -> Recipe:
    """Photographs: OWLv2 -> SAM 2.1 -> CLIPSeg within objects -> Qwen2.5-VL -> SigLIP -> OWLv2 again for negatives.

    Written for GPUs with 24 GB or more. Numbers are our choice, not yet measured on photographs. The round trip is
    left out until there is a model of full size: add {"step": "round_trip", "model": {"kind": "segmenter",
    "source": "RUN"}}.
    """
    owl = Model(kind="zero_shot", source="google/owlv2-large-patch14-ensemble")
    return Recipe(
        "engine",
        (
            Detect(model=owl, gpus=0.25),
            Segment(model=Model(kind="sam", source="facebook/sam2.1-hiera-large"), gpus=0.25),
            Parts(model=Model(kind="clipseg", source="CIDAS/clipseg-rd64-refined"), gpus=0.25),
            Caption(model=Model(kind="chat", source="Qwen/Qwen2.5-VL-3B-Instruct", dtype="bfloat16"), gpus=1),
            Match(model=Model(kind="two_towers", source="google/siglip-so400m-patch14-384"), min_object=0.05,
                  min_part=0.03, gpus=0.25),
            Combine(),
            Absent(model=owl, gpus=0.25),
        ),
        pictures_per_shard=64,
    )  # fmt: skip


BUILT_IN = {"drawn": drawn, "drawn_1000": drawn_1000, "photographs": photographs}


def recipe_named(name: str) -> Recipe:
    """A built-in recipe, or that of a JSON file. InputError naming what is wrong in it."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"{name!r} is no recipe: give {', '.join(BUILT_IN)} or the path of a JSON file"
            f"{did_you_mean(name, BUILT_IN)}"
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("steps"), list):
        raise InputError(f"{path}: must be an object with a list of steps")
    steps = tuple(_step(item, f"{path}: step {number}") for number, item in enumerate(content["steps"]))
    rest = {key: value for key, value in content.items() if key != "steps"}
    recipe = _typed(Recipe, {**rest, "steps": steps}, str(path))
    check(recipe, str(path))
    return recipe


def check(recipe: Recipe, where: str) -> None:
    """InputError where the steps cannot follow one another, or a number makes no sense."""
    order = [step.NAME for step in recipe.steps]
    if order[:2] not in (["detect", "segment"], ["boxes", "segment"]) or len(set(order)) < len(order):
        raise InputError(
            f"{where}: steps must start with detect or boxes, then segment, and each may come once: {order}"
        )
    if "caption" not in order or "combine" not in order[order.index("caption") :]:
        raise InputError(f"{where}: needs caption, and combine after it: {order}")
    late = {"match": "caption", "absent": "combine", "round_trip": "combine"}
    early = [
        name for name, before in late.items() if name in order and order.index(name) < order.index(before)
    ]
    if early or ("parts" in order and order.index("parts") > order.index("caption")):
        raise InputError(f"{where}: {', '.join(early) or 'parts'} comes too early or too late: {order}")
    if recipe.pictures_per_shard < 1 or not 0 <= recipe.budget <= 1:
        raise InputError(f"{where}: pictures_per_shard must be 1 or more, budget between 0 and 1")


def _step(content: Any, where: str) -> Step:
    if not isinstance(content, dict) or content.get("step") not in STEPS:
        name = content.get("step") if isinstance(content, dict) else content
        raise InputError(f"{where}: {name!r} is none of {', '.join(STEPS)}{did_you_mean(str(name), STEPS)}")
    values = {key: value for key, value in content.items() if key != "step"}
    step: Step = _typed(STEPS[content["step"]], values, where)
    return step


def _typed(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """A dataclass of JSON values; InputError for an unknown key, a missing one or a value of another type."""
    hints = get_type_hints(kind)
    known = [item.name for item in fields(kind)]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise InputError(f"{where}: unknown option {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    made = {}
    for key, value in values.items():
        hint = hints[key]
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
            value = _typed(hint, value, f"{where}: {key}")
        numbers = {float: (int, float), int: (int,)}.get(hint)
        wrong = numbers is not None and (isinstance(value, bool) or not isinstance(value, numbers))
        if wrong or (isinstance(hint, type) and numbers is None and not isinstance(value, hint)):
            raise InputError(f"{where}: {key} must be {hint.__name__}, not {value!r}")
        made[key] = value
    try:
        return kind(**made)
    except TypeError as error:
        raise InputError(f"{where}: {str(error).partition(') ')[2] or error}") from None
