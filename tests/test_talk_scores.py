"""Scores of conversations, and chats of many turns against the same questions asked fresh."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval.talk import talk_rows
from uniresxx.errors import InputError
from uniresxx.evaluation.chats import evaluate_chats, score_chats, shuffled
from uniresxx.evaluation.talk_scores import TalkScores, sort_of, turns_that_point_back
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction, Segment
from uniresxx.types import (
    Decoding,
    Dialogue,
    Expression,
    Granularity,
    ImageRecord,
    Phrase,
    Question,
    Turn,
)

SIDE = 8


def square(x0, y0, x1, y1):
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return masks.encode(mask)


CAR, WHEEL, DOG = square(0, 0, 4, 4), square(0, 3, 2, 4), square(5, 5, 8, 8)
THERE, GONE = Granularity.OBJECT, Granularity.NONE


def found(*rles):
    """An answer with a segment per mask, None where it rejects."""
    segments = tuple(Segment("", rle, 0.9) for rle in rles)
    kept = [rle for rle in rles if rle is not None]
    return Prediction(not kept, kept[0] if kept else None, "x: [SEG].", segments=segments)


def said(text):
    return Prediction(True, None, text)


def test_a_list_is_right_only_if_all_its_phrases_are() -> None:
    turn = Turn("the car, the cat", (Phrase("the car", CAR, THERE), Phrase("the cat", None, GONE)))
    scores = TalkScores()
    for answer in (found(CAR, None), found(CAR, DOG), found(CAR), found(DOG, None), found(None, None)):
        scores.add(Dialogue("d", (turn,)), [answer])
    several = scores.entry()["several_phrases"]
    assert (several["n"], several["right"]) == (5, 40)  # a missing segment counts as rejected
    assert several["by_number"] == {"2": {"n": 5, "right": 40}}
    assert several["each_phrase"] == {"n": 10, "right": 70}


def test_first_turns_turns_that_point_back_and_unrelated_ones_are_counted_apart() -> None:
    talk = Dialogue("d", (
        Turn("the car", (Phrase("the car", CAR, THERE),)),
        Turn("the dog", (Phrase("the dog", DOG, THERE),)),
        Turn("the wheel of that car", (Phrase("the wheel", WHEEL, Granularity.PART),)),
    ))  # fmt: skip
    assert turns_that_point_back(talk) == {2}
    scores = TalkScores()
    scores.add(talk, [found(CAR), found(None), found(WHEEL)])
    entry = scores.entry()
    assert entry["first_turn"]["mIoU"] == entry["follow_up"]["mIoU"] == 100
    assert entry["unrelated_turn"]["mIoU"] == 0 and entry["unrelated_turn"]["n"] == 1


def test_plain_answers_are_scored_by_true_number_beside_chance() -> None:
    scores = TalkScores()
    for truth, answer in (
        ("One.", "one"),
        ("One.", "Two."),
        ("One.", "One."),
        ("Two.", " TWO. "),
        ("None.", "No."),
    ):
        scores.add(Dialogue("d", (Turn("How many cars are there?", answer=truth),)), [said(answer)])
    scores.add(Dialogue("d", (Turn("Is there a car?", answer="Yes."),)), [said("[SEG].")])
    plain = scores.entry()["plain"]
    counting = plain["counting"]
    assert (counting["n"], counting["right"], counting["chance"]) == (5, 60, 60)
    assert list(counting["by_answer"]) == ["none", "one", "two"]
    assert counting["by_answer"]["one"] == {"n": 3, "right": pytest.approx(200 / 3)}
    assert plain["yes_no"]["right"] == 0
    sorts = [
        sort_of(Turn("What colour is it?", answer="Red.")),
        sort_of(Turn("What is it?", answer="A car.")),
    ]
    assert sorts == ["colour", "other"]


# -- chats ------------------------------------------------------------------------------------------------------


def picture(number, texts=("the car", "the dog", "the cat", "its wheel")):
    rles = dict(zip(("the car", "the dog", "the cat", "its wheel"), (CAR, DOG, None, WHEEL), strict=True))
    expressions = tuple(
        Expression(f"x/val/{number}_{k}", text, GONE if rles[text] is None else THERE, rles[text])
        for k, text in enumerate(texts)
    )
    return ImageRecord(f"photo {number}", SIDE, SIDE, expressions, pixels=np.zeros((SIDE, SIDE, 3), np.uint8))


class Model:
    """Right about every question without history; any history confuses it."""

    decision_rule, question_template = "token", "Segment {expression}."

    def __init__(self):
        self.questions = []

    def encode_images(self, photos):
        return photos

    def answer(self, encoded, texts, decoding, on_text=None):
        assert decoding.template == "{expression}" and len(texts) == len(encoded)
        asked = [question for row in texts for question in row]
        assert all(isinstance(question, Question) for question in asked)
        self.questions += asked
        truth = {f"Segment {e.text}.": e.rle for e in picture(0).expressions}
        return [found(DOG if q.history and truth[q.text] != DOG else truth[q.text]) for q in asked]


def test_a_chat_sends_what_a_question_points_back_to_and_full_history_sends_all(tmp_path) -> None:
    model, records = Model(), [picture(k) for k in range(5)]
    entry = evaluate_chats(model, records, Decoding(), tmp_path, pictures=4, batch_images=3)
    assert entry is not None and entry["n_pictures"] == 4
    order = [e.text for e in shuffled(records[0])]
    assert entry["fresh"] == {"n": 12, "right": 100}
    pointing = order.index("its wheel")  # the only question that gets history, unless it is the first
    assert entry["chat"]["right"] == (100 if pointing == 0 else pytest.approx(100 * 2 / 3))
    right = sum(text == "the dog" for text in order[1:])
    assert entry["full_history"]["right"] == pytest.approx(100 * right / 3)
    assert set(entry["by_turn"]["chat"]) == {"1", "2", "3", "4"}
    assert all(q.history == () for q in model.questions if "dog" in q.text and len(q.history) == 0)
    longest = max(len(question.history) for question in model.questions)
    assert longest == 3


def test_chats_continue_where_they_stopped_and_a_missing_one_is_named(tmp_path) -> None:
    records = [picture(k) for k in range(3)]
    first = evaluate_chats(Model(), records, Decoding(), tmp_path, pictures=3)
    again = Model()
    assert evaluate_chats(again, records, Decoding(), tmp_path, pictures=3) == first and again.questions == []
    lines = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert [line["image_id"] for line in lines] == ["photo 0", "photo 1", "photo 2"]
    with pytest.raises(InputError, match="photo 9"):
        score_chats(tmp_path / "chats.jsonl", [picture(9)])
    assert (
        evaluate_chats(Model(), [picture(0, ("the car",))], Decoding(), tmp_path / "none", pictures=3) is None
    )


def test_the_report_has_a_row_for_each_measure() -> None:
    scores = TalkScores()
    turn = Turn("the car, the cat", (Phrase("the car", CAR, THERE), Phrase("the cat", None, GONE)))
    scores.add(Dialogue("d", (turn, Turn("How many cars?", answer="One."))), [found(CAR, None), said("One.")])
    share = {"n": 4, "right": 50.0}
    chats = {"turns": "2 to 12", "n_pictures": 4, "chat": share, "fresh": share, "full_history": share}
    rows = talk_rows({"dialogues": scores.entry(), "chats": chats})
    assert [row[0].strip() for row in rows] == [
        "several phrases at once, all right", "2 phrases", "counting", "one",
        "turns 2 to 12 of 4 chats, right", "with all earlier turns",
    ]  # fmt: skip
    assert talk_rows({}) == []
