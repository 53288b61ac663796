"""`uniresxx serve [--checkpoint DIR] [--host 127.0.0.1] [--port 8000]`

Answers over HTTP until a signal comes; docs/serve.md has the calls:
  POST /v1/images/segmentations   one photo and one prompt, multipart; form and answer are those of vLLM-Omni
  POST /v1/segment                several photos with several prompts each, JSON
  POST /v1/chat/completions       a conversation about a picture, for OpenAI's clients
  GET /health, /metrics, /v1/models, /openapi.json

It listens on this machine alone, unless --host names another address. It has no passwords and no encryption: put a
proxy that has them before it where others can reach it. Ctrl-C or SIGTERM: accepted requests are finished, new ones
get 503. A second signal ends it at once.

Exit codes: 0 every accepted request was answered; 1 failed, or ended at once; 2 wrong input.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uniresxx.cli import OneLineParser, add_placement_options, parser_for, placement_words
from uniresxx.errors import InputError

if TYPE_CHECKING:
    from uniresxx.serve.settings import ServeSettings

MB = 2**20


def parser() -> OneLineParser:
    """Its options."""
    parser = parser_for("uniresxx serve", __doc__)
    parser.add_argument(
        "--checkpoint",
        help="run or from_pretrained folder, hub:OWNER/NAME, or FAMILY:DIR_OR_HUB_ID of a public model (default: the "
        "model of the package)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0: any free one")
    parser.add_argument("--name", default="uniresxx", help="what answers call the model (default: uniresxx)")
    limits = (
        ("--max-batch", 32, "questions answered together"),
        ("--window-ms", 4, "time a first question waits for others that are on their way"),
        ("--max-queue", 256, "questions that may wait; more get 503"),
        ("--per-client", 64, "requests of one address at a time; more get 429"),
        ("--photo-mb", 20, "size of a photo's file"),
        ("--megapixels", 25, "size of a photo; at most 50"),
        ("--cache-mb", 512, "memory for encoded photos, on the model's device"),
    )
    for option, value, about in limits:
        parser.add_argument(option, type=int, default=value, metavar="N", help=f"{about} (default: {value})")
    parser.add_argument(
        "--image-urls",
        action="store_true",
        help="fetch photos from https addresses (default: off); never from private addresses",
    )
    add_placement_options(parser)
    return parser


def settings_of(options: Namespace) -> ServeSettings:
    """The limits of a command line; InputError for a value that makes no sense."""
    from uniresxx.serve.settings import ServeSettings

    for name in ("max_batch", "max_queue", "per_client", "photo_mb", "megapixels"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(options, name)}")
    for name in ("window_ms", "cache_mb"):
        if getattr(options, name) < 0:
            raise InputError(f"--{name.replace('_', '-')} must be 0 or more, not {getattr(options, name)}")
    if options.megapixels > 50:
        raise InputError(f"--megapixels {options.megapixels}: photos have 50 at most")
    if not 0 <= options.port < 2**16:
        raise InputError(f"--port must be 0 to 65535, not {options.port}")
    return ServeSettings(
        model_name=options.name,
        max_batch=options.max_batch,
        window_ms=options.window_ms,
        max_queue=options.max_queue,
        per_client=options.per_client,
        max_photo_bytes=options.photo_mb * MB,
        max_body_bytes=max(64, 2 * options.photo_mb) * MB,
        max_pixels=options.megapixels * 10**6,
        cache_bytes=options.cache_mb * MB,
        image_urls=options.image_urls,
    )


def main(argv: Sequence[str]) -> int:
    """Serve until a signal comes; returns the exit code."""
    options = parser().parse_args(argv)
    settings = settings_of(options)
    try:
        from uniresxx.serve.app import create_server
        from uniresxx.serve.run import LOOPBACK, listen, open_socket
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install -e '.[serve]'") from None
    from uniresxx.checkpoints.resolve import model_name
    from uniresxx.predictor import Predictor

    logging.basicConfig(format="%(levelname)s: %(message)s")
    with open_socket(options.host, options.port) as opened:
        placement: Mapping[str, Any] = placement_words(options)
        model = Predictor.from_pretrained(options.checkpoint, **placement).segmenter
        host, port = opened.getsockname()[:2]
        place = f"[{host}]" if ":" in host else host
        print(f"serving {model_name(options.checkpoint)} at http://{place}:{port} (Ctrl-C stops)", flush=True)
        if options.host not in LOOPBACK:
            print("warning: others can reach this address; there is no password", file=sys.stderr)
        answered = listen(create_server(model, settings), opened)
    print("stopped: every accepted request was answered" if answered else "stopped at once", flush=True)
    if not answered:
        os._exit(1)  # the model's thread is at work: Python's own end would abort in it
    return 0
