"""Converted LISA and GSVA the whole way with real processes: convert, finetune, evaluate, score, chat, export."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.test_lisa import REAL, recorded, release
from tests.test_system_flow import program

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (REAL / "expected.json").is_file(), reason="the developers' photos are not here"),
]
BENCHMARKS = {"refcoco/val": "lisa", "grefcoco/val": "gsva", "refcocom/val_part_only": "lisa"}


@pytest.mark.parametrize("peer", ["lisa", "gsva"])
def test_a_released_model_goes_the_whole_way(peer, tmp_path, tokenizer_model):
    program("uniresxx", "convert", *release(peer, tmp_path, tokenizer_model))
    run, exported = tmp_path / "run", tmp_path / "exported"
    program(
        "train", "finetune", "--from", tmp_path / f"{peer}_ours", "--data", REAL, "--data.source", "mini_real",
        "--out", run, "--optim.steps", 6, "--optim.lr", "1e-2", "--data.batch_images", 2, "--engine.device", "cpu",
        "--refusal_pictures", 2,
    )  # fmt: skip
    program("uniresxx", "export", run, exported)
    for benchmark, protocol in BENCHMARKS.items():
        protocol = protocol if peer == "gsva" else "lisa"
        out = tmp_path / benchmark.replace("/", "_")
        asked = ("--benchmark", benchmark, "--data", REAL, "--limit", 2, "--protocol", protocol)
        program("eval", "run", "--checkpoint", exported, *asked, "--device", "cpu", "--out", out)
        program("eval", "score", out / benchmark / "predictions.jsonl", *asked, "--out", out / "again")
        (first,), (again,) = (json.loads((f / "metrics.json").read_text()) for f in (out, out / "again"))
        assert first["overall"] == again["overall"] and first["protocol"] == again["protocol"] == protocol
    photo = tmp_path / "photo.png"
    Image.fromarray(recorded(peer)[1]["photo"].numpy()).save(photo)
    talk = f":image {photo}\nWhat is the red car in this image?\nand the dogs?\n:quit\n"
    said = program("chat_demo", "--checkpoint", exported, "--terminal", "--device", "cpu", say=talk)
    assert said.count("\n") >= 4 and "Traceback" not in said
