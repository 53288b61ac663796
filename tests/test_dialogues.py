"""Conversations that teach: composed of annotations, and shown as inference asks them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from uniresxx.conversation.history import needed_turns, relevant_turns
from uniresxx.conversation.phrases import asked_phrases
from uniresxx.data.catalog import load_benchmark
from uniresxx.data.dialogues.as_asked import as_asked, true_answer
from uniresxx.data.dialogues.compose import composed_dialogues, usable_expressions
from uniresxx.data.dialogues.wording import ask_several, count_answer, number_answered
from uniresxx.data.mixture.batches import Batches
from uniresxx.data.mixture.mix import Origin
from uniresxx.imaging import masks
from uniresxx.types import Dialogue, Expression, Granularity, ImageRecord, Phrase, Turn

MINI_REAL = Path(__file__).resolve().parents[2] / "shared" / "mini_real"
SIDE = 10


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


CAR, WHEEL, DOOR, DOG = box(0, 0, 5, 5), box(0, 3, 2, 5), box(3, 0, 5, 3), box(6, 6, 9, 9)


def expression(text, mask, granularity=Granularity.OBJECT, instances=None, **source):
    rle = None if mask is None else masks.encode(mask)
    alone = None if instances is None else tuple(map(masks.encode, instances))
    return Expression(f"x/train/{text}", text, granularity, rle, source=source, instances=alone)


def record(*expressions):
    return ImageRecord("photo", SIDE, SIDE, expressions, pixels=np.zeros((SIDE, SIDE, 3), dtype=np.uint8))


def dialogues_of(item, seeds=40):
    return [d for seed in range(seeds) for d in composed_dialogues(item, (seed,))]


WHOLE = expression("the red car", CAR)
PART = expression("wheel of the red car", WHEEL, Granularity.PART, part="wheel")
OTHER_PART = expression("door of the red car", DOOR, Granularity.PART, part="door")
ANIMAL = expression("dog on the right", DOG)
BOTH = expression("everything", CAR | DOG, Granularity.MULTI, [CAR, DOG])
NOTHING = expression("the cat", None, Granularity.NONE)


def test_a_part_follows_its_whole_and_lies_on_it() -> None:
    found = [d for d in dialogues_of(record(WHOLE, PART, ANIMAL)) if len(needed_turns(said(d))[-1]) == 2]
    assert found
    for dialogue in found:
        first, second = dialogue.turns
        assert first.phrases[0].rle == WHOLE.rle and second.phrases[0].rle == PART.rle
        assert "car" not in second.question and "wheel" in second.question


def said(dialogue):
    return [(turn.question, true_answer(turn)) for turn in dialogue.turns]


def test_a_part_elsewhere_than_its_whole_is_not_asked_so() -> None:
    elsewhere = expression("wheel of the red car", DOG, Granularity.PART, part="wheel")
    assert all(len(n) == 1 for d in dialogues_of(record(WHOLE, elsewhere)) for n in needed_turns(said(d)))


def test_two_parts_of_one_owner_follow_each_other_without_the_whole() -> None:
    found = [d for d in dialogues_of(record(PART, OTHER_PART)) if len(needed_turns(said(d))[-1]) == 2]
    assert found
    for dialogue in found:
        first, second = (turn.phrases[0].rle for turn in dialogue.turns)
        assert {first["counts"], second["counts"]} == {PART.rle["counts"], OTHER_PART.rle["counts"]}
        assert "its" not in dialogue.turns[1].question.lower()  # of the wheel, or of the car?


def test_several_phrases_have_masks_of_their_own_and_one_is_there() -> None:
    same = expression("the vehicle", CAR)
    turns = [
        t for d in dialogues_of(record(WHOLE, same, ANIMAL, NOTHING)) for t in d.turns if len(t.phrases) > 1
    ]
    assert turns and any(p.rle is None for t in turns for p in t.phrases)
    for turn in turns:
        assert asked_phrases(turn.question) == tuple(p.text for p in turn.phrases)
        present = [p.rle["counts"] for p in turn.phrases if p.rle is not None]
        assert present and len(set(present)) == len(present)
        assert true_answer(turn).count("[SEG]") == len(present)


def test_nothing_but_absent_things_makes_no_list_and_no_question_answered_no() -> None:
    absent = [expression(f"the cat {k}", None, Granularity.NONE) for k in ("a", "b", "c")]
    for dialogue in dialogues_of(record(*absent)):
        assert all(len(turn.phrases) == 1 for turn in dialogue.turns)
    assert all(turn.answer is None for d in dialogues_of(record(WHOLE, ANIMAL)) for turn in d.turns)


def test_numbers_are_asked_only_where_the_instances_are_known() -> None:
    counted = [
        t for d in dialogues_of(record(WHOLE, BOTH, NOTHING), 80) for t in d.turns if "Count" in t.question
    ]
    truth = {"the red car": "One.", "everything": "Two.", "the cat": "None."}
    assert {t.answer for t in counted} == set(truth.values())
    assert all(t.answer == truth[t.question.removeprefix("Count ").strip(".")] for t in counted)
    unknown = expression("everything", CAR | DOG, Granularity.MULTI)
    assert not [t for d in dialogues_of(record(WHOLE, unknown)) for t in d.turns if "Count" in t.question]


def test_yes_and_no_come_alike_often() -> None:
    asked = [t for d in dialogues_of(record(WHOLE, ANIMAL, NOTHING), 200) for t in d.turns if t.answer]
    share = sum(t.answer == "Yes." for t in asked) / len(asked)
    assert len(asked) > 100 and 0.35 < share < 0.65
    assert all((t.answer == "No.") == ("cat" in t.question) for t in asked)


def test_texts_that_mean_two_things_point_back_or_are_lists_are_left_out() -> None:
    twice = [expression("a man", CAR), expression("A man.", DOG)]
    others = [expression(t, CAR) for t in ("the other one", "its wheel", "the car, the dog")]
    assert usable_expressions([*twice, *others, WHOLE, WHOLE]) == [WHOLE]
    assert dialogues_of(record(*twice, *others)) == []


def test_composing_is_a_pure_function_of_record_and_seed() -> None:
    item = record(WHOLE, PART, ANIMAL, BOTH, NOTHING)
    assert composed_dialogues(item, (3, 1)) == composed_dialogues(item, (3, 1))
    assert len({repr(composed_dialogues(item, (seed,))) for seed in range(10)}) == 10


@pytest.mark.skipif(not MINI_REAL.is_dir(), reason="the photographs are not there")
def test_real_annotations_give_all_sorts_with_their_own_masks() -> None:
    sorts = {"several": 0, "follow": 0, "words": 0, "unrelated": 0}
    for split in ("train", "val"):
        for item in load_benchmark(f"mini_real/{split}", MINI_REAL):
            known = {e.rle and e.rle["counts"] for e in item.expressions}
            for dialogue in dialogues_of(item, 5):
                last = needed_turns(said(dialogue))[-1]
                sorts["follow"] += len(last) > 1
                sorts["unrelated"] += len(dialogue.turns) > 1 and len(last) == 1
                sorts["words"] += any(turn.answer is not None for turn in dialogue.turns)
                sorts["several"] += any(len(turn.phrases) > 1 for turn in dialogue.turns)
                for phrase in (p for turn in dialogue.turns for p in turn.phrases):
                    assert (phrase.rle and phrase.rle["counts"]) in known
    assert min(sorts.values()) > 15, sorts


# -- as inference asks them -------------------------------------------------------------------------------------


def one(question, text, mask=CAR):
    kind = Granularity.NONE if mask is None else Granularity.OBJECT
    return Turn(question, (Phrase(text, None if mask is None else masks.encode(mask), kind),))


def test_each_turn_is_shown_with_what_it_points_back_to_and_nothing_else() -> None:
    car, cat, number, wheel = (
        one("the red car", "the red car"), one("the cat", "the cat", None),
        Turn("How many dogs are there?", answer="Two."), one("And its wheel?", "its wheel", WHEEL),
    )  # fmt: skip
    talk = Dialogue("talk", (car, cat, number, wheel))
    assert [d.turns for d in as_asked(talk)] == [(number,), (car, wheel)]
    history = [(t.question, true_answer(t)) for t in (car, cat, number)]
    assert relevant_turns(history, wheel.question) == (("the red car", "[SEG]."),)
    words = Dialogue("words", (number, Turn("What are they doing?", answer="They sleep.")))
    assert as_asked(words) == [words]


def test_a_list_shows_what_is_not_there() -> None:
    both = Turn("the car, the cat", (one("", "the car").phrases[0], one("", "the cat", None).phrases[0]))
    assert true_answer(both) == "the car: [SEG], the cat: [REJ]."
    assert as_asked(Dialogue("d", (both,))) == []  # each of them is an expression of the picture
    after = Turn(
        "its wheel and its door",
        (one("", "its wheel", WHEEL).phrases[0], one("", "its door", None).phrases[0]),
    )
    car = one("the red car", "the red car")
    shown = as_asked(Dialogue("d", (car, after)))
    assert [[turn.question for turn in d.turns] for d in shown] == [
        ["the red car", "Segment its wheel."],
        ["the red car", "Segment its door."],
    ]
    assert [d.turns[-1].phrases for d in shown] == [(phrase,) for phrase in after.phrases]


def test_lists_are_worded_so_that_they_can_be_taken_apart() -> None:
    rng = np.random.default_rng(0)
    texts = ["the dog", "its wheel", "all cups"]
    questions = {ask_several(texts, rng) for _ in range(60)}
    assert len(questions) > 12 and all(asked_phrases(q) == tuple(texts) for q in questions)
    for _ in range(20):
        question = ask_several(["a man with a hat", "a scarf"], rng)
        assert question is None or asked_phrases(question) == ("a man with a hat", "a scarf")


def test_numbers_are_said_and_understood() -> None:
    assert [number_answered(count_answer(n)) for n in range(13)] == list(range(13))
    assert number_answered("Red.") is None


class Source:
    """One record for every slot."""

    shares, box_levels = {"x": 1.0}, set()

    def __init__(self, item):
        self.item = item

    def __call__(self, slot, attempt=0):
        return self.item

    def origin(self, slot, attempt=0):
        return Origin("x", "x row 0", "")


class Shown:
    """A collator whose sample is the record."""

    reads_boxes = False

    def sample(self, item, photo, choices):
        return item


def test_a_mixture_composes_conversations_where_a_record_has_none() -> None:
    item = record(WHOLE, PART, ANIMAL, BOTH, NOTHING)
    off = Batches(Source(item), Shown(), 0, 1, 1, 4, 0.4)
    on = Batches(Source(item), Shown(), 0, 1, 1, 4, 0.4, compose_dialogues=True)
    assert all(off.draw(slot).counts["dialogues"] == 0 for slot in range(10))
    drawn = [on.draw(slot) for slot in range(60)]
    assert [d.sample for d in drawn] == [on.draw(slot).sample for slot in range(60)]
    share = np.mean([d.counts["dialogues"] for d in drawn]) / 4
    assert 0.4 < share <= 0.67  # of the branches 0.4, where the record gives so many
    assert all(
        a.sample.expressions == b.sample.expressions
        for a, b in zip(drawn, map(off.draw, range(60)), strict=True)
    )
    own = Dialogue("own", (Turn("How many?", answer="One."),))
    has = Batches(Source(ImageRecord(**{**fields_of(item), "dialogues": (own,)})), Shown(), 0, 1, 1, 4, 0.4,
                  compose_dialogues=True)  # fmt: skip
    assert {d for slot in range(10) for d in has.draw(slot).sample.dialogues} == {own}


def fields_of(item):
    return {name: getattr(item, name) for name in item.__slots__}
