"""The one place that cleans text: what people type and what data sets hold reaches a model in the same form.

It is called where text comes in: `imaging.inputs.checked` (Python, command line, chat, server),
`asked_questions` (every `Segmenter.answer`, so evaluation too) and `data.readers.collector` (every data set).
Cleaning twice changes nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from uniresxx.types import Question

JOINERS = "\u200c\u200d"  # format characters that belong to the spelling of some scripts and to emoji


def clean_text(text: str) -> str:
    """Text as a model gets it: Unicode form NFKC, one blank for white space of any kind, none at the ends.

    Full-width letters become plain ones. Control characters count as white space. Characters that only format text
    (zero-width space, soft hyphen, marks of direction) are dropped, but for the two joiners. Half characters, which
    no tokenizer takes, become "?".

    Args:
        text: an expression or a question.
    """
    whole = text.encode("utf-8", "replace").decode()
    shown = "".join(_shown(letter) for letter in whole)
    return " ".join(unicodedata.normalize("NFKC", shown).split())


def _shown(letter: str) -> str:
    category = unicodedata.category(letter)
    if category == "Cc":
        return " "
    return "" if category == "Cf" and letter not in JOINERS else letter


def is_blank(clean: str) -> bool:
    """Whether clean text shows nothing: it is empty, or holds joiners and the like alone."""
    return not any(map(str.isprintable, clean))


def clean_question(asked: str | Question) -> Question:
    """The question with clean text; the answers in its history stay as they were generated."""
    if isinstance(asked, str):
        return Question(clean_text(asked))
    return Question(
        clean_text(asked.text), tuple((clean_text(text), answer) for text, answer in asked.history)
    )


def asked_questions(texts: Sequence[Sequence[str | Question]]) -> list[tuple[int, Question]]:
    """The number of the photo and the clean question of each text of `Segmenter.answer`, photo by photo."""
    return [(photo, clean_question(text)) for photo, row in enumerate(texts) for text in row]
