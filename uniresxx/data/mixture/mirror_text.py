"""Mirror a text: "left" and "right" change places, or the text is refused.

A picture is mirrored only where each of its texts stays true. A text is accepted only if every "left" and "right"
in it is clearly a direction: "the left man", "on the right", "bottom left", "left of the car". It is refused where
one of them may mean something else: "right side up", "right behind", "all right", "the slice that is left".
Refused by a list of words: clock faces, ways of turning, text and numbers in the picture, compass points, sides of
a vehicle, places in a row without a side ("second elephant"), misspelt sides, and what is not plain English.
A person's "left hand" swaps: the mirrored picture shows a right hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIDE = re.compile(
    r"(?<![a-z])((?:far|top|bottom|upper|lower|middle|mid|center|centre|front|back|rear)?)(left|right|lhs|rhs)"
    r"((?:most|hand|handed|hander|side|wards?|y|ie|ies)?)(?![a-z])",
    re.IGNORECASE,
)
_OPPOSITE = {"left": "right", "right": "left", "lhs": "rhs", "rhs": "lhs"}
_TOKEN = re.compile(r"[a-z]+|[,.;:!?()/]", re.IGNORECASE)
# words that hold "left" or "right" and have nothing to do with sides
_UNRELATED = re.compile(r"(?:b|f|w|play|ship|up|down|out|forth|birth|copy|al|a)right\w*|cleft\w*")
_ORDINAL_NUMBER = re.compile(r"\b\d{1,2}(?:st|nd|rd|th)\b", re.IGNORECASE)
_NUMBERED = re.compile(
    r"\b(?:player|jersey|bus|train)\s+(?:one|two|three|four|five|six|seven|eight|nine|ten)\b", re.IGNORECASE
)
_QUOTED = re.compile(r"[\"`]|(?<!\w)'[^']+'(?!\w)")
_CAPITALS = re.compile(r"\b(?!LEFT\b|RIGHT\b|LHS\b|RHS\b|TV\b|SUV\b)[A-Z]{2,}\b")


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


_REFUSED = _words(
    # clock faces, ways of turning, sides that are not the picture's
    "clock oclock clockwise counterclockwise anticlockwise facing faces port starboard driver drivers",
    "passenger passengers stage southpaw",
    "east west eastern western northeast northwest southeast southwest eastward westward",
    # what is read in the picture
    "says say saying read reads reading letter letters word words text number numbers numbered numeral",
    "digit digits written writing spelled spelling initials logo reversed mirrored backwards backward",
    # shortened or misspelt sides
    "l r lt rt lft rgt lef leff letf lfet leftt rite rigth rihgt rigt riht rght righ ritgh rignt righr",
    # other languages
    "links rechts linke rechte gauche droite sinistra destra izquierda derecha izquierdo derecho",
    "esquerda direita esquerdo direito lewa lewy prawa prawy vlevo vpravo",
)
_PLACES_IN_A_ROW = _words(
    "first second third fourth fifth sixth seventh eighth ninth tenth last next previous outer inner"
)
_ARTICLES = _words("the his her its their our your my")  # with possessives: "on the right", "to her left"
_SMALL_WORDS = _words(
    "a an this these those every each both another and or not but",
    "of with by behind above below under beside near between for about",
)
# before a side: it is a place or a direction, whatever follows
_LOCATING = _words(
    "on to from at in toward towards far farther farthest further furthest extreme very outermost slightly way",
    "top bottom upper lower middle mid center centre front back rear corner edge",
    "looking pointing going heading leaning turning walking moving running",
)
_ADJECTIVES = _words(
    "red green blue yellow purple orange white black brown grey gray pink big small large little tall short long",
    "old young dark light tiny huge one two three four five six first second third fourth last",
)
_PARTS_OF_A_PICTURE = _words(
    "side corner hand edge end front back rear row foreground background top bottom middle center centre most"
)
# after a side: it means "exactly", "immediately" or "remaining"
_ADVERBS = _words(
    "in at by up down over overs out off on onto into through after before behind next above below beside besides",
    "under underneath beneath near against outside inside where between around about behing along across for with",
    "without until as when while alone open empty there here now away again",
)
_NEVER_A_DIRECTION_AFTER = _words("over overs out alone open off empty blank early late")
_RIGHT_NOW = _words("now away there here again next after before through along")
_NO_SIDE_HAS = _words(
    "angle angles angled angular triangle triangles way ways turn turns size sized amount kind type idea time moment",
    "answer order track choice decision direction place places spot minded stuff thing things fit tool tools",
    "field fielder fielders winger click abandoned untouched",
)
# before a side: "left" may be a verb or mean "remaining", "right" may mean "correct" or "exactly"
_OTHER_SENSE_BEFORE = _words(
    "all just only is are was were be been being am has have had having get gets got nothing everything",
    "anything something what whats who whos which that thats he she they it we i you hes shes theyre youre im so",
    "quite exactly absolutely perfectly turn keep bear human still also already not never always then",
)
_MAY_REMAIN = _words(
    "remains rest piece pieces slice slices bite bit half portion part food pizza cake sandwich bread meal time",
)
_QUANTITIES = _words(
    "one two three four five six seven eight nine ten only some few little no none any much many more most enough",
    "still lot lots remaining several couple",
)


def mirror_text(text: str) -> str | None:
    """The text with its sides swapped and its case kept; None where it may not be true of the mirrored picture.

    >>> mirror_text("the Left-hand cup")
    'the Right-hand cup'
    >>> mirror_text("cup right side up") is None
    True
    """
    mirrored = _swap_sides(text)
    # "lEFT" would not come back
    return mirrored if _swap_sides(mirrored) == text and _stays_true(text) and _stays_true(mirrored) else None


def _swap_sides(text: str) -> str:
    return _SIDE.sub(lambda found: found[1] + _opposite(found[2]) + found[3], text)


def _opposite(side: str) -> str:
    word = _OPPOSITE[side.lower()]
    if side.isupper():
        return word.upper()
    return word.capitalize() if side[0].isupper() else word


def _stays_true(text: str) -> bool:
    """Whether the text, with its sides swapped, describes the mirrored picture."""
    if not text.isascii() or _QUOTED.search(text) or (_CAPITALS.search(text) and not text.isupper()):
        return False
    if _NUMBERED.search(text) or any(letter.isdigit() for letter in _ORDINAL_NUMBER.sub("", text)):
        return False
    tokens = [token.lower() for token in _TOKEN.findall(text.replace("'", ""))]
    lone_letters = {token for token in tokens if len(token) == 1 and token.isalpha()} - {"a", "i"}
    if lone_letters or not _REFUSED.isdisjoint(tokens):
        return False
    sides = [place for place, token in enumerate(tokens) if _names_a_side(token)]
    in_a_row = re.sub(r"\bnext to\b", "", " ".join(tokens)).split()
    counted = not _PLACES_IN_A_ROW.isdisjoint(in_a_row) or _ORDINAL_NUMBER.search(text) is not None
    if counted and not sides:  # "second elephant": from the left or from the right?
        return False
    return all(_is_direction(tokens, place) for place in sides)


def _names_a_side(token: str) -> bool:
    return re.search("left|right|[lr]hs", token) is not None and not _UNRELATED.fullmatch(token)


def _is_direction(tokens: Sequence[str], place: int) -> bool:
    """Whether the side word at `place` is clearly a direction."""
    before, before2 = _neighbours(tokens, place, -1)
    after, after2 = _neighbours(tokens, place, 1)
    found = _SIDE.fullmatch(tokens[place])
    if found is None:  # "leftover", "toright"
        return False
    if found[3] == "side":  # "leftside" is "left side"
        after, after2 = "side", after
    elif found[1] or found[3] or found[2] in ("lhs", "rhs"):
        return after not in _NEVER_A_DIRECTION_AFTER
    if after in _NO_SIDE_HAS | _NEVER_A_DIRECTION_AFTER or (after, after2) == ("of", "way"):
        return False
    if after in _PARTS_OF_A_PICTURE and after2 in ("up", "down", "out", "there", "here"):  # "right side up"
        return False
    if after in ("handed", "hander", "footed"):
        return True
    if before in _ARTICLES:
        return before2 in _LOCATING or (after not in _ADVERBS and after not in _ARTICLES)
    if before in _LOCATING:
        loose = _RIGHT_NOW if before == "on" else _ADVERBS - {"on"}  # "on right behind" is a place
        return after not in loose and after not in _ARTICLES
    if after in ("and", "or", "to") and _SIDE.fullmatch(after2):
        return before not in _OTHER_SENSE_BEFORE
    if before in ("and", "or", "to") and _SIDE.fullmatch(before2):
        return after not in _ADVERBS and after not in _ARTICLES
    return _is_direction_beside_plain_words(tokens, place, before, after)


def _is_direction_beside_plain_words(tokens: Sequence[str], place: int, before: str, after: str) -> bool:
    """The same, where neither an article nor a preposition of place comes before the side."""
    if tokens[place + 1 : place + 2] == ["?"]:  # "the red cup, right?"
        return False
    ends = after in ("", "and", "or")
    names_a_thing = not ends and _may_be_a_noun(after)
    if before == "":
        # "left", or "red cup, left"; "right, the red cup" only begins a sentence
        alone = after == "" and (place > 0 or sum(token.isalpha() for token in tokens) == 1)
        return alone or names_a_thing or after == "of"
    if before in _SMALL_WORDS | _ADJECTIVES:
        return names_a_thing
    if before in _OTHER_SENSE_BEFORE | _MAY_REMAIN | _QUANTITIES or _is_adverb(before):
        return False
    if after == "of" or after in _PARTS_OF_A_PICTURE:
        return True
    return ends and _QUANTITIES.isdisjoint(tokens)  # "man left", not "two slices left"


def _may_be_a_noun(word: str) -> bool:
    """Whether the word may name a thing; "in", "quickly" and "uneaten" do not."""
    function_word = word in _ADVERBS | _ARTICLES | _SMALL_WORDS | _OTHER_SENSE_BEFORE
    return not function_word and word != "to" and not _is_adverb(word) and not word.startswith("un")


def _is_adverb(word: str) -> bool:
    return word.endswith("ly") and word not in ("butterfly", "fly", "belly", "lily", "jelly", "ugly", "bully")


def _neighbours(tokens: Sequence[str], place: int, step: int) -> tuple[str, str]:
    """The next two words in a direction, "" from the first punctuation mark or end on."""
    found: list[str] = []
    for at in (place + step, place + 2 * step):
        word = tokens[at] if 0 <= at < len(tokens) else ""
        found.append(word if word.isalpha() and (not found or found[0]) else "")
    return found[0], found[1]
