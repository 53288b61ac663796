"""`uniresxx convert [lisa|gsva|m2sa] FILE_OR_DIR OUT [--clip DIR] [--llava DIR] [--conversation NAME] …`

`uniresxx convert FILE_OR_DIR OUT` writes published weights in pickles (.bin, .pth, .pt) as safetensors, with the
same names and dtypes, copies the configs, and turns a sentencepiece tokenizer.model into tokenizer.json. Pickles are
opened by torch.load(weights_only=True) in a process of its own with capped memory; a class or function in one is
refused. Training and answering open no pickles, so this comes first for weights in such files.

`uniresxx convert lisa DIR OUT`, and the same with gsva and m2sa, write a released LISA, GSVA or M2SA as a model of
this project: `uniresxx segment --checkpoint OUT`, `python -m eval run --checkpoint OUT`, `python -m chat_demo`.

FILE_OR_DIR is a file, a folder, or hub:OWNER/NAME[@REVISION], which is downloaded. Nothing appears in OUT before all
of it is there, and files of anybody else are never replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from uniresxx.cli import OneLineParser, parser_for
from uniresxx.errors import InputError
from uniresxx.segmenters.lisa.config import Conversation, Peer

PEERS: tuple[Peer, ...] = get_args(Peer)


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_for("uniresxx convert", __doc__)
    made.add_argument(
        "words",
        nargs="+",
        metavar="[lisa|gsva|m2sa] FILE_OR_DIR OUT",
        help="what to convert, and the folder for the result",
    )
    made.add_argument(
        "--clip", metavar="DIR", help="lisa, gsva, m2sa: folder of the CLIP that was used, or hub:OWNER/NAME"
    )
    made.add_argument(
        "--llava",
        metavar="DIR",
        help="gsva: folder of the LLaVA with config.json and the tokenizer",
    )
    made.add_argument(
        "--conversation",
        choices=get_args(Conversation),
        help="lisa, gsva, m2sa: frame of the questions (default: llava_v1, as in their chat and evaluation)",
    )
    made.add_argument("--lora-alpha", type=float, metavar="N", help="gsva: of the adapters (default: 16)")
    return made


def main(argv: Sequence[str]) -> int:
    """Do the job; returns the exit code."""
    options = parser().parse_args(argv)
    words: list[str] = options.words
    peer = next((name for name in PEERS if len(words) == 3 and words[0] == name), None)
    if len(words) != 2 and peer is None:
        raise InputError(
            f"{' '.join(words)!r}: give FILE_OR_DIR OUT, or {', '.join(PEERS)} and then these two"
        )
    given = {
        "clip": options.clip,
        "llava": options.llava,
        "conversation": options.conversation,
        "lora_alpha": options.lora_alpha,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if peer is None and given:
        raise InputError(f"--{next(iter(given)).replace('_', '-')} is for {', '.join(PEERS)} alone")
    from uniresxx.checkpoints.convert import convert

    name, out = words[-2], Path(words[-1])
    source = _local(name)
    if peer is None:
        names = convert(source, out, _note)
    else:
        from uniresxx.segmenters.lisa.convert import convert_peer

        given |= {option: _local(given[option]) for option in ("clip", "llava") if option in given}
        names = convert_peer(peer, source, out, _note, **given)
    print(f"{name} -> {out}: {', '.join(names)}")
    return 0


def _local(name: str) -> Path:
    """The file or folder that a word names, downloaded where it is of the hub."""
    from uniresxx.checkpoints.convert import downloaded
    from uniresxx.checkpoints.resolve import HUB

    return downloaded(name.removeprefix(HUB)) if name.startswith(HUB) else Path(name)


def _note(line: str) -> None:
    print(line, file=sys.stderr)
