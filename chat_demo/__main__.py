"""Talk with a model about a picture: `python -m chat_demo --checkpoint DIR --terminal [--image PHOTO]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from uniresxx.cli import OneLineParser, add_placement_options, exit_code, placement_words
from uniresxx.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Check the command line and start the chat."""
    parser = OneLineParser(prog="python -m chat_demo", description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="run or from_pretrained folder, or hub:OWNER/NAME"
    )
    parser.add_argument(
        "--terminal", action="store_true", help="chat in this terminal, or with piped questions"
    )
    parser.add_argument("--image", help="the first picture")
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder for saved overlays (default: the current one)"
    )
    add_placement_options(parser)
    options = parser.parse_args(argv)
    if not options.terminal:
        raise InputError("the web page does not exist yet: add --terminal")
    from chat_demo.terminal import run

    return run(options.checkpoint, options.image, options.out, **placement_words(options))


if __name__ == "__main__":
    sys.exit(exit_code("chat_demo", lambda: main(sys.argv[1:])))
