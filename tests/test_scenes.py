"""The embedded benchmark: pure, true by an independent path, of the promised shares."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniresxx.conversation.history import needed_turns
from uniresxx.conversation.phrases import asked_phrases
from uniresxx.data.dialogues.as_asked import true_answer
from uniresxx.data.dialogues.wording import number_answered
from uniresxx.data.scenes import benchmark_records, dense_classes, preset_of, scene_record, text_corpus
from uniresxx.data.scenes import inspect as scenes_inspect
from uniresxx.data.scenes.kinds import KINDS, PART_NAMES
from uniresxx.data.scenes.presets import HELD_OUT_COLOURS, HELD_OUT_PARTS
from uniresxx.data.scenes.record import build_scene
from uniresxx.data.scenes.solver import RELATIONS, Query, level_of, solve
from uniresxx.data.scenes.words import SYNONYMS, plural
from uniresxx.errors import InputError
from uniresxx.imaging.masks import area, decode
from uniresxx.types import Dialogue, Expression, Granularity, ImageRecord

BOTH = ("scenes_easy", "scenes")
MEASURED = [(name, split) for name in BOTH for split in preset_of(name).splits[1:]]


def _every(records: list[ImageRecord]) -> list[Expression]:
    return [expression for record in records for expression in record.expressions]


def _digest(record: ImageRecord) -> str:
    asked = [
        (e.expression_id, e.text, str(e.granularity), e.rle, e.level, e.twin) for e in record.expressions
    ]
    talk = [(d.dialogue_id, d.turns) for d in record.dialogues]
    whole = hashlib.sha256(repr((asked, talk)).encode())
    assert record.pixels is not None and record.dense is not None
    for array in (record.pixels, record.dense, record.boxes["object"], record.boxes["part"]):
        whole.update(array.tobytes())
    return whole.hexdigest()


# -- purity ---------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    keys=st.lists(
        st.tuples(st.sampled_from(BOTH), st.sampled_from(["train", "val"]), st.integers(0, 10**6), st.integers(0, 9)),
        min_size=2, max_size=4, unique=True,
    ),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_record_does_not_depend_on_what_was_drawn_before(keys: list, seed: int) -> None:
    first = {key: _digest(scene_record(key[0], key[1], key[2], key[3])) for key in keys}
    shuffled = list(keys)
    random.Random(seed).shuffle(shuffled)
    np.random.seed(seed)  # the global generator must not matter
    for key in shuffled:
        assert _digest(scene_record(key[0], key[1], key[2], key[3])) == first[key]


@pytest.mark.parametrize("name", BOTH)
def test_index_seed_and_split_all_change_the_picture(name: str) -> None:
    base = ("train", 3, 0)
    others = [("train", 4, 0), ("train", 3, 1), ("val", 3, 0)]
    digests = {_digest(scene_record(name, *key)) for key in [base, *others]}
    assert len(digests) == 4


# -- truth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_masks_of_plain_texts_equal_a_map_of_kinds_and_parts(name: str) -> None:
    """An independent path: names in the text -> dense labels -> mask, for texts that need nothing else."""
    preset = preset_of(name)
    checked = 0
    for index in range(50):
        record = scene_record(name, "val", index)
        assert record.dense is not None
        kind_yx, part_yx = record.dense[..., 0], record.dense[..., 2]
        for e in record.expressions:
            if e.rle is None or e.level != 1:
                continue
            if any(word in e.text for word in (" and ", "left", "right", "also", "together", "well as")):
                continue
            want = kind_yx == preset.kinds.index(e.source["kind"]) + 1
            if e.source["part"]:
                want &= part_yx == PART_NAMES.index(e.source["part"]) + 1
            assert np.array_equal(decode(e.rle), want), (e.expression_id, e.text)
            checked += 1
    assert checked > 60


def _read_things(
    record: ImageRecord, kinds_: tuple[str, ...], colours: tuple[str, ...]
) -> list[tuple[str, str, float, np.ndarray]]:
    """(kind, colour, centre x, mask) of each thing from labels and boxes alone; easy things never overlap."""
    assert record.dense is not None
    things = []
    for x0, y0, x1, y1 in record.boxes["object"].astype(int):
        inside = record.dense[y0:y1, x0:x1]
        for kind, colour in {(int(k), int(c)) for k, c, _ in inside.reshape(-1, 3)} - {(0, 0)}:
            mask = np.zeros(record.dense.shape[:2], dtype=bool)
            mask[y0:y1, x0:x1] = (inside[..., 0] == kind) & (inside[..., 1] == colour)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            if (rows[0], rows[-1], columns[0], columns[-1]) == (y0, y1 - 1, x0, x1 - 1):
                middle = float(np.nonzero(mask)[1].mean())
                things.append((kinds_[kind - 1], colours[colour - 1], middle, mask))
    assert len(things) == len(record.boxes["object"])
    return things


def test_easy_texts_parsed_again_give_the_same_mask() -> None:
    """Read the words of easy objects and groups back, without the solver."""
    preset = preset_of("scenes_easy")
    checked = 0
    for index in range(80):
        record = scene_record("scenes_easy", "test", index)
        assert record.dense is not None
        things = _read_things(record, preset.kinds, preset.colours)
        for e in record.expressions:
            words = e.text.split()
            if "of" in words or "and" in words:
                continue
            kind = next(k for k in preset.kinds if words[-1] in (k, k + "s", k + "es"))
            chosen = [
                t for t in things if t[0] == kind and (t[1] in words or not set(preset.colours) & set(words))
            ]
            if chosen and "left" in words:
                chosen = [min(chosen, key=lambda t: t[2])]
            elif chosen and "right" in words:
                chosen = [max(chosen, key=lambda t: t[2])]
            elif chosen and "big" in words:
                chosen = [max(chosen, key=lambda t: t[3].sum())]
            elif chosen and "small" in words:
                chosen = [min(chosen, key=lambda t: t[3].sum())]
            if e.rle is None:
                assert not chosen, e.text
            else:
                expected = np.logical_or.reduce([t[3] for t in chosen])
                assert np.array_equal(decode(e.rle), expected), (e.expression_id, e.text)
                assert len(chosen) >= (2 if e.granularity is Granularity.MULTI else 1)
                if e.granularity is Granularity.OBJECT:
                    assert len(chosen) == 1
            checked += 1
    assert checked > 300


@pytest.mark.parametrize("name", BOTH)
def test_relations_and_orders_of_the_solver_against_pixels(name: str) -> None:
    """The clear answers of the solver hold for the visible pixels themselves."""
    preset = preset_of(name)
    checked = 0
    for index in range(40):
        scene = build_scene(preset, "val", index, 0)
        for kind in preset.kinds:
            for order in ("left", "right", "top", "bottom", "large"):
                answer = solve(scene, Query(kind, order=order))
                if answer is None or not answer.things:
                    continue
                masks = {t.index: scene.mask(t.paints) for t in scene.things if t.kind == kind}
                value = {
                    "left": lambda m: -np.nonzero(m)[1].mean(),
                    "right": lambda m: np.nonzero(m)[1].mean(),
                    "top": lambda m: -np.nonzero(m)[0].mean(),
                    "bottom": lambda m: np.nonzero(m)[0].mean(),
                    "large": lambda m: m.sum(),
                }[order]
                assert answer.things[0].index == max(masks, key=lambda i, v=value, m=masks: v(m[i]))
                checked += 1
    assert checked > 60


def test_relation_and_its_opposite_never_hold_together() -> None:
    preset = preset_of("scenes")
    opposite = dict(
        zip(RELATIONS, ("right of", "left of", "below", "above", "behind", "in front of"), strict=True)
    )
    held = 0
    for index in range(30):
        scene = build_scene(preset, "test", index, 0)
        single = [t for t in scene.things if level_of(scene, [t]) == 1]
        for one in single:
            for other in single:
                for relation in RELATIONS:
                    if one is other:
                        continue
                    there = solve(scene, Query(one.kind, relation=relation, anchor=Query(other.kind)))
                    back = solve(
                        scene, Query(other.kind, relation=opposite[relation], anchor=Query(one.kind))
                    )
                    # a above b exactly where b is below a
                    assert (there is None) == (back is None)
                    if there is not None and back is not None:
                        assert bool(there.things) == bool(back.things)
                        held += bool(there.things)
    assert held > 20


@pytest.mark.parametrize(("name", "split"), MEASURED)
def test_records_keep_the_contract(name: str, split: str) -> None:
    preset = preset_of(name)
    records = benchmark_records(name, split)
    every = _every(records)
    counts = [sum(e.granularity is g for e in every) for g in Granularity]
    assert tuple(counts) == preset.quota(split)
    assert len({e.expression_id for e in every}) == len(every)
    for record in records[:60]:
        assert record.pixels is not None and record.pixels.dtype == np.uint8 and record.dense is not None
        assert record.pixels.shape == record.dense.shape == (preset.side, preset.side, 3)
        assert len({e.text for e in record.expressions}) <= len(record.expressions) <= 12
        for e in record.expressions:
            assert (e.rle is None) == (e.granularity is Granularity.NONE)
            assert e.expression_id.startswith(f"{name}/{split}/")
            if e.rle is not None:
                assert e.rle["size"] == [preset.side, preset.side] and area(e.rle) == e.area
                assert e.area >= preset.min_part
                assert e.source["hidden"] and max(e.source["hidden"]) <= 0.6


@pytest.mark.parametrize("name", BOTH)
def test_dense_labels_and_boxes_agree_with_the_scene(name: str) -> None:
    classes = dense_classes(name)
    for index in range(20):
        record = scene_record(name, "train", index)
        assert record.dense is not None
        for channel, count in enumerate(classes):
            labels = set(np.unique(record.dense[..., channel])) - {255}
            assert max(labels) < count
        for x0, y0, x1, y1 in record.boxes["object"].astype(int):
            assert (record.dense[y0:y1, x0:x1, 0] > 0).any() and 0 <= x0 < x1 <= record.width
            assert 0 <= y0 < y1 <= record.height
        assert len(record.boxes["part"]) >= 1


# -- negatives, twins, held-out things --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "split"), MEASURED)
def test_every_negative_has_a_positive_twin_of_the_same_template(name: str, split: str) -> None:
    for record in benchmark_records(name, split):
        by_id = {e.expression_id: e for e in record.expressions}
        for e in record.expressions:
            if e.granularity is Granularity.NONE:
                positive = by_id[e.source["negative_of"]]
                assert positive.rle is not None and positive.text != e.text
                assert positive.source["template"] == e.source["template"]
                assert positive.level == e.level


@pytest.mark.parametrize("name", BOTH)
def test_twins_are_a_part_its_object_and_a_group_around_it(name: str) -> None:
    trios = 0
    for record in benchmark_records(name, "val"):
        by = {e.granularity: decode(e.rle) for e in record.expressions if e.twin and e.rle is not None}
        if len(by) == 3:
            part, whole, group = (by[g] for g in (Granularity.PART, Granularity.OBJECT, Granularity.MULTI))
            assert not (part & ~whole).any() and not (whole & ~group).any()
            assert group.sum() > whole.sum() >= part.sum()
            trios += 1
    assert trios > 60


def _shown_pairs(record: ImageRecord) -> set[tuple[int, int]]:
    assert record.dense is not None
    body = record.dense[record.dense[..., 2] == 0].astype(int)  # a part may wear a colour of its own
    return {divmod(int(code), 256) for code in np.unique(body[:, 0] * 256 + body[:, 1]) if code >= 256}


def test_held_out_pairs_stay_out_of_training() -> None:
    preset = preset_of("scenes")
    held = {(preset.kinds.index(k) + 1, preset.colours.index(c) + 1) for k, c in HELD_OUT_COLOURS}
    for split in ("train", "val", "crowded"):
        for index in range(50):
            record = scene_record("scenes", split, index)
            assert not _shown_pairs(record) & held
            for e in record.expressions:
                assert (e.source["kind"], e.source["part"]) not in HELD_OUT_PARTS
    wanted = {(preset.kinds.index(k) + 1, PART_NAMES.index(p) + 1) for k, p in HELD_OUT_PARTS}
    for index in range(60):
        dense = scene_record("scenes", "train", index).dense
        assert dense is not None
        codes = np.unique(dense[..., 0].astype(int) * 256 + dense[..., 2])
        assert not {divmod(int(code), 256) for code in codes} & wanted


def test_every_part_of_part_transfer_is_a_held_out_pair() -> None:
    parts = [
        e for e in _every(benchmark_records("scenes", "part_transfer")) if e.granularity is Granularity.PART
    ]
    assert {(e.source["kind"], e.source["part"]) for e in parts} == set(HELD_OUT_PARTS)


def test_held_out_pairs_are_known_separately() -> None:
    """Each kind, colour and part of a held-out pair is trained in other pairs."""
    preset = preset_of("scenes")
    for kind, colour in HELD_OUT_COLOURS:
        assert sum(k == kind for k, _ in HELD_OUT_COLOURS) < len(preset.colours)
        assert sum(c == colour for _, c in HELD_OUT_COLOURS) < len(preset.kinds)
    for kind, part in HELD_OUT_PARTS:
        assert set(KINDS[kind].parts) - {p for k, p in HELD_OUT_PARTS if k == kind}
        assert [k for k in preset.kinds if part in KINDS[k].parts and (k, part) not in HELD_OUT_PARTS]


def test_paraphrase_uses_words_or_templates_never_trained() -> None:
    new_words = {word for _, kept in SYNONYMS.values() for phrase in kept for word in phrase.split()}
    train = _every([scene_record("scenes", "train", index) for index in range(150)])
    trained_frames = {e.source["template"].split(" | ")[0] for e in train}
    trained_words = {word.strip(",") for e in train if not e.source["typo"] for word in e.text.split()}
    plain = {word for trained, _ in SYNONYMS.values() for phrase in trained for word in phrase.split()}
    for e in _every(benchmark_records("scenes", "paraphrase")):
        frame = e.source["template"].split(" | ")[0]
        words = {word.strip(",").removesuffix("s") for word in e.text.split()} | set(e.text.split())
        if not e.source["typo"]:
            assert frame not in trained_frames or words & (new_words - plain), e.text
    single = {kept[0] for _, kept in SYNONYMS.values() if " " not in kept[0]}
    assert not trained_words & single


# -- words and dialogues ----------------------------------------------------------------------------------------


def _talks(name: str, pictures: int) -> list[tuple[int, Dialogue]]:
    return [(i, d) for i in range(pictures) for d in scene_record(name, "train", i).dialogues]


@pytest.mark.parametrize("name", BOTH)
def test_dialogues_of_phrases_and_follow_ups_are_asked_as_they_are_taken_apart(name: str) -> None:
    several, follow, its, absent, unrelated = 0, 0, 0, 0, 0
    for _, dialogue in _talks(name, 50):
        for turn in dialogue.turns:
            if len(turn.phrases) > 1:
                assert asked_phrases(turn.question) == tuple(p.text for p in turn.phrases)
                several += 1
            for p in turn.phrases:
                assert (p.rle is None) == (p.granularity is Granularity.NONE)
                absent += p.rle is None
        said = [(turn.question, true_answer(turn)) for turn in dialogue.turns]
        places = needed_turns(said)[-1]
        last = dialogue.turns[-1]
        unrelated += len(said) > 1 and len(places) == 1
        if len(places) > 1:
            follow += 1
            assert places[0] == 0, dialogue
            if last.phrases and last.phrases[0].text.startswith("its ") and last.phrases[0].rle:
                whole = dialogue.turns[0].phrases[0]
                assert whole.rle and not (decode(last.phrases[0].rle) & ~decode(whole.rle)).any()
                its += 1
    assert min(several, follow, absent) > 30 and its > 10 and unrelated > 10, (
        several,
        follow,
        its,
        unrelated,
    )


@pytest.mark.parametrize("name", BOTH)
def test_plain_answers_are_true_and_numbers_come_alike_often(name: str) -> None:
    """The scene graph is counted anew from the words of the question."""
    preset, numbers, yes = preset_of(name), Counter(), Counter()
    singular = {plural(kind): kind for kind in preset.kinds} | {"things": None}
    for index, dialogue in _talks(name, 120):
        scene = build_scene(preset, "train", index, 0)
        for turn in (turn for turn in dialogue.turns if not turn.phrases):
            words = turn.question.strip("?.").split()
            colour = next((word for word in words if word in preset.colours), None)
            nouns = [singular.get(word, word) for word in words if word in singular or word in preset.kinds]
            if words[0] == "What" and not nouns:
                continue  # "What colour is it?", or a synonym
            found = [
                t
                for t in scene.things
                if (nouns[0] in (None, t.kind)) and (colour is None or t.colour == colour)
            ]
            if words[0] in ("How", "Count"):
                assert number_answered(turn.answer) == len(found), (turn, index)
                numbers[len(found)] += 1
            elif words[0] in ("Is", "Are"):
                assert turn.answer == ("Yes." if found else "No."), (turn, index)
                yes[bool(found)] += 1
            else:
                assert any(turn.answer == f"{t.colour.capitalize()}." for t in found), (turn, index)
    for number in range(5):
        assert 0.08 < numbers[number] / numbers.total() < 0.35, numbers
    assert 0.3 < yes[True] / yes.total() < 0.7


def test_the_wording_of_a_count_does_not_tell_the_number() -> None:
    """Guessing each wording's commonest number is right in about a third: kind, colour, colour and kind, or all."""
    preset, numbers = preset_of("scenes_easy"), {}
    for _, dialogue in _talks("scenes_easy", 600):
        for turn in (turn for turn in dialogue.turns if turn.question.startswith(("How many", "Count"))):
            words = turn.question.strip("?.").split()
            counted = (any(word in preset.colours for word in words), "things" in words)
            numbers.setdefault(counted, Counter())[number_answered(turn.answer)] += 1
    asked = sum(counts.total() for counts in numbers.values())
    assert len(numbers) == 4 and asked > 200
    assert sum(max(counts.values()) for counts in numbers.values()) / asked < 0.42, numbers


def test_corpus_is_a_prefix_of_itself_and_wrong_names_are_refused() -> None:
    long = text_corpus("scenes_easy", 300)
    assert len(long) == 300 and long[:100] == text_corpus("scenes_easy", 100)
    for call in (
        lambda: scene_record("scenez", "train", 0),
        lambda: scene_record("scenes_easy", "crowded", 0),
        lambda: benchmark_records("scenes", "train"),
    ):
        with pytest.raises(InputError, match=r"known|measured"):
            call()


# -- shares -----------------------------------------------------------------------------------------------------


def test_shares_of_scenes_are_those_promised() -> None:
    found = scenes_inspect.shares(benchmark_records("scenes", "test"))
    for level, share in ((1, 0.25), (2, 0.40), (3, 0.35)):
        assert abs(found.level[level] - share) < 0.04, found.level
    assert found.occluded >= 0.30 and found.most_hidden <= 0.60
    assert found.part_min >= 40 and found.part_median <= 0.015
    assert found.words[0] >= 4 and found.words[2] <= 14
    assert abs(found.telegraphic - 0.10) < 0.03 and abs(found.typos - 0.05) < 0.02
    assert min(found.templates.values()) >= 12
    assert found.twins > 0.9
    assert set(found.slots) == {"kind", "colour", "part", "relation", "anchor"}
    names = [part for kind in KINDS.values() for part in kind.parts]
    assert len(KINDS) == 12 and 30 <= len(names) <= 34 and 15 <= len(set(names)) <= 17
    assert sum(names.count(name) > 1 for name in set(names)) >= 7
    known, words = scenes_inspect.synonym_share("scenes")
    assert known / words >= 0.58


def test_shares_of_the_easy_preset_and_its_report() -> None:
    found = scenes_inspect.shares(benchmark_records("scenes_easy", "val"))
    assert found.level[3] == 0 and min(found.level[1], found.level[2]) > 0.35
    assert found.most_hidden == 0 and found.part_min >= 12
    assert min(found.granularity.values()) == 300
    text = scenes_inspect.report("scenes_easy")
    assert "levels 1 / 2 / 3" in text and "nothing about photographs" in text
