"""Forced and generated answers: what they hold, that every file names them, and that a folder never mixes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import eval.__main__ as program
import eval.run as run_module
from eval.report.write import report
from eval.score import notes
from uniresxx.evaluation.files import read_about
from uniresxx.evaluation.metrics_file import read_metrics, score_file
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.types import EVALUATION_TEMPLATE, Decoding, Expression, Granularity, ImageRecord

H, W = 8, 9
BOX = masks.encode(np.pad(np.ones((3, 4), bool), ((1, H - 4), (2, W - 6))))
G = Granularity
RECORDS = [
    ImageRecord(
        f"im{k}", H, W,
        (Expression(f"m/val/{k}_1", "there", G.OBJECT, BOX), Expression(f"m/val/{k}_2", "gone", G.NONE, None)),
        pixels=np.zeros((H, W, 3), np.uint8),
    )
    for k in range(3)
]  # fmt: skip


class Stub:
    """Rejects what is gone, unless it is forced."""

    decision_rule = "token"
    question_template = EVALUATION_TEMPLATE

    def encode_images(self, photos):
        return photos

    def answer(self, encoded, texts, decoding, on_text=None):
        found = []
        for text in (text for row in texts for text in row):
            rejected = text == "gone" and decoding.mode == "generate"
            found.append(Prediction(rejected, None if rejected else BOX, "[REJ]." if rejected else "[SEG]."))
        return found


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`python -m eval run` of the stub into one folder, on weights of a given precision."""
    monkeypatch.setattr(run_module, "load_records", lambda name, data, limit=None, images=None: RECORDS)
    monkeypatch.setattr("eval.report.runs.load_records", lambda name, data, limit=None: RECORDS)
    monkeypatch.setattr("uniresxx.checkpoints.resolve.resolve", lambda name, log: Path(name))
    monkeypatch.setattr("uniresxx.checkpoints.resolve.checkpoint_identity", lambda path: path.name)
    monkeypatch.setattr("uniresxx.segmenters.load.load_folder", lambda path, placement: Stub())

    def call(*words, computed=None, benchmark="m/val"):
        monkeypatch.setattr("uniresxx.model.placement.computed_on", lambda segmenter: computed)
        words = ("run", "--checkpoint", "c", "--benchmark", benchmark, "--out", str(tmp_path / "o"), *words)
        return program.main(list(words)), capsys.readouterr()

    return call


def test_forced_answers_are_named_wherever_they_are(run, tmp_path):
    assert run("--decoding", "forced")[0] == 0
    out = tmp_path / "o"
    lines = [json.loads(line) for line in (out / "m/val/predictions.jsonl").open()]
    assert all(line["decoding"] == "forced" and not line["rejected"] for line in lines)
    (entry,) = read_metrics(out / "metrics.json")
    decoding = entry["decoding"]
    assert decoding["mode"] == "forced" and decoding["thresholds"] == {"mask": 0.5, "p_absent": None}
    assert entry["overall"]["N-acc"] == 0 and entry["overall"]["T-acc"] == 100 and entry["template"]
    assert any(line.startswith("decoding forced") and EVALUATION_TEMPLATE in line for line in notes(entry))
    page = report([out])
    assert (
        "<dd>forced</dd>" in page.read_text()
        and "- decoding: forced" in (page.parent / "report.md").read_text()
    )
    header, row = (page.parent / "summary.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=False))["decoding"] == "forced"
    alone = tmp_path / "moved.jsonl"
    alone.write_bytes((out / "m/val/predictions.jsonl").read_bytes())
    assert "[SEG] was given" in score_file(alone, RECORDS, "m/val")["assumed"][0], (
        "the file says it by itself"
    )


def test_generated_answers_say_so_too(run, tmp_path):
    assert run()[0] == 0
    (entry,) = read_metrics(tmp_path / "o/metrics.json")
    assert entry["decoding"]["mode"] == "generate" and entry["overall"]["N-acc"] == 100
    assert any(line.startswith("decoding generate; template") and "mask 0.5" in line for line in notes(entry))
    assert "decoding" not in json.loads((tmp_path / "o/m/val/predictions.jsonl").open().readline())
    assert any(line.startswith("decoding: not known") for line in notes(entry | {"decoding": None}))


BF16 = {"device": "cuda:0", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (((), None), (("--decoding", "forced"), None), "decoding.mode: generate -> forced"),
        ((("--decoding", "forced"), None), ((), None), "decoding.mode: forced -> generate"),
        (((), BF16), ((), BF16 | {"dtype": "float32"}), "precision.dtype: bfloat16 -> float32"),
        (((), BF16), ((), BF16 | {"quantization": "nf4"}), "precision.quantization: None -> nf4"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("benchmark", ["m/val", "m/test"])
def test_another_way_of_answering_is_refused_with_the_difference(
    run, tmp_path, first, second, said, benchmark
):
    assert run(*first[0], computed=first[1])[0] == 0
    before = sorted((p, p.read_bytes()) for p in (tmp_path / "o").rglob("*") if p.is_file())
    code, out = run(*second[0], computed=second[1], benchmark=benchmark)
    assert code == 2 and said in out.err and len(out.err.strip().splitlines()) == 1
    assert sorted((p, p.read_bytes()) for p in (tmp_path / "o").rglob("*") if p.is_file()) == before


def test_another_device_and_a_folder_of_a_former_version_continue(run, tmp_path):
    assert run(computed=BF16)[0] == 0
    path = tmp_path / "o/m/val/evaluation.json"
    about = json.loads(path.read_text())
    for key in ("mode", "thresholds"):
        del about["decoding"][key]
    del about["precision"]
    path.write_text(json.dumps(about))
    assert read_about(path.parent)["decoding"]["mode"] == "generate"
    assert run(computed=BF16 | {"device": "cpu"})[0] == 0
    code, out = run(computed=BF16 | {"dtype": "float32"})
    assert code == 2 and "precision.dtype" in out.err


def test_a_real_model_gives_its_forced_mask_as_the_answer():
    import torch

    from mllm.config import MLLMConfig, tiny_llama
    from mllm.tokens import Vocabulary
    from mllm.tower_families import clip_vit, convnext
    from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig
    from uniresxx.model.modeling import UniRESPlusPlusModel
    from uniresxx.model.templates import TRAINING_TEMPLATES

    llm = tiny_llama(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=340
    )
    sizes = MLLMConfig(
        low=clip_vit(32, 1, 2), low_size=32, high=convnext((8, 16, 24, 32)), high_size=32, llm=llm,
        max_objects=3, max_parts=4, mgfe_heads=4,
    )  # fmt: skip
    config = UniRESPlusPlusConfig(
        mllm=sizes, head=PyramidHeadConfig(width=16, heads=2), decision_rule="token"
    )
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(config, Vocabulary.train([*TRAINING_TEMPLATES, "there gone"], 340)).eval()
    photo = np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)
    encoded, texts = model.encode_images([photo]), [["there", "gone", "there gone"]]
    decoding = Decoding(max_new_tokens=1)
    plain = model.answer(encoded, texts, decoding)
    given = model.answer(encoded, texts, replace(decoding, mode="forced"))
    for free, forced in zip(plain, given, strict=True):
        assert not forced.rejected and forced.text == "[SEG]." and forced.mask_if_forced is None
        assert forced.rle == (free.mask_if_forced if free.rejected else free.rle)
