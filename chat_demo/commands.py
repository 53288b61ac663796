"""What a typed line is: a command, the path of a picture, or a question. Pure: the caller knows which files exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import unquote, urlsplit

from uniresxx.errors import InputError
from uniresxx.imaging.formats import SUFFIXES


class Kind(Enum):
    """What a line asks for."""

    NOTHING = "nothing"
    QUIT = "quit"
    HELP = "help"
    IMAGE = "image"
    SAVE = "save"
    RESET = "reset"
    QUESTION = "question"


@dataclass(frozen=True, slots=True)
class Command:
    """A line understood: what it asks for, and its path or question."""

    kind: Kind
    rest: str = ""


NAMES = {
    "image": Kind.IMAGE, "open": Kind.IMAGE, "save": Kind.SAVE, "reset": Kind.RESET, "help": Kind.HELP,
    "quit": Kind.QUIT, "exit": Kind.QUIT, "q": Kind.QUIT,
}  # fmt: skip
SHOWN = ("image", "save", "reset", "help", "quit")  # in the help and by Tab
PLAIN = {"help": Kind.HELP, "?": Kind.HELP, "quit": Kind.QUIT, "exit": Kind.QUIT}  # also without a colon
_ROOTED = re.compile(r"^(?:/|~|\.\.?/|[A-Za-z]:[\\/])")
_ADDRESS = re.compile(r"^file:", re.IGNORECASE)
_ENDING = re.compile(r"\.\w{2,5}$")
_OPEN = re.compile(r"^(?:open|load|image) +(?=\S)", re.IGNORECASE)
_QUOTES = ("'", '"')

Exists = Callable[[str], bool]


def understand(line: str, exists: Exists) -> tuple[Command, ...]:
    """A typed line as one command; a picture with a question behind it as two.

    Args:
        line: as typed, or as a file manager drops it: quoted, with backslashes, or as `file://…`.
        exists: whether a path is a file.

    Raises:
        InputError: the line begins with a colon or a slash and is neither a command nor a path.
    """
    text = line.strip()
    if not text:
        return (Command(Kind.NOTHING),)
    if text.lower() in PLAIN:
        return (Command(PLAIN[text.lower()]),)
    word, _, rest = text.partition(" ")
    if word[0] in ":/" and word[1:].lower() in NAMES:
        kind = NAMES[word[1:].lower()]
        return (Command(kind, path_of(rest) if kind in (Kind.IMAGE, Kind.SAVE) else ""),)
    opened = _dropped(text, exists)
    if opened is not None:
        return opened
    if word[0] == ":" or (word[0] == "/" and "/" not in word[1:] and not rest):
        known = " ".join(f":{name}" for name in SHOWN)
        raise InputError(f"{word} is not a command; the commands are {known}")
    return (Command(Kind.QUESTION, _unquoted(text)),)


def path_of(text: str) -> str:
    """A path as a person types or drops it, as a path: without quotes and backslashes, `file://` decoded."""
    typed, text = text.strip(), _unquoted(text.strip())
    if typed == text and not re.match(r"^[A-Za-z]:\\", text):
        text = re.sub(r"\\(.)", r"\1", text)
    if _ADDRESS.match(text):
        address = urlsplit(text)
        text = (
            unquote(address.path)
            if address.netloc in ("", "localhost")
            else f"//{address.netloc}{address.path}"
        )
        text = re.sub(r"^/(?=[A-Za-z]:)", "", text)  # file:///C:/photo.png
    return str(Path(text).expanduser()) if text.startswith("~") else text


def _dropped(text: str, exists: Exists) -> tuple[Command, ...] | None:
    """The picture that a line names, and the question behind it; None where the line is a question."""
    asked = _OPEN.sub("", text)
    first, behind = _first_word(asked)
    path = path_of(first)
    if not behind and (_is_picture(path) or _ADDRESS.match(first) or _names_file(path, exists)):
        return (Command(Kind.IMAGE, path),)
    whole = path_of(asked)
    if _names_file(whole, exists):  # blanks in the name, neither quoted nor escaped
        return (Command(Kind.IMAGE, whole),)
    if not behind or not (
        (_is_picture(path) and (exists(path) or _ROOTED.match(path))) or _ADDRESS.match(first)
    ):
        return None
    second = path_of(_first_word(behind)[0])
    if _is_picture(second) and exists(second):
        raise InputError("one picture at a time: name a single file")
    return Command(Kind.IMAGE, path), Command(Kind.QUESTION, behind)


def _names_file(path: str, exists: Exists) -> bool:
    """Whether a text is the path of a file or folder, and not a word that a file happens to be called by."""
    return bool(_is_picture(path) or _ROOTED.match(path) or _ENDING.search(path)) and exists(path)


def _is_picture(path: str) -> bool:
    """Whether a name ends as those of pictures do."""
    return path.lower().endswith(SUFFIXES)


def _unquoted(text: str) -> str:
    """The text without quotes around it."""
    inside = text[1:-1]
    return inside if len(text) > 2 and text[0] == text[-1] in _QUOTES and text[0] not in inside else text


def _first_word(text: str) -> tuple[str, str]:
    """The first word as a shell reads it (quotes and backslashes kept), and all behind it."""
    quoted = re.match(r"^(?:'[^']*'|\"[^\"]*\"|(?:\\.|[^\s\\])+)", text)
    first = quoted.group() if quoted else text
    return first, text[len(first) :].strip()
