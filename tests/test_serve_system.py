"""A real server process on this machine: the documented calls, and a stop that loses nothing."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.serving import SMALL, load, measure, photo, random_checkpoint, same_photos, server

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("serve") / "model")


def ask(port, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def long_question(number):
    image = base64.b64encode(photo(number)).decode()
    return json.dumps({"images": [{"image": image, "prompts": [f"the cup number {k}" for k in range(16)]}]})


def test_a_stop_signal_finishes_what_was_accepted(checkpoint):
    clients, replies = 6, []
    with server(checkpoint) as running:
        threads = [
            threading.Thread(
                target=lambda k=k: replies.append(ask(running.port, "/v1/segment", long_question(k)))
            )
            for k in range(clients)
        ]
        for thread in threads:
            thread.start()
        while ask(running.port, "/health")[1]["waiting"] < clients * 16 and not replies:
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        while (health := ask(running.port, "/health"))[0] == 200:
            time.sleep(0.01)
        assert health[1]["status"] == "stopping"
        status, refused = ask(running.port, "/v1/segment", long_question(0))
        assert status == 503 and "stopping" in refused["error"]["message"]
        for thread in threads:
            thread.join()
        assert [status for status, _ in replies] == [200] * clients
        assert all(len(reply["data"][0]["answers"]) == 16 for _, reply in replies)
        assert running.process.wait(60) == 0
        assert "every accepted request was answered" in running.process.stdout.read()


def test_a_second_signal_ends_it_at_once(checkpoint):
    with server(checkpoint) as running:
        client = threading.Thread(target=lambda: broken(running.port))
        client.start()
        while not ask(running.port, "/health")[1]["waiting"]:
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        while ask(running.port, "/health")[0] == 200:
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 1
        assert "stopped at once" in running.process.stdout.read()
        client.join()


def broken(port):
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        ask(port, "/v1/segment", long_question(0))


def test_a_missing_checkpoint_is_one_line(tmp_path):
    words = [sys.executable, "-m", "uniresxx", "serve", "--port", "0", "--checkpoint", str(tmp_path / "x")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_many_clients_lose_nothing_and_get_what_one_gets(checkpoint):
    with server(checkpoint) as running:
        found = load(running, 32, same_photos(96))
        assert (found.lost, len(found.each)) == (0, 96)


def test_the_benchmark_has_its_keys_and_loses_nothing(checkpoint):
    headline, details = measure(SMALL, checkpoint)
    assert set(headline) == {"batching_ratio_32", "distinct_ratio_32", "lost"} and headline["lost"] == 0
    assert {"p50_ms_1", "p99_ms_8", "p99_ms_32"} <= set(details)


def test_a_large_photo_and_one_that_is_too_large(checkpoint):
    with server(checkpoint, "--photo-mb", "3") as running:
        for extra, status in ((2 * 2**20, 200), (4 * 2**20, 413)):
            data = photo(1) + b"\0" * extra  # what follows the end of a PNG is not read
            text = base64.b64encode(data).decode()
            body = json.dumps({"images": [{"image": text, "prompts": ["the cup"]}]})
            assert ask(running.port, "/v1/segment", body)[0] == status


def test_a_port_in_use_is_one_line(checkpoint):
    with server(checkpoint) as running:
        words = [sys.executable, "-m", "uniresxx", "serve", "--checkpoint", str(checkpoint)]
        words += ["--port", str(running.port)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot listen" in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_documented_calls_run(checkpoint, tmp_path):
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)
    calls = [block for block in blocks if "curl" in block]
    assert len(calls) >= 3
    (tmp_path / "photo.jpg").write_bytes(photo(1))
    (tmp_path / "street.jpg").write_bytes(photo(2))
    with server(checkpoint) as running:
        for call in calls:
            script = call.replace("localhost:8000", f"127.0.0.1:{running.port}")
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script.replace("curl -s", "curl -sf")],
                cwd=tmp_path, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, (call, done.stdout, done.stderr)
