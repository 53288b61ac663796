"""The two presets of the embedded benchmark and what is held out of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from uniresxx.errors import InputError

# the place of a split in this list is part of its random seed
SPLITS = ("train", "val", "test", "compositional", "part_transfer", "paraphrase", "crowded")


@dataclass(frozen=True, slots=True)
class Preset:
    """Numbers of one preset; lengths are pixels of its square picture."""

    name: str
    side: int
    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    objects: tuple[int, int]  # fewest and most objects of a picture
    sizes: tuple[int, int]  # longest side of an object
    easy: bool  # things apart and upright, levels 1-2, plain words
    min_part: int  # visible pixels of a part that is a target
    margin: float  # two positions closer than this are not ordered
    splits: tuple[str, ...]
    missing: float = 0.4  # share of things that lack an optional part: "the door of X" then means nothing
    # measured split -> expressions of part, object, multi, none
    quotas: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)

    def quota(self, split: str) -> tuple[int, int, int, int]:
        """Expressions of a measured split by granularity (part, object, multi, none)."""
        if split not in self.quotas:
            raise InputError(
                f"{self.name}/{split} is drawn without end; measured splits: {', '.join(self.splits[1:])}"
            )
        return self.quotas[split]


_EASY_KINDS = ("car", "house", "tree", "fish", "dog", "chair", "cup", "hammer")
_ALL_KINDS = (*_EASY_KINDS, "bus", "tower", "bird", "table")
_EASY_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
_QUARTER = (500, 500, 500, 500)

_EASY = Preset(
    name="scenes_easy", side=64, kinds=_EASY_KINDS, colours=_EASY_COLOURS, objects=(3, 5), sizes=(14, 26),
    easy=True, min_part=12, margin=4.0, splits=("train", "val", "test"),
    quotas={"val": (300, 300, 300, 300), "test": (1000, 1000, 1000, 1000)},
)  # fmt: skip
_FULL = Preset(
    name="scenes", side=128, kinds=_ALL_KINDS, colours=(*_EASY_COLOURS, "white", "black"), objects=(4, 8),
    sizes=(18, 58), easy=False, min_part=40, margin=6.0, splits=SPLITS,
    quotas={
        "val": (300, 300, 300, 300), "test": (1000, 1000, 1000, 1000), "compositional": _QUARTER,
        # our choice: a split about parts asks mostly for parts; the twin score also needs objects and groups
        "part_transfer": (1000, 300, 300, 400), "paraphrase": _QUARTER, "crowded": _QUARTER,
    },
)  # fmt: skip

# Held out of training in `scenes` (pairs: our choice): each kind, colour and part is trained in others.
HELD_OUT_COLOURS: frozenset[tuple[str, str]] = frozenset(
    {
        ("car", "purple"), ("house", "blue"), ("tree", "red"), ("fish", "green"), ("dog", "yellow"),
        ("chair", "orange"), ("cup", "black"), ("hammer", "white"), ("bus", "red"), ("tower", "yellow"),
        ("bird", "blue"), ("table", "green"),
    }
)  # fmt: skip
HELD_OUT_PARTS: frozenset[tuple[str, str]] = frozenset(
    {
        ("bus", "wheel"), ("tower", "window"), ("dog", "tail"), ("table", "leg"), ("bird", "head"), ("house", "door"),
    }
)  # fmt: skip


def preset_of(name: str) -> Preset:
    """The preset of a name; raises InputError that lists the known ones."""
    for preset in (_EASY, _FULL):
        if preset.name == name:
            return preset
    raise InputError(f"unknown scenes preset {name!r}; known: scenes_easy, scenes")


def check_split(preset: Preset, split: str) -> None:
    """Raise InputError where the preset has no such split."""
    if split not in preset.splits:
        raise InputError(f"{preset.name} has no split {split!r}; known: {', '.join(preset.splits)}")
