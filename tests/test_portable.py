"""The mask head as a program of its own: torch.export against eager, with any number of expressions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mllm.tokens import Vocabulary
from tests.test_heads import SAM, SAM2
from tests.test_model import CONFIG
from uniresxx.cli import main as command
from uniresxx.data.templates import TRAINING_TEMPLATES
from uniresxx.errors import InputError
from uniresxx.model import portable
from uniresxx.model.build import build_model
from uniresxx.model.modeling import UniRESPlusPlus
from uniresxx.model.portable import NEEDS_ONNX, export_mask_head, programs_of
from uniresxx.segmenter import Decoding


def made(head: str) -> UniRESPlusPlus:
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, "the red square"] * 3, 340)
    config = replace(CONFIG, mask_head=head, sam=SAM, sam2=SAM2, dense_classes=(0, 0, 0))
    torch.manual_seed(0)
    return build_model(config, vocabulary).eval()


@pytest.mark.parametrize("head", ["pyramid", "sam"])
def test_an_exported_head_answers_as_the_model_does(head: str, tmp_path: Path) -> None:
    model = made(head)
    errors = export_mask_head(model, tmp_path, "torch")
    assert max(errors.values()) <= 1e-4
    about = json.loads((tmp_path / "mask_head.json").read_text())
    assert about["answer"]["inputs"]["prompts_ED"] == ["E", 32]
    photo = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy()
    sight = model.look([photo])
    if head == "sam":  # the encoder's weights are in the program that runs it alone
        sizes = [(tmp_path / about[name]["file"]).stat().st_size for name in ("see", "answer")]
        encoder = sum(p.nbytes for p in model.head.sam.vision_encoder.parameters())
        assert sizes[0] - sizes[1] > encoder / 2
    answer = torch.export.load(tmp_path / about["answer"]["file"]).module()
    features = (
        list(sight.features) if head == "pyramid" else [sight.features.image_BChw, *sight.features.fine]
    )
    for count in (1, 2, 9):
        prompts = torch.randn(count, 32)
        with torch.no_grad():
            found = answer(prompts, *features)
            expected = model.head(sight.features, prompts, torch.zeros(count, dtype=torch.long))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert len(model.answer(sight, [["the red square"]], Decoding(max_new_tokens=2))) == 1


def test_of_one_photo_is_forward(tmp_path: Path) -> None:
    model = made("pyramid")
    _, answer = programs_of(model)
    prompts, *features = answer.others
    from uniresxx.model.pyramid import MaskFeatures

    with torch.no_grad():
        a = model.head.of_one_photo(MaskFeatures(*features), prompts)
        b = model.head(MaskFeatures(*features), prompts, torch.zeros(len(prompts), dtype=torch.long))
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_program_runs_without_this_package(tmp_path: Path) -> None:
    model = made("pyramid")
    model.save_pretrained(tmp_path / "model")
    assert command(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--mask-head", "torch"]) == 0
    shapes = [list(x.shape) for x in programs_of(model)[1].others]
    code = (
        f"import sys, torch\nrun = torch.export.load({str(tmp_path / 'out' / 'mask_head_answer.pt2')!r}).module()\n"
        f"masks, quality, presence = run(*[torch.randn(s) for s in {shapes}])\n"
        "assert masks.shape[0] == 5 and quality.shape == presence.shape == (5,)\n"
        "assert not {'uniresxx', 'mllm', 'transformers'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_a_program_that_differs_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "largest_error", lambda program, run: 2e-4)
    with pytest.raises(RuntimeError, match="differs from eager"):
        export_mask_head(made("pyramid"), tmp_path, "torch")
    assert not (tmp_path / "mask_head.json").exists()


def test_onnx_without_its_packages_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(InputError, match="ONNX needs onnxscript: pip install onnx onnxscript onnxruntime"):
        export_mask_head(made("pyramid"), tmp_path, "onnx")


def test_onnx_answers_as_eager_does(tmp_path: Path) -> None:
    for name in NEEDS_ONNX:
        pytest.importorskip(name, reason="ONNX packages are not part of any extra")
    assert max(export_mask_head(made("pyramid"), tmp_path, "onnx").values()) <= 1e-4
