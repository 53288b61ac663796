"""Answers in words: sentences that are English, whatever was asked and whatever the model said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniresxx.conversation.nouns import is_plural, singular
from uniresxx.conversation.plain import plain_sentence
from uniresxx.conversation.words import absent_sentence, phrase_of, segments_of, words_for
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction, Segment

MASK = masks.encode(np.eye(4, dtype=bool))
ABSENT = Prediction(rejected=True, rle=None, text="[REJ].")


def in_words(text):
    return Prediction(rejected=True, rle=None, text=text)


@pytest.mark.parametrize(
    ("question", "answer", "sentence"),
    [
        ("How many cups are there?", "Two.", "I see two cups."),
        ("how many cups are there", "One.", "I see one cup."),
        ("How many cups are there?", "No.", "I see no cups."),
        ("How many cups are there?", "None.", "I see no cups."),
        ("How many cups?", "3", "I see three cups."),
        ("How many cups are there?", "14", "I see 14 cups."),
        ("And how many people are there in the picture?", "One.", "I see one person."),
        ("How many cups are there on the table?", "Two.", "I see two cups on the table."),
        ("How many cups can you see?", "Zero.", "I see no cups."),
        ("How many people does this picture show?", "Two.", "I see two people."),
        ("How many red cups are on the table?", "One.", "One red cup is on the table."),
        ("How many of the cups are red?", "None.", "None of the cups are red."),
        ("How many wheels does the red car have?", "Two.", "The red car has two wheels."),
        ("How many wheels does it have?", "None.", "It has no wheels."),
        ("How many windows do the houses have?", "Four", "The houses have four windows."),
        ("How many cups are there and how many forks?", "Two.", "I see two."),
        ("count the fishes", "two", "I see two fishes."),
        ("How many cups are there?", "I see two cups.", "I see two cups."),
        ("Is there a red cup?", "Yes.", "Yes, there is a red cup."),
        ("Is there a red cup?", "No.", "No, there is no red cup."),
        ("Is there any orange cup in this picture?", "Yes.", "Yes, there is an orange cup."),
        ("Are there any cups?", "Yes.", "Yes, there are cups."),
        ("Are there two cups?", "No.", "No, there are not two cups."),
        ("Is the cup on the table red?", "No.", "No, it is not."),
        ("Are the cups red?", "Yes.", "Yes, they are."),
        ("Is the woman sitting?", "Yes.", "Yes, she is."),
        ("Does the car have a roof?", "No.", "No, it does not."),
        ("Can the dog swim?", "No.", "No, it cannot."),
        ("Can you see an owl?", "Yes.", "Yes, I see an owl."),
        ("Do you see the owl?", "No.", "No, I do not see the owl."),
        ("Is the cup red or blue?", "Yes.", "Yes."),
        ("Is anyone here?", "No.", "No."),
        ("What colour is the cup?", "Red.", "The cup is red."),
        ("What color are the cups on the table?", "Red and blue.", "The cups on the table are red and blue."),
        ("Which colour does its roof have?", "Green.", "Its roof is green."),
        ("What is the colour of my car?", "Dark red.", "Your car is dark red."),
        ("What colour is it?", "Red", "It is red."),
        ("What colour is the cup?", "The cup is red.", "The cup is red."),
        ("What is this?", "A test card.", "It is a test card."),
        ("What is on the table?", "a cup", "A cup."),
        ("What is happening?", "Two people are playing chess.", "Two people are playing chess."),
        ("the cup", "Yes.", "Yes."),
        ("这是什么？", "一只猫。", "一只猫。"),
    ],
)
def test_plain_answers_are_sentences(question, answer, sentence):
    assert words_for(question, in_words(f" {answer} ")) == sentence
    assert segments_of(question, in_words(answer)) == ()


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("How many cups are there?", "I see no cups."),
        ("How many wheels does the car have?", "The car has no wheels."),
        ("Is there a red cup?", "No, there is no red cup."),
        ("Can you see a cup?", "No, I see no cup."),
        ("What colour is the cup?", "Nothing in this picture answers that."),
        ("Which cup is red?", "Nothing in this picture answers that."),
        ("Can you segment the red cup?", "There is no red cup in this picture."),
        ("Where is the red cup in the picture?", "There is no red cup in this picture."),
    ],
)
def test_a_question_that_the_model_rejects_gets_a_sentence(question, sentence):
    assert words_for(question, ABSENT) == sentence


@pytest.mark.parametrize(
    ("typed", "phrase"),
    [
        ("the red car", "the red car"),
        ("Please segment the red car.", "the red car"),
        ("Can you please segment the red car?", "the red car"),
        ("Where is the blue cat?", "the blue cat"),
        ("show me  all wheels", "all wheels"),
        ("Mark the cup in the picture.", "the cup"),
        ("And its roof?", "its roof"),
        ("How many cups are there?", "cups"),
        ("segmented worm", "segmented worm"),
        ("finder", "finder"),
        ("segment", "segment"),
        ("?", "that"),
    ],
)
def test_phrase_of_a_question(typed, phrase):
    assert phrase_of(typed) == phrase


@pytest.mark.parametrize(
    ("phrase", "sentence"),
    [
        ("blue cat", "There is no blue cat in this picture."),
        ("the blue cat", "There is no blue cat in this picture."),
        ("all the wheels of the bus", "There are no wheels of the bus in this picture."),
        ("the glass on the tables", "There is no glass on the tables in this picture."),
        ("a bus", "There is no bus in this picture."),
        ("both vases", "There are no vases in this picture."),
        ("the people", "There are no people in this picture."),
        ("both vases and the mirror", "I do not see both vases and the mirror in this picture."),
        ("the cup between the fork and the knife", "There is no cup between the fork and the knife in this picture."),
        ("two cups", "There are not two cups in this picture."),
        ("its roof", "It has no roof in this picture."),
        ("their wheels", "They have no wheels in this picture."),
        ("the wheel of it", "It has no wheel in this picture."),
        ("it", "It is not in this picture."),
        ("them", "They are not in this picture."),
        ("the other one", "There is no other one in this picture."),
        ("the", 'I do not see "the" in this picture.'),
    ],
)  # fmt: skip
def test_absent_things_get_a_sentence(phrase, sentence):
    assert absent_sentence(phrase) == sentence


@pytest.mark.parametrize(
    ("many", "one"),
    [
        ("cups", "cup"), ("buses", "bus"), ("glasses", "glass"), ("vases", "vase"), ("boxes", "box"),
        ("babies", "baby"), ("pies", "pie"), ("knives", "knife"), ("firemen", "fireman"), ("sheep", "sheep"),
        ("red cups on the tables", "red cup on the tables"), ("wheels of the bus", "wheel of the bus"),
    ],
)  # fmt: skip
def test_nouns_in_the_singular(many, one):
    assert singular(many) == one
    assert is_plural(many) == (many != one) and not is_plural(one)


@given(st.text(max_size=80), st.sampled_from(["Two.", "Yes.", "No.", "Red.", "A cup.", ""]))
def test_every_text_has_a_phrase_and_a_sentence(text, answer):
    assert phrase_of(text)
    assert words_for(text, ABSENT).endswith(".")
    assert "how many" not in words_for(text, ABSENT).lower() or "how many" in text.lower()
    assert bool(plain_sentence(text, answer)) == bool(answer)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ", max_size=40))
def test_counting_never_repeats_the_question(what):
    sentence = words_for(f"How many {what} are there?", in_words("Two."))
    assert "how many" not in sentence.lower() or "how many" in what
    assert sentence.startswith("I see two") or "two" in sentence.lower()


def test_answers_phrase_by_phrase():
    parts = (Segment("wheel", MASK, None), Segment("", None, 0.4))
    found = Prediction(rejected=False, rle=MASK, text="wheel: [SEG], the blue cat: [REJ].", segments=parts)
    assert words_for("the blue cat", found).splitlines() == [
        "wheel: mask 1 (4 pixels).",
        "There is no blue cat in this picture.",
    ]
    assert segments_of("the blue cat", found)[1] == Segment("the blue cat", None, None)


def test_several_phrases_are_compared_with_what_was_asked():
    one = Prediction(rejected=False, rle=MASK, text="[SEG].", segments=(Segment("", MASK, None),))
    asked = "Segment the fish and the eye of the fish."
    assert words_for(asked, one) == "the fish and the eye of the fish: mask 1 (4 pixels)."
    named = replace(one, segments=(Segment("the fish", MASK, None),))
    assert words_for(asked, named).splitlines() == [
        "the fish: mask 1 (4 pixels).",
        "The answer leaves out the eye of the fish: ask for it alone.",
    ]
    both = replace(one, segments=(Segment("", MASK, None), Segment("", None, None)))
    assert words_for(asked, both).splitlines() == [
        "the fish: mask 1 (4 pixels).",
        "There is no eye of the fish in this picture.",
    ]


def test_turns_that_did_not_fit_are_said():
    found = Prediction(rejected=False, rle=MASK, text="[SEG].", dropped_turns=2)
    assert words_for("its eye", found).splitlines()[1].startswith("(The 2 oldest turns were left out")


def test_an_answer_without_words_means_not_there():
    assert words_for("the cat", in_words(" . ")) == "There is no cat in this picture."


def test_rejected_by_presence_is_absent_even_where_the_text_points():
    found = Prediction(rejected=True, rle=None, text="[SEG].", p_absent=0.9)
    assert words_for("the cat", found) == "There is no cat in this picture."
