"""The model as transformers and its Hub know it: folders, Auto classes, cards, shards, adapters, pushing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from mllm.config import TuningConfig
from mllm.lora import adapter_tensors
from mllm.tokens import Vocabulary
from tests.test_model import CONFIG, picture
from tests.test_tuning import LORA, shake
from uniresxx import Predictor, register_auto_classes
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints.publish import MARKER
from uniresxx.checkpoints.resolve import resolve
from uniresxx.checkpoints.tensors import read_tensors, write_tensors
from uniresxx.cli import main as command
from uniresxx.errors import InputError
from uniresxx.hub.card import UNKNOWN, card_of
from uniresxx.hub.classes import (
    UniRESPlusPlus,
    UniRESPlusPlusPreTrainedConfig,
    UniRESPlusPlusProcessor,
    byte_size,
)
from uniresxx.model.build import load_model
from uniresxx.model.config import UniRESPlusPlusConfig, WeightsConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.prediction import Prediction
from uniresxx.segmenters import load
from uniresxx.types import Decoding

ROOT = Path(__file__).resolve().parents[1]
ASK, SHORT = ["the red square", "both squares", "wheel"], Decoding(max_new_tokens=4)
PHOTO = picture(0).pixels


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register_auto_classes()


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary) -> UniRESPlusPlus:
    torch.manual_seed(0)
    return UniRESPlusPlus(UniRESPlusPlusModel(CONFIG, vocabulary)).eval()


@pytest.fixture(scope="module")
def adapted(vocabulary: Vocabulary) -> UniRESPlusPlusModel:
    torch.manual_seed(1)
    model = UniRESPlusPlusModel(replace(CONFIG, tuning=LORA), vocabulary).eval()
    shake(model)
    return model


def answers(model: Any) -> list[Prediction]:
    return model.answer(model.encode_images([PHOTO]), [ASK], SHORT)


def plain(model: UniRESPlusPlus | UniRESPlusPlusModel) -> UniRESPlusPlusModel:
    return model.model if isinstance(model, UniRESPlusPlus) else model


def same_weights(a: UniRESPlusPlus | UniRESPlusPlusModel, b: UniRESPlusPlus | UniRESPlusPlusModel) -> bool:
    one, other = plain(a).state_dict(), plain(b).state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def a_run(folder: Path, model: UniRESPlusPlus | UniRESPlusPlusModel) -> Path:
    """A run as training leaves it: one checkpoint, its recipe, and scores beside it."""
    about = {
        "recipe": {
            "name": "tiny_scenes", "seed": 3, "optim": {"steps": 200, "lr": 1e-3},
            "data": {"batch_images": 8, "accumulate": 2, "expressions_per_image": 7},
        },
        "training_data": [{"data": "scenes_easy/train", "share": 1.0, "guard": {"mode": "drawn"}}],
    }  # fmt: skip
    checkpoint.save(
        folder,
        150,
        plain(model),
        {},
        {"step": 150},
        about,
        best={"step": 150, "metric": "gIoU", "value": 41.5},
    )
    overall = {"gIoU": 41.53, "cIoU": 40.0, "Pr@0.5": None, "N-acc": 90.0, "T-acc": 99.0}
    entry = {
        "benchmark": "scenes_easy",
        "split": "val",
        "protocol": "strict",
        "n_expressions": 80,
        "overall": overall,
        "checkpoint": checkpoint.checkpoint_identity(checkpoint.step_folder(folder, 150)),
    }
    (folder / "metrics.json").write_text(json.dumps([entry]))
    return folder


def test_the_classes_are_those_of_transformers(model: UniRESPlusPlus) -> None:
    assert issubclass(UniRESPlusPlus, PreTrainedModel)
    assert issubclass(UniRESPlusPlusPreTrainedConfig, PreTrainedConfig)
    assert not issubclass(UniRESPlusPlusModel, PreTrainedModel)
    assert issubclass(UniRESPlusPlusProcessor, ProcessorMixin)
    assert isinstance(model.config, UniRESPlusPlusPreTrainedConfig) and model.model.config == CONFIG
    assert model.config.mllm is model.model.config.mllm and model.config.model_type == "uniresxx"
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = model.config.nothing_such


@pytest.mark.parametrize("shard", [None, "40KB"])
def test_a_round_trip_through_a_folder_and_through_auto(
    model: UniRESPlusPlus, tmp_path: Path, shard: str | None
) -> None:
    expected, before = answers(model), {n: p.clone() for n, p in model.state_dict().items()}
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() is (shard is not None)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), UniRESPlusPlusPreTrainedConfig)
    assert AutoConfig.from_pretrained(tmp_path) == model.config
    again, auto = UniRESPlusPlus.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(auto) is UniRESPlusPlus and type(processor) is UniRESPlusPlusProcessor
    assert not auto.training and all(p.dtype == torch.float32 for p in auto.parameters())
    for other in (
        again,
        auto,
        load.load_segmenter(tmp_path),
        Predictor.from_pretrained(tmp_path).segmenter,
    ):
        assert same_weights(model, other)
        assert answers(other) == expected
    assert auto.predict(processor(images=PHOTO, text=ASK, decoding=SHORT)) == expected
    two = processor(images=[PHOTO, picture(1, 20, 32).pixels], text=[ASK, "wheel"], decoding=SHORT)
    found = auto.predict(two)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=False):  # another batch: the last bits may differ
        assert (one.text, one.rle, one.mask_if_forced) == (other.text, other.rle, other.mask_if_forced)
        assert one.p_absent == pytest.approx(other.p_absent, abs=1e-4)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_config_files_of_either_kind_are_read_by_both(model: UniRESPlusPlus, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert UniRESPlusPlusConfig.from_dict(values) == CONFIG
    (tmp_path / "config.json").write_bytes(checkpoint.to_json(CONFIG.to_dict()))
    assert AutoConfig.from_pretrained(tmp_path) == model.config
    written = CONFIG.to_dict() | {"architectures": ["UniRESPlusPlus"], "transformers_version": "5.23.0"}
    assert UniRESPlusPlusConfig.from_dict(written) == CONFIG
    with pytest.raises(InputError, match="surprise"):
        UniRESPlusPlusPreTrainedConfig.from_dict(CONFIG.to_dict() | {"surprise": 1})


def test_a_processor_alone_makes_a_round_trip(model: UniRESPlusPlus, tmp_path: Path) -> None:
    UniRESPlusPlusProcessor(CONFIG, model.model.vocabulary).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.config == CONFIG and processor.vocabulary.to_json() == model.model.vocabulary.to_json()
    inputs = processor(images=PHOTO, text="[SEG] <image> the red square", decoding=SHORT)
    assert len(model.predict(inputs)) == 1
    with pytest.raises(InputError, match="2 photos"):
        processor(images=[PHOTO, PHOTO], text=["one"])
    with pytest.raises(InputError, match="empty expression"):
        processor(images=PHOTO, text=[" "])


def test_auto_needs_no_import_but_ours_and_runs_no_code_of_the_folder(
    model: UniRESPlusPlus, tmp_path: Path
) -> None:
    """In a fresh process; a config that names code of its own is refused, not followed."""
    model.save_pretrained(tmp_path / "m")
    code = (
        "from transformers import AutoModel\nfrom uniresxx import register_auto_classes\nregister_auto_classes()\n"
        f"m = AutoModel.from_pretrained({str(tmp_path / 'm')!r})\nprint(type(m).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.strip().endswith("UniRESPlusPlus"), run.stderr
    evil = CONFIG.to_dict() | {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(evil))
    (tmp_path / "m" / "evil.py").write_text("raise SystemExit('executed')")
    for trust in (False, True):
        with pytest.raises(InputError, match="auto_map"):
            AutoModel.from_pretrained(tmp_path / "m", trust_remote_code=trust)


def test_loading_is_strict_and_options_are_not_ignored(model: UniRESPlusPlus, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    half = UniRESPlusPlus.from_pretrained(tmp_path, dtype="bfloat16")
    assert all(p.dtype == torch.bfloat16 for p in half.parameters()) and len(answers(half)) == 3
    eager = UniRESPlusPlus.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config.mllm.attention == "eager" and [a.text for a in answers(eager)] == [
        a.text for a in answers(model)
    ]
    for wrong in ("bogus", "nn", "float16", torch.int8):
        with pytest.raises(InputError, match="is not one of float32, bfloat16"):
            UniRESPlusPlus.from_pretrained(tmp_path, dtype=wrong)
    with pytest.raises(InputError, match="device_map"):
        UniRESPlusPlus.from_pretrained(tmp_path, device_map="auto")
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        UniRESPlusPlus.from_pretrained(str(tmp_path / "nothing" / "here"))
    with pytest.raises(InputError, match="needs its vocabulary"):
        AutoModel.from_config(model.config)
    tensors = read_tensors(tmp_path / "model.safetensors")
    tensors.pop("head.mask.0.weight")
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(InputError, match=r"1 missing: head\.mask\.0\.weight"):
        AutoModel.from_pretrained(tmp_path)


def test_the_lines_of_the_page_run(
    model: UniRESPlusPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "use.md").read_text().split("## transformers")[1]
    lines = page.split("```python\n")[1].split("```")[0]
    model.save_pretrained(tmp_path / "runs" / "export")
    Image.fromarray(PHOTO).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(lines, found)
    assert len(found["predictions"]) == 2 and all(p.p_absent is not None for p in found["predictions"])
    assert len([line for line in lines.splitlines() if line]) <= 5


# ---- shards


def test_shards_hold_every_tensor_once_and_respect_the_limit(model: UniRESPlusPlus, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files and len(files) > 3
    found: dict[str, torch.Tensor] = {}
    for file in files:
        tensors = read_tensors(tmp_path / file)
        assert not found.keys() & tensors.keys()
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 100_000
        found |= tensors
    assert set(found) == set(model.model.state_dict()) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())


def test_weights_of_two_saves_are_never_mixed(model: UniRESPlusPlus, tmp_path: Path) -> None:
    for size in ("100KB", "40KB", None, "100KB"):
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert same_weights(model, load_model(tmp_path))
        assert not list(tmp_path.glob(".uniresxx-writing*"))
    checkpoint.save_pretrained(tmp_path / "one", model.model)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "one" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="has both"):
        load_model(tmp_path)


@pytest.mark.parametrize("harm", ["lost", "swapped", "outside", "no map"])
def test_damaged_shards_give_one_line(model: UniRESPlusPlus, tmp_path: Path, harm: str) -> None:
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    index, files = tmp_path / "model.safetensors.index.json", sorted(tmp_path.glob("model-*"))
    if harm == "lost":
        files[1].unlink()
    elif harm == "swapped":
        files[0].write_bytes(files[1].read_bytes())
    elif harm == "outside":
        index.write_text(json.dumps({"weight_map": {"a": "../model-00001-of-00002.safetensors"}}))
    else:
        index.write_text("{}")
    with pytest.raises(InputError) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "bytes_"), [("500MB", 500_000_000), ("2GiB", 2**31), (17, 17), ("5 gb", 5 * 10**9)]
)
def test_sizes(text: str | int, bytes_: int) -> None:
    assert byte_size(text) == bytes_


@pytest.mark.parametrize("text", ["", "GB", "-1", "5TBB", "1.5GB", 0])
def test_wrong_sizes_are_refused(text: str | int) -> None:
    with pytest.raises(InputError, match="is not a size"):
        byte_size(text)


# ---- cards and pushing


def test_the_card_holds_what_the_run_recorded(model: UniRESPlusPlus, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", model)
    UniRESPlusPlus.from_pretrained(run).save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "license: apache-2.0",
        "- recipe: `python -m train tiny_scenes`, seed 3",
        "- 150 of 200 steps, 16 images per step, up to 7 expressions per image, learning rate 0.001",
        "| scenes_easy/train | 100% |  | guard: not needed, the pictures are drawn |",
        "| scenes_easy/val | strict | 80 | 41.5 | 40.0 | - | 90.0 | 99.0 |",
        "Best of its run by gIoU: 41.5.",
        "mask head: pyramid; boxes: classical",
        "are Apache-2.0 too",
    ):
        assert line in card, line
    assert UNKNOWN not in card and str(tmp_path) not in card
    UniRESPlusPlus.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    assert (
        tmp_path / "again" / "README.md"
    ).read_text() == card  # unchanged: the folder has no recipe.json any more


def test_a_card_shows_no_scores_of_other_weights(model: UniRESPlusPlus, tmp_path: Path) -> None:
    """A run's metrics.json also holds what `score` added about any model, and what an earlier checkpoint reached."""
    run = a_run(tmp_path / "run", model)
    (own,) = json.loads((run / "metrics.json").read_text())
    absent = {"rule": "p_absent", "threshold": 0.25, "tuned_on": None}
    changes: list[dict[str, Any]] = [
        {"checkpoint": None, "n_expressions": 81},
        {"checkpoint": "step_00000150:0123456789abcdef", "n_expressions": 82},
        {"rejection": absent, "n_expressions": 83},
        {"limit": 4, "padded_world_size": 8, "n_expressions": 84},
        {"partial": {"scored": 85, "expressions": 90}, "n_expressions": 85},
    ]
    (run / "metrics.json").write_text(json.dumps([own, *(own | change for change in changes)]))
    card = card_of(CONFIG, checkpoint.step_folder(run, 150))
    shown = [line.split(" | ")[1:3] for line in card.splitlines() if line.startswith("| scenes_easy/val")]
    assert shown == [
        ["strict", "80"],
        ["strict, rejected by p_absent above 0.25", "83"],
        ["strict, only the first 4 pictures, padded as for 8 processes", "84"],
        ["strict, only 85 of 90 expressions", "85"],
    ]
    (run / "metrics.json").write_text(json.dumps([own | changes[0], own | changes[1]]))
    assert UNKNOWN in card_of(CONFIG, checkpoint.step_folder(run, 150))


def test_a_card_shows_what_training_measured_at_its_step(model: UniRESPlusPlus, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", model)
    (own,) = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    for step, count in ((100, 79), (150, 80)):
        folder = run / "eval" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        entry = own | {"checkpoint": f"step {step}", "n_expressions": count, "limit": 4}
        (folder / "metrics.json").write_text(json.dumps([entry]))
    card = card_of(CONFIG, checkpoint.step_folder(run, 150))
    assert card.count("| scenes_easy/val") == 1 and UNKNOWN not in card
    assert "| scenes_easy/val | strict, only the first 4 pictures | 80 | 41.5 |" in card


def test_a_card_invents_nothing_and_shows_no_folder_of_this_machine(tmp_path: Path) -> None:
    weights = WeightsConfig(
        llava=str(tmp_path / "private" / "llava-7b"), low="openai/clip-vit-large-patch14-336"
    )
    card = card_of(replace(CONFIG, weights=weights), None)
    assert "license: other" in card and card.count(UNKNOWN) == 2 and "Random weights" in card
    assert "llava-7b" in card and str(tmp_path) not in card and "openai/clip-vit-large-patch14-336" in card
    (tmp_path / "recipe.json").write_text(
        json.dumps(
            {"training_data": [{"data": "refcoco/train", "share": 0.5, "guard": {"mode": "published_data"}}]}
        )
    )
    card = card_of(CONFIG, tmp_path)
    assert "license: other" in card and "| refcoco/train | 50% |  | guard: off (published_data)" in card
    assert "terms of their own" in card


def test_pushing_uploads_what_saving_writes(
    model: UniRESPlusPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, Any] = {}

    class Api:
        def __init__(self, token: object = None) -> None:
            calls["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            calls["repo"] = (repo_id, options)
            return type("Url", (), {"repo_id": f"someone/{repo_id}"})

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> Any:
            calls["files"] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
            calls["to"] = repo_id
            return type("Commit", (), {"commit_url": "address"})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert model.push_to_hub("mine", private=True, token="t") == "address"
    assert calls["repo"] == ("mine", {"private": True, "exist_ok": True}) and calls["to"] == "someone/mine"
    model.save_pretrained(tmp_path)
    assert calls["files"] == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(calls["files"]) - {MARKER} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_a_hub_id_is_looked_for_only_where_it_is_named(
    model: UniRESPlusPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)
    asked: list[tuple[str, Any]] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options.get("revision")))
        assert all(p.endswith((".safetensors", ".json", ".jinja")) for p in options["allow_patterns"])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert same_weights(model, UniRESPlusPlus.from_pretrained("someone/mine", revision="v1"))
    assert Predictor.from_pretrained("hub:someone/mine@v2").segmenter.config == CONFIG
    assert asked == [("someone/mine", "v1"), ("someone/mine", "v2")]
    with pytest.raises(InputError, match="does not exist"):
        Predictor.from_pretrained("runs/mistyped")
    assert len(asked) == 2


def test_an_evaluation_takes_a_hub_id_and_weights_in_shards(
    model: UniRESPlusPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval import run as evaluation

    folder = tmp_path / "weights"
    model.save_pretrained(folder, max_shard_size="100KB")
    assert not (folder / "model.safetensors").exists()
    before = checkpoint.checkpoint_identity(folder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(folder))
    monkeypatch.setattr(evaluation, "load_records", lambda *given: [picture(0)])
    (entry,) = evaluation.run("hub:someone/mine", ["scenes_easy/val"], tmp_path / "out")
    assert entry["checkpoint"] == before and "mIoU" in entry["overall"]
    last = max(folder.glob("model-*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    assert checkpoint.checkpoint_identity(folder) != before


# ---- adapters and the command


def test_export_merges_saves_apart_and_unmerges(adapted: UniRESPlusPlusModel, tmp_path: Path) -> None:
    run = str(a_run(tmp_path / "run", adapted))
    merged, apart, back = (str(tmp_path / name) for name in ("merged", "apart", "back"))
    assert command(["export", run, merged, "--merge"]) == 0
    assert command(["export", run, apart, "--adapter"]) == 0
    assert command(["export", merged, back, "--unmerge", apart, "--max-shard-size", "100KB"]) == 0
    assert sorted(p.name for p in Path(apart).glob("[!.]*")) == [
        "adapter.json",
        "adapter.safetensors",
        "tokenizer.json",
    ]
    merged_model, again = load_model(Path(merged)), load_model(Path(back))
    assert not adapter_tensors(merged_model) and merged_model.config.tuning == replace(
        LORA, lora_rank=0, token_rows="all", frozen_dtype="fp32"
    )
    assert again.config == adapted.config
    for name, value in adapted.state_dict().items():
        if name in ("mllm.llm.model.embed_tokens.weight", "mllm.llm.lm_head.weight"):
            continue  # below the trained rows lies what the merge put there; it is never read
        torch.testing.assert_close(again.state_dict()[name], value, atol=1e-6, rtol=0)
    expected = answers(adapted)
    for other in (merged_model, again):
        for a, b in zip(answers(other), expected, strict=True):
            assert (a.text, a.rejected, a.rle) == (b.text, b.rejected, b.rle)
            assert a.p_absent == pytest.approx(b.p_absent, abs=1e-4)
    assert "adapters: none" in (Path(merged) / "README.md").read_text()
    assert f"adapters: rank {LORA.lora_rank}" in (Path(back) / "README.md").read_text()


def test_wrong_exports_give_one_line(
    model: UniRESPlusPlus, adapted: UniRESPlusPlusModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {name: str(tmp_path / name) for name in ("plain", "adapted", "apart", "out", "other")}
    model.save_pretrained(folders["plain"])
    checkpoint.save_pretrained(Path(folders["adapted"]), adapted)
    assert command(["export", folders["adapted"], folders["apart"], "--adapter"]) == 0
    other = replace(CONFIG, decision_rule="token")
    checkpoint.save_pretrained(Path(folders["other"]), UniRESPlusPlusModel(other, model.model.vocabulary))
    capsys.readouterr()
    for words, message in (
        (["plain", "out", "--merge"], "no adapters"),
        (["plain", "out", "--adapter"], "no adapters"),
        (["other", "out", "--unmerge", folders["apart"]], "their configs differ"),
        (["adapted", "out", "--unmerge", folders["apart"]], "their configs differ"),
        (["plain", "out", "--merge", "--adapter"], "not allowed with"),
        (["plain", "out", "--adapter", "--max-shard-size", "5GB"], "whole weights"),
        (["plain", "out", "--adapter", "--dtype", "float32"], "--dtype is for --merge"),
        (["adapted", "out", "--merge", "--dtype", "float8"], "dtype float8 is not one of"),
        (["plain", "out", "--max-shard-size", "big"], "is not a size"),
        (["plain", "plain"], "is the checkpoint itself"),
    ):
        known = [folders.get(word, word) for word in words]
        assert command(["export", *known]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    assert TuningConfig() == model.config.tuning


def test_a_plain_export_copies_and_writes_the_card(model: UniRESPlusPlus, tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run", model), tmp_path / "out"
    assert command(["export", str(run), str(out)]) == 0
    source = checkpoint.step_folder(run, 150)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert "tiny_scenes" in (out / "README.md").read_text()
    assert command(["export", str(out), str(tmp_path / "cut"), "--max-shard-size", "100KB"]) == 0
    assert command(["export", str(tmp_path / "cut"), str(out)]) == 0  # shards over one file
    assert same_weights(model, load_model(out)) and not (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    "form", [[], ["--merge"], ["--adapter"], ["--mask-head", "torch"], ["--max-shard-size", "1MB"]]
)
@pytest.mark.parametrize("theirs", ["model-00001-of-00002.safetensors", "adapter_model.safetensors"])
def test_no_form_of_export_touches_the_weights_of_another_model(
    adapted: UniRESPlusPlus, tmp_path: Path, form: list[str], theirs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = a_run(tmp_path / "run", adapted), tmp_path / "out"
    out.mkdir()
    (out / theirs).write_bytes(b"another model")
    assert command(["export", str(run), str(out), *form]) == 2
    err = capsys.readouterr().err
    assert f"{theirs} was not written by uniresxx" in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {theirs: b"another model"}


def test_a_processor_is_not_saved_over_another_model(model: UniRESPlusPlus, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match=r"config\.json was not written by uniresxx"):
        UniRESPlusPlusProcessor(CONFIG, model.model.vocabulary).save_pretrained(tmp_path)
    processor = UniRESPlusPlusProcessor(CONFIG, model.model.vocabulary)
    processor.save_pretrained(tmp_path / "both")  # before and after the model: the same bytes
    model.save_pretrained(tmp_path / "both")
    processor.save_pretrained(tmp_path / "both")


def test_an_export_never_hides_the_checkpoints_of_a_run(
    model: UniRESPlusPlus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights beside `checkpoints` would be taken for the run's own, also after more training."""
    run = a_run(tmp_path / "run", model)
    before = sorted(tmp_path.rglob("*"))
    model.save_pretrained(tmp_path / "plain")
    for source, out, message in (
        (run, run, "is a run folder"),
        (tmp_path / "plain", run, "is a run folder"),
        (tmp_path / "plain", checkpoint.step_folder(run, 150), "is a checkpoint of a run"),
    ):
        assert command(["export", str(source), str(out)]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    assert sorted(run.rglob("*")) == [path for path in before if path.is_relative_to(run) and path != run]
    assert command(["export", str(run), str(run), "--mask-head", "torch"]) == 0  # hides nothing
    assert resolve(run, print) == checkpoint.step_folder(run, 150)


def test_auto_registers_again_without_harm() -> None:
    register_auto_classes()
    register_auto_classes()
    assert AutoConfig.for_model("uniresxx").model_type == "uniresxx"
