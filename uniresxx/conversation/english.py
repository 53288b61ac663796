"""Closed classes of English words, and how a text is cut into words. Lower case throughout."""

from __future__ import annotations

import re
import unicodedata

_TOKEN = re.compile(r"\w+(?:['’\-]\w+)*|[,;:.?!&]")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


DETERMINERS = _set(
    "the a an all both every each any some no its his her their your our my this that these those another "
    "one two three four five six seven eight nine ten either"
)
POSSESSIVES = _set("its his her their")
DEMONSTRATIVES = _set("this that these those")
COUNTS = _set("two three four five six seven eight nine ten")
PREPOSITIONS = _set(
    "of in on at by to from with without under over above below behind beside besides near next between "
    "among inside outside into onto around along across against before after beneath underneath beyond "
    "toward towards through within upon opposite per like as for than closest nearest"
)
RELATIVES = _set("that which who whose whom where")
# a relation after which "a …" goes on describing the same thing: "with a hat and a scarf"
HOLDING = _set("with without wearing holding carrying having eating riding has containing")
COLOURS = _set(
    "red green blue yellow purple orange white black brown grey gray pink violet golden gold silver beige "
    "tan crimson azure emerald ebony turquoise maroon navy cream dark light"
)
ADJECTIVES = COLOURS | _set(
    "left right top bottom upper lower middle center centre front back rear far leftmost rightmost topmost "
    "bottommost inner outer big small large little tiny huge tall short long wide narrow thin thick fat "
    "bigger smaller larger taller shorter biggest smallest largest tallest shortest old young new round "
    "square striped spotted plain dotted wooden metal plastic glass shiny bright pale open closed empty full "
    "other same whole entire very most more first second third fourth fifth last"
)
PLACES = _set("picture image photo photograph scene")
AUXILIARIES = _set(
    "is are was were be been being am do does did can could will would shall should may might must has have "
    "had isn't aren't"
)
QUESTION_WORDS = _set("what which how many much who whose where when why")
ASKING = _set(
    "segment segmentation show find mark outline select highlight point give get locate identify detect draw "
    "pick see want need tell look count describe please now and also then but or so ok okay yes no not only "
    "just me us you i mask masks pixels belong belongs again too well there here hey hi hello thanks thank"
)
# nouns that need an owner, and so are not what a pronoun after them means: "the top of its head"
RELATIONAL = _set(
    "part parts side end edge top bottom front back left right middle center centre rest color colour half "
    "piece tip number shape size kind type"
)
_PRONOUNS = _set("it them they he she him hers theirs itself themselves up down out off")
FUNCTION_WORDS = (
    DETERMINERS | PREPOSITIONS | RELATIVES | AUXILIARIES | QUESTION_WORDS | ASKING | RELATIONAL | PLACES | _PRONOUNS
)  # fmt: skip
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth",
}  # fmt: skip


def words_of(text: str) -> list[str]:
    """Words and punctuation marks in order, lower case: "Its wheel?" -> ["its", "wheel", "?"]."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def is_plural(noun: str) -> bool:
    """Whether a noun looks plural; false for "bus", "glass", "tennis"."""
    return noun in _IRREGULAR or (
        len(noun) > 2 and noun.endswith("s") and not noun.endswith(("ss", "us", "is"))
    )


def stem(noun: str) -> str:
    """A noun without its plural ending, good enough to compare two nouns: "cups" -> "cup"."""
    if noun in _IRREGULAR or not is_plural(noun):
        return _IRREGULAR.get(noun, noun)
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    return noun[:-2] if noun.endswith(("ches", "shes", "xes", "sses", "uses")) else noun[:-1]
