"""The data sets of a mixture as a recipe names them, and the mixtures that have a name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from uniresxx.data.store.folder import store_named
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


# Our choice of shares for stage C: part 30, object 30, multi and none 25 (none at most a tenth of all), semantic 5,
# reasoning 3, conversations 7. Objects, multi and none:
REFCOCO_FAMILY = (
    MixturePart("refcoco", weight=10.0),
    MixturePart("refcoco+", weight=10.0),
    MixturePart("refcocog_umd", weight=10.0),
    MixturePart("grefcoco", weight=19.5, granularities=("multi",)),
    MixturePart("grefcoco", weight=5.5, granularities=("none",)),
)
# Our choice: as many captions of photos as of regions. Plain answers without masks, for stage A.
CAPTIONS = (MixturePart("llava_pretrain"), MixturePart("visual_genome"))
# Stage B: parts and objects at scale. A store of MRES-32M-like data is added on the command line: none is public.
GROUND = (
    MixturePart("composed_parts", weight=35.0),
    MixturePart("paco", weight=25.0),
    MixturePart("pascal_part", weight=15.0),
    MixturePart("partimagenet", weight=15.0),
    MixturePart("partimagenetpp", weight=10.0),
)
# Stage C: all granularities, and conversations.
JOINT = (
    MixturePart("composed_parts", weight=22.0),
    MixturePart("pascal_part", weight=4.0, granularities=("part",)),
    MixturePart("partimagenet", weight=4.0),
    *REFCOCO_FAMILY,
    MixturePart("ade20k", weight=2.0),
    MixturePart("cocostuff", weight=3.0),
    MixturePart("reasonseg", weight=0.5),
    MixturePart("mmr", weight=1.5),
    MixturePart("instructpart", weight=1.0),
    MixturePart("llava_instruct", weight=7.0),
)
MIXTURES: Mapping[str, tuple[MixturePart, ...]] = {
    "refcoco_family": REFCOCO_FAMILY,
    "captions": CAPTIONS,
    "ground": GROUND,
    "joint": JOINT,
}
_WRITTEN = re.compile(r"(?P<source>[^=\[\]]+?)(?:\[(?P<kinds>[a-z+]+)\])?=(?P<weight>[\d.]+)")


def mixture_named(name: str) -> tuple[MixturePart, ...]:
    """The parts of a named or written mixture, or of several of them joined; InputError lists the known names.

    Written: `NAME=WEIGHT`, `NAME[part+object]=WEIGHT`, where NAME may hold a split (`mmr/train`) or be a store. Items
    are separated by commas: `joint,stores/mine=10`.
    """
    parts: list[MixturePart] = []
    for item in name.split(","):
        found = _WRITTEN.fullmatch(item.strip())
        if item.strip() in MIXTURES:
            parts += MIXTURES[item.strip()]
        elif found is None:
            raise InputError(
                f"--data.mixture {item.strip()!r}: unknown; known: {', '.join(MIXTURES)}, or NAME=WEIGHT and "
                "NAME[part+object]=WEIGHT, separated by commas"
            )
        else:
            parts.append(_written(found["source"], found["kinds"], found["weight"]))
    return tuple(parts)


def _written(source: str, kinds: str | None, weight: str) -> MixturePart:
    try:
        number = float(weight)
    except ValueError:
        raise InputError(f"--data.mixture {source}={weight}: the weight must be a number") from None
    chosen = tuple(kinds.split("+")) if kinds else ()
    name, slash, split = source.rpartition("/")
    if slash and "/" not in name and store_named(source) is None:  # NAME/SPLIT, not the path of a store
        return MixturePart(name, split, number, chosen)
    return MixturePart(source, weight=number, granularities=chosen)
