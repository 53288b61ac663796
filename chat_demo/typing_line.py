"""Lines of a person or a pipe: editing, history and Tab on a terminal, plain reading elsewhere."""

from __future__ import annotations

from contextlib import suppress
from typing import TextIO

from chat_demo.completion import completions
from uniresxx.imaging.overlay import one_line

PROMPT = "> "


class Lines:
    """Reads one line after another from standard input or a pipe."""

    def __init__(self, source: TextIO, out: TextIO) -> None:
        self.source, self.out = source, out
        self.typed = source.isatty()
        if self.typed:
            with suppress(ImportError):  # absent on some systems; only editing and Tab are lost
                edit_lines()

    def read(self) -> str | None:
        """The next line, None at the end; a piped one is shown behind the prompt."""
        if self.typed:
            try:
                return input(PROMPT)
            except EOFError:
                print(file=self.out)
                return None
        line = self.source.readline()
        if not line:
            return None
        print(PROMPT + one_line(line), file=self.out, flush=True)
        return line


def edit_lines() -> None:
    """Switch on editing, history and Tab for `input`.

    Raises:
        ImportError: this Python has no readline.
    """
    import readline

    found: list[str] = []

    def complete(word: str, state: int) -> str | None:
        """The state-th completion, without what stands before the word that readline replaces."""
        if state == 0:
            line = readline.get_line_buffer()
            found[:] = [
                whole[readline.get_begidx() :] for whole in completions(line[: readline.get_endidx()])
            ]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


def half_typed() -> bool:
    """Whether Ctrl-C has just dropped a line with something in it."""
    with suppress(ImportError):
        import readline

        return bool(readline.get_line_buffer().strip())
    return False
