"""The sizes of SAM and SAM 2: by word, from a folder, and refused where a folder has others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Sam2Config, Sam2VideoConfig, Sam2VisionConfig, SamConfig, SamModel

from tests.test_heads import SAM, SAM2, all_on
from tests.test_loading import maps_of, pixels_alone, sam_2, scrambled
from tests.test_published_weights import RELEASES, built, small, whole
from train.command_line import parse, parse_plan
from train.recipes import KNOWN
from uniresxx.errors import InputError
from uniresxx.model.config import UniRESPlusPlusConfig, WeightsConfig
from uniresxx.model.heads.sam import _sam_config
from uniresxx.model.sam_sizes import SAM2_SIZES, SAM_SIZES, check_sam_sizes, published_sizes, resized

# What the files of facebook/sam-vit-* and facebook/sam2.1-hiera-* have beside transformers' defaults: get_config of
# its convert_sam_to_hf.py and convert_sam2_video_to_hf.py.
VIT = {
    "base": {},
    "large": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23],
    },
    "huge": {
        "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
    },
}  # fmt: skip
HIERA: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]},
    "base_plus": {
        "hidden_size": 112, "embed_dim_per_stage": [112, 224, 448, 896],
        "num_attention_heads_per_stage": [2, 4, 8, 16], "blocks_per_stage": [2, 3, 16, 3],
        "global_attention_blocks": [12, 16, 20], "window_positional_embedding_background_size": [14, 14],
    },
    "large": {
        "hidden_size": 144, "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16], "blocks_per_stage": [2, 6, 36, 4],
        "global_attention_blocks": [23, 33, 43], "window_size_per_stage": [8, 4, 16, 8],
    },
}  # fmt: skip


@pytest.mark.parametrize("word", VIT)
def test_the_words_of_sam_are_the_sizes_of_its_published_files(word: str, tmp_path: Path) -> None:
    SamConfig(vision_config=VIT[word]).save_pretrained(tmp_path)
    assert published_sizes(tmp_path) == SAM_SIZES[word]()


@pytest.mark.parametrize("kind", [Sam2Config, Sam2VideoConfig])
@pytest.mark.parametrize("word", HIERA)
def test_the_words_of_sam_2_are_the_sizes_of_its_published_files(
    word: str, kind: Any, tmp_path: Path
) -> None:
    vision = Sam2VisionConfig(backbone_config={"model_type": "sam2_hiera_det_model"} | HIERA[word])
    kind(vision_config=vision).save_pretrained(tmp_path)
    assert published_sizes(tmp_path) == SAM2_SIZES[word]()


def test_a_word_gives_all_sizes_and_leaves_the_switches_of_the_recipe() -> None:
    base = KNOWN["uniresxx_7b"]().model
    words = ["uniresxx_7b", "--model.sam", "large", "--model.sam2=small", "--model.sam2.fuse_early", "False"]
    for model in (
        parse_plan(words, KNOWN).recipe.model,
        parse([*words, "--out", "x"], KNOWN).recipe.model,
    ):
        assert model.sam == all_on(SAM_SIZES["large"]())
        assert model.sam2 == replace(all_on(SAM2_SIZES["small"]()), fuse_early=False)
        assert replace(model, sam=base.sam, sam2=base.sam2) == base


def test_a_folder_gives_the_sizes_of_its_config(tmp_path: Path) -> None:
    SamConfig(vision_config=VIT["base"] | {"num_hidden_layers": 13}).save_pretrained(tmp_path)
    model = parse_plan(["uniresxx_7b", "--model.sam", str(tmp_path)], KNOWN).recipe.model
    assert model.sam == all_on(replace(SAM_SIZES["base"](), layers=13))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.sam", "tiny"],
            r"^--model\.sam: 'tiny' is neither a size \(base, large, huge\) nor a folder",
        ),
        (
            ["--model.sam2=huge"],
            r"^--model\.sam2: 'huge' is neither a size \(tiny, small, base_plus, large\)",
        ),
        (["--model.sam"], r"^--model\.sam: give a size .*or a folder"),
        (["--model.sam", "--gpus", "2"], r"^--model\.sam: give a size .*or a folder"),
    ],
)
def test_what_is_no_size_is_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_plan(["uniresxx_7b", *words], KNOWN)


def test_a_recipe_without_sam_does_not_know_the_option() -> None:
    with pytest.raises(InputError, match=r"model\.sam"):
        parse_plan(["film_unet_scenes", "--model.sam", "huge"], KNOWN)


def with_sam(folder: Path, **changes: Any) -> UniRESPlusPlusConfig:
    """A small model whose mask head is loaded from a folder."""
    base = whole(small(RELEASES["llava-hf/llava-1.5-7b-hf"]))
    return replace(base, sam=SAM, sam2=SAM2, weights=WeightsConfig(sam=str(folder)), **changes)


def saved(kind: str, folder: Path) -> Any:
    theirs: Any = sam_2(video=True) if kind == "sam2" else scrambled(SamModel(_sam_config(SAM)))
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("kind", ["sam", "sam2"])
@torch.no_grad()
def test_the_option_of_the_refusal_leads_to_a_head_with_sams_own_maps(kind: Any, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path)
    other = replace(SAM if kind == "sam" else SAM2, decoder_mlp=48)  # type: ignore[type-var]
    config = replace(with_sam(tmp_path, mask_head=kind), **{kind: other})
    with pytest.raises(InputError, match=rf"^--model\.weights\.sam: .* give --model\.{kind} {tmp_path}$"):
        built(config)
    model, lines = built(resized(config, kind, str(tmp_path)))
    assert any(line.startswith("mask head: ") for line in lines)
    head: Any = model.head
    pixels = torch.randn(1, 3, 64, 64)
    found = head.encode(pixels_alone(pixels)).image_BChw
    expected = theirs.get_image_embeddings(pixels) if kind == "sam" else maps_of(theirs, pixels)[-1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_published_sizes_are_named_by_their_word(tmp_path: Path) -> None:
    SamConfig(vision_config=VIT["huge"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has other sizes than model\.sam: give --model\.sam huge$"):
        check_sam_sizes(UniRESPlusPlusConfig(mask_head="sam"), tmp_path)
    check_sam_sizes(UniRESPlusPlusConfig(mask_head="sam", sam=all_on(SAM_SIZES["huge"]())), tmp_path)


def test_metas_files_tell_their_size_by_their_width(tmp_path: Path) -> None:
    save_file({"image_encoder.patch_embed.proj.bias": torch.zeros(1024)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has the width 1024: give --model\.sam large$"):
        check_sam_sizes(UniRESPlusPlusConfig(mask_head="sam"), tmp_path)
    with pytest.raises(ValueError, match=r"is of the kind sam: give --model\.mask_head sam$"):
        check_sam_sizes(UniRESPlusPlusConfig(mask_head="sam2"), tmp_path)
    check_sam_sizes(UniRESPlusPlusConfig(mask_head="sam", sam=SAM_SIZES["large"]()), tmp_path)


def test_sam_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    saved("sam", tmp_path)
    with pytest.raises(InputError, match=r"is of the kind sam: give --model\.mask_head sam"):
        built(with_sam(tmp_path, mask_head="sam2"))
    with pytest.raises(ValueError, match=r"the other kind of SAM: give it to --model\.sam"):
        resized(UniRESPlusPlusConfig(), "sam2", str(tmp_path))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(InputError, match="'clip_vision_model', no SAM or SAM 2"):
        built(with_sam(tmp_path, mask_head="sam"))
