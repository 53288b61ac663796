"""How the tab to talk about pictures is laid out, and what its parts are wired to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from chat_demo.web import parts
from chat_demo.web.chat_tab import HINT, Chat, Shown, example_values
from chat_demo.web.talk import Talk

OPENER = "ux-open"
# the sliders change what the page shows without asking the server
_LOOK = "(value) => document.dispatchEvent(new CustomEvent('ux:look', {{detail: {{ {name}: value }}}}))"
_COPY = "() => navigator.clipboard.writeText(location.href)"
_DOWNLOADS = (
    ("masks", "Masks (PNG)"),
    ("rle", "COCO RLE"),
    ("overlay", "Overlay"),
    ("conversation", "Conversation"),
)


class ChatTab:
    """The components of the tab that others refer to."""

    def __init__(self, chat: Chat, talk: gr.State) -> None:
        """Lay it out in the current block."""
        self.chat, self.talk = chat, talk
        with gr.Row(equal_height=False, elem_classes=["ux-columns", "ux-chat"]):
            with gr.Column(scale=3, min_width=320):
                self.picture = parts.picture("ux-picture", "Picture", opener=OPENER, linked=True, hint=HINT)
                self._sliders()
                self.correct = gr.Button("Correct these masks", size="sm", elem_id="ux-correct")
            with gr.Column(scale=2, min_width=320):
                self.conversation = parts.conversation("ux-conversation", example_values(chat.examples))
                self._message()
                self._model()
                with gr.Accordion("What the model did", open=False, elem_id="ux-panel"):
                    self.details = gr.HTML("", apply_default_css=False)
                    self.look = gr.Button("What each phrase listened to", size="sm", elem_id="ux-look")
                self._downloads()
        self._wire()

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What every handler changes, in the order of `Shown`."""
        return [self.talk, self.picture, self.conversation, self.details, self.message]

    def _sliders(self) -> None:
        with gr.Row(elem_classes="ux-sliders"):
            dark = gr.Slider(0, 1, 0.6, step=0.05, label="Darken the rest", elem_id="ux-opacity")
            least = gr.Slider(
                0, 1, 0, step=0.01, label="Hide below this predicted IoU", elem_id="ux-threshold"
            )
        for slider, name in ((dark, "opacity"), (least, "threshold")):
            slider.input(None, slider, None, js=_LOOK.format(name=name))
            slider.release(None, slider, None, js=_LOOK.format(name=name))

    def _message(self) -> None:
        with gr.Row(elem_classes="ux-message"):
            self.message = gr.Textbox(
                label="Message", show_label=False, container=False, placeholder="the window of the red house",
                max_length=500, scale=5, autofocus=True, elem_id="ux-message",
            )  # fmt: skip
            self.send = gr.Button("Ask", variant="primary", scale=1, min_width=84, elem_id="ux-ask")
        with gr.Row(elem_classes="ux-message"):
            self.opener = gr.UploadButton(
                "Open a picture", file_types=["image"], elem_id=OPENER, size="sm", scale=2
            )
            self.anew = gr.Button("New conversation", size="sm", scale=2, elem_id="ux-new")
            self.link = gr.Button("Copy link", size="sm", scale=1, min_width=90, elem_id="ux-link")

    def _model(self) -> None:
        names = list(self.chat.models)
        self.model = gr.Dropdown(
            names, value=names[0], label="Model", visible=len(names) > 1, elem_id="ux-model"
        )

    def _downloads(self) -> None:
        with gr.Accordion("Download", open=False, elem_id="ux-download"), gr.Row():
            self.saver = parts.hand_out()
            for what, label in _DOWNLOADS:
                button = gr.Button(label, size="sm", min_width=110, elem_id=f"ux-get-{what}")
                button.click(
                    partial(self.chat.download, what), [self.talk], [self.saver, self.conversation],
                    show_progress="hidden", api_visibility="private",
                )  # fmt: skip

    def _wire(self) -> None:
        chat, out = self.chat, self.outputs
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asked = [self.message, self.model, self.talk]
        self.message.submit(chat.ask, asked, out, **quiet)
        self.send.click(chat.ask, asked, out, **quiet)
        self.conversation.ask(self._ask_suggested, [self.model, self.talk], out, **quiet)
        self.conversation.example(chat.open_example, [self.model, self.talk], out, **quiet)
        for event in (self.conversation.open, self.conversation.show):
            event(chat.show, [self.talk], out, **quiet)
        self.opener.upload(chat.open_file, [self.opener, self.model, self.talk], out, **quiet)
        self.look.click(chat.look, [self.talk], self.details, **quiet)
        self.anew.click(chat.begin_anew, None, out, **quiet).then(
            None, js="() => history.replaceState(null, '', location.pathname)"
        )
        self.link.click(None, None, None, js=_COPY)

    def _ask_suggested(self, model: str, talk: Talk, event: gr.EventData) -> Iterator[Shown]:
        yield from self.chat.ask(str(parts.sent(event).get("text", "")), model, talk)


def reopen_with(page: gr.Blocks, tab: ChatTab) -> None:
    """Open the conversation of the link when the page is loaded."""
    page.load(tab.chat.reopen, None, tab.outputs, show_progress="hidden", api_visibility="private")
