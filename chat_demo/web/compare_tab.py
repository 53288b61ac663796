"""The tab to compare two models on one picture and sentence, side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr

from chat_demo.web import parts
from chat_demo.web.alike import ALIKE, alike, iou_of, mask_of
from chat_demo.web.kept import Kept
from chat_demo.web.models import Model, Photo, Reply
from chat_demo.web.review_items import Item
from chat_demo.web.talk import Talk, sure_words
from chat_demo.web.views import picture_value
from uniresxx.conversation.words import segments_of, words_for
from uniresxx.errors import InputError
from uniresxx.prediction import Prediction

MOST_ASKED = 200  # questions of the queue that one press of the button may try
HINT = "Open a picture in the chat: the two models answer about the same one"
ONE_MODEL = "One model is loaded. Start the page with --checkpoint A --checkpoint B to compare two."
logger = logging.getLogger(__name__)


class Compared(NamedTuple):
    """What a handler changes: values of the tab's outputs."""

    left: Any
    right: Any
    left_words: str
    right_words: str
    verdict: str
    sentence: Any = gr.skip()
    place: Any = gr.skip()


class Comparing:
    """What happens in the tab."""

    def __init__(self, models: Sequence[Model], kept: Kept, queue: Sequence[Item]) -> None:
        self.models = {model.name: model for model in models}
        self.kept, self.queue = kept, tuple(queue)

    def ask(self, sentence: str, left: str, right: str, talk: Talk) -> Compared:
        """Ask both about the current picture of the chat."""
        try:
            if talk.picture is None:
                raise InputError(HINT)
            return self._both(self.kept.photo(talk, talk.current), sentence, left, right)
        except InputError as error:
            return _told(str(error))
        except Exception:  # whatever a model raises
            logger.exception("a comparison failed")
            return _told("A model failed on this one; the terminal shows why.")

    def next_difference(self, left: str, right: str, place: int) -> Compared:
        """The next question of the queue, from `place` on, that the two answer differently."""
        if not self.queue:
            return _told("There is no queue: start the page with --review.")
        try:
            for step in range(min(len(self.queue), MOST_ASKED)):
                number = (place + step) % len(self.queue)
                item = self.queue[number]
                photo = item.load()
                first, second = (self.models[name].answer(photo, item.text) for name in (left, right))
                if not alike(first.prediction, second.prediction):
                    shown = self._shown(photo, item.text, first, second)
                    return shown._replace(sentence=item.text, place=number + 1)
        except InputError as error:
            return _told(str(error))
        except Exception:  # whatever a model raises
            logger.exception("a comparison failed")
            return _told("A model failed on this one; the terminal shows why.")
        tried = min(len(self.queue), MOST_ASKED)
        return _told(f"No difference in {tried} questions.")._replace(place=(place + tried) % len(self.queue))

    def _both(self, photo: Photo, sentence: str, left: str, right: str) -> Compared:
        first, second = (self.models[name].answer(photo, sentence) for name in (left, right))
        return self._shown(photo, sentence, first, second)

    def _shown(self, photo: Photo, sentence: str, first: Reply, second: Reply) -> Compared:
        views, words = [], []
        for reply in (first, second):
            segments = segments_of(sentence, reply.prediction)
            views.append(picture_value(photo.pixels, photo.name, segments))
            sure = sure_words(reply.prediction.p_absent)
            facts = " · ".join(part for part in (sure, f"{1000 * reply.seconds:.0f} ms") if part)
            words.append(f"{words_for(sentence, reply.prediction)}\n{facts}")
        return Compared(
            views[0], views[1], words[0], words[1], verdict_of(first.prediction, second.prediction)
        )


def verdict_of(first: Prediction, second: Prediction) -> str:
    """The difference in words."""
    shared = iou_of(first, second)
    if shared is None:
        return "Both say that it is not there."
    if (mask_of(first) is None) != (mask_of(second) is None):
        return "They differ: one finds it, the other says that it is not there."
    return f"Their masks have an IoU of {shared:.2f}" + (
        ": the same answer." if shared >= ALIKE else ": they differ."
    )


def _told(words: str) -> Compared:
    return Compared(gr.skip(), gr.skip(), "", "", words)


class CompareTab:
    """How the tab is laid out."""

    def __init__(self, comparing: Comparing, talk: gr.State) -> None:
        """Lay it out in the current block; `talk` has the picture."""
        names = list(comparing.models)
        if len(names) < 2:
            gr.Markdown(ONE_MODEL, elem_id="ux-one-model")
            return
        place = gr.State(0)
        with gr.Row(elem_classes="ux-message"):
            sentence = gr.Textbox(
                label="Sentence", show_label=False, container=False, max_length=500, scale=5,
                placeholder="the window of the red house", elem_id="ux-compare-sentence",
            )  # fmt: skip
            ask = gr.Button("Ask both", variant="primary", scale=1, min_width=100, elem_id="ux-compare-ask")
            more = gr.Button("Next difference of the queue", scale=2, min_width=160, elem_id="ux-difference")
        verdict = gr.Markdown("", elem_id="ux-verdict")
        sides = []
        with gr.Row(equal_height=False, elem_classes="ux-columns"):
            for side, name in (("left", names[0]), ("right", names[1])):
                with gr.Column(min_width=300):
                    model = gr.Dropdown(
                        names, value=name, label=f"Model on the {side}", elem_id=f"ux-{side}-model"
                    )
                    view = parts.picture(f"ux-{side}", f"Answer of the model on the {side}", hint=HINT)
                    words = gr.Textbox(label="Answer", interactive=False, lines=3, elem_id=f"ux-{side}-words")
                sides.append((model, view, words))
        (left, *first), (right, *second) = sides
        out = [first[0], second[0], first[1], second[1], verdict, sentence, place]
        quiet: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
        for event in (ask.click, sentence.submit):
            event(comparing.ask, [sentence, left, right, talk], out, **quiet)
        more.click(comparing.next_difference, [left, right, place], out, **quiet)
