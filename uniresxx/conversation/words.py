"""What a person reads of an answer: each phrase with its mask, and in sentences all else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from uniresxx.conversation.nouns import head_end, is_plural
from uniresxx.conversation.phrases import asked_phrases
from uniresxx.conversation.plain import nothing_found, number_word, plain_sentence
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction, Segment

_HOW_MANY = re.compile(r"^how many (?P<what>.+?)(?: (?:are|is) there| (?:can|do) you see)?$", re.IGNORECASE)
_HERE = re.compile(r"\s+(?:in|on) (?:the|this) (?:picture|image|photo|photograph|scene)$", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:(?:the|an?|any|all|both|every|some|this|that|these|those)\s+)+", re.IGNORECASE)
_OWNED = re.compile(r"^(?P<owner>its|his|her|their)\s+(?P<what>.+)$", re.IGNORECASE)
_OF_IT = re.compile(
    r"^(?:the\s+|an?\s+)?(?P<what>.+?)\s+of\s+(?P<owner>it|them|this one|that one)$", re.IGNORECASE
)
_OWNERS = {
    "its": "It has", "it": "It has", "this one": "It has", "that one": "It has", "his": "He has", "her": "She has",
    "their": "They have", "them": "They have",
}  # fmt: skip
_POINTING = {
    **dict.fromkeys(("it", "this", "that", "this one", "that one", "this thing", "that thing"), "It is"),
    **dict.fromkeys(("them", "they", "these", "those", "these ones", "those ones"), "They are"),
    **dict.fromkeys(("him", "he"), "He is"),
    **dict.fromkeys(("her", "she"), "She is"),
}
_DECISION = re.compile(r"\[(?:SEG|REJ)\]")


def segments_of(text: str, found: Prediction) -> tuple[Segment, ...]:
    """Phrases of an answer: the model's own where it named some, else the typed ones; none for plain words."""
    asked = asked_phrases(text)
    named = any(part.phrase for part in found.segments)
    if found.segments and (named or len(asked) == len(found.segments)):
        names = asked if len(asked) == len(found.segments) else [phrase_of(text)] * len(found.segments)
        return tuple(
            replace(part, phrase=part.phrase or name, score=None if part.rle is None else part.score)
            for part, name in zip(found.segments, names, strict=True)
        )
    if is_plain_words(found):
        return ()  # else one mask for all that was asked
    mask = None if found.rejected else found.rle
    return (Segment(phrase_of(text), mask, None if mask is None else found.score),)


def is_plain_words(found: Prediction) -> bool:
    """Whether the model answered in words, without a mask or a refusal."""
    text = found.text or ""
    return found.rejected and not _DECISION.search(text) and any(map(str.isalnum, text))


def words_for(text: str, found: Prediction) -> str:
    """The answer a person reads: a line for each phrase with its mask, and a sentence for all else.

    Args:
        text: the question as typed.
        found: what the model answered.
    """
    lines = _lines_for(text, found)
    if found.dropped_turns:
        lines.append(dropped_sentence(found.dropped_turns))
    return "\n".join(lines)


def _lines_for(text: str, found: Prediction) -> list[str]:
    """One line per phrase, then what the answer leaves out; for all else one sentence."""
    if is_plain_words(found) and not found.segments:
        return [plain_sentence(text, found.text or "")]
    segments = segments_of(text, found)
    if len(segments) == 1 and segments[0].rle is None and (sentence := nothing_found(text)):
        return [sentence]
    lines = [line_of(part, number) for number, part in enumerate(segments, start=1)]
    if missing := left_out(text, segments):
        lines.append(f"The answer leaves out {' and '.join(missing)}: ask for it alone.")
    return lines


def dropped_sentence(turns: int) -> str:
    """What was said too long ago to be heard."""
    which = "The oldest turn was" if turns == 1 else f"The {turns} oldest turns were"
    return f"({which} left out: the conversation is longer than the model's context.)"


def line_of(part: Segment, number: int) -> str:
    """The line for one phrase: its mask's number, size and score, or that it is not there."""
    if part.rle is None:
        return absent_sentence(part.phrase)
    score = "" if part.score is None else f", score {part.score:.2f}"
    return f"{part.phrase}: mask {number} ({masks.area(part.rle)} pixels{score})."


def phrase_of(text: str) -> str:
    """What a typed question names: "Please segment the red car." -> "the red car"; of several things, all."""
    phrases = [_HERE.sub("", phrase) for phrase in asked_phrases(text)]
    if len(phrases) == 1 and (found := _HOW_MANY.match(phrases[0])):
        return found["what"]
    return " and ".join(phrases) or "that"


def left_out(text: str, segments: Sequence[Segment]) -> tuple[str, ...]:
    """The phrases asked for that an answer with fewer phrases does not name."""
    phrases = asked_phrases(text)
    if len(segments) >= len(phrases):
        return ()
    named = {_key(part.phrase) for part in segments}
    if phrase_of(text) in [part.phrase for part in segments]:
        return ()  # one mask for all of them
    return tuple(phrase for phrase in phrases if _key(phrase) not in named)


def _key(phrase: str) -> str:
    """A phrase without articles and capital letters."""
    return _ARTICLE.sub("", phrase.lower().strip(" .?!,")).strip()


def absent_sentence(phrase: str) -> str:
    """ "the blue cat" -> "There is no blue cat in this picture." """
    low = phrase.lower()
    if low in _POINTING:
        return f"{_POINTING[low]} not in this picture."
    if owned := _OWNED.match(phrase) or _OF_IT.match(phrase):
        return f"{_OWNERS[owned['owner'].lower()]} no {owned['what']} in this picture."
    thing = _ARTICLE.sub("", phrase).strip()
    if (
        not thing
        or not thing[0].isalnum()
        or low in ("everything", "anything", "something", "nothing", "the")
    ):
        return f'I do not see "{phrase}" in this picture.'
    if re.search(r",| and | or ", phrase[: head_end(phrase)]):
        return f"I do not see {phrase} in this picture."
    verb = "are" if is_plural(thing) else "is"
    number = number_word(thing.split()[0].lower()) is not None
    return f"There {verb} {'not' if number else 'no'} {thing} in this picture."
