"""Talk with a model about a picture: `python -m chat_demo [--checkpoint NAMED]`, on a page or with `--terminal`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from uniresxx.cli import OneLineParser, add_placement_options, exit_code, placement_words
from uniresxx.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Check the command line and start the chat."""
    options = parser().parse_args(argv)
    words = placement_words(options)
    if options.terminal:
        if options.review is not None:
            raise InputError("--review is for the page: leave out --terminal")
        if len(options.checkpoint) > 1:
            raise InputError("--checkpoint names one model for the terminal; the page takes several")
        from chat_demo.terminal import run

        named = options.checkpoint[0] if options.checkpoint else None
        return run(named, options.image, options.out or Path(), not options.no_pictures, **words)
    for name, given in (("--image", options.image), ("--no-pictures", options.no_pictures)):
        if given:
            raise InputError(f"{name} is for the terminal: add --terminal, or open the picture on the page")
    if options.against is not None and options.review is None:
        raise InputError("--against is for two runs: name the first one with --review")
    if not 0 <= options.port < 2**16:
        raise InputError(f"--port must be 0 to 65535, not {options.port}")
    try:
        from chat_demo.web.run import Reviewed, listen
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed: pip install -e '.[demo]', or add --terminal"
        ) from None
    return listen(
        options.checkpoint,
        options.out or Path("runs/chat"),
        (options.host, options.port),
        None if options.review is None else Reviewed(options.review, options.data, options.against),
        words,
    )


def parser() -> OneLineParser:
    """The options."""
    made = OneLineParser(prog="python -m chat_demo", description=__doc__)
    made.add_argument(
        "--checkpoint", action="append", default=[], metavar="NAMED",
        help="run or from_pretrained folder, hub:OWNER/NAME, or FAMILY:DIR_OR_HUB_ID of a public model (default: "
        "the tiny model that comes with uniresxx); given several times, the page offers a choice",
    )  # fmt: skip
    made.add_argument("--out", type=Path, default=None, metavar="DIR",
        help="folder for what is saved: overlays of the terminal (default: the current folder), conversations "
        "and corrections of the page (default: runs/chat)",
    )  # fmt: skip
    page = made.add_argument_group("the page")
    page.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    page.add_argument("--port", type=int, default=7860, help="default: 7860; 0: any free one")
    page.add_argument(
        "--review", type=Path, metavar="PATH",
        help="answers to accept or correct, the least sure first: a predictions.jsonl of `eval run`, a prepared "
        "store (of several splits STORE/SPLIT), a folder with sentences.json as `uniresxx data export-scenes` "
        "writes it, or a CSV with photo and sentence",
    )  # fmt: skip
    page.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="of --review: root of the data that the predictions are about",
    )
    page.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        help="another run's predictions.jsonl: the queue is what the two runs answer differently",
    )
    terminal = made.add_argument_group("the terminal")
    terminal.add_argument(
        "--terminal", action="store_true", help="chat in this terminal, or with piped questions"
    )
    terminal.add_argument("--image", help="the first picture")
    terminal.add_argument(
        "--no-pictures", action="store_true", help="answer in words only, also where the terminal has colours"
    )
    add_placement_options(made)
    return made


if __name__ == "__main__":
    sys.exit(exit_code("chat_demo", lambda: main(sys.argv[1:])))
