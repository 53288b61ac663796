"""Which earlier turns a text points back to: "its wheel", "that one", "and the door?".

A model is given these turns and no others, in training, evaluation, chat and server alike. A question that names its
thing itself needs none, and earlier turns about other things only mislead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from uniresxx.conversation.english import (
    ADJECTIVES,
    COUNTS,
    DEMONSTRATIVES,
    DETERMINERS,
    FUNCTION_WORDS,
    HOLDING,
    PLACES,
    POSSESSIVES,
    PREPOSITIONS,
    RELATIVES,
    is_plural,
    stem,
    words_of,
)
from uniresxx.conversation.phrases import asked_phrases

_SINGULAR = frozenset(["it", "him", "he", "she", "hers"])
_PLURAL = frozenset(["them", "they", "theirs"])
_MARKS = frozenset(",;:.?!&")
_NEGATIVE = frozenset(["no", "none", "zero", "nothing", "not"])
_OTHER_PLACES = frozenset(["side", "end", "way", "direction", "hand"])  # "the other side" is no other thing
_ENDS = _MARKS | frozenset(["and", "or", "please", "too", "here", "there", "again"])
_SKIPPED = frozenset(["please", "so", "ok", "okay", "yes", "no", "now", "also", "then", "well", "hey"])


class Number(Enum):
    """How many things a word stands for."""

    ONE = "one"
    SEVERAL = "several"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Pointer:
    """What a text says about the earlier thing that it needs.

    `noun` is the word for it, where the text repeats one: "that car". `kind_only`: only the kind of thing matters,
    so a thing that was not there will do: "the blue car" (rejected), "and a red one?".
    """

    number: Number = Number.ANY
    noun: str | None = None
    noun_needed: bool = False  # "that man" means an earlier turn only where one names a man
    kind_only: bool = False


def relevant_turns(earlier: Sequence[tuple[str, str]], text: str) -> tuple[tuple[str, str], ...]:
    """The earlier turns that `text` points back to, oldest first; none where it stands for itself.

    The turn is the last one that named a fitting thing: turns that were answered in plain words come after those
    with masks, things that were not there only where the kind is all that matters. A turn that pointed back
    itself brings the turns that it needs.

    Args:
        earlier: (question, generated answer) of all turns before, oldest first. An answer holds `[SEG]` and
            `[REJ]`, as generated.
        text: the next question.

    Example:
        >>> talk = [("Segment the red car.", "[SEG]."), ("How many dogs are there?", "Two.")]
        >>> relevant_turns(talk, "And its wheels?")
        (('Segment the red car.', '[SEG].'),)
        >>> relevant_turns(talk, "the blue house")
        ()
    """
    return tuple(earlier[place] for place in sorted(_relevant_places(earlier, text)))


def points_back(text: str) -> bool:
    """Whether a text has a word that can only mean something said before; "that car" is not counted."""
    pointer = pointer_of(text)
    return pointer is not None and not pointer.noun_needed


def needed_turns(turns: Sequence[tuple[str, str]]) -> list[tuple[int, ...]]:
    """How a conversation is asked: of each turn the places of the turns it needs, and its own last.

    A list that another one begins with is left out: its answers are in the longer one.
    """
    needs = [
        (*sorted(_relevant_places(turns[:place], question)), place)
        for place, (question, _) in enumerate(turns)
    ]
    return [
        need for need in needs if not any(other != need and other[: len(need)] == need for other in needs)
    ]


def _relevant_places(earlier: Sequence[tuple[str, str]], text: str) -> set[int]:
    """Places of the turns that `text` needs, with those that these need in turn."""
    pointer = pointer_of(text)
    if pointer is None or not earlier:
        return set()
    found: set[int] = set()
    for place in _chosen(earlier, pointer):
        found |= {place} | _relevant_places(earlier[:place], earlier[place][0])
    return found


def _chosen(earlier: Sequence[tuple[str, str]], pointer: Pointer) -> list[int]:
    """The turns that a pointer means directly."""
    turns = [_Named.of(question, answer) for question, answer in earlier]
    latest_first = range(len(turns) - 1, -1, -1)
    if pointer.noun is not None:
        named = [k for k in latest_first if pointer.noun in turns[k].nouns and turns[k].may_be(pointer)]
        if named or pointer.noun_needed:
            return named[:1]
    masked = [k for k in latest_first if turns[k].masked]
    usable = [k for k in latest_first if turns[k].may_be(pointer)]
    fitting = [
        k for k in usable if turns[k].number in (pointer.number, Number.ANY) or pointer.number is Number.ANY
    ]
    if pointer.number is Number.SEVERAL and len(masked) > 1 and not _is_latest(fitting, masked):
        return masked[:2]  # "both of them": two things that were named one after another
    return (fitting or usable or list(latest_first))[:1]


def _is_latest(fitting: Sequence[int], masked: Sequence[int]) -> bool:
    """Whether a turn about several things comes after the last two turns about one."""
    return bool(fitting) and fitting[0] >= masked[1]


@dataclass(frozen=True, slots=True)
class _Named:
    """What an earlier turn named."""

    nouns: frozenset[str]
    number: Number
    masked: bool  # at least one thing was found
    decided: bool  # the answer has [SEG] or [REJ]
    denied: bool  # nothing of the kind is there

    @classmethod
    def of(cls, question: str, answer: str) -> _Named:
        decided = "[SEG]" in answer or "[REJ]" in answer
        said = words_of(answer)
        denied = "[SEG]" not in answer if decided else not said or bool(_NEGATIVE & set(said[:1]))
        phrases = asked_phrases(question)
        heads = [head for head in map(head_noun, phrases) if head]
        several = len(phrases) > 1 or any(map(is_plural, heads)) or _counts_several(question)
        if not decided and said[:1] == ["one"]:
            several = False
        number = Number.SEVERAL if several else Number.ONE
        nouns = {stem(word) for word in words_of(question) if word not in FUNCTION_WORDS}
        if not heads and not decided:  # "What is this?": the answer names the thing
            number, nouns = Number.ANY, {stem(word) for word in said if word not in FUNCTION_WORDS}
        return cls(frozenset(nouns), number, "[SEG]" in answer, decided, denied)

    def may_be(self, pointer: Pointer) -> bool:
        """Whether a pointer can mean this turn at all."""
        return bool(self.nouns) and (pointer.kind_only or not self.denied)


def _counts_several(question: str) -> bool:
    """Whether "all", "both" or "two" promises several things, whatever the noun ends with ("both fish")."""
    return any(
        word in COUNTS or word in ("all", "both", "these", "those", "them") for word in words_of(question)[:6]
    )


def head_noun(phrase: str) -> str | None:
    """The noun that a phrase is about: "the left wheel of the red car" -> "wheel"; None for "it"."""
    head = None
    for word in words_of(phrase):
        if head is not None and (
            word in PREPOSITIONS or word in RELATIVES or word in _MARKS or word == "and"
        ):
            return head
        if head is not None and word in ("is", "are", "was", "were", "there"):
            return head
        if (
            word not in FUNCTION_WORDS
            and word not in _MARKS
            and not (word in ADJECTIVES or word.endswith("ing"))
        ):
            head = word
    return head


def pointer_of(text: str) -> Pointer | None:
    """How a text points back, or None where it does not."""
    words = words_of(text)
    for place, word in enumerate(words):
        before, after = words[:place], words[place + 1 :]
        pointer = _pronoun(word, before, after) or _elliptic(word, before, after)
        if pointer is not None:
            return pointer
    return _opening(words)


def _pronoun(word: str, before: Sequence[str], after: Sequence[str]) -> Pointer | None:
    """ "its wheel", "the handle of it", "these", "that car"."""
    if (
        word in POSSESSIVES
        and after
        and after[0] not in _ENDS
        and not (word == "her" and _ends_phrase(after))
    ):
        if any(map(_names, before)):
            return None  # "the man and his hat"
        return Pointer(Number.SEVERAL if word == "their" else Number.ONE)
    if word in _SINGULAR or word in _PLURAL or word == "her":
        if _is_explained(before) or (word == "it" and after[:1] in (["raining"], ["like"])):
            return None
        return Pointer(Number.SEVERAL if word in _PLURAL else Number.ONE)
    if word in DEMONSTRATIVES:
        return _demonstrative(word, before, after)
    return None


def _demonstrative(word: str, before: Sequence[str], after: Sequence[str]) -> Pointer | None:
    if after[:1] == [":"]:
        return None  # "each of these: the cup, the plate"
    number = Number.SEVERAL if word in ("these", "those") else Number.ONE
    if word == "that" and any(map(_names, before)) and before[-1] not in PREPOSITIONS | {"and", "or", ","}:
        return None  # "the cars that are red"
    if _ends_phrase(after) or after[0] in ("one", "ones", "two", "three"):
        return None if _is_explained(before) else Pointer(number)
    if word == "that" and after[0] in ("is", "are", "has", "have"):
        return None if any(map(_names, before)) else Pointer(number)
    head = head_noun(" ".join(after))
    if head is None or head in PLACES or (any(map(_names, before)) and head in map(stem, before)):
        return None
    return Pointer(number, stem(head), noun_needed=True)


def _elliptic(word: str, before: Sequence[str], after: Sequence[str]) -> Pointer | None:
    """ "the red one", "the other cup", "the same in red", "both"."""
    named = any(map(_names, before))
    if word in ("one", "ones") and before and not (after and after[0] == "of") and _ends_noun(before, after):
        return None if named else Pointer(Number.ANY, kind_only=True)
    if word in ("other", "others", "another") and not named and after[:1] != ["than"]:
        return _other(word, after)
    if word in ("same", "former", "latter", "rest", "remaining", "instead") and not named:
        return (
            None if word == "rest" and after[:1] == ["of"] else Pointer(kind_only=word in ("same", "instead"))
        )
    if word in ("both", "neither", "all") and not named and (not after or after[0] in _ENDS):
        return Pointer(Number.SEVERAL)
    if word == "else" and not named:
        return Pointer(kind_only=True)
    return None


def _other(word: str, after: Sequence[str]) -> Pointer | None:
    noun = head_noun(" ".join(after)) if after else None
    if noun in _OTHER_PLACES or (after and after[0] in _OTHER_PLACES):
        return None
    return Pointer(Number.ANY, None if noun is None else stem(noun))


def _opening(words: Sequence[str]) -> Pointer | None:
    """ "and the wheel?", "what about the door?": the thing is not named where the question has no owner."""
    while words and words[0] in _SKIPPED | {","}:
        words = words[1:]
    if words[:1] == ["and"] or words[:1] == ["or"] or words[:1] == ["but"]:
        rest = words[1:]
    elif words[:2] in (["what", "about"], ["how", "about"]):
        rest = words[2:]
    else:
        return None
    owned = any(word == "of" and rest[k + 1 : k + 2] != [] for k, word in enumerate(rest))
    return None if owned or not rest else Pointer(kind_only=True)


def _ends_phrase(after: Sequence[str]) -> bool:
    """Whether nothing follows that belongs to the word."""
    return not after or after[0] in _ENDS or after[0] in PREPOSITIONS


def _ends_noun(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether "one" stands for a noun here: "the red one", "which one"; not "one cup", "number one"."""
    stands_after = (
        before[-1] in DETERMINERS | ADJECTIVES | {"which", "only"} or before[-1] not in FUNCTION_WORDS
    )
    return stands_after and (
        _ends_phrase(after) or after[0] in RELATIVES | {"is", "are"} or after[0].endswith("ing")
    )


def _names(word: str) -> bool:
    """Whether a word names a thing that a later pronoun of the text may mean."""
    return word not in FUNCTION_WORDS and word not in _MARKS and word not in ADJECTIVES


def _is_explained(before: Sequence[str]) -> bool:
    """Whether "it" means something in its own text: "the table with a cup on it", not "the handle of it"."""
    things = sum(
        _names(word) and not (k + 1 < len(before) and _names(before[k + 1]))  # "dinner table" is one thing
        for k, word in enumerate(before)
        if not word.endswith("ing")
    )
    clause = any(word in HOLDING or word in RELATIVES for word in before)
    whole = list(before[-2:]) in (["all", "of"], ["both", "of"], ["each", "of"])  # "the cups, both of them"
    if things and whole:
        return True
    return things > 1 or (things == 1 and clause and before[-1] in PREPOSITIONS)
