"""How expressions become questions and answers; the truth enters training rows only, never a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mllm.chat import ChatTurn, Mark, render
from mllm.chat_templates import ChatTemplate
from mllm.tokens import Vocabulary
from uniresxx.text import asked_questions
from uniresxx.types import Decoding, Expression, Phrase, Question, Turn

# METHOD section 3: at least ten question templates in training, one in evaluation (types.EVALUATION_TEMPLATE).
TRAINING_TEMPLATES = (
    "Segment {expression}.",
    "Segment {expression}.",  # twice, because evaluation uses it
    "{expression}",
    "Find {expression}.",
    "Where is {expression}?",
    "Show me {expression}.",
    "Please segment {expression}.",
    "Can you segment {expression}?",
    "Mark {expression} in the picture.",
    "Outline {expression}.",
    "Give me the mask of {expression}.",
    "Which pixels belong to {expression}?",
    "Point at {expression}.",
)


def question(text: str, choice: int) -> str:
    """An expression's text inside the `choice`-th training template (modulo their number)."""
    return TRAINING_TEMPLATES[choice % len(TRAINING_TEMPLATES)].format(expression=text)


def expression_turn(expression: Expression, choice: int) -> ChatTurn:
    """One question with `[SEG].` or `[REJ].` as its answer."""
    return ChatTurn(question(expression.text, choice), (_mark(expression), "."))


def together_turn(expressions: Sequence[Expression], choice: int) -> ChatTurn:
    """One question for all expressions of an image, and one answer with a mark for each (`ask_together`)."""
    texts = [expression.text for expression in expressions]
    marks = [_mark(expression) for expression in expressions]
    return ChatTurn(question(", ".join(texts), choice), (*marked(texts, marks), "."))


def marked(texts: Sequence[str], marks: Sequence[Mark]) -> Iterator[str | Mark]:
    """`a:`, its mark, `, b:`, its mark, …; ends behind the last mark, or before a text's that has none yet."""
    for index, text in enumerate(texts[: len(marks) + 1]):
        yield f"{', ' if index else ''}{text}:"
        yield from marks[index : index + 1]


def dialogue_turn(turn: Turn) -> ChatTurn:
    """`a: [SEG], b: [REJ].` for several phrases, `[SEG].` for one, plain words otherwise."""
    if not turn.phrases:
        return ChatTurn(turn.question, (turn.answer or "",))
    marks = [_mark(phrase) for phrase in turn.phrases]
    if len(marks) == 1:
        return ChatTurn(turn.question, (marks[0], "."))
    return ChatTurn(turn.question, (*marked([phrase.text for phrase in turn.phrases], marks), "."))


def generated_turn(asked: str, answer: str) -> ChatTurn:
    """A past turn as it was generated: [SEG] and [REJ] in it become marks, all else is text."""
    pieces: list[str | Mark] = []
    for part in answer.replace("[SEG]", "\0S\0").replace("[REJ]", "\0R\0").split("\0"):
        if part in ("S", "R"):
            pieces.append(Mark.SEG if part == "S" else Mark.REJ)
        elif part.strip():
            pieces.append(part)
    return ChatTurn(asked, tuple(pieces))


def asked_branches(
    texts: Sequence[Sequence[str | Question]],
    decoding: Decoding,
    vocabulary: Vocabulary,
    chat: ChatTemplate,
) -> tuple[list[int], list[list[int]]]:
    """Image number and token ids of each text, photo by photo; the ids end where the answer begins."""
    images, branches = [], []
    for image, question in asked_questions(texts):
        turns = [generated_turn(asked, answer) for asked, answer in question.history]
        turns.append(ChatTurn(decoding.template.format(expression=question.text)))
        images.append(image)
        branches.append(render(turns, vocabulary, chat=chat).ids_T)
    return images, branches


def _mark(asked: Expression | Phrase) -> Mark:
    return Mark.REJ if asked.rle is None else Mark.SEG
