"""How questions of a conversation are worded: one thing, several things at once, and things named before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from uniresxx.conversation.phrases import asked_phrases

Choice = TypeVar("Choice")

ONE = (
    "Segment {}.", "Segment {}.", "{}", "{}", "Find {}.", "Show me {}.", "Please segment {}.", "Mark {}.",
    "Can you segment {}?",
)  # fmt: skip
SEVERAL = (
    "Segment {}.", "Segment {}.", "{}", "{}", "Find {}.", "Show me {}.", "Please segment {}.", "Mark {}.",
    "Can you segment {}?", "Segment each of these: {}.",
)  # fmt: skip
# between all phrases but the last two, between the last two
_JOINS = ((", ", " and "), (", ", " and "), (", ", ", "), (" and ", " and "), (", ", ", and "), ("; ", "; "))
# before the first phrase, between two, at the end
_REPEATED = (
    ("Segment ", " and segment ", "."), ("Segment ", ", then segment ", "."), ("Find ", " and find ", "."),
    ("Segment ", ". Also segment ", "."),
)  # fmt: skip
_TRIES = 6

ITS = (
    "And its {}?", "And its {}?", "its {}", "Segment its {}.", "And the {}?", "and the {}", "Find its {}.",
    "the {} of it", "What about its {}?", "What about the {}?", "Now its {}.", "Show me its {}.",
)  # fmt: skip
THEIR = (
    "And their {}?",
    "their {}",
    "Segment their {}.",
    "the {} of them",
    "What about their {}?",
    "Find their {}.",
)
OTHER = (
    "And the other one?", "the other one", "Segment the other one.", "the other {}", "And the other {}?",
    "Segment the other {}.", "the other",
)  # fmt: skip
ONE_IN = ("And the {} one?", "the {} one", "What about the {} one?", "Segment the {} one.", "the same in {}")
BOTH = (
    "both of them",
    "Segment both of them.",
    "them",
    "Segment them.",
    "And both of them?",
    "Show me them.",
)
AGAIN = ("it again", "Segment it again.", "Show me it again.", "that one again", "Segment it.")
NUMBER_WORDS = ("None", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


def pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    """A random one."""
    return choices[int(rng.random() * len(choices))]


def count_answer(number: int) -> str:
    """The answer to "how many": "Two." """
    return f"{NUMBER_WORDS[number]}." if number < len(NUMBER_WORDS) else f"{number}."


def number_answered(answer: str) -> int | None:
    """The number that an answer names, None where it names none."""
    word = answer.strip(" .").capitalize()
    if word.isdigit():
        return int(word)
    return NUMBER_WORDS.index(word) if word in NUMBER_WORDS else None


def ask_one(text: str, rng: np.random.Generator) -> str:
    """A question for one phrase."""
    return pick(rng, ONE).format(text)


def ask_several(texts: Sequence[str], rng: np.random.Generator) -> str | None:
    """A question for several phrases, in a wording from which they can be told apart; None where none was found."""
    for _ in range(_TRIES):
        if rng.random() < 0.25:
            before, between, end = pick(rng, _REPEATED)
            question = before + between.join(texts) + end
        else:
            between, last = pick(rng, _JOINS)
            question = pick(rng, SEVERAL).format(between.join(texts[:-1]) + last + texts[-1])
        if asked_phrases(question) == tuple(texts):
            return question
    return None
