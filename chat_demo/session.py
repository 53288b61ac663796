"""What a conversation about a picture is: frozen state, pure transitions. No model, no terminal, no files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np

from uniresxx.imaging import masks
from uniresxx.types import Decoding, Prediction, Question, Segment

CHAT_DECODING = Decoding(template="{expression}")  # what is typed goes to the model as it is
TURNS_REMEMBERED = 8  # passed to the model (our choice): bounds the row; the transcript keeps all
_LEAD_IN = re.compile(
    r"^(?:please |now |and |then |can you |could you )*"
    r"(?:(?:segment|show me|show|find|mark|select|highlight|point at|point to"
    r"|where is|where are|is there|are there)"
    r"(?: |$))?",
    re.IGNORECASE,
)
_ARTICLE = re.compile(
    r"^(?:(?:the|an?|any|all|both|every|its|his|her|their|this|that|these|those)\s+)+", re.IGNORECASE
)
_DECISION = re.compile(r"\[(?:SEG|REJ)\]")
_AFTER_HEAD = re.compile(
    r"\s(?:of|on|in|at|with|to|from|under|behind|near|next|that|who|which|above|below)\s", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One question and its answer."""

    question: str
    answer: str  # what a person reads
    generated: str  # the generated text; the next questions carry it as history
    segments: tuple[Segment, ...] = ()  # one per phrase; mask None = not there


@dataclass(frozen=True, slots=True)
class Session:
    """A picture and its questions and answers."""

    photo_name: str | None = None
    photo: np.ndarray | None = field(default=None, compare=False, repr=False)  # uint8 (y, x, 3)
    turns: tuple[ChatTurn, ...] = ()


def with_photo(session: Session, name: str, photo: np.ndarray) -> Session:
    """Another picture. Earlier turns belong to the earlier picture, so they go."""
    return replace(session, photo_name=name, photo=photo, turns=())


def reset(session: Session) -> Session:
    """Forget the turns, keep the picture."""
    return replace(session, turns=())


def question_for(session: Session, text: str) -> Question:
    """The typed text with the earlier turns, as the model takes it."""
    history = tuple((turn.question, turn.generated) for turn in session.turns[-TURNS_REMEMBERED:])
    return Question(text, history)


def with_answer(session: Session, text: str, found: Prediction) -> Session:
    """The session after the model answered `text`."""
    segments = segments_of(text, found)
    return replace(
        session, turns=(*session.turns, ChatTurn(text, words_for(text, found), found.text or "", segments))
    )


def segments_of(text: str, found: Prediction) -> tuple[Segment, ...]:
    """Phrases of an answer: the model's own where it named some, else the typed one; none for plain words."""
    if found.segments:
        phrase = phrase_of(text)
        return tuple(
            Segment(part.phrase or phrase, part.mask, None if part.mask is None else part.score)
            for part in found.segments
        )
    if is_plain_words(found):
        return ()
    mask = None if found.rejected else found.mask
    return (Segment(phrase_of(text), mask, None if mask is None else found.score),)


def is_plain_words(found: Prediction) -> bool:
    """Whether the model answered in words, without a mask or a refusal."""
    text = found.text or ""
    return found.rejected and not _DECISION.search(text) and any(map(str.isalnum, text))


def words_for(text: str, found: Prediction) -> str:
    """The answer a person reads: each phrase with its mask, and in words what is not there."""
    if is_plain_words(found) and not found.segments:
        return (found.text or "").strip()
    lines, number = [], 0
    for number, part in enumerate(segments_of(text, found), start=1):
        if part.mask is None:
            lines.append(absent_sentence(part.phrase))
            continue
        score = "" if part.score is None else f", score {part.score:.2f}"
        lines.append(f"{part.phrase}: mask {number} ({masks.area(part.mask)} pixels{score}).")
    return "\n".join(lines)


def phrase_of(text: str) -> str:
    """The thing that a typed question names: "Please segment the red car." -> "the red car"."""
    plain = " ".join(text.split()).strip(" .?!,")
    return _LEAD_IN.sub("", plain, count=1).strip() or plain or "that"


def absent_sentence(phrase: str) -> str:
    """ "the blue cat" -> "There is no blue cat in this picture." """
    if " and " in phrase or "," in phrase:
        return f"Not in this picture: {phrase}."
    thing = _ARTICLE.sub("", phrase).strip() or phrase
    head = _AFTER_HEAD.split(thing.lower(), maxsplit=1)[0]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is"))
    return f"There {'are' if plural else 'is'} no {thing} in this picture."
