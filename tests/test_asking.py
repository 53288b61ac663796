"""Several phrases in one text: each is asked by itself, and the answers are joined."""

from __future__ import annotations

import numpy as np
import pytest

from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.segmenters.asking import answer_phrases, joined
from uniresxx.testing import ColourSegmenter
from uniresxx.types import Decoding, Question

TYPED = Decoding(template="{expression}")


@pytest.fixture
def photo() -> np.ndarray:
    """A red square on the left, a blue one on the right."""
    picture = np.full((20, 40, 3), 128, np.uint8)
    picture[5:10, 5:10] = (255, 0, 0)
    picture[5:15, 25:35] = (0, 0, 255)
    return picture


class Spy(ColourSegmenter):
    """Remembers what it was asked."""

    def answer(self, encoded, texts, decoding, on_text=None):
        self.asked = [[q if isinstance(q, Question) else Question(q) for q in row] for row in texts]
        if on_text is not None:
            for row in range(sum(map(len, texts))):
                on_text(row, "[SEG].")
        return super().answer(encoded, texts, decoding)


def test_each_phrase_is_asked_by_itself_in_the_models_own_question(photo):
    spy = Spy()
    found = answer_phrases(
        spy, spy.encode_images([photo]), [["Show me the red cup and the blue cup.", "red"]], TYPED
    )
    ask = spy.question_template.format
    assert [q.text for q in spy.asked[0]] == [
        ask(expression="the red cup"),
        ask(expression="the blue cup"),
        "red",
    ]
    assert [len(one.segments) for one in found] == [2, len(found[1].segments)]
    both = found[0]
    assert both.text == "the red cup: [SEG], the blue cup: [SEG]."
    assert [both.text[slice(*part.span)] for part in both.segments] == ["the red cup", "the blue cup"]
    assert [masks.area(part.rle) for part in both.segments] == [25, 100] and masks.area(both.rle) == 125


def test_what_is_not_there_is_a_phrase_without_a_mask(photo):
    spy = Spy()
    encoded = spy.encode_images([photo])
    found = answer_phrases(spy, encoded, [["the red one, the green one"]], Decoding())[0]
    assert [q.text for q in spy.asked[0]] == ["the red one", "the green one"]  # the decoding has the template
    assert [part.rle is None for part in found.segments] == [False, True] and not found.rejected
    assert found.text == "the red one: [SEG], the green one: [REJ]."
    none = answer_phrases(spy, encoded, [["the green one, the pink one"]], Decoding())[0]
    assert none.rejected and none.rle is None and none.mask is None


def test_phrases_keep_the_turns_that_the_text_points_back_to(photo):
    spy, history = Spy(), (("the red car", "[SEG]."),)
    answer_phrases(spy, spy.encode_images([photo]), [[Question("its wheel and its door", history)]], TYPED)
    assert [q.history for q in spy.asked[0]] == [history, history]


@pytest.mark.parametrize("text", ["the fish and its eye", "the red cup and the blue one"])
def test_a_list_that_points_back_to_its_first_phrase_is_asked_as_a_whole(photo, text):
    spy = Spy()
    answer_phrases(spy, spy.encode_images([photo]), [[text]], TYPED)
    assert [q.text for q in spy.asked[0]] == [text]


def test_the_words_so_far_are_those_of_the_text(photo):
    spy, heard = Spy(), []
    texts = [["the red one and the blue one", "the red one"]]
    answer_phrases(spy, spy.encode_images([photo]), texts, TYPED, lambda k, words: heard.append((k, words)))
    assert heard == [
        (0, "the red one: [SEG]."),
        (0, "the red one: [SEG], the blue one: [SEG]."),
        (1, "[SEG]."),
    ]


def test_a_joined_answer_keeps_what_a_forced_answer_would_be():
    left, right = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    left[:, 0], right[:, 5] = True, True
    absent = [
        Prediction(True, None, "[REJ].", p_absent=p, mask_if_forced=masks.encode(mask), truncated=p > 0.8)
        for p, mask in ((0.7, left), (0.9, right))
    ]
    found = joined(("a", "b"), absent)
    assert found.mask_if_forced == masks.encode(left | right) and found.truncated and found.p_absent == 0.7
