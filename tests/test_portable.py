"""The mask head as a program of its own: torch.export and ONNX against eager, with any number of expressions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mllm.tokens import Vocabulary
from tests.test_heads import SAM, SAM2
from tests.test_model import CONFIG
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.cli import main as command
from uniresxx.errors import InputError
from uniresxx.hub import head_program as portable
from uniresxx.hub.head_program import NEEDS_ONNX, Form, export_mask_head, programs_of
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.types import Decoding


def made(head: str) -> UniRESPlusPlusModel:
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, "the red square"] * 3, 340)
    config = replace(CONFIG, mask_head=head, sam=SAM, sam2=SAM2, dense_classes=(0, 0, 0))
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(config, vocabulary).eval()
    with torch.no_grad():  # some of SAM's weights start at zero, which would hide mistakes
        for parameter in model.head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def runnable(form: Form) -> None:
    for name in NEEDS_ONNX if form == "onnx" else ():
        pytest.importorskip(name, reason="pip install 'uniresxx[onnx]'")


def opened(folder: Path, about: dict[str, Any]) -> Callable[..., Sequence[Tensor]]:
    """A written program as another user would run it, from what mask_head.json says of it."""
    path = folder / about["file"]
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        given = {name: value.numpy() for name, value in zip(about["inputs"], inputs, strict=True)}
        return [torch.from_numpy(x) for x in session.run(about["outputs"], given)]

    return run


@pytest.mark.parametrize(
    ("form", "head"),  # ONNX of the pyramid: below, by the command
    [("torch", "pyramid"), ("torch", "sam")]
    + [
        pytest.param(*pair, marks=pytest.mark.system)
        for pair in (("torch", "sam2"), ("onnx", "sam"), ("onnx", "sam2"))
    ],
)
def test_an_exported_head_answers_as_the_model_does(form: Form, head: str, tmp_path: Path) -> None:
    runnable(form)
    model = made(head)
    files = export_mask_head(model, tmp_path, form)
    about = json.loads((tmp_path / "mask_head.json").read_text())
    assert sorted(files) == sorted([about["encode"]["file"], about["answer"]["file"], "mask_head.json"])
    assert max(about[name]["max_abs_error"] for name in ("encode", "answer")) <= 1e-4
    assert about["answer"]["inputs"]["prompts_ED"] == ["E", 32]
    assert about["encode"]["outputs"] == list(about["answer"]["inputs"])[1:]
    photo = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy()
    encoded = model.encode_images([photo])
    if (form, head) == ("torch", "sam"):  # the encoder's weights are in the program that runs it alone
        sizes = [(tmp_path / about[name]["file"]).stat().st_size for name in ("encode", "answer")]
        encoder = sum(p.nbytes for p in model.head.sam.vision_encoder.parameters())
        assert sizes[0] - sizes[1] > encoder / 2
    answer = opened(tmp_path, about["answer"])
    flat = (part if isinstance(part, tuple) else (part,) for part in encoded.features)
    features = [value for values in flat for value in values]
    for count in (1, 2, 9):
        prompts = torch.randn(count, 32)
        with torch.no_grad():
            found = answer(prompts, *features)
            expected = model.head(encoded.features, prompts, torch.zeros(count, dtype=torch.long))
        for a, b in zip(found, expected, strict=True):
            assert b.numel() == count or b.std() > 1e-3
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert len(model.answer(encoded, [["the red square"]], Decoding(max_new_tokens=2))) == 1


def test_of_one_photo_is_forward(tmp_path: Path) -> None:
    model = made("pyramid")
    _, answer = programs_of(model)
    prompts, *features = answer.others
    from uniresxx.model.heads.pyramid import MaskFeatures

    with torch.no_grad():
        a = model.head.of_one_photo(MaskFeatures(*features), prompts)
        b = model.head(MaskFeatures(*features), prompts, torch.zeros(len(prompts), dtype=torch.long))
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


RUN_ALONE: dict[Form, str] = {
    "torch": "import torch\n"
    "run = torch.export.load('mask_head_answer.pt2').module()\n"
    "masks, quality, presence = run(*[torch.ones(s) for s in shapes])\n",
    "onnx": "import numpy, onnxruntime\n"
    "run = onnxruntime.InferenceSession('mask_head_answer.onnx', providers=['CPUExecutionProvider'])\n"
    "given = [numpy.ones(s, numpy.float32) for s in shapes]\n"
    "masks, quality, presence = run.run(None, {i.name: x for i, x in zip(run.get_inputs(), given, strict=True)})\n"
    "assert 'torch' not in sys.modules\n",
}


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_the_program_runs_without_this_package(form: Form, tmp_path: Path) -> None:
    runnable(form)
    model = made("pyramid")
    save_pretrained(tmp_path / "model", model)
    out = tmp_path / "out"
    assert command(["export", str(tmp_path / "model"), str(out), "--mask-head", form]) == 0
    inputs = programs_of(model)[1].others
    code = (
        f"import sys\nshapes = {[list(x.shape) for x in inputs]}\n{RUN_ALONE[form]}"
        "assert masks.shape[0] == 5 and quality.shape == presence.shape == (5,)\n"
        "assert not {'uniresxx', 'mllm', 'transformers'} & set(sys.modules)\n"
        "print(float(masks.sum()), *presence.tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=out, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    with torch.no_grad():
        masks, _, presence = programs_of(model)[1].module(*(torch.ones(x.shape) for x in inputs))
    printed = [float(word) for word in run.stdout.split()]
    assert printed == pytest.approx([float(masks.sum()), *presence.tolist()], rel=1e-4, abs=1e-4)


def test_a_mask_head_replaces_only_what_an_earlier_export_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(tmp_path / "model"), tmp_path / "out"
    save_pretrained(Path(model), made("pyramid"))
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for _ in range(2):
        assert command(["export", model, str(out), "--mask-head", "torch"]) == 0
    (out / "mask_head_answer.pt2").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert command(["export", model, str(out), "--mask-head", "torch"]) == 2
    err = capsys.readouterr().err
    assert (
        "mask_head_answer.pt2 was not written by uniresxx or was changed since" in err
        and err.count("\n") == 1
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_program_that_differs_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "largest_error", lambda program, run: 2e-4)
    with pytest.raises(RuntimeError, match="differs from eager"):
        export_mask_head(made("pyramid"), tmp_path, "torch")
    assert not (tmp_path / "mask_head.json").exists()


def test_onnx_without_its_packages_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(InputError, match=r"ONNX needs onnxscript: pip install 'uniresxx\[onnx\]'"):
        export_mask_head(made("pyramid"), tmp_path, "onnx")
