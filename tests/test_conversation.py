"""What a text asks for and what it points back to: cases by hand, and properties of random conversations."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniresxx.conversation.history import relevant_turns
from uniresxx.conversation.phrases import asked_phrases

ASKED = {
    0: ["", "   ", "?!"],
    1: [
        "cup", "all cups", "them", "Please segment the red car.", "and the wheel?", "the cup, please",
        "Hey, segment the cup", "the cup between the fork and the knife", "the black and white cat",
        "the area between the car, the house and the tree", "the man with a hat and a scarf",
        "the man and woman", "man with hat and glasses", "the wheels of both the car and the bus",
        "What colour is the car and the house?", "How many cups and plates are there?",
        "on the left, the cup", "guy, far right", "the man in the middle, wearing a hat",
        "the big red, shiny cup", "a red, shiny cup", "left and right wheels", "the man sitting and reading",
        "the man in black and white", "the cars that are red and blue", "the red and the blue cup",
        "the head and tail of the dog", "no. 7 player", "the cup, not the red one",
    ],
    2: [
        "the fish and the eye of the fish", "the red cup, the blue cup", "red cup and blue cup",
        "the man and his hat", "both the cup and the plate", "segment the cup and segment the plate",
        "Segment the cup. Then segment the plate.", "the cup between the fork and the knife and the plate",
        "the cup between the two forks and the plate", "is there a dog and a cat?",
        "two cups and three plates", "cat in black and dog in white", "the  fish\nand\tthe cup",
        "Can you show me the cup and the fork, please?", "the cars that are not red and the bus",
        "the head and the tail of the dog", "Find the handle of the cup as well as the plate",
        "the cup & the plate", "the left one and the right one", "its wheel and its door",
        "Mark the cup and the plate in the picture.", "the dog with the ball and the cat",
        "all red cups and all blue plates", "ｔｈｅ ｃｕｐ， ｔｈｅ ｆｏｒｋ",
    ],
    3: [
        "Segment the a, the b and the c.", "Segment the red car, the blue house, and the tree.",
        "red cup, blue cup, green cup", "Segment: the cup; the plate; the fork",
        "salt shaker, pepper shaker and napkin",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("count", "text"), [(n, text) for n, texts in ASKED.items() for text in texts])
def test_a_text_asks_for_as_many_phrases_as_a_reader_counts(count: int, text: str) -> None:
    assert len(asked_phrases(text)) == count, asked_phrases(text)


def test_the_phrases_are_the_words_of_the_text_without_what_stands_around_them() -> None:
    assert asked_phrases("Please segment the red car.") == ("the red car",)
    assert asked_phrases("Can you show me the cup and the fork, please?") == ("the cup", "the fork")
    assert asked_phrases("Segment the cup. Then segment the plate!") == ("the cup", "the plate")
    assert asked_phrases("the fish and the eye of the fish") == ("the fish", "the eye of the fish")
    assert asked_phrases("both the cup and the plate") == ("the cup", "the plate")
    assert asked_phrases("And its wheel?") == ("its wheel",)


CAR = ("Segment the red car.", "[SEG].")
HOUSE = ("the blue house", "[SEG].")
CUPS = ("all cups", "[SEG].")
TWO = ("Segment the red cup and the blue cup.", "the red cup: [SEG], the blue cup: [SEG].")
NO_CAT = ("Where is the green cat?", "[REJ].")
DOGS = ("How many dogs are there?", "Two.")
TREE = ("What colour is the tree?", "Green.")
NO_BUS = ("Is there a bus?", "No.")
WHEEL = ("And its wheel?", "[SEG].")

ITSELF = [
    "the blue house", "Segment the wheel of the red car.", "the man and his hat", "the dog licking its paw",
    "the table with a cup on it", "the cars that are not red", "the man on the other side", "one cup",
    "one of the cars", "everything in this picture", "the house in this picture", "the dog and the cat",
    "and the wheel of the blue bus?", "the bus, only its wheels", "the second car from the left",
    "every single one of the cups", "the tables, all of them", "both cups", "all of the cups",
    "the cup that is red", "of the house, the door", "the person with their hand up", "the front of the bus",
    "the person whose dog is behind them", "woman in white with her back to us", "Is there a red cup?",
    "player number one", "Segment each of these: the cup and the plate.", "the table that has a drawer",
    "the rest of the table", "that man", "",
]  # fmt: skip
LAST = [
    "its wheel", "And its wheel?", "ITS\nWHEEL", "and the wheel?", "the wheel of it", "of it, the wheel", "it",
    "that one", "the other one", "the other", "the other car", "the wheel of that car", "the same in red",
    "the cup next to it", "What about the door?", "What colour is it?", "What colour is its roof?",
    "How many wheels does it have?", "the man behind her", "her hat", "the left one", "which one is bigger?",
    "Show me that again", "it again", "the man holding it", "the thing on top of it", "any other cars?",
    "the one on the left", "no, the blue one", "is it red?", "Where is that?", "the top of its roof",
    "Can you segment its left wheel?", "Which pixels belong to its door?", "What else is there?", "and the house?",
]  # fmt: skip


@pytest.mark.parametrize("text", ITSELF)
def test_a_question_that_stands_for_itself_gets_no_history(text: str) -> None:
    assert relevant_turns([HOUSE, CAR], text) == ()


@pytest.mark.parametrize("text", LAST)
def test_a_question_that_points_back_gets_the_last_thing_that_was_found(text: str) -> None:
    assert relevant_turns([HOUSE, CAR], text) == (CAR,)
    assert relevant_turns([], text) == ()


@pytest.mark.parametrize(
    ("earlier", "text", "meant"),
    [
        ([CAR, DOGS], "its wheel", [CAR]),  # "its" is not two dogs
        ([CAR, NO_CAT], "its wheel", [CAR]),  # nor a thing that is not there
        ([CAR, NO_CAT, DOGS, NO_BUS], "its wheel", [CAR]),
        ([CAR, NO_CAT], "the red one", [NO_CAT]),  # but "one" may be of its kind
        ([NO_CAT], "its tail", [NO_CAT]),  # there is nothing else
        ([CAR, TREE], "its trunk", [TREE]),
        ([CAR, WHEEL], "and its door?", [CAR, WHEEL]),
        ([HOUSE, CAR, WHEEL], "and its door?", [CAR, WHEEL]),
        ([CAR, HOUSE, DOGS], "the wheel of that car", [CAR]),
        ([CAR, HOUSE], "the other car", [CAR]),
        ([CUPS, CAR], "their handles", [CUPS]),
        ([CUPS, CAR], "them", [CUPS]),
        ([TWO, CAR], "these", [TWO]),
        ([TWO], "them", [TWO]),
        ([HOUSE, CAR], "both of them", [HOUSE, CAR]),
        ([CUPS, HOUSE, CAR], "them", [HOUSE, CAR]),
        ([CAR, HOUSE], "that man", []),
        ([CAR, DOGS], "them", [DOGS]),
    ],
)
def test_the_thing_that_the_words_can_mean_is_found(earlier, text, meant) -> None:
    assert list(relevant_turns(earlier, text)) == meant


turns = st.sampled_from(
    [CAR, HOUSE, CUPS, TWO, NO_CAT, DOGS, TREE, NO_BUS, WHEEL, ("the other one", "[SEG].")]
)
texts = st.sampled_from([*ITSELF, *LAST, "them", "their handles", "both of them"]) | st.text(max_size=40)


@given(st.lists(turns | st.tuples(st.text(max_size=30), st.text(max_size=12)), max_size=6), texts)
def test_the_turns_are_some_of_the_earlier_ones_in_order_and_enough_by_themselves(earlier, text) -> None:
    found = relevant_turns(earlier, text)
    rest = iter(earlier)
    assert all(turn in rest for turn in found)
    assert relevant_turns(found, text) == found
    assert relevant_turns(earlier, f"  {text.upper()} \n") == relevant_turns(earlier, f" {text.upper()}")


@given(st.text(max_size=60))
def test_no_text_breaks_the_phrases_and_each_is_part_of_the_text(text: str) -> None:
    for phrase in asked_phrases(text):
        assert phrase and phrase == phrase.strip()
        assert len(asked_phrases(phrase)) <= 1 or phrase in " ".join(text.split())


@given(
    st.lists(
        st.sampled_from(["the red cup", "its wheel", "all cars", "a dog", "the eye of the fish"]),
        min_size=1,
        max_size=5,
    )
)
def test_a_list_is_taken_apart_as_it_was_put_together(items: list[str]) -> None:
    assert asked_phrases(", ".join(items)) == tuple(items)
    assert asked_phrases("Segment " + " and ".join(items) + ".") == tuple(items)
    assert asked_phrases("; ".join(items)) == tuple(items)


def test_the_package_needs_no_torch() -> None:
    code = "import sys, uniresxx.conversation.history; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
