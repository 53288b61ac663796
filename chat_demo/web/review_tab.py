"""The tab to accept and correct answers: what its buttons, keys and strokes do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic_ns
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from chat_demo.web import parts
from chat_demo.web import review as state
from chat_demo.web.corrections import Corrections
from chat_demo.web.edits import clicked, painted
from chat_demo.web.kept import Kept
from chat_demo.web.models import Model, Photo
from chat_demo.web.review import Review
from chat_demo.web.review_items import Item, guessed
from chat_demo.web.talk import Talk
from chat_demo.web.views import picture_value
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.imaging.inputs import checked
from uniresxx.prediction import Segment
from uniresxx.types import Granularity

EMPTY = "Nothing to correct yet: ask something in the chat and press “Correct these masks”"
MEANT = {name: kind for kind, name in state.NAMES.items()}
logger = logging.getLogger(__name__)


class ReviewShown(NamedTuple):
    """What a handler changes: values of the tab's outputs."""

    review: Any
    picture: Any
    progress: Any
    sentence: Any
    meant: Any
    notice: Any


class Reviewing:
    """What happens in the tab. Holds the corrections, which all visitors share, and nothing of one visitor."""

    def __init__(
        self, models: Sequence[Model], kept: Kept, corrections: Corrections, queue: Sequence[Item]
    ) -> None:
        self.models = {model.name: model for model in models}
        self.kept, self.corrections, self.queue = kept, corrections, tuple(queue)

    def begin(self) -> ReviewShown:
        """The queue, at the first item that nobody has decided."""
        review = state.opened(self.queue)
        known = self.corrections.latest()
        review = replace(review, decided=frozenset(item.key for item in self.queue if item.key in known))
        first = next((place for place, item in enumerate(self.queue) if item.key not in known), 0)
        return self._shown(state.at(review, first))

    def from_chat(self, talk: Talk) -> ReviewShown:
        """The phrases of the shown turn, to be corrected one after another."""
        picture, turn = talk.picture, talk.turn
        if picture is None or turn is None or not turn.segments:
            return self._told("Ask for something first: then its masks can be corrected here.")
        note = picture.notes[talk.shown]
        place = self.kept.folder / talk.token / picture.file
        items = [
            Item(
                f"chat/{talk.token[:8]}/{talk.current}/{talk.shown}/{number}", place, picture.name, part.phrase,
                guessed(part.phrase), part.rle, part.score, note.p_absent, note.model,
            )
            for number, part in enumerate(turn.segments)
        ]  # fmt: skip
        return self._shown(state.opened(items))

    def point(self, review: Review, model: str, event: gr.EventData) -> ReviewShown:
        """A click that adds a region or takes one away, as the chosen model finds it where it can."""
        data = parts.sent(event)

        def change(photo: Photo, mask: np.ndarray) -> np.ndarray:
            x, y = _number(data, "x"), _number(data, "y")
            region_at = partial(self.models[model].region_at, photo)
            return clicked(photo.pixels, mask, x, y, data.get("add") is True, region_at)

        return self._edited(review, change)

    def stroke(self, review: Review, event: gr.EventData) -> ReviewShown:
        """A stroke of the brush or the eraser."""
        data = parts.sent(event)
        points = data.get("points")

        def change(photo: Photo, mask: np.ndarray) -> np.ndarray:
            places = points if isinstance(points, list) else []
            return painted(mask, places, _number(data, "radius"), data.get("erase") is True)

        return self._edited(review, change)

    def command(self, review: Review, sentence: str, meant: str, event: gr.EventData) -> ReviewShown:
        """A key of the picture: accept, reject, undo, next or previous."""
        name = parts.sent(event).get("name")
        works = {"accept": self.accept, "reject": self.reject}
        if name in works:
            return works[name](review, sentence, meant)
        if name == "undo":
            return self.undo(review)
        return self.step(1 if name == "next" else -1, review)

    def accept(self, review: Review, sentence: str, meant: str) -> ReviewShown:
        """The mask is right as it is shown."""
        return self._decide(review, sentence, meant, True)

    def reject(self, review: Review, sentence: str, meant: str) -> ReviewShown:
        """What the sentence asks for is not there."""
        return self._decide(review, sentence, meant, False)

    def undo(self, review: Review) -> ReviewShown:
        """The mask before the last change."""
        return self._shown(state.undone(review))

    def step(self, by: int, review: Review) -> ReviewShown:
        """The next or the previous item, undecided."""
        return self._shown(state.at(review, review.place + by))

    def ask_again(self, review: Review, sentence: str, model: str) -> ReviewShown:
        """The model's answer to other words."""
        item = review.item
        if item is None:
            return self._told(EMPTY)
        try:
            text = str(checked(sentence))
            reply = self.models[model].answer(item.load(), text)
        except InputError as error:
            return self._told(str(error))
        except Exception:  # whatever a model raises
            logger.exception("a sentence could not be answered")
            return self._told("The model failed on this sentence; the terminal shows why.")
        return self._shown(state.asked_again(review, text, reply.prediction, model))

    def make_store(self) -> str:
        """The store of all corrections, and how to train on it."""
        try:
            folder = self.corrections.write_store()
        except (InputError, OSError) as error:
            return f"⚠ {error}"
        return (
            f"Version {self.corrections.version} is written. Train on it with:\n\n"
            f"python -m train finetune --from CHECKPOINT --data {folder} --out runs/corrected"
        )

    def export(self, form: str) -> tuple[Any, str]:
        """The annotation files of all corrections."""
        try:
            data = self.corrections.exported(form)
        except (InputError, OSError) as error:
            return gr.skip(), f"⚠ {error}"
        return parts.file_value(f"corrections_{form}.zip", data, "application/zip"), "The file is on its way."

    def _edited(self, review: Review, change: Callable[[Photo, np.ndarray], np.ndarray]) -> ReviewShown:
        item = review.item
        if item is None:
            return self._told(EMPTY)
        try:
            photo = item.load()
            size = photo.pixels.shape[:2]
            before = np.zeros(size, dtype=bool) if review.rle is None else masks.decode(review.rle)
            after = masks.encode(change(photo, before))
        except InputError as error:
            return self._told(str(error))
        return self._shown(state.changed(review, after), photo)

    def _decide(self, review: Review, sentence: str, meant: str, accepted: bool) -> ReviewShown:
        item = review.item
        if item is None:
            return self._told(EMPTY)
        try:
            text = str(checked(sentence))
            kind = MEANT.get(meant, Granularity.OBJECT)
            decision = state.decision_of(replace(review, text=text, meant=kind), accepted)
            self.corrections.add(item.load(), item.name, decision)
        except (InputError, OSError) as error:
            return self._told(str(error))
        return self._shown(state.decided(review))

    def _shown(self, review: Review, photo: Photo | None = None) -> ReviewShown:
        """Everything of the place."""
        item = review.item
        if item is None:
            return ReviewShown(review, {"hint": EMPTY}, progress_of(review), "", "an object", "")
        try:
            photo = photo or item.load()
        except InputError as error:
            return self._told(str(error), review)
        unchanged = review.rle == item.rle and review.rle is not None
        part = Segment(review.text, review.rle, item.score if unchanged else None)
        # `made` is new every time: a stroke that changed nothing is taken off the page, too
        value = picture_value(photo.pixels, item.name, [part], edit=True, made=monotonic_ns())
        return ReviewShown(
            review, value, progress_of(review), review.text, state.NAMES[review.meant], notice_of("")
        )

    def _told(self, notice: str, review: Review | None = None) -> ReviewShown:
        stays = gr.skip()
        return ReviewShown(stays if review is None else review, stays, stays, stays, stays, notice_of(notice))


def progress_of(review: Review) -> str:
    """Where the visitor is, in words."""
    item = review.item
    if item is None:
        return "The queue is empty."
    done = sum(one.key in review.decided for one in review.items)
    words = f"{review.place + 1} of {len(review.items)} · {done} decided"
    if item.key in review.decided:
        words += " · this one is decided"
    if item.rle is None:
        return f"{words} · the model said: not there"
    return words + ("" if item.score is None else f" · predicted IoU {item.score:.2f}")


def notice_of(text: str) -> Any:
    """The line for what went wrong; hidden where nothing did."""
    return gr.update(value=text, visible=bool(text))


def _number(data: Any, name: str) -> float:
    """A number of an event; InputError where it is none."""
    value = data.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise InputError("this click cannot be used: try again")
