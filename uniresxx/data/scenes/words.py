"""The words of the benchmark: synonyms and templates, of training and held out for `paraphrase`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PLURALS: Mapping[str, str] = MappingProxyType({"bus": "buses", "coach": "coaches", "fish": "fishes"})

# word -> (words used in training, the plain one first; words held out for `paraphrase`)
SYNONYMS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "car": (("car", "automobile"), ("motorcar",)),
        "bus": (("bus", "coach"), ("minibus",)),
        "house": (("house", "home"), ("cottage",)),
        "tower": (("tower", "castle"), ("turret",)),
        "dog": (("dog", "hound"), ("puppy",)),
        "table": (("table", "desk"), ("workbench",)),
        "cup": (("cup", "mug"), ("beaker",)),
        "hammer": (("hammer", "mallet"), ("gavel",)),
        "wheel": (("wheel", "tyre"), ("tire",)),
        "door": (("door", "entrance"), ("doorway",)),
        "window": (("window", "pane"), ("windowpane",)),
        "roof": (("roof", "rooftop"), ("housetop",)),
        "handle": (("handle", "grip"), ("handgrip",)),
        "head": (("head",), ("noggin",)),
        "crown": (("crown", "treetop"), ("canopy",)),
        "trunk": (("trunk", "stem"), ("bole",)),
        "fin": (("fin", "flipper"), ("side fin",)),
        "back": (("back", "backrest"), ("back support",)),
        "rim": (("rim", "edge"), ("brim",)),
        "chimney": (("chimney", "smokestack"), ("flue",)),
        "red": (("red", "crimson"), ("scarlet",)),
        "green": (("green", "emerald"), ("verdant",)),
        "blue": (("blue", "azure"), ("cobalt",)),
        "purple": (("purple", "violet"), ("lilac",)),
        "black": (("black", "ebony"), ("jet-black",)),
        "left of": (("left of", "to the left of"), ("on the left side of",)),
        "right of": (("right of", "to the right of"), ("on the right side of",)),
        "above": (("above", "higher than"), ("further up than",)),
        "below": (("below", "lower than"), ("further down than",)),
        "in front of": (("in front of", "partly covering"), ("partly hiding",)),
        "behind": (("behind", "partly covered by"), ("partly hidden by",)),
        "leftmost": (("leftmost", "far left"), ("outermost left",)),
        "rightmost": (("rightmost", "far right"), ("outermost right",)),
        "topmost": (("topmost", "highest"), ("uppermost",)),
        "bottommost": (("bottommost", "lowest"), ("lowermost",)),
        "largest": (("largest", "biggest"), ("hugest",)),
        "smallest": (("smallest", "littlest"), ("tiniest",)),
    }
)

ORDER_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottommost",
        "large": "largest", "small": "smallest",
    }
)  # fmt: skip
ORDER_TAILS: Mapping[str, str] = MappingProxyType(
    {
        "left": "furthest to the left", "right": "furthest to the right", "top": "nearest the top edge",
        "bottom": "nearest the bottom edge", "large": "of the largest size", "small": "of the smallest size",
    }
)  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth")

# Sentences around the noun phrases: (used in training, held out for `paraphrase`). {x}: a noun phrase with "the";
# {p}: "the wheels"; {bare}: "wheels"; {owner}: the owner and its article; {xs}: plural; {one}: bare singular;
# {belong} {are}: verbs that agree with {p}; {a} {b}: two noun phrases.
FRAMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "object": (
            (
                "{x}", "{x} in the picture", "{x} in this image", "{x} that you see here", "only {x}",
                "just {x} here", "{x} shown in the scene", "{x} as a whole", "{x} you can see",
                "{x} and nothing else", "exactly {x} here", "{x} in full", "{x}, nothing more",
            ),
            ("{x} on display", "{x} within this photo", "nothing but {x}"),
        ),
        "part": (
            (
                "{p} of {owner}", "{p} on {owner}", "{p} belonging to {owner}",
                "{p} that {belong} to {owner}", "{p} which {are} part of {owner}", "only {p} of {owner}",
                "just {p} on {owner}", "{p} seen on {owner}", "{owner}, just its {bare}",
                "{owner}, only its {bare}", "of {owner}, {p}", "{p} at {owner}", "on {owner}, {p}",
            ),
            ("{p} that {owner} has", "{p} as found on {owner}", "{owner}, nothing but its {bare}"),
        ),
        "all": (
            (
                "all {xs}", "all the {xs} in the picture", "every {one} in the picture",
                "each {one} in this image", "every single {one} here", "all of the {xs}",
                "the {xs}, all of them", "the {xs} in this image", "each and every {one}",
                "the whole group of {xs}", "any and all {xs} here", "every one of the {xs}",
                "the set of all {xs}",
            ),
            ("the complete set of {xs}", "whichever {xs} are shown", "the {xs}, without exception"),
        ),
        "two": (
            (
                "both {xs}", "the two {xs}", "both of the {xs}", "both {xs} in the picture",
                "the two {xs} shown here", "the pair of {xs}",
            ),
            ("the couple of {xs}", "the {xs}, both of them"),
        ),
        "three": (
            ("all three {xs}", "the three {xs}", "the three {xs} here", "all three of the {xs}"),
            ("the trio of {xs}",),
        ),
        "union": (
            ("{a} and {b}", "{a} as well as {b}", "{a} together with {b}", "both {a} and {b}", "{a}, also {b}"),
            ("{a} along with {b}", "{a} plus {b}"),
        ),
    }
)  # fmt: skip


def plural(noun: str) -> str:
    """The plural of a noun of this benchmark."""
    return PLURALS.get(noun, noun + "s")


def word_for(word: str, choice: int, held_out: bool) -> str:
    """A synonym of a word, or the word itself if it has none; `choice` 0 is the plain word."""
    if word not in SYNONYMS:
        return word
    trained, new = SYNONYMS[word]
    return new[choice % len(new)] if held_out else trained[choice % len(trained)]
