"""One scene as an ImageRecord: pixels, expressions with truth, dialogues, boxes and dense labels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from uniresxx.data.scenes.dialogues import make_dialogues
from uniresxx.data.scenes.draw import draw
from uniresxx.data.scenes.graph import Scene
from uniresxx.data.scenes.phrasing import (
    Style,
    draw_style,
    fits,
    fitting_style,
    misspell,
    phrase,
    template_of,
)
from uniresxx.data.scenes.presets import Preset, check_split, preset_of
from uniresxx.data.scenes.propose import Asker, Proposal
from uniresxx.data.scenes.solver import Answer, Query
from uniresxx.imaging.masks import encode
from uniresxx.types import Expression, Granularity, ImageRecord

PER_PICTURE = 12
_STREAMS = {
    "train": 0,
    "val": 1,
    "test": 2,
    "compositional": 3,
    "part_transfer": 4,
    "paraphrase": 5,
    "crowded": 6,
}
_TYPO = 0.052  # share of texts that get a slip; a few have no word long enough
# Tuned so that the shares of all expressions come out at 25 / 40 / 35 %: groups are hard to have at level 3.
_LEVEL_WEIGHTS = {"part": (0.66, 0.26, 0.08), "object": (0.17, 0.44, 0.39), "multi": (0.06, 0.34, 0.6)}
_EASY_WEIGHTS = (0.45, 0.55, 0.0)


@dataclass(slots=True)
class _Draft:
    """An expression in the making, with the query it was made from."""

    granularity: Granularity
    query: Query
    style: Style
    text: str
    level: int
    answer: Answer
    twin: bool = False
    negative_of: int | None = None
    slot: str | None = None


@dataclass(slots=True)
class _Sheet:
    """The drafts of one picture; every text comes once."""

    asker: Asker
    drafts: list[_Draft] = field(default_factory=list)
    proposals: list[Proposal | None] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)

    def spell(self, text: str) -> str:
        """The text, now and then with a slip."""
        if not self.asker.easy and self.asker.chance(_TYPO):
            return misspell(text, self.asker.rng)
        return text

    def add(self, granularity: Granularity, found: Proposal | None, style: Style, twin: bool = False) -> bool:
        """Write a positive down; False where there is none, no frame fits or the text was used."""
        fitted = _fit(found.query, style) if found else None
        if found is None or fitted is None:
            return False
        text = phrase(found.query, fitted)
        if text in self.texts:
            return False
        self.texts.add(text)
        self.proposals.append(found)
        self.drafts.append(
            _Draft(granularity, found.query, fitted, self.spell(text), found.level, found.answer, twin=twin)
        )
        return True

    def add_negative(self, at: int) -> bool:
        """Write down a negative of draft `at` in the very same template."""
        positive, found = self.drafts[at], self.proposals[at]
        if found is None:
            return False
        changed = self.asker.a_negative(found)
        if changed is None:
            return False
        slot, query = changed
        text = phrase(query, positive.style)
        same_template = template_of(query, positive.style) == template_of(positive.query, positive.style)
        if text in self.texts or not same_template or not fits(text, positive.style):
            return False
        if (
            positive.style.new_words
            and not positive.style.new_frame
            and not _has_new_words(query, positive.style)
        ):
            return False  # in `paraphrase` a negative is as new as its positive
        self.texts.add(text)
        self.proposals.append(None)
        self.drafts.append(
            _Draft(
                Granularity.NONE, query, positive.style, self.spell(text), positive.level, Answer((), ()),
                negative_of=at, slot=slot,
            )
        )  # fmt: skip
        return True


def _has_new_words(query: Query, style: Style) -> bool:
    """Does any word of the query have a held-out synonym?"""
    return phrase(query, style) != phrase(query, replace(style, new_words=False))


def _fit(query: Query, style: Style) -> Style | None:
    """A style whose text has an allowed length and which, if it shall be new, is new to training."""
    if style.new_words and not _has_new_words(query, style):
        style = replace(style, new_frame=True)
    return fitting_style(query, style)


def _style(sheet: _Sheet) -> Style:
    return draw_style(sheet.asker.rng, sheet.asker.easy, sheet.asker.split == "paraphrase")


def _add_trio(sheet: _Sheet) -> None:
    """Part, its object and the group it belongs to, asked in the same picture."""
    asker = sheet.asker
    things = [t for t in asker.scene.things if len(asker.by_kind[t.kind]) > 1 and asker.targetable(t, "held")]
    if asker.split == "compositional":
        marked = asker._of_level(2) + asker._of_level(3)
        things = [t for t in things if t in marked]
    # a colour group inside the kind group leaves more to be understood than "all cars"
    mixed = [t for t in things if 1 < asker.same_colour(t) < len(asker.by_kind[t.kind])]
    things = mixed if mixed and not asker.easy else things
    for _ in range(3):
        if not things:
            return
        thing = asker.pick(things)
        name = asker.name(thing)
        if name is None:
            continue
        part = asker.solved(replace(name, part=asker.word(asker.targetable(thing, "held"))))
        whole = asker.spoken(name, asker.solved(name))
        by_colour = asker.same_colour(thing) > 1 and asker.chance(0.6 if asker.easy else 0.9)
        group_query = Query(thing.kind, (thing.colour,) if by_colour else (), number=0)
        group = asker.solved(group_query)
        if part is None or whole is None or group is None or (asker.easy and whole.level > 2):
            continue
        styles = [_fit(p.query, _style(sheet)) for p in (part, whole, group)]
        if all(styles):
            for granularity, found, style in zip(Granularity, (part, whole, group), styles, strict=False):
                assert style is not None
                sheet.add(granularity, found, style, twin=True)
            return


def _quota(asker: Asker, split: str) -> dict[Granularity, int]:
    """How many expressions of each granularity this picture shall get."""
    if split == "part_transfer":
        numbers = (5, 2, 2, 3)
    elif split != "train":
        numbers = (3, 3, 3, 3)
    else:
        # 30 % part, 30 % object, 20 % multi, 20 % none on average
        mixes = ((4, 4, 2, 2), (4, 3, 3, 2), (4, 3, 2, 3), (3, 4, 2, 3), (3, 4, 3, 2))
        numbers = mixes[int(asker.rng.random() * len(mixes))]
    return dict(zip(Granularity, numbers, strict=True))


def _fill(sheet: _Sheet, granularity: Granularity, count: int) -> None:
    """Add positives until `count` of this granularity stand, within a bounded number of tries."""
    asker = sheet.asker
    propose = {"part": asker.a_part, "object": asker.an_object, "multi": asker.a_group}[granularity.value]
    weights = np.cumsum(_EASY_WEIGHTS if asker.easy else _LEVEL_WEIGHTS[granularity.value])
    have = sum(draft.granularity is granularity for draft in sheet.drafts)
    for _ in range(6 * count):
        if have >= count:
            return
        level = 1 + int(np.searchsorted(weights, asker.rng.random() * weights[-1], side="right"))
        found = propose(min(level, 3)) or propose(min(level, 3))
        have += sheet.add(granularity, found, _style(sheet))


def _drafts(asker: Asker) -> list[_Draft]:
    """All expressions of a picture as drafts."""
    sheet = _Sheet(asker)
    quota = _quota(asker, asker.split)
    _add_trio(sheet)
    for granularity in (Granularity.PART, Granularity.OBJECT, Granularity.MULTI):
        _fill(sheet, granularity, quota[granularity])
    positives = [int(at) for at in asker.rng.permutation(len(sheet.drafts))]
    left = quota[Granularity.NONE]
    for at in positives:
        if left == 0:
            break
        left -= sheet.add_negative(at)
    return sheet.drafts


def _expressions(scene: Scene, drafts: list[_Draft], prefix: str) -> tuple[Expression, ...]:
    out = []
    for number, draft in enumerate(drafts):
        mask = scene.mask(draft.answer.paints) if draft.answer.paints else None
        source: dict[str, object] = {
            "template": template_of(draft.query, draft.style),
            "kind": draft.query.kind,
            "part": draft.query.part,
            "telegraphic": draft.style.telegraphic,
            "typo": draft.text != phrase(draft.query, draft.style),
            "hidden": [round(1 - t.area / t.full_area, 3) for t in draft.answer.things],
        }
        if draft.negative_of is not None:
            source |= {"negative_of": f"{prefix}_{draft.negative_of}", "slot": draft.slot}
        out.append(
            Expression(
                f"{prefix}_{number}", draft.text, draft.granularity,
                None if mask is None else encode(mask), 0 if mask is None else int(mask.sum()),
                draft.level, prefix if draft.twin else None, source,
            )
        )  # fmt: skip
    return tuple(out)


def _boxes(scene: Scene) -> dict[str, np.ndarray]:
    """Truth boxes xyxy of visible things and visible parts, float32 (N, 4)."""
    objects = [thing.box for thing in scene.things]
    parts = []
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        window = scene.ids_yx[y0:y1, x0:x1]
        for units in thing.parts.values():
            for unit in units:
                seen = window == unit.paint
                xs, ys = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
                parts.append((x0 + xs[0], y0 + ys[0], x0 + xs[-1] + 1, y0 + ys[-1] + 1))
    return {
        "object": np.asarray(objects, dtype=np.float32).reshape(-1, 4),
        "part": np.asarray(parts, dtype=np.float32).reshape(-1, 4),
    }


def build_scene(preset: Preset, split: str, index: int, seed: int) -> Scene:
    """The picture and its graph; pure in (preset, split, index, seed)."""
    key = [seed, int(preset.easy), _STREAMS[split], index]
    return draw(preset, split, np.random.default_rng([*key, 0]))


def scene_record(preset: str, split: str, index: int, seed: int = 0) -> ImageRecord:
    """Picture number `index` of a split with up to 12 expressions and some dialogues.

    Pure: the same arguments give the same record, whatever was drawn before. Pixels uint8 (y, x, 3) RGB,
    dense uint8 (y, x, 3) = kind, colour, part (from 1 on, 0 none, 255 not taught). Raises InputError for an
    unknown preset or split.
    """
    numbers = preset_of(preset)
    check_split(numbers, split)
    scene = build_scene(numbers, split, index, seed)
    rng = np.random.default_rng([seed, int(numbers.easy), _STREAMS[split], index, 1])
    asker = Asker(scene, numbers, split, rng)
    prefix = f"{preset}/{split}/{seed}_{index}"
    drafts = _drafts(asker)
    dialogues = make_dialogues(asker, prefix)
    return ImageRecord(
        prefix, scene.side, scene.side, _expressions(scene, drafts, prefix), pixels=scene.pixels_yx3,
        dialogues=dialogues, boxes=_boxes(scene), dense=scene.dense_yx3,
        source={"preset": preset, "split": split, "index": index, "seed": seed},
    )  # fmt: skip
