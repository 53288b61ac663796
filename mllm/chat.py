"""Turns -> token ids, label marks and branch ids in one pass: nothing is re-tokenised, no offsets are guessed.

Shapes: T tokens of a row (all branches of one image, one after another).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from mllm.chat_templates import ChatTemplate
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

    @property
    def next_branch(self) -> int:
        """Number of the branch that comes next."""
        return self.branch_T[-1] + 1 if self.branch_T else 0

    def add(self, tokens: Sequence[int], learned: bool, branch: int, start: int) -> None:
        """Append tokens of the branch that begins at `start`; a learned one is the label of the token before it."""
        for token in tokens:
            if learned:
                self.labels_T[-1] = token
            self.ids_T.append(token)
            self.labels_T.append(IGNORE)
            self.branch_T.append(branch)
            self.position_T.append(len(self.ids_T) - 1 - start)


class _Writer:
    """Appends one branch to a row; text is encoded piece by piece.

    A space at the end of a piece waits: it is encoded with the text after it, as all tokenizers have it at the start
    of a word, and left out before a mark.
    """

    def __init__(self, vocabulary: Vocabulary, row: Row) -> None:
        self.vocabulary, self.row = vocabulary, row
        self.branch = row.next_branch
        self.start = len(row.ids_T)
        self.spaces = ""

    def template(self, text: str, learned: bool = False) -> None:
        """Text of the chat format, in which special tokens are meant."""
        self._put(self.vocabulary.encode_template(self._with_spaces(text)), learned)

    def plain(self, text: str, learned: bool = False) -> None:
        """Text of a user, or of an answer."""
        self._put(self.vocabulary.encode(self._with_spaces(text)), learned)

    def mark(self, mark: Mark) -> None:
        """A decision, which is learned."""
        self.spaces = ""
        self.row.decisions.append(len(self.row.ids_T) - 1)
        self._put([self.vocabulary.seg if mark is Mark.SEG else self.vocabulary.rej], True)

    def _with_spaces(self, text: str) -> str:
        body = text.rstrip(" ")
        if not body:
            self.spaces += text
            return ""
        before, self.spaces = self.spaces, text[len(body) :]
        return before + body

    def _put(self, tokens: Sequence[int], learned: bool) -> None:
        self.row.add(tokens, learned, self.branch, self.start)


def render(
    turns: Sequence[ChatTurn],
    vocabulary: Vocabulary,
    row: Row | None = None,
    chat: ChatTemplate = ChatTemplate(),  # noqa: B008  # frozen
) -> Row:
    """Append one branch (a conversation) to `row`; positions restart at 0.

    A label sits at the position that predicts the token: `labels_T[i]` is the token after i, learned only inside
    answers. The last turn may have no answer: the row then ends where generation starts.

    Args:
        turns: questions and answers.
        vocabulary: tokenizer.
        row: what is appended to; None: a new one.
        chat: the language model's chat format; what stands before the picture belongs to the visual prefix.
    """
    row = row if row is not None else Row()
    writer = _Writer(vocabulary, row)
    for number, turn in enumerate(turns):
        writer.template(chat.before_question if number else chat.after_image)
        writer.plain(turn.question)
        writer.template(chat.before_answer)
        if turn.answer is None:
            break
        for piece in turn.answer:
            if isinstance(piece, Mark):
                writer.mark(piece)
            else:
                writer.plain(piece, True)
        writer.spaces = ""
        writer.template(chat.end, True)
    return row
