"""Predictor, command line, chat and server: one first question, one mask."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from chat_demo import session as state
from uniresxx.cli import main as uniresxx_main
from uniresxx.imaging import masks
from uniresxx.predictor import Predictor
from uniresxx.segmenters.load import load_segmenter
from uniresxx.serve.app import create_server
from uniresxx.testing import ColourSegmenter

ASKED, TYPED = "the red house", "Segment the red house."
SCENE = Path(__file__).parents[1] / "assets" / "scenes" / "01.png"


@pytest.fixture(params=["card.png", "card.jpg", "turned.jpg"])
def photo(request, tmp_path):
    """A photo in a lossless file, a lossy one, and one that its EXIF data turns."""
    pixels = np.full((40, 60, 3), 90, dtype=np.uint8)
    pixels[5:21, 10:20] = (255, 0, 0)
    path = tmp_path / request.param
    exif = Image.Exif()
    if request.param.startswith("turned"):
        exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def by_predictor(model, photo):
    predictor = Predictor(model)
    predictor.set_image(photo)
    (found,) = predictor.segment(ASKED)
    return found.mask


def by_command(model, photo, monkeypatch, out):
    loader = classmethod(lambda cls, path, decoding=None, **options: cls(model, decoding))
    with monkeypatch.context() as patch:  # the folder is that of the package's model
        patch.setattr(Predictor, "from_pretrained", loader)
        assert uniresxx_main(["segment", str(photo), ASKED, "--out", str(out)]) == 0
    (entry,) = json.loads((out / f"{photo.stem}.json").read_text())["expressions"]
    return masks.decode(masks.validate(entry["mask"]))


def by_chat(model, photo):
    predictor = Predictor(model, state.CHAT_DECODING)
    session = state.with_photo(state.Session(), photo.name, predictor.set_image(photo))
    (found,) = predictor.segment([state.question_for(session, TYPED)])
    turn = state.with_answer(session, TYPED, found).turns[-1]
    return turn.segments[0].mask


def by_server(model, photo):
    """Each door of the server: multipart, JSON, chat."""
    data = photo.read_bytes()
    text = base64.b64encode(data).decode()
    with TestClient(create_server(model).gate) as client:
        form = {"prompt": ASKED, "mask_format": "rle"}
        first = client.post("/v1/images/segmentations", files={"image": data}, data=form).json()["data"][0]
        ask = {"images": [{"image": text, "prompts": [ASKED]}]}
        second = client.post("/v1/segment", json=ask).json()["data"][0]["answers"][0]
        parts = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{text}"}}]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": TYPED}]}
        reply = client.post("/v1/chat/completions", json={"messages": [message]}).json()
        third = reply["choices"][0]["message"]["uniresxx"]["phrases"][0]
    return [masks.decode(masks.validate(one["mask"])) for one in (first, second, third)]


def test_all_doors_give_the_same_mask(photo, tmp_path, monkeypatch):
    model = ColourSegmenter()
    same_mask_at_all_doors(model, photo, tmp_path, monkeypatch)
    rows = {template.format(expression=text) for text, _, template in model.asked}
    assert rows == {TYPED} and {history for _, history, _ in model.asked} == {()}


def test_all_doors_give_the_same_mask_of_the_packages_model(tmp_path, monkeypatch):
    same_mask_at_all_doors(load_segmenter(device="cpu"), SCENE, tmp_path, monkeypatch)


def same_mask_at_all_doors(model, photo, tmp_path, monkeypatch):
    wanted = by_predictor(model, photo)
    others = [by_command(model, photo, monkeypatch, tmp_path / "out"), by_chat(model, photo)]
    assert wanted.any()
    for mask in [*others, *by_server(model, photo)]:
        assert mask.shape == wanted.shape
        assert (mask & wanted).sum() / (mask | wanted).sum() >= 0.999
