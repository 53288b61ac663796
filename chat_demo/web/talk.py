"""A conversation on the page: several pictures, each with its own turns. Frozen state, pure transitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from chat_demo import session as state
from chat_demo.session import ChatTurn, Session
from chat_demo.web.models import Reply
from chat_demo.web.views import css_colour
from uniresxx.imaging import masks
from uniresxx.types import Question

MOST_PICTURES = 60  # in one conversation (our choice)
MOST_TURNS = 500


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of a turn beside its words and masks."""

    model: str
    seconds: float
    p_absent: float | None = None  # of the whole answer
    encoded: bool = False
    proposals: Mapping[str, int] = field(default_factory=dict)
    proposal_seconds: float | None = None
    generated: str = ""


@dataclass(frozen=True, slots=True)
class PictureTalk:
    """A picture and what was said about it; the pixels are on disk."""

    file: str  # its name in the conversation's folder
    name: str  # as the visitor calls it
    height: int
    width: int
    thumb: str  # data URL
    session: Session = field(default_factory=Session)
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation. `token` names its folder, and its link, from the first picture on."""

    token: str = ""
    pictures: tuple[PictureTalk, ...] = ()
    current: int = -1  # the picture that questions are about
    shown: int = -1  # its turn whose masks are shown; -1: none

    @property
    def picture(self) -> PictureTalk | None:
        """The current picture."""
        return self.pictures[self.current] if self.pictures else None

    @property
    def turn(self) -> ChatTurn | None:
        """The turn whose masks are shown."""
        picture = self.picture
        return None if picture is None or self.shown < 0 else picture.session.turns[self.shown]


def with_picture(talk: Talk, picture: PictureTalk) -> Talk:
    """One more picture, which questions are about from now on."""
    pictures = (*talk.pictures, picture)
    return replace(talk, pictures=pictures, current=len(pictures) - 1, shown=-1)


def with_current(talk: Talk, number: int, turn: int | None = None) -> Talk:
    """Another picture of the conversation; the masks of a turn, None: of its last. Unknown numbers change nothing."""
    if not 0 <= number < len(talk.pictures):
        return talk
    turns = len(talk.pictures[number].session.turns)
    shown = turns - 1 if turn is None or not -1 <= turn < turns else turn
    return replace(talk, current=number, shown=shown)


def question_for(talk: Talk, text: str) -> Question:
    """The typed text with the earlier turns about the current picture that it points back to."""
    assert talk.picture is not None
    return state.question_for(talk.picture.session, text)


def with_reply(talk: Talk, number: int, text: str, reply: Reply) -> Talk:
    """The conversation after an answer about picture `number`."""
    picture = talk.pictures[number]
    found = reply.prediction
    note = Note(
        reply.model, reply.seconds, found.p_absent, reply.encoded, reply.proposals, reply.proposal_seconds,
        found.text or "",
    )  # fmt: skip
    session = state.with_answer(picture.session, text, found)
    changed = replace(picture, session=session, notes=(*picture.notes, note))
    pictures = (*talk.pictures[:number], changed, *talk.pictures[number + 1 :])
    return replace(talk, pictures=pictures, current=number, shown=len(session.turns) - 1)


def talk_value(talk: Talk, question: str = "", notice: str = "") -> dict[str, Any]:
    """The value of the conversation component; `question`: one that is being answered."""
    return {
        "token": talk.token,
        "pictures": [_picture_value(talk, number) for number in range(len(talk.pictures))],
        "pending": question,
        "notice": notice,
    }


def _picture_value(talk: Talk, number: int) -> dict[str, Any]:
    picture, current = talk.pictures[number], number == talk.current
    rows = zip(picture.session.turns, picture.notes, strict=True)
    return {
        "number": number,
        "name": picture.name,
        "thumb": picture.thumb,
        "current": current,
        "turns": [
            {
                "number": place,
                "question": turn.question,
                "lines": list(lines_of(turn)),
                "sure": sure_words(note.p_absent) if len(turn.segments) == 1 else "",
                "shown": current and place == talk.shown,
            }
            for place, (turn, note) in enumerate(rows)
        ],
    }


def lines_of(turn: ChatTurn) -> Iterator[dict[str, Any]]:
    """The lines of an answer; one with a mask has the colour, number, score and size of it."""
    for number, (line, part) in enumerate(zip_longest(turn.answer.splitlines(), turn.segments)):
        if part is None or part.rle is None:
            yield {"text": line or "", "absent": part is not None}
            continue
        yield {
            "text": part.phrase,
            "number": number + 1,
            "colour": css_colour(number),
            "score": None if part.score is None else round(float(part.score), 2),
            "pixels": masks.area(part.rle),
        }


def sure_words(p_absent: float | None) -> str:
    """How sure the model is that the thing is there, or not there."""
    if p_absent is None:
        return ""
    if p_absent <= 0.5:
        return f"{100 * (1 - p_absent):.0f} % sure that it is there"
    return f"{100 * p_absent:.0f} % sure that it is not there"


def question_of(talk: Talk) -> Question | None:
    """The question of the shown turn, with the earlier turns that the model was given."""
    picture, turn = talk.picture, talk.turn
    if picture is None or turn is None:
        return None
    before = replace(picture.session, turns=picture.session.turns[: talk.shown])
    return state.question_for(before, turn.question)


def attention_rows(talk: Talk, shares: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
    """What each phrase of the shown turn listened to, for the side panel."""
    phrases = [] if talk.turn is None else [part.phrase for part in talk.turn.segments]
    rows = []
    for number, streams in enumerate(shares):
        if not streams:
            continue
        phrase = phrases[number] if number < len(phrases) else ""
        words = ", ".join(f"{name} {100 * share:.0f} %" for name, share in streams.items())
        rows.append((f"Attention for {phrase or f'phrase {number + 1}'}", words))
    return rows


def details_of(talk: Talk) -> list[tuple[str, str]]:
    """What the side panel says of the shown turn: names and values."""
    picture, turn = talk.picture, talk.turn
    if picture is None or turn is None:
        return []
    note = picture.notes[talk.shown]
    rows = [
        ("Model", note.model),
        ("Time for this turn", f"{1000 * note.seconds:.0f} ms"),
        ("Picture", "encoded for this turn" if note.encoded else "features kept from before"),
        ("Picture size", f"{picture.width} x {picture.height} pixels"),
    ]
    if note.proposals:
        rows.append(("Regions proposed", ", ".join(f"{n} {name}s" for name, n in note.proposals.items())))
    if note.proposal_seconds is not None:
        rows.append(("Time for the regions", f"{1000 * note.proposal_seconds:.1f} ms"))
    if note.p_absent is not None:
        rows.append(("Probability of absence", f"{note.p_absent:.3f}"))
    rows.append(("As generated", note.generated or "(nothing)"))
    question = question_of(talk)
    history = () if question is None else question.history
    rows.append(("Earlier turns it was given", "; ".join(asked for asked, _ in history) or "none"))
    return rows
