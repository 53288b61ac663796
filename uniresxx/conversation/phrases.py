"""The phrases that a typed text asks for: "the fish and the eye of the fish" asks for two."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from uniresxx.conversation.english import (
    ADJECTIVES,
    AUXILIARIES,
    DETERMINERS,
    HOLDING,
    PREPOSITIONS,
    RELATIVES,
    words_of,
)

_ASKING = (
    r"(?:(?:segment|show me|show us|show|find me|find|mark|outline|select|highlight|locate|detect|identify|"
    r"point at|point to|point out|pick out|draw|give me the masks? of|give me|get me|"
    r"where is|where are|where's|is there|are there|which pixels belong to|i want|i need|i see|do you see)"
    r"(?:\s+|$))"
)
_POLITE = (
    r"(?:(?:please|now|and|then|also|finally|first|next please|hey|hi|hello|ok|okay|so|but|"
    r"yes|thanks|thank you|can you|could you|would you|will you)(?:\s*[,.!]\s*|\s+|$))"
)
_LEAD_IN = re.compile(
    rf"^{_POLITE}*(?:{_ASKING}{_POLITE}*)?(?:each of these|all of these|these)?\s*:?\s*", re.I
)
_ASKS = re.compile(rf"^{_POLITE}*{_ASKING}", re.I)
_CLOSING = re.compile(r"(?:\s*,)?\s+(?:please|too|as well|for me|thanks|thank you)$|\s*[.?!,;:]+$", re.I)
_PLAIN_QUESTION = re.compile(
    r"^(?:and\s+)?(?:what|which(?! pixels)|how|why|who|when|whose|describe|count|tell me|is the|are the|is it|does|"
    r"do(?! you see))\b",
    re.I,
)
_SEPARATOR = re.compile(
    r"(?:\s*[,;]\s*|\s*[.?!]\s+|\s+)(?:and(?:\s+(?:also|then))?|as well as|plus|then|&)\s+|\s*[,;]\s*|\s*[.?!]\s+",
    re.I,
)
_BETWEEN = re.compile(r"\bbetween\b(?!\s+(?:the\s+)?(?:two|both|them|these|those|all)\b)", re.I)
_AND = re.compile(r"\b(?:and|as well as|plus)\b|&", re.I)
_BOTH = re.compile(r"^both\s+(?=(?:the|an?|its|his|her|their|this|that|these|those)\b)", re.I)


@dataclass(frozen=True, slots=True)
class _Join:
    """A place where two pieces of a text meet."""

    left: str  # since the last cut
    mark: str  # what stands between them
    right: str  # up to the end of the text


def asked_phrases(text: str) -> tuple[str, ...]:
    """The phrases that a text asks for, in order, without "segment", "please" and the final mark.

    A comma or an "and" divides where a new thing begins, and not inside one: "the cup between the fork and the
    knife", "the black and white cat", "the man with a hat and a scarf" are one phrase each. A plain question
    ("What colour is the car?") is one phrase as a whole; an empty text has none.

    Example:
        >>> asked_phrases("Segment the red cup, the blue cup and the eye of the fish.")
        ('the red cup', 'the blue cup', 'the eye of the fish')
    """
    plain = _trimmed(" ".join(unicodedata.normalize("NFKC", text).split()))
    if not plain:
        return ()
    if _PLAIN_QUESTION.match(plain):
        return (plain,)
    plain = _without_lead_in(plain)
    pieces: list[str] = []
    start = 0
    for mark in _SEPARATOR.finditer(plain):
        join = _Join(plain[start : mark.start()], mark.group().strip().lower(), plain[mark.end() :])
        if _divides(join):
            pieces.append(join.left)
            start = mark.end()
    pieces.append(plain[start:])
    if len(pieces) > 1:
        pieces[0] = _BOTH.sub("", pieces[0])
    cleaned = [_trimmed(_without_lead_in(piece)) for piece in pieces]
    return tuple(piece for piece in cleaned if piece) or (plain,)


def _trimmed(text: str) -> str:
    """Without final marks and polite words."""
    while (shorter := _CLOSING.sub("", text.strip())) != text:
        text = shorter
    return text


def _without_lead_in(text: str) -> str:
    """Without "please segment"; the text itself where nothing would be left."""
    return _LEAD_IN.sub("", text, count=1).strip() or text.strip()


def _divides(join: _Join) -> bool:
    """Whether a new phrase begins at a join."""
    left, right = words_of(_without_lead_in(join.left)), words_of(join.right)
    if not left or not right:
        return False
    if left[-1] in ("no", "nr") and join.mark[:1] == ".":
        return False  # "player no. 7"
    if _ASKS.match(join.right) or join.mark[:1] in ".?!":
        return True
    if _is_open_between(join.left) or left[-1] in PREPOSITIONS or left[0] in PREPOSITIONS:
        return False
    if not _has_noun(left) or not _begins_thing(right):
        return False
    holding = any(word in HOLDING for word in left)
    if right[0] in DETERMINERS:
        goes_on = holding and right[0] in ("a", "an", "no", "some", "his", "her", "its", "their")
        return not goes_on and not _is_open_both(join.left)
    # without an article of its own: "the man and woman", "man with hat and glasses" name one thing
    return left[0] not in DETERMINERS and not holding


def _is_open_between(left: str) -> bool:
    """Whether a "between" still waits for its second thing."""
    found = list(_BETWEEN.finditer(left))
    return bool(found) and not _AND.search(left, found[-1].end())


def _is_open_both(left: str) -> bool:
    """Whether a "both" inside a relation still waits: "the wheels of both the car and the bus"."""
    found = re.search(r"\w\s+both\s+(?:the|an?)\b", left, re.I)
    return found is not None and not _AND.search(left, found.end())


def _has_noun(words: Sequence[str]) -> bool:
    """False for "the black" in "the black and white cat"; a determiner is a noun only at the end: "the left one"."""
    if any(word not in ADJECTIVES and word not in DETERMINERS for word in words):
        return True
    return words[-1] in DETERMINERS and words != ["the"]


def _begins_thing(words: Sequence[str]) -> bool:
    """Whether a thing is named first, rather than a place, a clause or a second adjective."""
    first = words[0]
    if first in DETERMINERS:
        return first not in ("that", "no") or len(words) > 2
    if first in PREPOSITIONS or first in RELATIVES or first in AUXILIARIES or first in ("not", "but", "or"):
        return False
    if len(first) > 4 and first.endswith("ing"):
        return False
    # not so in "guy, far right" and "a man in black and white"
    return not all(word in ADJECTIVES for word in _up_to_mark(words))


def _up_to_mark(words: Sequence[str]) -> list[str]:
    """The words before the next comma, "and" or preposition."""
    for number, word in enumerate(words):
        if not word[0].isalnum() or word == "and" or word in PREPOSITIONS:
            return list(words[:number]) or [words[0]]
    return list(words)
