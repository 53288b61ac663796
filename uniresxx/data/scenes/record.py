"""One scene as an ImageRecord: pixels, expressions with truth, dialogues, boxes and dense labels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from uniresxx.data.scenes.dialogues import make_dialogues
from uniresxx.data.scenes.draw import draw
from uniresxx.data.scenes.graph import Scene, bounding_box
from uniresxx.data.scenes.pairs import pair_expressions, with_pairs
from uniresxx.data.scenes.phrasing import Style, fitting_style, misspell, negative_phrase, phrase, template_of
from uniresxx.data.scenes.presets import SPLITS, Preset, check_split, preset_of
from uniresxx.data.scenes.propose import Proposal, Proposer
from uniresxx.data.scenes.solver import Answer, Query
from uniresxx.imaging.masks import encode
from uniresxx.types import Expression, Granularity, ImageRecord

_TYPO = 0.052  # share of texts that get a typo; a few have no word long enough
# Tuned so that all expressions together come out at 25 / 40 / 35 %: few groups can be asked for at level 3.
_LEVEL_WEIGHTS = {"part": (0.66, 0.26, 0.08), "object": (0.17, 0.44, 0.39), "multi": (0.06, 0.34, 0.6)}
_EASY_WEIGHTS = (0.45, 0.55, 0.0)


@dataclass(slots=True)
class _Draft:
    """An expression before its mask is encoded."""

    granularity: Granularity
    proposal: Proposal
    style: Style
    text: str
    twin: bool = False
    negative_of: int | None = None  # number of the positive draft
    slot: str | None = None  # what a negative changed


@dataclass(slots=True)
class _Drafts:
    """The drafts of one picture; no two have the same text."""

    proposer: Proposer
    items: list[_Draft] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)

    def with_typo(self, text: str) -> str:
        """The text, sometimes with a typo."""
        if not self.proposer.easy and self.proposer.chance(_TYPO):
            return misspell(text, self.proposer.rng)
        return text

    def add(
        self, granularity: Granularity, proposal: Proposal | None, style: Style, twin: bool = False
    ) -> bool:
        """Add a positive; False where there is no proposal, no frame fits, or the text is used already."""
        fitted = fitting_style(proposal.query, style) if proposal else None
        if proposal is None or fitted is None:
            return False
        text = phrase(proposal.query, fitted)
        if text in self.texts:
            return False
        self.texts.add(text)
        self.items.append(_Draft(granularity, proposal, fitted, self.with_typo(text), twin))
        return True

    def add_negative(self, number: int) -> bool:
        """Add a negative of draft `number` in the same template; False where there is none."""
        positive = self.items[number]
        style = positive.style
        changed = self.proposer.propose_negative(positive.proposal)
        if changed is None:
            return False
        slot, query = changed
        text = negative_phrase(query, positive.proposal.query, style)
        if text is None or text in self.texts:
            return False
        self.texts.add(text)
        nothing = Proposal(query, Answer((), ()), positive.proposal.level)
        text = self.with_typo(text)
        self.items.append(_Draft(Granularity.NONE, nothing, style, text, negative_of=number, slot=slot))
        return True


def _add_trio(drafts: _Drafts) -> None:
    """Add a part, its object and the group it belongs to, all asked in the same picture."""
    proposer = drafts.proposer
    things = [
        thing
        for thing in proposer.scene.things
        if len(proposer.by_kind[thing.kind]) > 1 and proposer.askable_parts(thing)
    ]
    if proposer.split == "compositional":
        allowed = proposer.things_of_level(2) + proposer.things_of_level(3)
        things = [thing for thing in things if thing in allowed]
    # a colour group inside a kind group needs more understanding than "all cars"
    mixed = [t for t in things if 1 < len(proposer.same_colour(t)) < len(proposer.by_kind[t.kind])]
    things = mixed if mixed and not proposer.easy else things
    for _ in range(3):
        if not things:
            return
        thing = proposer.pick(things)
        query = proposer.name_thing(thing)
        if query is None:
            continue
        part = proposer.solved(replace(query, part=proposer.pick(proposer.askable_parts(thing))))
        whole = proposer.named_in_words(proposer.solved(query))
        by_colour = len(proposer.same_colour(thing)) > 1 and proposer.chance(0.6 if proposer.easy else 0.9)
        group = proposer.solved(Query(thing.kind, (thing.colour,) if by_colour else (), number=0))
        if part is None or whole is None or group is None or (proposer.easy and whole.level > 2):
            continue
        styles = [fitting_style(p.query, proposer.draw_style()) for p in (part, whole, group)]
        if all(styles):
            for granularity, found, style in zip(Granularity, (part, whole, group), styles, strict=False):
                assert style is not None
                drafts.add(granularity, found, style, twin=True)
            return


def _quota(proposer: Proposer) -> dict[Granularity, int]:
    """How many expressions of each granularity this picture shall get."""
    if proposer.split == "part_transfer":
        numbers = (5, 2, 2, 3)
    elif proposer.split != "train":
        numbers = (3, 3, 3, 3)
    else:
        # 30 % part, 30 % object, 20 % multi, 20 % none on average
        mixes = ((4, 4, 2, 2), (4, 3, 3, 2), (4, 3, 2, 3), (3, 4, 2, 3), (3, 4, 3, 2))
        numbers = mixes[int(proposer.rng.random() * len(mixes))]
    return dict(zip(Granularity, numbers, strict=True))


def _fill(drafts: _Drafts, granularity: Granularity, count: int) -> None:
    """Add positives until there are `count` of this granularity, in at most 6 * count tries."""
    proposer = drafts.proposer
    propose = {
        "part": proposer.propose_part, "object": proposer.propose_object, "multi": proposer.propose_group,
    }[granularity.value]  # fmt: skip
    weights = np.cumsum(_EASY_WEIGHTS if proposer.easy else _LEVEL_WEIGHTS[granularity.value])
    present = sum(draft.granularity is granularity for draft in drafts.items)
    for _ in range(6 * count):
        if present >= count:
            return
        level = 1 + int(np.searchsorted(weights, proposer.rng.random() * weights[-1], side="right"))
        proposal = propose(min(level, 3)) or propose(min(level, 3))
        present += drafts.add(granularity, proposal, proposer.draw_style())


def _draft_expressions(proposer: Proposer) -> list[_Draft]:
    """All expressions of a picture as drafts."""
    drafts = _Drafts(proposer)
    quota = _quota(proposer)
    _add_trio(drafts)
    for granularity in (Granularity.PART, Granularity.OBJECT, Granularity.MULTI):
        _fill(drafts, granularity, quota[granularity])
    positives = [int(number) for number in proposer.rng.permutation(len(drafts.items))]
    missing = quota[Granularity.NONE]
    for number in positives:
        if missing == 0:
            break
        missing -= drafts.add_negative(number)
    return drafts.items


def _expressions(scene: Scene, drafts: list[_Draft], prefix: str) -> tuple[Expression, ...]:
    expressions = []
    for number, draft in enumerate(drafts):
        query, answer = draft.proposal.query, draft.proposal.answer
        mask = scene.mask(answer.paints) if answer.paints else None
        several = draft.granularity is Granularity.MULTI
        source: dict[str, object] = {
            "template": template_of(query, draft.style),
            "kind": query.kind,
            "part": query.part,
            "telegraphic": draft.style.telegraphic,
            "typo": draft.text != phrase(query, draft.style),
            "hidden": [round(1 - t.area / t.full_area, 3) for t in answer.things],
        }
        if draft.negative_of is not None:
            source |= {"negative_of": f"{prefix}_{draft.negative_of}", "slot": draft.slot}
        expressions.append(
            Expression(
                f"{prefix}_{number}", draft.text, draft.granularity,
                None if mask is None else encode(mask), 0 if mask is None else int(mask.sum()),
                draft.proposal.level, prefix if draft.twin else None, source,
                tuple(encode(scene.mask(t.paints)) for t in answer.things) if several else None,
            )
        )  # fmt: skip
    return tuple(expressions)


def _boxes(scene: Scene) -> dict[str, np.ndarray]:
    """Truth boxes xyxy of visible things and visible parts, float32 (N, 4)."""
    objects = [thing.box for thing in scene.things]
    parts = []
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        window = scene.paint_yx[y0:y1, x0:x1]
        for instances in thing.parts.values():
            for instance in instances:
                x, y, right, bottom = bounding_box(window == instance.paint)
                parts.append((x0 + x, y0 + y, x0 + right, y0 + bottom))
    return {
        "object": np.asarray(objects, dtype=np.float32).reshape(-1, 4),
        "part": np.asarray(parts, dtype=np.float32).reshape(-1, 4),
    }


def build_scene(preset: Preset, split: str, index: int, seed: int) -> Scene:
    """The picture and its graph; pure in (preset, split, index, seed)."""
    key = [seed, int(preset.easy), SPLITS.index(split), index]
    return draw(preset, split, np.random.default_rng([*key, 0]))


def scene_record(preset: str, split: str, index: int, seed: int = 0, pairs: int = 0) -> ImageRecord:
    """Picture number `index` of a split, with up to 12 expressions and up to 4 dialogues.

    Pure: the same arguments always give the same record.

    Args:
        preset: "scenes" or "scenes_easy".
        split: a split of the preset, such as "train" or "val".
        index: number of the picture, from 0 on without end.
        seed: another seed gives other pictures.
        pairs: of training: stage of `pair_expressions`, in the place of half of what is asked for; 0: none.

    Returns:
        A record with its pixels, uint8 (y, x, 3) RGB, and dense labels, uint8 (y, x, 3): kind, colour and part of
        each pixel, from 1 on; 0 is none, and part 255 must not be supervised.

    Raises:
        InputError: an unknown preset or split.

    Example:
        >>> scene_record("scenes_easy", "train", 0).width
        64
    """
    numbers = preset_of(preset)
    check_split(numbers, split)
    scene = build_scene(numbers, split, index, seed)
    rng = np.random.default_rng([seed, int(numbers.easy), SPLITS.index(split), index, 1])
    proposer = Proposer(scene, numbers, split, rng)
    prefix = f"{preset}/{split}/{seed}_{index}"
    drafts = _draft_expressions(proposer)
    dialogues = make_dialogues(proposer, prefix)
    expressions = _expressions(scene, drafts, prefix)
    if pairs and (both := pair_expressions(proposer, prefix, index, pairs)):
        expressions = with_pairs(expressions, both, index)
    return ImageRecord(
        prefix, scene.side, scene.side, expressions, pixels=scene.pixels_yx3,
        dialogues=dialogues, boxes=_boxes(scene), dense=scene.dense_yx3,
        source={"preset": preset, "split": split, "index": index, "seed": seed},
    )  # fmt: skip
