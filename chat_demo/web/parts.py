"""The two components that Gradio has none for: a picture with masks, and a conversation; and what hands out files."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

STATIC = Path(__file__).parent / "static"


def text_of(name: str) -> str:
    """A file of the page."""
    return (STATIC / name).read_text(encoding="utf-8")


def picture(elem_id: str, label: str, *, opener: str = "", linked: bool = False, hint: str = "") -> gr.HTML:
    """A picture with masks; its value is that of `views.picture_value`.

    Args:
        elem_id: of the element.
        label: what a screen reader calls it.
        opener: id of the upload button that a dropped picture is handed to.
        linked: whether phrases of the conversation choose its masks.
        hint: shown while there is no picture.
    """
    return gr.HTML(
        {"hint": hint},
        html_template=text_of("picture.html").replace(
            'aria-label="Picture"', f'aria-label="{escape(label)}"'
        ),
        js_on_load=text_of("picture.js"),
        apply_default_css=False,
        elem_id=elem_id,
        opener=opener,
        linked=linked,
    )


def conversation(elem_id: str, examples: list[dict[str, Any]]) -> gr.HTML:
    """The conversation; its value is that of `talk.talk_value`."""
    return gr.HTML(
        {},
        html_template=text_of("talk.html"),
        js_on_load=text_of("talk.js"),
        apply_default_css=False,
        elem_id=elem_id,
        examples=examples,
    )


def hand_out() -> gr.HTML:
    """What gives a visitor a file: its bytes travel in the value, so they lie at no address."""
    return gr.HTML(
        {}, html_template="<span></span>", js_on_load=text_of("hand_out.js"), elem_classes="ux-none"
    )


def file_value(name: str, data: bytes, kind: str) -> dict[str, str]:
    """The value that makes the browser save a file."""
    return {"name": name, "kind": kind, "data": base64.b64encode(data).decode()}


def sent(event: gr.EventData) -> Mapping[str, Any]:
    """What a component sent with an event; an empty mapping where it is none."""
    return event._data if isinstance(event._data, Mapping) else {}


def whole(data: Mapping[str, Any], name: str) -> int:
    """A whole number of an event, -1 where there is none: a visitor may send anything."""
    value = data.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
