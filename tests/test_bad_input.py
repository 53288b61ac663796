"""Every wrong input of the command line: one line that names it, exit 2, nothing lost, no traceback."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chat_demo.session import CHAT_DECODING
from uniresxx.cli import main as uniresxx_main
from uniresxx.predictor import Predictor
from uniresxx.testing import ColourSegmenter

ROOT = Path(__file__).resolve().parents[1]


def good_photo(path):
    picture = np.full((40, 60, 3), 90, dtype=np.uint8)
    picture[5:10, 10:20] = (255, 0, 0)
    Image.fromarray(picture).save(path)
    return path


def bomb(path):
    """A valid PNG header of 20,000 x 10,000 pixels and hardly any data."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 99)),
    ]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path.with_name("whole.jpg"))
    path.write_bytes(path.with_name("whole.jpg").read_bytes()[:3000])


BAD_PHOTOS = {
    "missing.jpg": lambda path: None,
    "text.jpg": lambda path: path.write_text("I am no picture"),
    "empty.png": lambda path: path.write_bytes(b""),
    "truncated.jpg": truncated,
    "one_pixel.png": lambda path: Image.new("RGB", (1, 1)).save(path),
    "bomb.png": bomb,
    "icon.png": lambda path: Image.new("RGB", (16, 16)).save(path, format="ICO"),
    "folder.png": lambda path: path.mkdir(),
    "animation.webp": lambda path: path.write_bytes(b"RIFF\x10\0\0\0WEBPVP8 "),
}


def run(argv):
    return uniresxx_main(["segment", *argv])


@pytest.fixture
def stub(monkeypatch, tmp_path_factory):
    """The command line with a model that needs no weights; returns a folder that has the files of one."""
    folder = tmp_path_factory.mktemp("ck")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    loader = classmethod(lambda cls, path, decoding=None, **options: cls(ColourSegmenter(), decoding))
    monkeypatch.setattr(Predictor, "from_pretrained", loader)
    return str(folder)


@pytest.mark.parametrize("name", BAD_PHOTOS)
def test_a_bad_photo_is_one_line_and_the_good_one_is_done(tmp_path, capsys, stub, name):
    BAD_PHOTOS[name](tmp_path / name)
    good, out = good_photo(tmp_path / "good.png"), tmp_path / "out"
    assert run([str(tmp_path / name), str(good), "red", "--checkpoint", stub, "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and name in printed and len(printed) < 400
    assert sorted(path.name for path in out.iterdir()) == [
        "good.json",
        "good.mask_01_red.png",
        "good.overlay.png",
    ]


@pytest.mark.parametrize("text", ["", "  ", "\t\n", "\u200b"])
def test_empty_expression(tmp_path, capsys, stub, text):
    good = good_photo(tmp_path / "good.png")
    assert run([str(good), "red", text, "--checkpoint", stub, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "empty expression" in printed


# checkpoints: the real loader on folders of a real, untrained model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    torch = pytest.importorskip("torch")
    from mllm.config import MLLMConfig, tiny_llama
    from mllm.tokens import Vocabulary
    from uniresxx.checkpoints.folders import save_pretrained
    from uniresxx.model.config import UniRESPlusPlusConfig
    from uniresxx.model.modeling import UniRESPlusPlusModel

    torch.manual_seed(0)
    vocabulary = Vocabulary.train(["the red wheel of the car"] * 4, 300)
    small = MLLMConfig(llm=tiny_llama(vocab_size=len(vocabulary)))
    folder = tmp_path_factory.mktemp("checkpoint")
    save_pretrained(folder, UniRESPlusPlusModel(UniRESPlusPlusConfig(mllm=small), vocabulary))
    return folder


def copy_of(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def drop_one(tensors):
    tensors.pop(sorted(tensors)[0])


def add_one(tensors):
    tensors["no.such.weight"] = next(iter(tensors.values())).clone()


def reshape_one(tensors):
    key = sorted(tensors)[0]
    tensors[key] = tensors[key].new_zeros(3, 5, 7)


BAD_CHECKPOINTS = {
    "another kind": (lambda f: change_config(f, model_type="llava"), "llava"),
    "no model_type": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{,"), "JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "list"),
    "unknown option": (lambda f: change_config(f, frobnicate=1), "frobnicate"),
    "sizes that do not fit": (lambda f: change_config(f, head={"width": 32}), "config.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer is no JSON": (lambda f: (f / "tokenizer.json").write_text("{,"), "tokenizer.json"),
    "weights are cut": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:1000]),
        "model.safetensors",
    ),
    "weights are a pickle": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x02}q\0."),
        "model.safetensors",
    ),
    "missing key": (lambda f: change_weights(f, drop_one), "1 missing"),
    "extra key": (lambda f: change_weights(f, add_one), "no.such.weight"),
    "another shape": (lambda f: change_weights(f, reshape_one), "(3, 5, 7)"),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_one_line(tmp_path, capsys, model_folder, case):
    spoil, says = BAD_CHECKPOINTS[case]
    folder = copy_of(model_folder, tmp_path / "spoilt")
    spoil(folder)
    good, out = good_photo(tmp_path / "good.png"), tmp_path / "out"
    assert run([str(good), "red", "--checkpoint", str(folder), "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and says in printed and len(printed) < 600, printed
    assert not out.exists()


@pytest.mark.parametrize("what", ["gone", "a file", "an empty folder"])
def test_no_checkpoint_at_all(tmp_path, capsys, what):
    folder = tmp_path / "ck"
    if what == "a file":
        folder.write_text("x")
    elif what == "an empty folder":
        folder.mkdir()
    good = good_photo(tmp_path / "good.png")
    assert run([str(good), "red", "--checkpoint", str(folder), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and str(folder) in printed


def test_the_untouched_folder_works(tmp_path, capsys, model_folder):
    """The cases above fail for their own reason; and the longest text of the longest letters is survived."""
    good, out = good_photo(tmp_path / "good.png"), tmp_path / "out"
    words = ["red", "[SEG] [SEG] <image> <object>", "轮" * 500, "🚗" * 250]
    assert run([str(good), *words, "--checkpoint", str(model_folder), "--out", str(out)]) == 0
    record = json.loads((out / "good.json").read_text())
    assert [entry["text"] for entry in record["expressions"]] == words
    for entry in record["expressions"]:
        assert entry["rejected"] == (entry["mask"] is None) == (entry["mask_png"] is None)
        if entry["mask"]:
            assert entry["mask"]["size"] == [40, 60]


def test_a_long_conversation_with_the_real_model(tmp_path, model_folder):
    import io

    from chat_demo.terminal import talk

    predictor = Predictor.from_pretrained(model_folder, CHAT_DECODING)
    out, lines = io.StringIO(), "".join(f"the {word} wheel {'x ' * 200}\n" for word in range(10))
    assert talk(predictor, str(good_photo(tmp_path / "good.png")), tmp_path, io.StringIO(lines), out) == 0
    assert out.getvalue().endswith("Bye.\n")


def test_real_processes_exit_2_with_one_line(tmp_path):
    """The same through the console commands, as a shell sees it."""
    good = str(good_photo(tmp_path / "good.png"))
    commands = (
        ["uniresxx", "segment", "gone.jpg", "red", "--checkpoint", "gone", "--out", "out"],
        ["uniresxx", "segment", good, "", "--checkpoint", "gone", "--out", "out"],
        ["uniresxx", "frobnicate"],
        ["chat_demo", "--checkpoint", "gone", "--terminal"],
    )
    for module, *words in commands:
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,  # a busy machine takes minutes to import what is needed
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), (words, done)
