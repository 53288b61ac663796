"""`FAMILY:DIR_OR_HUB_ID` wherever a model is named: command line, chat, server, evaluation; and wrong names."""

from __future__ import annotations

import base64
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from chat_demo.__main__ import main as chat_main
from eval.__main__ import main as eval_main
from eval.run import run as evaluate
from tests.test_lisa import convert, release
from tests.test_public_models import MAKERS, clipseg, named, photo_of  # noqa: F401  (a fixture)
from uniresxx.annotations.provenance import provenance_of
from uniresxx.checkpoints.resolve import FAMILIES, find, resolve
from uniresxx.cli import main as uniresxx_main
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.predictor import Predictor
from uniresxx.segmenters.public.squares import Square
from uniresxx.serve.app import create_server
from uniresxx.types import Decoding

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "mini_real"
SPLITS = [f"mini_real/{split}" for split in ("train", "val", "testA", "testB")]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photo_of(40, 60)).save(path)
    return path


def segment(photo, name, out):
    return uniresxx_main(
        ["segment", str(photo), "dog", "--checkpoint", name, "--out", str(out), "--device", "cpu"]
    )


def test_all_doors_give_the_same_mask_of_a_public_model(named, photo, tmp_path, capsys, monkeypatch):  # noqa: F811
    name = named("clipseg")
    predictor = Predictor.from_pretrained(name, device="cpu")
    predictor.set_image(photo)
    wanted = predictor.segment("dog")[0].mask
    assert predictor.name == name and wanted.any() and not wanted.all()

    assert segment(photo, name, tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "photo.json").read_text())
    found = [masks.decode(masks.validate(record["expressions"][0]["mask"]))]
    assert segment(photo, name, tmp_path / "out") == 0  # done already
    assert "done before" in capsys.readouterr().out

    server = create_server(predictor.segmenter)
    with TestClient(server.gate) as client:
        text = base64.b64encode(photo.read_bytes()).decode()
        asked = {"images": [{"image": text, "prompts": ["dog"]}]}
        answer = client.post("/v1/segment", json=asked).json()["data"][0]["answers"][0]
        found.append(masks.decode(masks.validate(answer["mask"])))
    assert all((mask == wanted).all() for mask in found)

    monkeypatch.chdir(tmp_path)
    read, write = os.pipe()
    os.write(write, b"Please segment the dog.\n:quit\n")
    os.close(write)
    with os.fdopen(read) as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert chat_main(["--terminal", "--checkpoint", name, "--image", str(photo), "--device", "cpu"]) == 0
    assert "dog" in capsys.readouterr().out


def test_an_export_names_the_model_and_its_weights(named):  # noqa: F811
    name = named("dino_sam2")
    about = provenance_of(name)
    assert about.model == name and about.weights_sha256 == find(name, print).weights_sha256()
    assert about.weights_sha256 != provenance_of(named("clipseg")).weights_sha256


def test_the_identity_follows_every_file_that_answers_depend_on(tmp_path):
    name = clipseg(tmp_path)
    folder = tmp_path / "clipseg"
    source = find(name, print)
    identity, config = source.identity(), source.config_sha256()
    assert identity.startswith("clipseg:clipseg:") and find(source.name, print) == source
    shutil.copytree(folder, tmp_path / "other" / "clipseg")
    assert find(f"clipseg:{tmp_path / 'other' / 'clipseg'}", print).identity() == identity
    (folder / "README.md").write_text("x")
    assert (source.identity(), source.config_sha256()) == (identity, config)
    settings = folder / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.5", "0.4"))
    assert source.identity() != identity and source.config_sha256() != config


@pytest.mark.skipif(not (REAL / "expected.json").is_file(), reason="the developers' photos are not here")
@pytest.mark.parametrize("kind", ["clipseg", "sam3"])
def test_an_evaluation_records_the_model_and_goes_on(named, kind, tmp_path, capsys):  # noqa: F811
    words = [
        "run",
        "--benchmark",
        "grefcoco/val",
        "--data",
        str(REAL),
        "--out",
        str(tmp_path),
        "--limit",
        "2",
    ]
    for _ in range(2):
        assert eval_main([*words, "--checkpoint", named(kind), "--device", "cpu"]) == 0
    about = json.loads((tmp_path / "grefcoco" / "val" / "evaluation.json").read_text())
    assert about["checkpoint"] == find(named(kind), print).identity()
    assert (
        about["decoding"]["rule"] == "token_and_presence"
        and about["decoding"]["thresholds"]["p_absent"] == 0.5
    )
    (entry,) = json.loads((tmp_path / "metrics.json").read_text())
    assert entry["decoding"]["template"] == "{expression}" and entry["n_expressions"] > 0
    capsys.readouterr()
    assert eval_main([*words, "--checkpoint", named("owl_sam"), "--device", "cpu"]) == 2
    assert "was answered by checkpoint" in capsys.readouterr().err


@pytest.mark.system
@pytest.mark.skipif(not (REAL / "expected.json").is_file(), reason="the developers' photos are not here")
@pytest.mark.parametrize("kind", ["tiny", "lisa", "gsva", *MAKERS])
def test_every_model_answers_all_of_mini_real(
    named,  # noqa: F811
    kind,
    tmp_path,
    tokenizer_model,
    converting_here,
    monkeypatch,
):
    if kind in MAKERS:  # random weights never end a reply: let it be short
        monkeypatch.setattr("uniresxx.segmenters.public.florence2.LONGEST", 4)
        monkeypatch.setattr("uniresxx.segmenters.public.qwenvl.LONGEST", 4)
        monkeypatch.setattr("eval.run.Decoding", partial(Decoding, max_new_tokens=4))
    if kind in ("lisa", "gsva"):
        with converting_here():
            assert convert(*release(kind, tmp_path, tokenizer_model)) == 0
        name = str(tmp_path / f"{kind}_ours")
    else:
        name = named(kind) if kind in MAKERS else str(resolve(None, print))
    entries = evaluate(name, SPLITS, tmp_path / "out", data=REAL, device="cpu", chats=0)
    assert [entry["benchmark"] for entry in entries] == ["mini_real"] * len(SPLITS)
    for split, entry in zip(SPLITS, entries, strict=True):
        lines = (tmp_path / "out" / split / "predictions.jsonl").read_text().splitlines()
        assert (
            len({json.loads(line)["expression_id"] for line in lines}) == entry["n_expressions"] == len(lines)
        )


GOLDEN = [
    [[62, 163, 132, 112], [76, 177, 146, 126], [83, 115, 160, 140]],
    [[87, 67, 169, 149], [101, 81, 183, 163], [115, 95, 121, 170]],
    [[124, 104, 73, 174], [138, 118, 87, 188], [152, 132, 101, 126]],
]
WRONG = [
    ("clipseg:{here}/nothing", "is neither a folder nor a hub id"),
    ("clipseg:", "a clipseg model is clipseg:MODEL"),
    ("clipseg:{clipseg}+{clipseg}", "a clipseg model is clipseg:MODEL"),
    ("detect:{clipseg}", "a detect model is detect:DETECTOR+SEGMENTER, each a folder or a hub id"),
    ("detect:{clipseg}+{clipseg}", "has model_type 'clipseg', and detect: takes grounding-dino, owlv2"),
    ("sam3:{clipseg}", "has model_type 'clipseg', and sam3: takes sam3, sam3_video"),
    ("clipsegg:{clipseg}", "or FAMILY:DIR_OR_HUB_ID (clipseg, detect, florence2, qwenvl, sam3)"),
    ("clipseg:{here}/empty", "config.json is missing"),
    ("clipseg:{here}/pickle", "weights only in pytorch_model.bin, a pickle, which is never opened"),
    ("clipseg:{here}/none", "model.safetensors is missing"),
    ("clipseg:{here}/cut", "cannot be loaded"),
    ("clipseg:{here}/fewer", "tensors of CLIPSegForImageSegmentation are missing"),
    ("clipseg:{here}/words", "has no tokenizer"),
    ("clipseg:{here}/frame", "cannot be loaded"),
    ("clipseg:someone/something", "could not be downloaded"),
]


@pytest.fixture(scope="module")
def wrong(named, tmp_path_factory):  # noqa: F811
    """Copies of a good folder, each spoilt in one way."""
    here = tmp_path_factory.mktemp("wrong")
    good = Path(named("clipseg").removeprefix("clipseg:"))
    (here / "empty").mkdir()
    for case in ("pickle", "none", "cut", "fewer", "words", "frame"):
        shutil.copytree(good, here / case)
    (here / "pickle" / "model.safetensors").rename(here / "pickle" / "pytorch_model.bin")
    (here / "none" / "model.safetensors").unlink()
    data = (here / "cut" / "model.safetensors").read_bytes()
    (here / "cut" / "model.safetensors").write_bytes(data[: len(data) // 2])
    tensors = load_file(here / "fewer" / "model.safetensors")
    kept = {key: value for key, value in tensors.items() if "film_mul" not in key}
    save_file(kept, here / "fewer" / "model.safetensors", {"format": "pt"})
    for path in (here / "words").glob("*token*"):
        path.unlink()
    (here / "frame" / "preprocessor_config.json").unlink()
    return {"here": here, "clipseg": good}


@pytest.mark.parametrize(("name", "line"), WRONG)
def test_wrong_names_and_files_are_one_line(wrong, name, line, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    capsys.readouterr()
    assert segment(photo, name.format(**wrong), tmp_path / "out") == 2
    err = [
        text for text in capsys.readouterr().err.splitlines() if "it/s" not in text and "Loading" not in text
    ]
    assert line in err[-1] and len(err) == 1, err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["quantization", "device_map"])
def test_options_that_public_models_do_not_have_are_refused(named, word, monkeypatch):  # noqa: F811
    from uniresxx.model.placement import Placement
    from uniresxx.segmenters.load import load_source

    options = {"quantization": {"quantization": "int8"}, "device_map": {"spread": True}}[word]
    for kind in MAKERS:
        with pytest.raises(InputError, match=word):
            load_source(find(named(kind), print), Placement(**options))


def test_what_only_answers_starts_no_training(named):  # noqa: F811
    with pytest.raises(InputError, match="only answers"):
        resolve(named("clipseg"), print)


def test_a_folder_may_have_the_name_of_a_family(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("clipseg:x").mkdir()
    with pytest.raises(InputError, match="is not a checkpoint"):
        find("clipseg:x", print)
    assert set(FAMILIES) >= {"clipseg"}


def test_a_named_repository_is_downloaded_without_code_and_pickles(named, monkeypatch):  # noqa: F811
    asked = {}

    def snapshot(name, **options):
        asked[name] = options
        return named("clipseg").removeprefix("clipseg:")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    source = find("clipseg:owner/name@v1", print)
    assert source.folders == (Path(named("clipseg").removeprefix("clipseg:")),)
    (options,) = asked.values()
    assert options["revision"] == "v1" and "*.safetensors" in options["allow_patterns"]
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in options["allow_patterns"])


def test_a_square_photo_is_that_of_torchvision():
    """Sam2ImageProcessor(size={"height": 3, "width": 4}) of transformers 5.24 with torchvision 0.28."""
    photo = (np.arange(5 * 7 * 3) * 37 % 256).astype(np.uint8).reshape(5, 7, 3)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = Square(3, 4, mean, deviation).pixels(photo, torch.device("cpu"))[0]
    levels = (pixels * torch.tensor(deviation)[:, None, None] + torch.tensor(mean)[:, None, None]) * 255
    assert levels.round().int().tolist() == GOLDEN
