"""Number of English nouns, as far as answers about pictures need it."""

from __future__ import annotations

import re

_IRREGULAR = {
    "buses": "bus", "calves": "calf", "canoes": "canoe", "children": "child", "cookies": "cookie", "feet": "foot",
    "gases": "gas", "geese": "goose", "halves": "half", "hoes": "hoe", "horseshoes": "horseshoe", "knives": "knife",
    "leaves": "leaf", "lenses": "lens", "lives": "life", "loaves": "loaf", "mice": "mouse", "movies": "movie",
    "oxen": "ox", "people": "person", "pies": "pie", "scarves": "scarf", "selfies": "selfie", "shelves": "shelf",
    "shoes": "shoe", "teeth": "tooth", "thieves": "thief", "ties": "tie", "toes": "toe", "wives": "wife",
    "wolves": "wolf",
}  # fmt: skip
_NO_PLURAL_ENDING = ("ss", "us", "is")
_ES = ("sses", "shes", "ches", "xes", "zzes", "oes")
_AFTER_HEAD = re.compile(
    r"\s(?:of|on|in|at|with|without|to|from|under|over|behind|beside|near|next|that|who|which|above|below|between"
    r"|inside|outside|furthest|nearest)\s",
    re.IGNORECASE,
)


def head_end(phrase: str) -> int:
    """Where the head noun of a phrase ends: "the cups |on the table"."""
    found = _AFTER_HEAD.search(phrase)
    return found.start() if found else len(phrase)


def is_plural(phrase: str) -> bool:
    """Whether the head noun of a phrase means several things."""
    head = phrase[: head_end(phrase)].lower()
    word = head.split()[-1] if head.split() else ""
    return (
        word in _IRREGULAR
        or word.endswith("men")
        or (word.endswith("s") and not word.endswith(_NO_PLURAL_ENDING))
    )


def singular(phrase: str) -> str:
    """The phrase with its head noun in the singular: "red cups on the table" -> "red cup on the table"."""
    end = head_end(phrase)
    before, blank, word = phrase[:end].rpartition(" ")
    return before + blank + _singular_word(word) + phrase[end:]


def _singular_word(word: str) -> str:
    low = word.lower()
    if low in _IRREGULAR:
        return _IRREGULAR[low]
    if low.endswith("men"):
        return word[:-2] + "an"
    if not low.endswith("s") or low.endswith(_NO_PLURAL_ENDING):
        return word
    if low.endswith("ies") and len(low) > 4:
        return word[:-3] + "y"
    return word[:-2] if low.endswith(_ES) else word[:-1]
