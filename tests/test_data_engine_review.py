"""A sample of the data engine's store, decided on the correction page of the demo, without a browser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("prometheus_client", reason="no serve extra: pip install -e '.[demo]'")

from chat_demo.web.corrections import Corrections
from chat_demo.web.kept import Kept
from chat_demo.web.models import Model
from chat_demo.web.review_items import queue_of
from chat_demo.web.review_tab import Reviewing
from data_engine.__main__ import main
from uniresxx.data.guard import OWN_DATA
from uniresxx.data.store.preparation import Preparation
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import write_store
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.testing import ColourSegmenter
from uniresxx.types import Expression, Granularity, ImageRecord

TEXTS = {
    "o0": "red car",
    "o1": "blue bus",
    "o0.p0": "wheel of the red car",
    "n0": "green car",
    "n1": "red bus",
}


def mask_at(column: int) -> np.ndarray:
    mask_yx = np.zeros((40, 60), dtype=bool)
    mask_yx[5:15, column : column + 10] = True
    return mask_yx


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One picture with two objects, a part and two negatives."""
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.full((40, 60, 3), 90, dtype=np.uint8)).save(images / "a.png")
    levels = [Granularity.OBJECT] * 2 + [Granularity.PART] + [Granularity.NONE] * 2
    items = []
    for number, ((name, text), level) in enumerate(zip(TEXTS.items(), levels, strict=True)):
        rle = None if level is Granularity.NONE else masks.encode(mask_at(10 * number))
        items.append(
            Expression(f"engine/train/a_{name}", text, level, rle, 0 if rle is None else masks.area(rle))
        )
    record = ImageRecord("a.png", 40, 60, tuple(items), path=str(images / "a.png"))
    about = {"guard": {"mode": OWN_DATA}}
    work = Preparation("engine", {"train": lambda: ([record], {})}, image_root=images, about=about)
    return write_store(tmp_path / "store", work, False, lambda *_: None)


def page_of(store: Store, folder: Path) -> Reviewing:
    """What is behind the page that opens an exported sample."""
    assert main(["review", "export", str(store.path), "--out", str(folder / "review")]) == 0
    model = Model(ColourSegmenter(), "colours", False)
    queue = queue_of(folder / "review" / "predictions.jsonl", None, model, print)
    model.close()
    out = folder / "page"
    return Reviewing([], Kept(out / "conversations"), Corrections(out / "corrections"), queue)


def test_what_people_decide_on_the_page_tells_the_precision(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = page_of(store, tmp_path)
    assert [(item.text, item.rle is None) for item in page.queue] == [
        (text, name[0] == "n") for name, text in TEXTS.items()
    ]
    review = page.begin().review
    review = page.accept(review, review.text, "an object").review  # red car
    review = page.reject(review, review.text, "an object").review  # blue bus: not there
    review = page.accept(review, "hub of the red car", "a part").review  # other words
    review = page.accept(review, review.text, "an object").review  # green car: not there, indeed
    painted = replace(review, rle=masks.encode(mask_at(45)))  # red bus: there is one
    page.accept(painted, painted.text, "an object")
    capsys.readouterr()
    command = ["review", "read", str(tmp_path / "page"), "--store", str(store.path)]
    assert main([*command, "--out", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == [
        "part: 0.0 % [0.0, 79.3], 0 of 1 reviewed",
        "object: 50.0 % [9.5, 90.5], 1 of 2 reviewed",
        "none: 50.0 % [9.5, 90.5], 1 of 2 reviewed",
    ]
    [record] = Store.open(tmp_path / "new")
    found = {
        e.expression_id.rpartition("_")[2]: (e.text, e.granularity.value, e.area) for e in record.expressions
    }
    assert found == {
        "o0": ("red car", "object", 100),
        "o0.p0": ("hub of the red car", "part", 100),
        "n0": ("green car", "none", 0),
        "n1": ("red bus", "object", 100),
    }


def test_a_later_decision_stands_and_one_of_a_chat_is_not_of_the_store(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = page_of(store, tmp_path)
    review = page.begin().review
    page.reject(review, review.text, "an object")
    page.accept(review, review.text, "an object")
    file = tmp_path / "page" / "corrections" / "corrections.jsonl"
    [*_, last] = map(json.loads, file.read_text().splitlines())
    with file.open("a") as stream:
        stream.write(json.dumps({**last, "key": "chat/1/0/0/0"}) + "\n")
    capsys.readouterr()
    assert main(["review", "read", str(file), "--store", str(store.path)]) == 0
    assert capsys.readouterr().out.startswith("object: 100.0 % [20.7, 100.0], 1 of 1 reviewed")
    with file.open("a") as stream:
        stream.write(json.dumps({**last, "key": "another/train/b_o0"}) + "\n")
    with pytest.raises(InputError, match="another/train/b_o0 is not in the store"):
        main(["review", "read", str(file), "--store", str(store.path)])


def test_a_folder_without_decisions_is_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither sample"):
        main(["review", "read", str(tmp_path), "--store", str(store.path)])
