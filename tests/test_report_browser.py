"""The report in Chromium: 10,000 expressions, filters, keys, masks, and no request to anything outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.report.write import report
from eval.score import origin
from uniresxx.evaluation.metrics_file import score_file, write_metrics
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import JsonlWriter, to_json
from uniresxx.types import Expression, Granularity, ImageRecord

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
IMAGES, PER_IMAGE = 1000, 10
H, W = 24, 36


class Browser:
    """One page in headless Chromium, driven over its DevTools pipe (JSON messages that end with a zero byte)."""

    def __init__(self, profile: Path) -> None:
        to_child, ours_out = os.pipe()
        ours_in, from_child = os.pipe()
        self.log = (profile.parent / "chromium.log").open("wb")
        self.process = subprocess.Popen(
            [
                *("bash", "-c", f'exec 3<&{to_child} 4>&{from_child}; exec "$@"', "bash", CHROMIUM),
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}", "--window-size=1280,900"),
                "about:blank",
            ],
            pass_fds=(to_child, from_child),
            stdout=self.log,
            stderr=self.log,
        )
        os.close(to_child)
        os.close(from_child)
        self.write, self.read = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        self.number, self.session, self.events = 0, None, []
        pages: list[str] = []
        while not pages:  # the first page may come after the first answer
            targets = self.call("Target.getTargets")["targetInfos"]
            pages = [target["targetId"] for target in targets if target["type"] == "page"]
        page = pages[0]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def _next(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self.read.read(1)) not in (b"\0", b""):
            message += byte
        assert message, "chromium has gone"
        return json.loads(message)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.write.write(json.dumps(message).encode() + b"\0")
        self.write.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path) -> None:
        loader = self.call("Page.navigate", url=page.resolve().as_uri())["loaderId"]
        while not any(  # of this page, not of the blank one before it
            event.get("method") == "Page.lifecycleEvent"
            and (event["params"]["loaderId"], event["params"]["name"]) == (loader, "load")
            for event in self.events
        ):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        got = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def key(self, name: str) -> None:
        """Press a key on whatever has the focus, and wait for the next frame."""
        codes = {"ArrowDown": 40, "ArrowUp": 38, "PageDown": 34, "End": 35, "Home": 36, "Tab": 9}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=codes[name]
            )
        self.frame()

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)
        self.frame()

    def frame(self) -> None:
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def complaints(self) -> list[str]:
        """Errors and policy violations that the browser reported, and requests that left the page."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"])
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            if event.get("method") == "Network.requestWillBeSent":
                url = params["request"]["url"]
                found += [] if url.startswith(("file:", "data:", "about:")) else [url]
        return found

    def close(self) -> None:
        self.session = None
        self.write.write(b'{"id": 0, "method": "Browser.close"}\0')
        self.write.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.read.close()
        self.log.close()


COLOURS = ("red", "green", "blue", "grey", "weiß")
KINDS = (Granularity.PART, Granularity.OBJECT, Granularity.MULTI, Granularity.NONE)


def box(left: int, wide: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[4:20, left : left + wide] = True
    return mask


def made(number: int) -> ImageRecord:
    """A photo of one colour per number; every fourth expression has no target."""
    expressions = []
    for k in range(PER_IMAGE):
        kind = KINDS[(number + k) % 4]
        truth = None if kind == Granularity.NONE else masks.encode(box(k, 8))
        text = f"the {COLOURS[(number + k) % 5]} thing {number} </script><img src=x onerror=alert(1)>"
        expressions.append(Expression(f"refcoco/val/{number}_{k}", text, kind, truth))
    pixels = np.full((H, W, 3), (number % 256, 40, 200), np.uint8)
    return ImageRecord(f"im{number}", H, W, tuple(expressions), pixels=pixels)


def answer(number: int, k: int) -> Prediction:
    """Shifted by 0..4 columns of 8, so IoU is 1, 7/9, 6/10, 5/11, 4/12; every seventh is rejected."""
    rejected = (number * PER_IMAGE + k) % 7 == 0
    mask = None if rejected else masks.encode(box(k + number % 5, 8))
    return Prediction(rejected, mask, None, None if number % 3 else 0.75, (number % 10) / 10)


def scored(out: Path, records: list[ImageRecord], moved: int = 0) -> Path:
    """A scored folder; the answers of picture 0 are moved by `moved` columns."""
    path = out / "refcoco/val/predictions.jsonl"
    with JsonlWriter(path) as lines:
        for n, record in enumerate(records):
            for k, expression in enumerate(record.expressions):
                given = answer(n, k)
                if not n and given.rle:
                    given = replace(given, rle=masks.encode(box(k + moved, 8)))
                lines.write(to_json(expression.expression_id, given))
    entry = score_file(path, records, "refcoco/val") | origin(path, out, None, None)
    write_metrics(out / "metrics.json", [entry])
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The report on 10,000 expressions of 1,000 pictures."""
    records = [made(k) for k in range(IMAGES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.report.runs.load_records", lambda name, data, limit=None: records)
        yield report([scored(tmp_path_factory.mktemp("run"), records)])


@pytest.fixture
def chromium(tmp_path: Path, page: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(page)
        yield browser
        assert browser.complaints() == []
    finally:
        browser.close()


def shown(browser: Browser) -> int:
    """The number of expressions that the page says it shows."""
    browser.frame()
    return int(browser.run("document.querySelector('.found').textContent").split()[0].replace(",", ""))


def put(browser: Browser, field: str, value: str) -> int:
    """Set one field of the form as a user would; returns how many expressions are left."""
    name = json.dumps(field)
    browser.run(
        f"{{const f = document.querySelector('.filters').elements[{name}]; f.value = {json.dumps(value)};"
        "f.dispatchEvent(new Event('input', {bubbles: true}))}"
    )
    return shown(browser)


def expected(keep: Any) -> list[str]:
    """Ids that a filter over (number, k, answer) keeps, in the file's order."""
    return [
        f"refcoco/val/{n}_{k}" for n in range(IMAGES) for k in range(PER_IMAGE) if keep(n, k, answer(n, k))
    ]


def chosen(browser: Browser) -> str:
    return browser.run("document.querySelector('.detail small').textContent").split(" · ")[-1]


def test_a_list_of_ten_thousand_holds_only_visible_rows(chromium: Browser) -> None:
    assert shown(chromium) == 10_000
    assert chromium.run("document.querySelectorAll('.row').length") < 60, "only visible rows exist"
    assert chromium.run("document.querySelector('.space').offsetHeight") == 440_000
    chromium.run("document.querySelector('.list').scrollTop = 220000")
    chromium.frame()
    positions = chromium.run("[...document.querySelectorAll('.row')].map(r => Number(r.ariaPosInSet))")
    assert 5001 in positions and 1 not in positions and len(positions) < 60


def test_filters_find_what_a_python_loop_finds(chromium: Browser) -> None:
    reds = expected(lambda n, k, a: (n + k) % 5 == 0)
    assert put(chromium, "words", "RED thing") == len(reds)
    assert put(chromium, "words", "weiß refcoco/val/17_") == 2
    assert chosen(chromium) == next(i for i in expected(lambda n, k, a: n == 17 and (n + k) % 5 == 4))
    assert put(chromium, "words", "no such words") == 0
    assert "No expression matches" in chromium.run("document.querySelector('.detail').textContent")
    assert put(chromium, "words", "") == 10_000
    wrong = expected(lambda n, k, a: not a.rejected and (n + k) % 4 == 3)
    assert put(chromium, "outcome", "2") == len(wrong)
    assert chosen(chromium) == wrong[0]
    put(chromium, "outcome", "0")
    middle = expected(lambda n, k, a: not a.rejected and (n + k) % 4 != 3 and n % 5 in (1, 2))
    put(chromium, "low", "0.5")
    assert put(chromium, "high", "0.9") == len(middle)
    chromium.run("document.querySelector('[name=granularity][value=\"0\"]').click()")
    assert shown(chromium) == len([i for i in middle if sum(map(int, i.split("/")[-1].split("_"))) % 4])
    chromium.run("document.querySelector('.filters button').click()")
    assert shown(chromium) == 10_000


def test_sort_orders(chromium: Browser) -> None:
    put(chromium, "outcome", "0")
    put(chromium, "order", "best")
    assert chromium.run("document.querySelector('.row .iou').textContent") == "1.00"
    put(chromium, "order", "worst")
    assert chromium.run("document.querySelector('.row .iou').textContent") == "0.33"
    put(chromium, "order", "surest")
    assert "predicted 0.75" in chromium.run("document.querySelector('.detail').textContent")
    put(chromium, "order", "absent")
    assert "p(absent) 0.90" in chromium.run("document.querySelector('.detail').textContent")


def test_the_keyboard_moves_through_the_list(chromium: Browser) -> None:
    chromium.run("document.querySelector('.filters [name=words]').focus()")
    chromium.type("green")
    greens = expected(lambda n, k, a: (n + k) % 5 == 1)
    assert shown(chromium) == len(greens)
    chromium.run("document.querySelector('.list').focus()")
    for key, place in (
        ("ArrowDown", 1),
        ("ArrowDown", 2),
        ("ArrowUp", 1),
        ("End", len(greens) - 1),
        ("Home", 0),
    ):
        chromium.key(key)
        assert chosen(chromium) == greens[place]
        active = chromium.run("document.querySelector('.list').getAttribute('aria-activedescendant')")
        assert chromium.run(f"document.getElementById('{active}').ariaSelected") == "true"
    chromium.key("PageDown")
    assert greens.index(chosen(chromium)) > 3


PAINTED = """new Promise(done => {  // photos are decoded later; until then their canvases are grey
    const grey = c => c.getContext('2d').getImageData(6.5 * c.width / 36, c.height / 2, 1, 1).data[0] === 136;
    const check = () => {
        const all = [...document.querySelectorAll('.detail canvas')];
        all.length === 3 && !all.some(grey) ? done() : requestAnimationFrame(check);
    };
    check();
})"""


def test_a_click_shows_photo_truth_and_answer(chromium: Browser) -> None:
    """Pixels of the canvases: clear inside the mask, a veil outside, the edge in its colour."""
    put(chromium, "words", "refcoco/val/8_1")
    chromium.run("document.querySelector('.row').click()")
    chromium.run(PAINTED)
    assert answer(8, 1).rejected is False
    point = """(n, x, y) => {
        const c = document.querySelectorAll('.detail canvas')[n], s = c.width / 36;
        return [...c.getContext('2d').getImageData((x + .5) * s, (y + .5) * s, 1, 1).data].slice(0, 3).join()}"""
    read = [[chromium.run(f"({point})({n}, {x}, 12)") for x in range(W)] for n in range(3)]
    photo = read[0][0]
    assert photo == "8,40,200" and set(read[0]) == {photo}, "the plain photo"
    for panel, left in ((1, 1), (2, 4)):
        inside = {x for x in range(W) if read[panel][x] == photo}
        assert inside and inside <= set(range(left, left + 8)), "clear only inside the mask"
        veiled = {x for x in range(W) if not left <= x < left + 8}
        assert all(read[panel][x] != photo for x in veiled)
    labels = chromium.run("[...document.querySelectorAll('.detail canvas')].map(c => c.ariaLabel)")
    assert labels[1].startswith("Truth") and "IoU 0.45" in labels[2]


def test_text_stays_text(chromium: Browser) -> None:
    assert "<img src=x onerror" in chromium.run("document.querySelector('.detail q').textContent")
    assert chromium.run("document.querySelectorAll('.browser img, .browser q *').length") == 0


def test_fields_have_labels_and_the_page_fits_a_phone(chromium: Browser) -> None:
    unnamed = "[...document.querySelectorAll('input, select')].filter(f => !f.labels.length).length"
    assert chromium.run(unnamed) == 0
    chromium.call(
        "Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True
    )
    chromium.frame()
    assert chromium.run("document.documentElement.scrollWidth") <= 360


def test_two_runs_without_their_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [replace(made(k), pixels=None, path=str(tmp_path / "gone.jpg")) for k in range(3)]
    monkeypatch.setattr("eval.report.runs.load_records", lambda name, data, limit=None: records)
    runs = [scored(tmp_path / "first", records), scored(tmp_path / "second", records, moved=6)]
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(report(runs))
        assert put(browser, "order", "spread") == 30
        assert chosen(browser).startswith("refcoco/val/0_"), "only picture 0 was answered differently"
        heads = browser.run("[...document.querySelectorAll('.panel b')].map(b => b.textContent)")
        assert heads == ["Picture", "Truth", "first", "second"]
        lines = browser.run("[...document.querySelectorAll('.panel span')].map(b => b.textContent)")
        assert lines[0] == "not embedded" and "IoU 1.00" in lines[2] and "IoU 0.14" in lines[3]
        colour = (
            "document.querySelector('.detail canvas').getContext('2d').getImageData(9, 9, 1, 1).data.join()"
        )
        assert browser.run(colour) == "136,136,136,255"
        put(browser, "low", "0.99")
        both = [shown(browser), put(browser, "run", "1")]
        assert both[0] > both[1], "filters use the chosen run"
        assert browser.complaints() == []
    finally:
        browser.close()
