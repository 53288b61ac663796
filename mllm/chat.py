"""Turns -> token ids, label marks and branch ids in one pass: nothing is re-tokenised, no offsets are guessed.

Shapes: T tokens of a row (all branches of one image, one after another).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from mllm.tokens import Vocabulary

IGNORE = -100


class Mark(Enum):
    """A decision inside an answer."""

    SEG = "seg"
    REJ = "rej"


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A question and the pieces of its answer (plain text and marks); no answer = to be generated."""

    question: str
    answer: tuple[str | Mark, ...] | None = None


@dataclass(slots=True)
class Row:
    """Branches packed one after another; `decisions` are the positions whose state predicts [SEG] or [REJ]."""

    ids_T: list[int] = field(default_factory=list)
    labels_T: list[int] = field(default_factory=list)
    branch_T: list[int] = field(default_factory=list)
    position_T: list[int] = field(default_factory=list)
    decisions: list[int] = field(default_factory=list)


def render(turns: Sequence[ChatTurn], vocabulary: Vocabulary, row: Row | None = None) -> Row:
    """Append one branch (a conversation) to `row`; positions restart at 0.

    A label sits at the position that predicts the token: `labels_T[i]` is the token after i, learned only inside
    answers. The last turn may have no answer: the row then ends where generation starts.
    """
    row = row if row is not None else Row()
    branch = row.branch_T[-1] + 1 if row.branch_T else 0
    start = len(row.ids_T)

    def put(token: int, learned: bool) -> None:
        if learned:
            row.labels_T[-1] = token
        row.ids_T.append(token)
        row.labels_T.append(IGNORE)
        row.branch_T.append(branch)
        row.position_T.append(len(row.ids_T) - 1 - start)

    marks = {Mark.SEG: vocabulary.seg, Mark.REJ: vocabulary.rej}
    for turn in turns:
        put(vocabulary.user, False)
        for token in vocabulary.encode(turn.question):
            put(token, False)
        put(vocabulary.assistant, False)
        if turn.answer is None:
            break
        for piece in turn.answer:
            if isinstance(piece, Mark):
                row.decisions.append(len(row.ids_T) - 1)
                put(marks[piece], True)
            else:
                for token in vocabulary.encode(piece):
                    put(token, True)
        put(vocabulary.end, True)
    return row
