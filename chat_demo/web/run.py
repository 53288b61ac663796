"""`python -m chat_demo`: loads the models, opens the page, and stays until a signal comes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from chat_demo.web.app import serve
from chat_demo.web.models import load
from chat_demo.web.review_items import base_of, queue_of
from uniresxx.serve.run import LOOPBACK, open_socket


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What `--review`, `--data` and `--against` name."""

    source: Path
    data: Path | None = None
    against: Path | None = None


def listen(
    checkpoints: Sequence[str],
    out: Path,
    address: tuple[str, int],
    review: Reviewed | None,
    placement: Mapping[str, Any],
) -> int:
    """Serve the page until Ctrl-C.

    Args:
        checkpoints: of the models; none: the one that comes with the package.
        out: folder of conversations and corrections.
        address: host, port.
        review: answers to review, if any.
        placement: keyword arguments of `Predictor.from_pretrained`.

    Raises:
        InputError: a model, the address or the answers cannot be used.
    """
    host, port = address
    with open_socket(host, port) as opened:  # before the model is loaded, which takes longer
        port = opened.getsockname()[1]
    models = load(checkpoints, placement, log)
    queue, base = [], None
    if review is not None:
        queue = queue_of(review.source, review.data, models[0], log, review.against)
        base = base_of(review.source, review.data)
    page, address_of_page = serve(models, out, host, port, queue, base)
    try:
        print(f"open {address_of_page} (Ctrl-C stops)", flush=True)
        if host not in LOOPBACK:
            print("warning: others can reach this address; there is no password", file=sys.stderr)
        Event().wait()
    except KeyboardInterrupt:
        print("stopping")
    page.close(verbose=False)
    for model in models:
        model.close()
    return 0


def log(line: str) -> None:
    """Say in the terminal what takes long."""
    print(line, flush=True)
