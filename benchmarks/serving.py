"""`uniresxx serve`: questions of many clients answered together, against the same server answering one at a time.

    python -m benchmarks.serving [--record] [--checkpoint DIR]

Both arms are the same program with the same weights and one thread of the model; `--max-batch 1` is the baseline. It
too keeps the features of photos it has seen, so the ratios measure batching alone. CLIENTS clients send one question
after another over a connection that stays open.

    batching_ratio_32   questions a second, CLIENTS clients that ask about the same PHOTOS photos
    distinct_ratio_32   the same, each question about a photo that was never seen
    lost                requests of all measurements without a full answer

The details have p50 and p99 in milliseconds for 1, 8 and 32 clients, and how the server's memory grew between request
1,000 and 5,000. Without --checkpoint the weights are random, and an answer takes as many tokens as it may (48).
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock, Thread

import numpy as np
from PIL import Image

from benchmarks._common import finish, interleaved, median_of, parser
from uniresxx.checkpoints.folders import save_pretrained

CLIENTS, PHOTOS, SIDE = 32, 4, 256
PROMPTS = ("the red house", "the left wheel of the yellow car", "all fishes", "the roof of the blue house",
           "the cup", "the small boat", "the eye of the fish", "both trees")  # fmt: skip
BOUNDARY = "uniresxx-benchmark"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked; smaller in the tests."""

    same: int = 256  # questions of a measurement about the same photos
    distinct: int = 96
    latency: int = 96
    repeats: int = 5
    memory: tuple[int, int] | None = (1000, 5000)  # after how many requests the memory is read


SMALL = Sizes(same=8, distinct=4, latency=4, repeats=1, memory=None)


@dataclass(frozen=True, slots=True)
class Load:
    """What clients met: seconds for everything, of each request, and how many had no full answer."""

    seconds: float
    each: list[float]
    lost: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.each) / self.seconds


@dataclass(frozen=True, slots=True)
class Running:
    """A server process."""

    port: int
    process: subprocess.Popen[str]

    def memory_mb(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(text.split("VmRSS:")[1].split()[0]) / 1024


def random_checkpoint(folder: Path) -> Path:
    """The model of the recipe tiny_scenes with random weights."""
    import torch

    from mllm.tokens import Vocabulary
    from train.recipes.tiny_scenes import tiny_scenes
    from uniresxx.model.config import UniRESPlusPlusConfig
    from uniresxx.model.modeling import UniRESPlusPlusModel

    torch.manual_seed(0)
    config = tiny_scenes().model
    assert isinstance(config, UniRESPlusPlusConfig)
    vocabulary = Vocabulary.train(list(PROMPTS), config.mllm.token_count, config.mllm.chat)
    save_pretrained(folder, UniRESPlusPlusModel(config, vocabulary))
    return folder


@contextmanager
def server(checkpoint: Path, *options: str) -> Iterator[Running]:
    """A server on a free port of this machine; stopped with SIGTERM."""
    command = [sys.executable, "-m", "uniresxx", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--device", "cpu", *options], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://[\d.]+:(\d+)", process.stdout.readline())
        assert found, "the server did not start"
        yield Running(int(found[1]), process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def photo(number: int) -> bytes:
    """A PNG of coloured rectangles; each number gives another."""
    rng = np.random.default_rng(number)
    pixels = np.full((SIDE, SIDE, 3), 200, dtype=np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, SIDE - 64, 2)
        pixels[y : y + rng.integers(24, 64), x : x + rng.integers(24, 64)] = rng.integers(0, 255, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def request(data: bytes, prompt: str) -> bytes:
    """The body of a multipart request."""
    parts = [f'name="prompt"\r\n\r\n{prompt}'.encode(), b'name="mask_format"\r\n\r\nrle']
    parts.append(b'name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + data)
    start = f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
    return b"\r\n".join(start + part for part in parts) + f"\r\n--{BOUNDARY}--\r\n".encode()


def load(running: Running, clients: int, bodies: Sequence[bytes]) -> Load:
    """Send all requests, each client one after another."""
    lock, waiting = Lock(), iter(bodies)
    each: list[float] = []
    lost = 0

    def work() -> None:
        nonlocal lost
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=120)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        while True:
            with lock:
                body = next(waiting, None)
            if body is None:
                break
            start = time.perf_counter()
            try:
                connection.request("POST", "/v1/images/segmentations", body, headers)
                reply = connection.getresponse()
                good = reply.status == 200 and "data" in json.loads(reply.read())
            except (OSError, http.client.HTTPException, ValueError):
                good = False
                connection.close()
            with lock:
                each.append(time.perf_counter() - start)
                lost += not good
        connection.close()

    threads = [Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(time.perf_counter() - start, each, lost)


def same_photos(number: int) -> list[bytes]:
    """Requests about the same photos, prompts in turn."""
    photos = [photo(k) for k in range(PHOTOS)]
    return [request(photos[k % PHOTOS], PROMPTS[(k // PHOTOS) % len(PROMPTS)]) for k in range(number)]


def measure(sizes: Sizes, checkpoint: Path) -> tuple[dict[str, float | None], dict[str, object]]:
    """Headline keys and details."""
    fresh = count(PHOTOS)
    same = same_photos(sizes.same)
    details: dict[str, object] = {"clients": CLIENTS, "photos": PHOTOS, "side": SIDE}
    loads: list[Load] = []

    def noted(found: Load) -> Load:
        loads.append(found)
        return found

    with server(checkpoint) as together, server(checkpoint, "--max-batch", "1") as alone:
        arms = {"together": together, "alone": alone}
        for running in arms.values():
            noted(load(running, 2, same[: 2 * PHOTOS]))  # warm: the photos are encoded, the model has run

        def asked(running: Running, bodies: Callable[[], list[bytes]]) -> Callable[[], float]:
            return lambda: noted(load(running, CLIENTS, bodies())).rate

        def unseen() -> list[bytes]:
            return [request(photo(next(fresh)), PROMPTS[k % len(PROMPTS)]) for k in range(sizes.distinct)]

        rates = interleaved({k: asked(v, lambda: same) for k, v in arms.items()}, sizes.repeats)
        distinct = interleaved({k: asked(v, unseen) for k, v in arms.items()}, sizes.repeats)
        for clients in (1, 8, 32):
            each = sorted(noted(load(together, clients, same_photos(sizes.latency))).each)
            details[f"p50_ms_{clients}"] = round(1000 * statistics.median(each), 1)
            details[f"p99_ms_{clients}"] = round(1000 * each[int(0.99 * (len(each) - 1))], 1)
        for name, found in (("same", rates), ("distinct", distinct)):
            details[f"questions_per_s_{name}"] = {k: round(median_of(v), 1) for k, v in found.items()}
    if sizes.memory is not None:
        details["memory_growth_mb"], asked_then = memory_growth(checkpoint, sizes.memory)
        loads += asked_then
    headline: dict[str, float | None] = {
        f"{name}_ratio_32": round(median_of(found["together"]) / median_of(found["alone"]), 2)
        for name, found in (("batching", rates), ("distinct", distinct))
    }
    return headline | {"lost": float(sum(one.lost for one in loads))}, details


def memory_growth(checkpoint: Path, after: tuple[int, int]) -> tuple[float, list[Load]]:
    """MB that a server grew between two numbers of requests, with room for 64 photos' features."""
    first, last = after
    with server(checkpoint, "--cache-mb", "32") as running:
        loads = [load(running, CLIENTS, same_photos(first))]
        before = running.memory_mb()
        loads.append(load(running, CLIENTS, same_photos(last - first)))
        return round(running.memory_mb() - before, 1), loads


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, record."""
    options = parser("serving", __doc__)
    options.add_argument("--checkpoint", type=Path, help="weights to serve (default: random ones)")
    given = options.parse_args(argv)
    sizes = SMALL if given.small else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or random_checkpoint(Path(folder) / "model")
        headline, details = measure(sizes, checkpoint)
    details["weights"] = "random" if given.checkpoint is None else given.checkpoint.name
    finish("serving", headline, details, given.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
