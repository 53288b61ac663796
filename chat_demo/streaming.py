"""The words of an answer while they are generated: on one place of the terminal, gone when the answer is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from uniresxx.imaging.overlay import one_line


@contextmanager
def spoken(console: Console) -> Iterator[Callable[[str], None] | None]:
    """A function that shows the words so far; None where the output is no terminal that can take them back."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    # words are drawn when they come, not by a thread that would go on after Ctrl-C
    with Live(
        Text("…"),
        console=console,
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as live:
        yield lambda words: live.update(Text(readable(words)), refresh=True)


def readable(words: str) -> str:
    """Generated words as a person reads them: "the fish: [SEG], the eye: [REJ]." without the tokens."""
    return one_line(words.replace("[SEG]", " found").replace("[REJ]", " not there"), longest=2000) or "…"
