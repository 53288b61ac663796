"""The full-size recipe with middle numbers on real photographs, by real commands: train in two processes, evaluate,
export, and load with AutoModel."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uniresxx.hub.auto import register_auto_classes
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "mini_real"
STEPS, ASKED = 3, ("the left wheel", "person on the right")
MODEL = """
    --model.weights.required
    --model.mllm.llm hidden_size=512 intermediate_size=1376 num_hidden_layers=8 num_attention_heads=8
        num_key_value_heads=8 vocab_size=1024
    --model.mllm.low hidden_size=128 intermediate_size=384 num_hidden_layers=4 num_attention_heads=4
    --model.mllm.high hidden_sizes=[24,48,96,192] depths=[1,1,2,1]
    --model.mllm.mgfe_width 128
    --model.sam2.width 24 --model.sam2.blocks 1 1 2 1 --model.sam2.heads 1 1 2 2 --model.sam2.global_blocks 3
    --model.sam2.decoder_width 64 --model.sam2.decoder_mlp 128
    --model.box_head.width 32 --model.box_head.convs 1 --model.box_head.min_score 0
    --model.tuning.lora_rank 8
"""
JOB = f"""
    --data.mixture grefcoco=1,region_captions=1 --data.batch_images 2 --data.accumulate 1 --data.workers 0
    --data.expressions_per_image 3
    --optim.steps {STEPS} --optim.warmup_steps 1 --log.save_every {STEPS} --eval.benchmarks
"""

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not REAL.is_dir(), reason="needs the real photographs of ../shared/mini_real"),
]


def program(*words: str | Path) -> str:
    """Run `python -m WORDS` from the clone; returns stdout."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": path}
    if sys.platform == "linux":
        fixed["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, "-m", *map(str, words)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | fixed)
    assert run.returncode == 0, f"{words}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return run.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs with their expressions, and captions of regions of two of them: images without expressions."""
    root = tmp_path_factory.mktemp("data")
    for name in ("grefcoco", "refcoco", "refcocom", "images"):
        (root / name).symlink_to(REAL / name)
    captions = root / "region_captions"
    (captions / "images").mkdir(parents=True)
    rows = []
    for number, photo in enumerate(sorted((REAL / "images" / "train2014").glob("*.jpg"))[:2]):
        shutil.copy(photo, captions / "images" / f"{number}.jpg")
        width, height = Image.open(photo).size
        regions = [{"xyxy": [10, 10, width // 2, height // 2], "caption": "something in the upper left"}]
        rows.append({"image": f"{number}.jpg", "width": width, "height": height, "regions": regions})
    (captions / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return root


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_train_a_middle_size_that_evaluates_exports_and_reloads(
    stage: int, data: Path, tmp_path: Path
) -> None:
    """bf16, LoRA, checkpointing of activations, SAM 2.1 head; some processes get no expression in a micro-batch."""
    out, scores, folder = tmp_path / "run", tmp_path / "scores", tmp_path / "export"
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    program(*launch, "-m", "train", "uniresxx_7b", *MODEL.split(), *JOB.split(), "--engine.zero_stage", str(stage),
            "--data", data, "--out", out)  # fmt: skip
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses and np.isfinite(losses).all()
    drawn = json.dumps(rows)
    assert "region_captions/train texts" in drawn and "grefcoco/train" in drawn

    program("eval", "run", "--checkpoint", out, "--benchmark", "refcocom/val_part_only", "grefcoco/val",
            "--data", data, "--limit", "2", "--out", scores)  # fmt: skip
    entries = json.loads((scores / "metrics.json").read_text())
    assert {entry["benchmark"] for entry in entries} == {"refcocom", "grefcoco"}
    assert all(entry["n_expressions"] > 0 for entry in entries)

    program("uniresxx", "export", out, folder)
    register_auto_classes()
    from transformers import AutoModel

    photo = np.asarray(Image.open(next((REAL / "images" / "train2014").glob("*.jpg"))).convert("RGB"))
    trained, loaded = load_segmenter(out), AutoModel.from_pretrained(folder).eval()
    assert isinstance(trained, UniRESPlusPlusModel)
    m = trained.config.mllm
    assert (m.llm_width, m.llm_config.num_hidden_layers, m.low_size, m.high_size) == (512, 8, 336, 768)
    short = Decoding(max_new_tokens=4)
    answers = [model.answer(model.encode_images([photo]), [ASKED], short) for model in (trained, loaded)]
    assert answers[0] == answers[1] and all(a.p_absent is not None for a in answers[0])
    assert {n: p.dtype for n, p in trained.named_parameters()} == {
        n: p.dtype for n, p in loaded.model.named_parameters()
    }
