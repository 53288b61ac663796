"""What a conversation about a picture is: frozen state, pure transitions. No model, no terminal, no files.

Which turns a question needs and how an answer reads is decided in `uniresxx.conversation`, for every program alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from uniresxx.conversation.history import relevant_turns
from uniresxx.conversation.words import segments_of, words_for
from uniresxx.prediction import Prediction, Segment
from uniresxx.types import AS_TYPED, Decoding, Question

CHAT_DECODING = Decoding(template=AS_TYPED)


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One question and its answer."""

    question: str
    answer: str  # what a person reads
    generated: str  # the generated text; later questions that point back carry it as history
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
    """The typed text with the earlier turns that it points back to, as the model takes it."""
    return Question(text, relevant_turns([(turn.question, turn.generated) for turn in session.turns], text))


def with_answer(session: Session, text: str, found: Prediction) -> Session:
    """The session after the model answered `text`."""
    turn = ChatTurn(text, words_for(text, found), found.text or "", segments_of(text, found))
    return replace(session, turns=(*session.turns, turn))
