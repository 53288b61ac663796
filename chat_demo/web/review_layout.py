"""How the tab to correct answers is laid out, and what its parts are wired to."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from chat_demo.web import parts
from chat_demo.web.review import NAMES, Review
from chat_demo.web.review_tab import EMPTY, Reviewing
from uniresxx.annotations import FORMATS

KEYS = (
    "Keys in the picture: a accept, r not there, u undo, n next, p previous, w re-word, + − b e tools, [ ] brush, "
    "arrows and space to click without a mouse."
)


class ReviewTab:
    """The components of the tab that others refer to."""

    def __init__(self, reviewing: Reviewing, model: gr.Dropdown) -> None:
        """Lay it out in the current block; `model` answers re-worded sentences."""
        self.reviewing, self.model = reviewing, model
        self.review = gr.State(Review(), time_to_live=6 * 3600)
        with gr.Row(equal_height=False, elem_classes="ux-columns"):
            with gr.Column(scale=3, min_width=320):
                self.picture = parts.picture(
                    "ux-review-picture", "Picture with the mask to correct", hint=EMPTY
                )
            with gr.Column(scale=2, min_width=320):
                self._controls()
                self._results()
        self._wire()

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What every handler changes, in the order of `ReviewShown`."""
        return [self.review, self.picture, self.progress, self.sentence, self.meant, self.notice]

    def _controls(self) -> None:
        self.progress = gr.Markdown("", elem_id="ux-progress")
        self.notice = gr.Textbox(
            visible=False, interactive=False, show_label=False, container=False, elem_id="ux-review-notice"
        )
        self.sentence = gr.Textbox(label="Sentence", max_length=500, elem_id="ux-reword")
        self.again = gr.Button("Ask again with these words", size="sm", elem_id="ux-again")
        self.meant = gr.Radio(
            list(NAMES.values()), value="an object", label="The sentence means", elem_id="ux-meant"
        )
        with gr.Row():
            self.yes = gr.Button("Accept", variant="primary", min_width=100, elem_id="ux-accept")
            self.no = gr.Button("Not there", min_width=100, elem_id="ux-reject")
        with gr.Row():
            self.back = gr.Button("Previous", size="sm", min_width=80, elem_id="ux-previous")
            self.undo = gr.Button("Undo", size="sm", min_width=80, elem_id="ux-undo")
            self.forward = gr.Button("Next", size="sm", min_width=80, elem_id="ux-next")
        gr.Markdown(KEYS, elem_classes="ux-hint")

    def _results(self) -> None:
        with gr.Accordion("What is done with the corrections", open=False, elem_id="ux-results"):
            self.store = gr.Button("Write the store for training", size="sm", elem_id="ux-store")
            with gr.Row():
                self.form = gr.Dropdown(list(FORMATS), value="coco", label="Format", min_width=120)
                self.get = gr.Button("Download annotations", size="sm", min_width=120, elem_id="ux-export")
            self.said = gr.Textbox(label="Result", interactive=False, lines=4, elem_id="ux-result")
            self.saver = parts.hand_out()

    def _wire(self) -> None:
        work, out = self.reviewing, self.outputs
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        words = [self.review, self.sentence, self.meant]
        self.picture.point(work.point, [self.review, self.model], out, **quiet)
        self.picture.stroke(work.stroke, [self.review], out, **quiet)
        self.picture.command(work.command, words, out, **quiet)
        self.yes.click(work.accept, words, out, **quiet)
        self.no.click(work.reject, words, out, **quiet)
        self.undo.click(work.undo, [self.review], out, **quiet)
        self.forward.click(partial(work.step, 1), [self.review], out, **quiet)
        self.back.click(partial(work.step, -1), [self.review], out, **quiet)
        for event in (self.again.click, self.sentence.submit):
            event(work.ask_again, [self.review, self.sentence, self.model], out, **quiet)
        self.store.click(work.make_store, None, self.said, **quiet)
        self.get.click(work.export, [self.form], [self.saver, self.said], **quiet)
