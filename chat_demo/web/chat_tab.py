"""The tab to talk about pictures: what its buttons and messages do, and how it is laid out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from chat_demo.streaming import readable
from chat_demo.web import downloads, parts
from chat_demo.web import talk as state
from chat_demo.web.examples import Example
from chat_demo.web.kept import Kept
from chat_demo.web.models import LIMITS, Model, Photo, Reply, photo_of
from chat_demo.web.talk import Talk, attention_rows, details_of, question_of, talk_value
from chat_demo.web.views import photo_url, picture_value
from uniresxx.data.scenes.looks import looks_drawn
from uniresxx.errors import InputError
from uniresxx.predictor import NOT_DRAWN

HINT = "Drop a picture here, or open one"
FAILED = "The model failed on this one; the terminal shows why. Ask something else, or reload the page."
logger = logging.getLogger(__name__)


class Shown(NamedTuple):
    """What a handler changes: values of the tab's outputs, `gr.skip()` where one stays."""

    talk: Any
    picture: Any
    conversation: Any
    details: Any
    message: Any = gr.skip()


class Chat:
    """What happens in the tab. Holds nothing of a visitor: a conversation comes in and goes out."""

    def __init__(self, models: Sequence[Model], kept: Kept, examples: Sequence[Example]) -> None:
        self.models = {model.name: model for model in models}
        self.kept, self.examples = kept, examples

    def ask(self, text: str, model: str, talk: Talk) -> Iterator[Shown]:
        """Answer a message: first it appears, then its words, then the masks."""
        text = str(text or "").strip()
        if not text:
            yield self._told(talk, "Type what to find, such as: the left wheel of the red car")
            return
        if talk.picture is None:
            yield self._told(talk, "Open a picture first: drop one, or take an example.")
            return
        if len(talk.picture.session.turns) >= state.MOST_TURNS:
            yield self._told(talk, f"{state.MOST_TURNS} turns are the most: open the picture again to go on.")
            return
        number = talk.current
        yield Shown(gr.skip(), gr.skip(), talk_value(talk, text), gr.skip(), "")
        try:
            photo = self.kept.photo(talk, number)
            for said in self.models[model].replies(photo, state.question_for(talk, text)):
                if isinstance(said, Reply):
                    talk = state.with_reply(talk, number, text, said)
                else:
                    value = talk_value(talk, text) | {"words": readable(said)}
                    yield Shown(gr.skip(), gr.skip(), value, gr.skip())
            self.kept.save(talk)
        except (InputError, OSError) as error:
            yield self._told(talk, str(error))
            return
        except Exception:  # whatever a model raises
            logger.exception("a question could not be answered")
            yield self._told(talk, FAILED)
            return
        yield self._all(talk, photo)

    def open_file(self, path: str | None, model: str, talk: Talk) -> Shown:
        """A picture that a visitor handed in; Gradio has checked that the path is that of an upload."""
        if not path:
            return self._told(talk, "That was no picture.")
        try:
            size = Path(path).stat().st_size
            if size > LIMITS.max_photo_bytes:
                raise InputError(f"the picture has {size} bytes, at most {LIMITS.max_photo_bytes}")
            return self._open(photo_of(Path(path).read_bytes(), Path(path).name), model, talk)
        except (InputError, OSError) as error:
            return self._told(talk, str(error))

    def open_example(self, model: str, talk: Talk, event: gr.EventData) -> Shown:
        """One of the pictures that come with the project."""
        number = parts.whole(parts.sent(event), "number")
        if not 0 <= number < len(self.examples):
            return self._told(talk, "There is no such example.")
        try:
            return self._open(self.examples[number].photo, model, talk)
        except (InputError, OSError) as error:
            return self._told(talk, str(error))

    def show(self, talk: Talk, event: gr.EventData) -> Shown:
        """Another picture of the conversation, or the masks of an earlier turn."""
        data = parts.sent(event)
        turn = parts.whole(data, "turn") if "turn" in data else None
        talk = state.with_current(talk, parts.whole(data, "picture"), turn)
        return self._all(talk, focus=data.get("number"))

    def reopen(self, request: gr.Request) -> Shown:
        """The conversation of a link, an empty one without."""
        token = str(request.query_params.get("chat", ""))
        if not token:
            return self._all(Talk())
        try:
            return self._all(self.kept.load(token))
        except (InputError, OSError) as error:
            return self._told(Talk(), str(error))

    def begin_anew(self) -> Shown:
        """Another conversation; the earlier one stays at its link."""
        return self._all(Talk())

    def look(self, talk: Talk) -> str:
        """The side panel with what each [SEG] and [REJ] of the shown turn listened to."""
        question = question_of(talk)
        if question is None or talk.picture is None:
            return details_html(talk)
        model = self.models.get(talk.picture.notes[talk.shown].model)
        try:
            photo = self.kept.photo(talk, talk.current)
            shares = [] if model is None else model.attention_shares(photo, question)
        except InputError as error:
            return f"<p>{escape(str(error))}</p>"
        except Exception:  # whatever a model raises
            logger.exception("failed to compute what an answer attended to")
            return f"<p>{escape(FAILED)}</p>"
        return details_html(talk, shares)

    def download(self, what: str, talk: Talk) -> tuple[Any, Any]:
        """A file for the visitor, and the conversation with what went wrong."""
        picture, turn = talk.picture, talk.turn
        try:
            if picture is None or turn is None:
                raise InputError("nothing to download yet: ask for something first")
            if what == "masks":
                value = parts.file_value("masks.zip", downloads.masks_zip(turn.segments), "application/zip")
            elif what == "rle":
                data = downloads.rle_json(picture.name, turn.question, turn.segments)
                value = parts.file_value("masks.json", data, "application/json")
            elif what == "overlay":
                photo = self.kept.photo(talk, talk.current)
                data = downloads.overlay_png(photo.pixels, turn.segments)
                value = parts.file_value("overlay.png", data, "image/png")
            else:
                value = parts.file_value(
                    "conversation.json", downloads.conversation_json(talk), "application/json"
                )
        except (InputError, OSError) as error:
            return gr.skip(), talk_value(talk, notice=str(error))
        return value, gr.skip()

    def _open(self, photo: Photo, model: str, talk: Talk) -> Shown:
        if len(talk.pictures) >= state.MOST_PICTURES:
            raise InputError(f"{state.MOST_PICTURES} pictures are the most: begin a new conversation")
        talk, picture = self.kept.add_photo(talk, photo)
        talk = state.with_picture(talk, picture)
        self.kept.save(talk)
        warned = self.models[model].only_scenes and not looks_drawn(photo.pixels)
        hint = f"Note: {NOT_DRAWN}." if warned else ""
        return self._all(talk, photo, notice=hint, tone="hint")

    def _all(self, talk: Talk, photo: Photo | None = None, focus: Any = None, **more: str) -> Shown:
        """Everything of a conversation."""
        picture = talk.picture
        if picture is None:
            return Shown(talk, {"hint": HINT}, talk_value(talk) | more, details_html(talk))
        try:
            photo = photo or self.kept.photo(talk, talk.current)
        except InputError as error:
            return self._told(talk, str(error))
        segments = () if talk.turn is None else talk.turn.segments
        known = isinstance(focus, int) and 0 < focus <= len(segments)
        view = picture_value(photo.pixels, picture.name, segments, focus=focus if known else None)
        value = talk_value(talk) | {"suggestions": self._suggestions(talk, photo)} | more
        return Shown(talk, view, value, details_html(talk))

    def _suggestions(self, talk: Talk, photo: Photo) -> list[str]:
        """Sentences about an example that were not asked yet."""
        picture = talk.picture
        asked = set() if picture is None else {turn.question for turn in picture.session.turns}
        example = next((one for one in self.examples if one.photo.digest == photo.digest), None)
        return [] if example is None else [text for text in example.sentences if text not in asked][:4]

    def _told(self, talk: Talk, notice: str) -> Shown:
        """The conversation as it was, and what went wrong in words."""
        return Shown(talk, gr.skip(), talk_value(talk, notice=notice), gr.skip())


def details_html(talk: Talk, shares: Sequence[Mapping[str, float]] = ()) -> str:
    """The side panel: a table of what is known of the shown turn, with its attention where that was asked for."""
    rows = [*details_of(talk), *attention_rows(talk, shares)]
    if not rows:
        return "<p>Ask something: this panel then shows what the model did for it.</p>"
    cells = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows
    )
    return f"<table class='ux-details'>{cells}</table>"


def example_values(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The examples as the conversation component shows them."""
    return [{"number": number, "src": photo_url(one.photo.pixels)} for number, one in enumerate(examples)]
