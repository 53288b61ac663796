"""Plain answers as sentences: "Two." to "How many cups are there?" becomes "I see two cups."

A model is trained to answer in a word. Only answers of a word or a few are rewritten, and only where the question has
a known form; a whole sentence stays as it is.
"""

from __future__ import annotations

import re

from uniresxx.conversation.nouns import head_end, is_plural, singular

_NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_NOUGHT = frozenset({"no", "none", "zero", "0", "nothing"})
_HERE = r"\s*\b(?:in|on) (?:the|this) (?:picture|image|photo|photograph|scene)$"
_START = re.compile(r"^(?:(?:and|so|now|then|please|ok|okay),? )+", re.IGNORECASE)
_MORE = re.compile(r"\b(?:how|what|which|who|where|or)\b", re.IGNORECASE)
_COUNT = re.compile(r"^(?:how many|count|(?:what is )?the number of) (?:the )?(?P<what>.+)$", re.IGNORECASE)
_COUNT_THERE = re.compile(
    r"^(?P<np>.+?) (?:(?:is|are) there|(?:can|do|could) (?:you|i|we) (?:see|find|count))(?P<rest>(?: .+)?)$",
    re.IGNORECASE,
)
_COUNT_HAVE = re.compile(
    r"^(?P<np>.+?) (?P<verb>does|do) (?P<owner>.+) (?:have|show|contain)(?P<rest>(?: .+)?)$",
    re.IGNORECASE,
)
_COUNT_BE = re.compile(r"^(?P<np>.+?) (?:is|are) (?P<rest>.+)$", re.IGNORECASE)
_THERE = re.compile(r"^(?P<verb>is|are) there (?P<what>.+)$", re.IGNORECASE)
_SEE = re.compile(r"^(?:can|do|could) you (?:see|find) (?P<what>.+)$", re.IGNORECASE)
_BE = re.compile(r"^(?P<verb>is|are|was|were) (?P<who>.+)$", re.IGNORECASE)
_DO = re.compile(r"^(?P<verb>does|do|did|has|have|can|could|will) (?P<who>.+)$", re.IGNORECASE)
_SOME = re.compile(r"^(?P<word>an?|any|some) ", re.IGNORECASE)
_COLOUR = re.compile(
    r"^(?:(?:what|which) colou?r (?P<verb>is|are|does|do|has|have) |what (?:is|are) the colou?rs? of )"
    r"(?P<what>.+?)(?: have)?$",
    re.IGNORECASE,
)
_NAMED = re.compile(r"^(?:what|who) is (?:this|that|it)$", re.IGNORECASE)
_FEW_WORDS = re.compile(r"^[^\W\d]+(?:-[^\W\d]+)*(?:,? (?:and )?[^\W\d]+(?:-[^\W\d]+)*){0,3}$")
# questions for something else than a mask
_ANY_QUESTION = re.compile(
    r"^(?!where(?: is| are|'s)\b|which pixels belong)(?:how|what|which|who|whose|where|when|why)\b",
    re.IGNORECASE,
)
_HE = frozenset({"he", "man", "boy", "guy", "gentleman"})
_SHE = frozenset({"she", "woman", "girl", "lady"})
_PICTURE = frozenset(
    {"it", "the picture", "this picture", "the image", "this image", "the photo", "this photo"}
)


def plain_sentence(question: str, answer: str) -> str:
    """The answer of a model in words, as a sentence.

    Args:
        question: as typed.
        answer: the generated words.
    """
    asked = _bare(question)
    word = " ".join(answer.split()).strip(" .!").lower()
    if found := _COUNT.match(asked):
        number = number_word(word)
        return _tidy(answer) if number is None else _counted(found["what"], number)
    if word in ("yes", "no"):
        return _yes_or_no(asked, word == "yes")
    if (found := _COLOUR.match(asked)) and _FEW_WORDS.match(word) and not _has_verb(word):
        thing = _subject(found["what"])
        return _sentence(
            f"{thing} {'are' if is_plural(thing) or thing in ('they', 'these') else 'is'} {word}"
        )
    if _NAMED.match(asked) and word.startswith(("a ", "an ", "the ")) and not _has_verb(word):
        return _sentence(f"it is {_lower(answer.strip(' .!'))}")
    return _tidy(answer)


def nothing_found(question: str) -> str | None:
    """The answer to a question whose thing is not there; None where the text is a phrase or a request."""
    asked = _bare(question)
    if found := _COUNT.match(asked):
        return _counted(found["what"], "no")
    if _THERE.match(asked) or _SEE.match(asked):
        return _yes_or_no(asked, False)
    return "Nothing in this picture answers that." if _ANY_QUESTION.match(asked) else None


def number_word(word: str) -> str | None:
    """ "Two", "2" -> "two"; "none", "0" -> "no"; None where it is no number."""
    if word in _NOUGHT:
        return "no"
    if word.isdecimal():
        return _NUMBERS[int(word)] if int(word) < len(_NUMBERS) else word
    return word if word in _NUMBERS else None


def _counted(what: str, number: str) -> str:
    """The sentence for a number of things: `what` is the question behind "how many"."""
    what = re.sub(_HERE, "", what, flags=re.IGNORECASE)
    if _MORE.search(what):
        return _sentence(f"I see {'none' if number == 'no' else number}")
    if found := _COUNT_THERE.match(what):
        return _sentence(f"I see {_some(number, found['np'])}{found['rest']}")
    if found := _COUNT_HAVE.match(what):  # "how many wheels does the car have", "… does the picture show"
        owner, several = found["owner"].lower(), found["verb"].lower() == "do"
        if owner in _PICTURE - {"it"}:
            return _sentence(f"I see {_some(number, found['np'])}{found['rest']}")
        verb = "have" if several else "has"
        return _sentence(f"{_subject(found['owner'])} {verb} {_some(number, found['np'])}{found['rest']}")
    if found := _COUNT_BE.match(what):
        verb = "is" if number == "one" else "are"
        return _sentence(f"{_some(number, found['np'])} {verb} {found['rest']}")
    return _sentence(f"I see {_some(number, what)}")


def _some(number: str, things: str) -> str:
    """A number and its noun: "two cups", "one cup", "no cups", "none of the cups"."""
    if things.lower().startswith("of "):
        return f"{'none' if number == 'no' else number} {things}"
    return f"{number} {singular(things) if number == 'one' else things}"


def _yes_or_no(asked: str, yes: bool) -> str:
    """The whole sentence for "yes" or "no", as far as the question has a known form."""
    start = "Yes, " if yes else "No, "
    if not _MORE.search(asked):
        asked = re.sub(_HERE, "", asked, flags=re.IGNORECASE)
        if found := _THERE.match(asked):
            return f"{start}there {found['verb'].lower()} {_existing(found['what'], yes)}."
        if found := _SEE.match(asked):
            return f"{start}I see {_existing(found['what'], yes)}." if yes or _SOME.match(found["what"]) else (
                f"{start}I do not see {found['what']}."
            )  # fmt: skip
        if found := _BE.match(asked):
            who = _pronoun(found["who"], found["verb"].lower() in ("are", "were"))
            return (
                f"{start}{who} {found['verb'].lower()}{'' if yes else ' not'}." if who else start[:-2] + "."
            )
        if found := _DO.match(asked):
            verb = found["verb"].lower()
            who = _pronoun(found["who"], verb in ("do", "have"))
            denied = "cannot" if verb == "can" else f"{verb} not"
            return f"{start}{who} {verb if yes else denied}." if who else start[:-2] + "."
    return start[:-2] + "."


def _existing(what: str, yes: bool) -> str:
    """ "a red cup" with or without "no"."""
    found = _SOME.match(what)
    if found is None:
        return what if yes else f"not {what}"
    thing = what[found.end() :]
    if not yes:
        return f"no {thing}"
    if found["word"].lower() in ("a", "an", "some") or is_plural(thing):
        return what if found["word"].lower() != "any" else thing
    return f"{'an' if thing[0].lower() in 'aeiou' else 'a'} {thing}"


def _pronoun(subject: str, several: bool) -> str | None:
    """The pronoun for the subject of a question; None where it is the one who asks or answers."""
    words = subject[: head_end(subject)].lower().split()
    if not words or words[0] in ("you", "i", "we", "anyone", "anybody", "someone", "somebody", "anything"):
        return None
    if several:
        return "they"
    if _HE & set(words):
        return "he"
    return "she" if _SHE & set(words) else "it"


def _subject(thing: str) -> str:
    """The thing of a question as the subject of its answer; what is "my" for one is "your" for the other."""
    thing = re.sub(_HERE, "", thing, flags=re.IGNORECASE)
    first, blank, rest = thing.partition(" ")
    return {"my": "your", "your": "my"}.get(first.lower(), first) + blank + rest


def _has_verb(words: str) -> bool:
    return re.search(r"\b(?:is|are|was|were|has|have)\b", words) is not None


def _bare(question: str) -> str:
    """The question without blanks, marks and "and" around it."""
    return _START.sub("", " ".join(question.split()).strip(" .?!,")).rstrip(" .?!,")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _tidy(answer: str) -> str:
    """The answer itself, with a capital letter and a full stop where they are missing."""
    plain = answer.strip()
    ended = plain + "." if plain[-1:].isascii() and plain[-1:].isalnum() else plain
    return ended[:1].upper() + ended[1:]
