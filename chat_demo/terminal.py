"""The chat in a terminal, or with questions piped in, one per line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from chat_demo import session as state
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic
from uniresxx.imaging.overlay import Layer, draw_overlay, one_line
from uniresxx.predictor import Predictor, mask_of

PROMPT = "> "
HELP = """Type what to find, for example: the left wheel of the red car
  :image PATH   open a picture (JPEG, PNG, WEBP); the conversation starts again
  :save [PATH]  save the last answer as a picture (default: chat_001.png, chat_002.png, …)
  :reset        forget the conversation, keep the picture
  :help         this text
  :quit         leave (or Ctrl-D)"""


class Chat:
    """One conversation: passes lines to the pure session and prints its answers."""

    def __init__(self, predictor: Predictor, out: TextIO, folder: Path) -> None:
        self.predictor = predictor
        self.out = out
        self.folder = folder  # of numbered overlays
        self.session = state.Session()

    def show(self, text: str) -> None:
        """Print lines; control characters of a model or a file name do not reach the terminal."""
        for line in text.splitlines():
            indent = " " * (len(line) - len(line.lstrip(" ")))
            print(indent + one_line(line, longest=2000), file=self.out, flush=True)

    def handle(self, line: str) -> bool:
        """One line of input; False ends the chat. Mistakes are printed, never raised."""
        text = line.strip()
        if not text:
            return True
        word, _, rest = text.partition(" ")
        try:
            match word:
                case ":quit" | ":exit" | ":q":
                    return False
                case ":help":
                    self.show(HELP)
                case ":image":
                    self.open_image(rest)
                case ":save":
                    self.save(rest)
                case ":reset":
                    self.session = state.reset(self.session)
                    self.show("The conversation is forgotten. The picture stays.")
                case _ if word.startswith(":"):
                    self.show(f"{word} is not a command; the commands are :image :save :reset :help :quit")
                case _:
                    self.ask(text)
        except (InputError, OSError) as error:  # OSError: a disk that is full or cannot be written
            self.show(str(error))
        return True

    def open_image(self, path: str) -> None:
        """Open another picture; where it cannot be used, the current one stays."""
        name = path.strip().strip("\"'")
        if not name:
            raise InputError(":image needs the path of a picture")
        photo = self.predictor.set_image(os.path.expanduser(name))
        self.session = state.with_photo(self.session, name, photo)
        self.show(
            f"{name}: {photo.shape[1]} x {photo.shape[0]} pixels. Ask your questions; :save saves the last answer."
        )

    def ask(self, text: str) -> None:
        """Answer a question about the picture."""
        if self.session.photo is None:
            raise InputError("no picture yet: open one with :image PATH")
        found = self.predictor.segment(state.question_for(self.session, text))[0]
        self.session = state.with_answer(self.session, text, found)
        self.show(self.session.turns[-1].answer)

    def save(self, path: str) -> None:
        """Save the last answer with a mask; an existing file is never replaced."""
        photo, turns = self.session.photo, [turn for turn in self.session.turns if turn.segments]
        if photo is None or not turns:
            raise InputError("nothing to save yet: ask for something first")
        name = path.strip().strip("\"'")
        target = Path(name).expanduser() if name else next_free(self.folder)
        target = target if target.suffix.lower() == ".png" else target.with_name(target.name + ".png")
        if target.exists():
            raise InputError(f"{target} exists already: choose another name")
        layers = (Layer(part.phrase, mask_of(part), part.score) for part in turns[-1].segments)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, png_bytes(draw_overlay(photo, layers)))
        self.show(f"Saved {target}")


def next_free(folder: Path) -> Path:
    """The chat_NNN.png after the highest number in the folder."""
    numbers = [int(path.stem[5:]) for path in folder.glob("chat_*.png") if path.stem[5:].isdecimal()]
    return folder / f"chat_{max(numbers, default=0) + 1:03d}.png"


def typed_lines(source: TextIO, out: TextIO) -> Iterator[str]:
    """Lines as they are typed (with history and editing) or piped in (shown behind the prompt)."""
    if source.isatty():
        with suppress(ImportError):  # absent on some systems; only editing is lost
            import readline  # noqa: F401
        while True:
            try:
                yield input(PROMPT)
            except EOFError:
                print(file=out)
                return
    for line in source:
        print(PROMPT + one_line(line), file=out, flush=True)
        yield line


def talk(predictor: Predictor, image: str | None, folder: Path, source: TextIO, out: TextIO) -> int:
    """Run the conversation to its end. Raises InputError where the first picture cannot be used."""
    chat = Chat(predictor, out, folder)
    if image is not None:
        chat.open_image(image)
    else:
        chat.show("Open a picture with :image PATH; :help lists the commands.")
    try:
        for line in typed_lines(source, out):
            if not chat.handle(line):
                break
    except KeyboardInterrupt:
        print(file=out)
    chat.show("Bye.")
    return 0


def run(checkpoint: str, image: str | None, folder: Path, **placement: Any) -> int:
    """Load the model, placed as in `Predictor.from_pretrained`, and talk on the standard streams."""
    if sys.stdin is None:
        raise InputError("standard input is closed: type the questions, or pipe them in")
    predictor = Predictor.from_pretrained(checkpoint, state.CHAT_DECODING, **placement)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # piped bytes that are no text must not end the chat
    return talk(predictor, image, folder, sys.stdin, sys.stdout)
