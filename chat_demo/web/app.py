"""The page itself: its tabs, its look, and the server that listens for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported: nothing is reported
import gradio as gr
from starlette.middleware import Middleware

from chat_demo.web import parts
from chat_demo.web.chat_layout import ChatTab, reopen_with
from chat_demo.web.chat_tab import Chat
from chat_demo.web.compare_tab import CompareTab, Comparing
from chat_demo.web.corrections import Corrections
from chat_demo.web.examples import examples
from chat_demo.web.guard import Guard
from chat_demo.web.kept import Kept
from chat_demo.web.models import LIMITS, Model
from chat_demo.web.review_items import Item
from chat_demo.web.review_layout import ReviewTab
from chat_demo.web.review_tab import Reviewing
from chat_demo.web.talk import Talk
from uniresxx.errors import InputError

TITLE = "uniresxx: words to masks"
FONTS = ("ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
FORGET = (3600, 6 * 3600)  # seconds: how often uploads are looked through, and how old they get
AT_ONCE = 16  # visitors whose events are worked on at the same time


def build(
    models: Sequence[Model], out: Path, queue: Sequence[Item] = (), base: Path | None = None
) -> gr.Blocks:
    """The page over loaded models.

    Args:
        models: the first one is chosen.
        out: folder of conversations and corrections.
        queue: answers to review.
        base: the prepared store that they are about, if they are about one.

    Raises:
        InputError: the corrections there are damaged.
    """
    kept = Kept(out / "conversations")
    chat = Chat(models, kept, examples())
    reviewing = Reviewing(models, kept, Corrections(out / "corrections", base), queue)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=FORGET) as page:
        gr.HTML(
            "<header class='ux-head'><h1>uniresxx</h1>"
            "<p>Words to masks: a part, an object, several, or none.</p></header>",
            apply_default_css=False,
        )
        talk = gr.State(Talk(), time_to_live=6 * 3600)
        with gr.Tabs(selected="correct" if queue else "chat") as tabs:
            with gr.Tab("Chat", id="chat"):
                tab = ChatTab(chat, talk)
            with gr.Tab("Correct", id="correct"):
                review = ReviewTab(reviewing, tab.model)
            with gr.Tab("Compare", id="compare"):
                CompareTab(Comparing(models, kept, queue), talk)
        reopen_with(page, tab)
        page.load(reviewing.begin, None, review.outputs, show_progress="hidden", api_visibility="private")
        tab.correct.click(
            reviewing.from_chat, [talk], review.outputs, show_progress="hidden", api_visibility="private"
        ).then(lambda: gr.Tabs(selected="correct"), None, tabs, api_visibility="private")
    return page


def theme() -> gr.themes.Base:
    """Colours of the page; its fonts are those of the visitor's system, so nothing is fetched from elsewhere."""
    made = gr.themes.Base(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        radius_size="lg",
        font=FONTS,
        font_mono=MONO,
    )
    return made.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_text_color="white",
        button_secondary_background_fill="*neutral_50",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        body_text_color_subdued="*neutral_500",
        body_background_fill="white",
        body_background_fill_dark="*neutral_950",
        block_border_width="1px",
        block_label_text_size="*text_sm",
    )


def serve(
    models: Sequence[Model],
    out: Path,
    host: str,
    port: int,
    queue: Sequence[Item] = (),
    base: Path | None = None,
) -> tuple[gr.Blocks, str]:
    """Listen; returns once the page is there. InputError where the address cannot be used.

    Returns:
        The page, to be closed, and its address.
    """
    page = build(models, out, queue, base)
    page.queue(default_concurrency_limit=AT_ONCE, api_open=False)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            show_error=False,
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            max_file_size=LIMITS.max_photo_bytes,
            _frontend=False,  # only leaves out a look at its own address, which gives up after 3 seconds
            app_kwargs={"middleware": [Middleware(Guard)], "docs_url": None, "redoc_url": None},
            theme=theme(),
            css=parts.text_of("page.css"),
        )
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({error}); name another"
        ) from None
    return page, address
