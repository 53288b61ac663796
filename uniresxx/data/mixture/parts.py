"""The data sets of a mixture as a recipe names them, and the mixtures that have a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uniresxx.errors import InputError


@dataclass(frozen=True)
class MixturePart:
    """One data set of a mixture. `weight` is its share of the expressions shown, relative to the other weights.

    Conversations of images without expressions count as expressions.
    """

    source: str  # NAME of a data set, or a prepared store: its folder, or its name below DIR or DIR/stores
    split: str = "train"
    weight: float = 1.0
    granularities: tuple[str, ...] = ()  # only expressions of these (and no conversations); (): everything


# Our choice: part 30, object 30, multi and none 25, semantic 5, reasoning 3, dialogue 7, with none at most a
# tenth of all. These are the data sets among them that have a reader.
REFCOCO_FAMILY = (
    MixturePart("refcoco", weight=10.0),
    MixturePart("refcoco+", weight=10.0),
    MixturePart("refcocog_umd", weight=10.0),
    MixturePart("grefcoco", weight=19.5, granularities=("multi",)),
    MixturePart("grefcoco", weight=5.5, granularities=("none",)),
)
# Our choice: as many captions of photos as of regions. Plain answers without masks, for the align stage.
CAPTIONS = (MixturePart("llava_pretrain"), MixturePart("visual_genome"))
MIXTURES: Mapping[str, tuple[MixturePart, ...]] = {"refcoco_family": REFCOCO_FAMILY, "captions": CAPTIONS}


def mixture_named(name: str) -> tuple[MixturePart, ...]:
    """The parts of a named mixture; InputError lists the known names."""
    if name not in MIXTURES:
        raise InputError(f"--data.mixture {name!r}: unknown; known: {', '.join(MIXTURES)}")
    return MIXTURES[name]
