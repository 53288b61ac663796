"""The chat in a terminal, or with questions piped in, one per line."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from chat_demo import session as state
from chat_demo.commands import Command, Kind, path_of, understand
from chat_demo.pictures import can_show, show_picture, shown_size, small_picture
from chat_demo.streaming import spoken
from chat_demo.typing_line import Lines, half_typed
from uniresxx.cli import first_load
from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic
from uniresxx.imaging.overlay import Layer, colour_of, draw_overlay, one_line
from uniresxx.predictor import Predictor

HELP = """Type what to find, for example: the left wheel of the red car
Questions may point back: and its roof?
To open a picture, type its path or drop the file into the terminal.
  :image PATH   open a picture; the conversation starts again
  :save [PATH]  save the last answer as a picture (default: chat_001.png, …)
  :reset        forget the conversation, keep the picture
  :help         this text (also /help, help)
  :quit         leave (also /quit, quit, Ctrl-D, twice Ctrl-C)
Tab completes commands and paths. Ctrl-C drops a half-typed line or a running
answer."""


class Chat:
    """One conversation: passes lines to the pure session and prints its answers."""

    def __init__(self, predictor: Predictor, out: TextIO, folder: Path, pictures: bool = True) -> None:
        self.predictor = predictor
        self.out = out
        self.folder = folder  # of numbered overlays
        self.console = Console(file=out, highlight=False)
        self.pictures = pictures and can_show(self.console)
        self.session = state.Session()

    def show(self, text: str) -> None:
        """Print lines; control characters of a model or a file name do not reach the terminal."""
        for line in text.splitlines():
            indent = " " * (len(line) - len(line.lstrip(" ")))
            print(indent + one_line(line, longest=2000), file=self.out, flush=True)

    def handle(self, line: str) -> bool:
        """One line of input; False ends the chat. Mistakes are printed, never raised."""
        try:
            for command in understand(line, os.path.exists):
                if command.kind is Kind.QUIT:
                    return False
                self.do(command)
        except (InputError, OSError) as error:  # OSError: a disk that is full or cannot be written
            self.show(str(error))
        return True

    def do(self, command: Command) -> None:
        """Follow a command that does not end the chat."""
        match command.kind:
            case Kind.HELP:
                print(HELP, file=self.out, flush=True)
            case Kind.IMAGE:
                self.open_image(command.rest)
            case Kind.SAVE:
                self.save(command.rest)
            case Kind.RESET:
                self.session = state.reset(self.session)
                self.show("The conversation is forgotten. The picture stays.")
            case Kind.QUESTION:
                self.ask(command.rest)

    def open_image(self, path: str) -> None:
        """Open another picture; where it cannot be used, the current one stays."""
        if not path:
            raise InputError(":image needs the path of a picture")
        photo = self.predictor.set_image(path)
        self.session = state.with_photo(self.session, path, photo)
        self.draw(())
        self.show(
            f"{path}: {photo.shape[1]} x {photo.shape[0]} pixels. Ask for what you see; :help says more."
        )

    def ask(self, text: str) -> None:
        """Answer a question about the picture."""
        if self.session.photo is None:
            raise InputError("no picture yet: type the path of one, or drop it here")
        with spoken(self.console) as on_words:
            found = self.predictor.ask(state.question_for(self.session, text), on_words)
        self.session = state.with_answer(self.session, text, found)
        turn = self.session.turns[-1]
        if not any(part.rle for part in turn.segments) or not self.pictures:
            self.show(turn.answer)
            return
        self.draw(turn.segments)
        for number, (line, part) in enumerate(zip_longest(turn.answer.splitlines(), turn.segments)):
            colour = "rgb({},{},{})".format(*colour_of(number))
            chip = Text("■ ", colour) if part is not None and part.rle else Text("  ")
            self.console.print(chip + Text(one_line(line or "", longest=2000)), soft_wrap=True)

    def draw(self, segments: tuple[state.Segment, ...]) -> None:
        """Show the picture with these masks, where the terminal can."""
        photo = self.session.photo
        if photo is None or not self.pictures:
            return
        height, width = photo.shape[:2]
        size = shown_size((height, width), (self.console.height, self.console.width))
        show_picture(self.console, small_picture(photo, [part.mask for part in segments], size))

    def save(self, path: str) -> None:
        """Save the last answer with a mask; an existing file is never replaced."""
        photo, turns = self.session.photo, [turn for turn in self.session.turns if turn.segments]
        if photo is None or not turns:
            raise InputError("nothing to save yet: ask for something first")
        target = Path(path) if path else next_free(self.folder)
        target = target if target.suffix.lower() == ".png" else target.with_name(target.name + ".png")
        if target.exists():
            raise InputError(f"{target} exists already: choose another name")
        layers = (Layer(part.phrase, part.mask, part.score) for part in turns[-1].segments)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, png_bytes(draw_overlay(photo, layers)))
        self.show(f"Saved {target}")


def next_free(folder: Path) -> Path:
    """The chat_NNN.png after the highest number in the folder."""
    numbers = [int(path.stem[5:]) for path in folder.glob("chat_*.png") if path.stem[5:].isdecimal()]
    return folder / f"chat_{max(numbers, default=0) + 1:03d}.png"


def talk(
    predictor: Predictor, image: str | None, folder: Path, source: TextIO, out: TextIO, pictures: bool = True
) -> int:
    """Run the conversation to its end. Raises InputError where the first picture cannot be used."""
    chat, lines = Chat(predictor, out, folder, pictures), Lines(source, out)
    if predictor.name:
        chat.show(f"Model: {predictor.name}")
    if image is not None:
        chat.open_image(path_of(image))
    else:
        chat.show("Open a picture: type its path, or drop the file here. :help lists the commands.")
    stops = 0  # how often Ctrl-C was pressed since the last line
    while stops < 2:
        try:
            line = lines.read()
            stops = 0
            if line is None or not chat.handle(line):
                break
        except KeyboardInterrupt:
            stops = _stops_after(stops, lines.typed)
            print(file=out)
            if stops == 1:
                chat.show("Dropped. Ctrl-C again leaves, and so does :quit.")
    with suppress(KeyboardInterrupt):
        chat.show("Bye.")
    return 0


def _stops_after(stops: int, typed: bool) -> int:
    """The count after one more Ctrl-C: one that drops a half-typed line is the first, one in a pipe the last."""
    if not typed:
        return 2
    return 1 if half_typed() else stops + 1


def run(
    checkpoint: str | None, image: str | None, folder: Path, pictures: bool = True, **placement: Any
) -> int:
    """Load the model, placed as in `Predictor.from_pretrained`, and talk on the standard streams."""
    if sys.stdin is None:
        raise InputError("standard input is closed: type the questions, or pipe them in")
    with first_load():
        predictor = Predictor.from_pretrained(checkpoint, state.CHAT_DECODING, **placement)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # piped bytes that are no text must not end the chat
    return talk(predictor, image, folder, sys.stdin, sys.stdout, pictures)
