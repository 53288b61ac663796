"""`uniresxx convert` of pickled weights: the same tensors as safetensors, and one line for what cannot be."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamConfig, SamModel

from mllm.loading import folder_of, load_sam, weight_files
from uniresxx.checkpoints import convert as convert_module
from uniresxx.checkpoints.convert_tokenizer import fast_tokenizer
from uniresxx.checkpoints.tensors import INDEX, TOKENIZER, WEIGHTS
from uniresxx.cli import main as uniresxx_main
from uniresxx.errors import InputError
from uniresxx.segmenters.lisa.sizes import sam_sizes

DATA = Path(__file__).parent / "data" / "lisa"
in_this_process = pytest.mark.usefixtures("here")  # the other tests start a process for each file


@pytest.fixture
def here(converting_here):
    with converting_here():
        yield


def run(*words):
    return uniresxx_main(["convert", *map(str, words)])


def refused(capsys, source, out, *parts):
    """One line with these parts, exit code 2, and nothing in OUT."""
    assert run(source, out) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert all(part in lines[0] for part in parts), lines
    assert not out.exists() or not any(out.iterdir())


def tensors():
    shared = torch.arange(24.0).reshape(4, 6)
    return {
        "model.embed_tokens.weight": shared,
        "lm_head.weight": shared,
        "model.layers.0.a.weight": shared.t()[1:3],
        "model.layers.0.b.weight": torch.linspace(-2, 2, 7).to(torch.bfloat16),
        "model.layers.0.c.weight": torch.ones(3, dtype=torch.float16),
        "model.layers.0.rotary_emb.inv_freq": torch.tensor([3, 4], dtype=torch.int64),
        "model.norm.weight": torch.tensor(2.5),
    }


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@in_this_process
@pytest.mark.parametrize("form", ["zip", "old", "wrapped", "parameters"])
def test_a_pickle_keeps_names_dtypes_and_values(form, tmp_path, capsys):
    given = tensors()
    held = {
        "wrapped": {"state_dict": given, "epoch": 3, "optimizer": {"lr": 0.1}},
        "parameters": {k: torch.nn.Parameter(v, requires_grad=False) for k, v in given.items()},
    }.get(form, given)
    torch.save(held, tmp_path / "weights.pth", _use_new_zipfile_serialization=form != "old")
    assert run(tmp_path / "weights.pth", tmp_path / "out") == 0
    same(load_file(tmp_path / "out" / WEIGHTS), given)
    printed = capsys.readouterr()
    assert f"out: {WEIGHTS}" in printed.out
    assert "7 tensors, 7 named as a language model, with the projector of LLaVA" in printed.err


def sharded(folder, given):
    names = sorted(given)
    files = [f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]
    where = {name: files[i % 3] for i, name in enumerate(names)}
    for file in files:
        torch.save({name: given[name] for name in names if where[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return files


@in_this_process
def test_shards_stay_shards_and_configs_come_along(tmp_path, tokenizer_model):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    sharded(source, tensors())
    (source / "config.json").write_text('{"model_type": "llama"}')
    (source / "tokenizer.model").write_bytes(tokenizer_model())
    (source / "training_args.bin").write_bytes(b"not weights")
    (source / "model.py").write_text("raise SystemExit")
    assert run(source, out) == 0
    found = {name: path for name, path in weight_files(out).items()}
    assert found.keys() == tensors().keys() and len(set(found.values())) == 3
    same({name: load_file(path)[name] for name, path in found.items()}, tensors())
    names = {p.name for p in out.iterdir()}
    assert {"config.json", TOKENIZER, "tokenizer.model", INDEX} < names
    assert not names & {"model.py", "training_args.bin", "pytorch_model.bin.index.json"}
    assert run(source, out) == 0  # what an earlier call wrote is replaced


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_class_or_function_in_a_pickle_is_refused_and_never_called(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2), "b": Harmful()}, tmp_path / "zip.bin")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"a": Harmful()}, protocol=2))
    for name in ("zip.bin", "old.bin"):
        refused(capsys, tmp_path / name, tmp_path / "out", name, "system", "are never loaded from a pickle")
    assert not (tmp_path / "harmed").exists()


@in_this_process
def test_a_damaged_file_is_refused(tmp_path, capsys):
    torch.save(tensors(), tmp_path / "whole.bin")
    whole = (tmp_path / "whole.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[: len(whole) // 2])
    refused(capsys, tmp_path / "cut.bin", tmp_path / "out", "cut.bin", "download it again")
    (tmp_path / "empty.bin").write_bytes(b"")
    refused(capsys, tmp_path / "empty.bin", tmp_path / "out", "empty.bin", "download it again")
    (tmp_path / "page.bin").write_bytes(b"<!DOCTYPE html>")
    refused(capsys, tmp_path / "page.bin", tmp_path / "out", "page.bin", "download it again")
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html>")
    refused(capsys, tmp_path / "page.safetensors", tmp_path / "out", "not a readable safetensors file")


def test_a_pickle_cannot_reserve_memory_that_its_size_does_not_explain(tmp_path, capsys):
    bomb = b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"a."  # a text of a terabyte
    (tmp_path / "bomb.bin").write_bytes(bomb)
    refused(capsys, tmp_path / "bomb.bin", tmp_path / "out", "bomb.bin")
    storage = torch.ones(1).expand(2**33)  # a tensor of 32 GB that repeats four bytes
    torch.save({"a": storage}, tmp_path / "wide.bin")
    refused(capsys, tmp_path / "wide.bin", tmp_path / "out", "wide.bin", "memory")


@in_this_process
def test_what_holds_no_tensors_by_name_is_refused(tmp_path, capsys):
    for name, value, words in (
        ("list", [torch.ones(1)], "holds a list, not tensors by name"),
        ("numbers", {"a": 1}, "holds no tensors by name"),
        ("keys", {3: torch.ones(1)}, "under 3, which is no name"),
        ("sparse", {"a": torch.eye(2).to_sparse()}, "holds a in a form"),
    ):
        torch.save(value, tmp_path / f"{name}.bin")
        refused(capsys, tmp_path / f"{name}.bin", tmp_path / "out", words)


@in_this_process
def test_a_folder_that_is_not_one_whole_set_is_refused(tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    refused(capsys, source, out, "does not exist")
    source.mkdir()
    refused(capsys, source, out, "has no file of weights")
    torch.save({"a": torch.ones(1)}, source / "one.bin")
    torch.save({"b": torch.ones(1)}, source / "two.bin")
    refused(capsys, source, out, "one.bin, two.bin", "name the file")
    (source / "one.bin").unlink()
    (source / "two.bin").rename(source / "pytorch_model-00001-of-00002.bin")
    refused(capsys, source, out, "not one whole set of shards")
    torch.save({"b": torch.ones(1)}, source / "pytorch_model-00002-of-00002.bin")
    refused(capsys, source, out, "holds b again")
    assert run(source, source) == 2 and "is the source itself" in capsys.readouterr().err


@in_this_process
def test_an_index_is_held_to_its_word(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    files = sharded(source, tensors())
    torch.save({"model.norm.bias": torch.ones(1)}, source / files[1])
    refused(capsys, source, tmp_path / "out", files[1], "which its index promises")
    (source / files[1]).unlink()
    refused(capsys, source, tmp_path / "out", files[1], "copy all shards")
    (source / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../../x.bin"}}')
    refused(capsys, source, tmp_path / "out", "../../x.bin")


@in_this_process
def test_foreign_files_in_out_stay(tmp_path, capsys):
    torch.save(tensors(), tmp_path / "a.bin")
    out = tmp_path / "out"
    out.mkdir()
    (out / WEIGHTS).write_bytes(b"somebody's")
    assert run(tmp_path / "a.bin", out) == 2
    assert "was not written by uniresxx" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == [WEIGHTS] and (out / WEIGHTS).read_bytes() == b"somebody's"


def test_wrong_words_get_one_line(tmp_path, capsys):
    for words, part in (
        ([tmp_path], "give FILE_OR_DIR OUT, or lisa, gsva, m2sa"),
        (["glamm", tmp_path, tmp_path / "out"], "give FILE_OR_DIR OUT, or lisa, gsva, m2sa"),
        ([tmp_path, tmp_path / "out", "--clip", tmp_path], "--clip is for lisa, gsva, m2sa alone"),
    ):
        assert run(*words) == 2
        assert part in capsys.readouterr().err


def test_training_names_this_command_instead_of_opening_a_pickle(tmp_path):
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"uniresxx convert {tmp_path} OUT"):
        weight_files(tmp_path)


def test_sam_as_meta_publishes_it_loads_after_conversion(tmp_path, capsys):
    prefix = "model.visual_model."
    given = load_file(DATA / "lisa_weights.safetensors")
    meta = {k.removeprefix(prefix): v.float() for k, v in given.items() if k.startswith(prefix)}
    torch.save(meta, tmp_path / "sam_vit_tiny.pth")
    assert run(tmp_path / "sam_vit_tiny.pth", tmp_path / "sam") == 0
    assert f"{len(meta)} named as SAM as Meta publishes it" in capsys.readouterr().err
    shapes = {"sam.mask_decoder.iou_prediction_head.proj_in.weight": (32, 32)}
    for name, tensor in meta.items():
        shapes["sam." + name.replace("image_encoder.blocks", "vision_encoder.layers")] = tuple(tensor.shape)
    shapes["sam.vision_encoder.pos_embed"] = tuple(meta["image_encoder.pos_embed"].shape)
    shapes["sam.vision_encoder.patch_embed.projection.weight"] = (16, 3, 16, 16)
    sam = SamModel(SamConfig(**sam_sizes(shapes)))
    report = load_sam(sam, str(tmp_path / "sam"))
    assert not report.new and len(report.loaded) == len(sam.state_dict())
    positions = meta["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert torch.equal(sam.shared_image_embedding.positional_embedding, positions)
    assert torch.equal(sam.prompt_encoder.shared_embedding.positional_embedding, positions)
    last = meta["mask_decoder.output_hypernetworks_mlps.2.layers.2.bias"]
    assert torch.equal(sam.mask_decoder.output_hypernetworks_mlps[2].proj_out.bias, last)


@pytest.fixture
def folder(tmp_path, tokenizer_model):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model())
    return tmp_path


@pytest.mark.parametrize("peer", ["lisa", "gsva", "m2sa"])
def test_the_fast_tokenizer_has_the_slow_ones_ids(peer, folder):
    about = json.loads((DATA / f"{peer}.json").read_text())
    (folder / "added_tokens.json").write_text(json.dumps(about["added_tokens"]))
    tokenizer = fast_tokenizer(folder)
    plain = {text: ids for text, ids in about["tokens"]["texts"].items() if "[SEG]" not in text}
    assert len(plain) > 4
    for text, ids in plain.items():
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids
        assert tokenizer.encode(text).ids == [1, *ids]
        assert tokenizer.decode(ids) == text
    assert {t: tokenizer.token_to_id(t) for t in about["added_tokens"]} == about["added_tokens"]
    if peer == "gsva":  # transformers 4.44 strips nothing around added tokens, as the fast form
        text = "it is [SEG]."
        assert tokenizer.encode(text, add_special_tokens=False).ids == about["tokens"]["texts"][text]


def test_added_tokens_of_another_model_are_refused(folder):
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"0": {"content": "<unk>"}, "32000": {"content": "<image>"}}})
    )
    with pytest.raises(
        InputError, match='"<image>" the id 32000, which does not follow the 380 other tokens'
    ):
        fast_tokenizer(folder)


def test_a_tokenizer_without_a_faithful_fast_form_is_refused(tmp_path, tokenizer_model):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer_model(model_type=1))
    with pytest.raises(InputError, match="not a BPE model of Llama's kind"):
        fast_tokenizer(tmp_path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match="download it again"):
        fast_tokenizer(tmp_path)


def test_a_missing_package_is_named(folder, monkeypatch):
    from transformers import convert_slow_tokenizer

    def missing(*_):
        raise ImportError

    monkeypatch.setattr(convert_slow_tokenizer, "import_protobuf", missing)
    with pytest.raises(InputError, match="pip install protobuf"):
        fast_tokenizer(folder)


@pytest.mark.parametrize("safe", [True, False])
def test_a_hub_repository_gives_its_weights_of_one_kind(safe, tmp_path, monkeypatch):
    """Pickles only where there are no safetensors, and never code or what lies in folders."""
    import huggingface_hub

    listed = ["config.json", "pytorch_model.bin", "model.py"] + ["model.safetensors"] * safe
    asked = {}
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision: listed)

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert convert_module.downloaded("owner/name@v1") == tmp_path
    assert (asked["name"], asked["revision"]) == ("owner/name", "v1")
    patterns = asked["allow_patterns"]
    assert ("*.safetensors" in patterns) is safe and ("*.bin" in patterns) is not safe
    assert {"*.json", "tokenizer.model"} < set(patterns) and not any(p.endswith(".py") for p in patterns)
    assert asked["ignore_patterns"] == ["*/*"]
    assert folder_of(str(tmp_path)) == tmp_path


def test_a_hub_repository_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path):
    import huggingface_hub

    def refuse(name, revision):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", refuse)
    refused(capsys, "hub:owner/name", tmp_path / "out", "hub:owner/name could not be downloaded (no network)")


@in_this_process
def test_names_of_no_known_layout_are_said_to_be_so(tmp_path, capsys):
    save_file({"weird.a": torch.ones(1), "stem.0.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors", tmp_path / "out") == 0
    assert "2 tensors, 1 named as ConvNeXt of timm; not of it: weird.a" in capsys.readouterr().err
    save_file({"weird.a": torch.ones(1)}, tmp_path / "b.safetensors")
    assert run(tmp_path / "b.safetensors", tmp_path / "out2") == 0
    assert "1 tensors; no layout that this version knows (weird.a)" in capsys.readouterr().err
