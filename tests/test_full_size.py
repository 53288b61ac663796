"""The full-size recipes on the meta device, and the tiny model that must not move when sizes are added."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Sam2VideoConfig, Sam2VideoModel

from mllm.chat_templates import LLAVA_1_5, ChatTemplate
from mllm.config import MLLMConfig, TuningConfig, llava_7b, tiny_llama
from mllm.loading import SAM_RULES, translate
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit, convnext
from train.recipes import KNOWN
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.errors import InputError
from uniresxx.model.build import build_for_training
from uniresxx.model.config import (
    Sam2HeadConfig,
    SamHeadConfig,
    UniRESPlusPlusConfig,
    sam2_base_plus,
    sam2_large,
    sam2_small,
    sam_huge,
    sam_large,
)
from uniresxx.model.heads.sam import Sam2Head, SamHead, _sam2_config
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.model.tuning import format_table, parameter_table
from uniresxx.segmenters.load import load_segmenter

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((Path(__file__).parent / "golden" / "tiny_checkpoint.json").read_text())
SIZES = ("7b", "7b_24gb", "13b", "13b_24gb", "qwen3_4b")
FULL = [f"uniresxx_{size}{stage}" for size in SIZES for stage in ("", "_ground", "_align")]
# Parameters of the published parts: LLaVA-1.5's Llama 2 has 6.738 and 13.016 billion (Touvron et al. 2023, table 1:
# 7B, 13B; llava-hf safetensors indexes: 7.063 and 13.35 billion with tower and projector), CLIP's ViT-L/14 at 336 px
# 304 million (Radford et al. 2021, model card), ConvNeXt-L 198 million with its classifier (Liu et al. 2022, table 1;
# the trunk has 196), SAM 94 / 312 / 641 million (facebook/sam-vit-* model files).
# Qwen3-4B has 4.022 billion (Qwen/Qwen3-4B safetensors index), SigLIP2's so400m 413 million without its pooling head
# (27 * (4 * 1152 * 1153 + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152) and the embeddings, from its config.json).
PUBLISHED_LLM = {
    "7b": 6.738e9,
    "7b_24gb": 6.738e9,
    "13b": 13.016e9,
    "13b_24gb": 13.016e9,
    "qwen3_4b": 4.022e9,
}
PUBLISHED_LOW = {"7b": 304e6, "7b_24gb": 304e6, "13b": 304e6, "13b_24gb": 304e6, "qwen3_4b": 413e6}
WIDTHS = (192, 384, 768, 1536)  # of the high tower
# SAM 2.1 Hiera-L 224.4 million with its memory for video (facebookresearch/sam2:README.md), 217 without.
PUBLISHED = {"mllm.high": 196.2e6, "head.sam": 216.9e6}


@cache
def vocabulary(chat: ChatTemplate = LLAVA_1_5) -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "a red square"], 768, chat)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@cache
def on_meta(recipe: str) -> UniRESPlusPlusModel:
    with torch.device("meta"):
        config = KNOWN[recipe]().model
        return UniRESPlusPlusModel(config, vocabulary(config.mllm.chat))


def test_a_checkpoint_of_an_earlier_version_still_loads(tmp_path: Path) -> None:
    """The recipe of that time painted no regions and told no words: its checkpoints have no tensors of them."""
    config = UniRESPlusPlusConfig.from_dict(GOLDEN["config"])
    recipe = KNOWN["tiny_scenes"]().model
    then = replace(recipe, head=replace(recipe.head, paint_regions=False), loss=config.loss)
    assert config == then != recipe and not config.loss.words
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(config, vocabulary())
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == GOLDEN["shapes"]
    total = sum(float(value.double().abs().sum()) for value in model.state_dict().values())
    assert total == pytest.approx(GOLDEN["sum_of_absolute_weights_seed_0"], rel=1e-9)
    save_pretrained(tmp_path, model)
    (tmp_path / "config.json").write_text(json.dumps(GOLDEN["config"]))
    loaded = load_segmenter(tmp_path)
    assert isinstance(loaded, UniRESPlusPlusModel)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_parts_have_the_published_sizes(size: str) -> None:
    model = on_meta(f"uniresxx_{size}")
    for path, published in {**PUBLISHED, "mllm.low": PUBLISHED_LOW[size]}.items():
        assert count(model.get_submodule(path)) == pytest.approx(published, rel=0.01), path
    llm = sum(
        p.numel() for n, p in model.mllm.llm.named_parameters() if "lora_" not in n and "rows_RD" not in n
    )
    assert llm == pytest.approx(PUBLISHED_LLM[size], rel=0.01)


@pytest.mark.parametrize(
    ("config", "published"), [(SamHeadConfig(), 94e6), (sam_large(), 312e6), (sam_huge(), 641e6)]
)
def test_sam_has_the_published_sizes(config: SamHeadConfig, published: float) -> None:
    with torch.device("meta"):
        head = SamHead(config, 4096, WIDTHS)
    assert count(head.sam) == pytest.approx(published, rel=0.01)


# Parameters of the published folders (facebookresearch/sam2:README.md, sam2.1_hiera_*), which hold the memory for
# video too; still images need 7.5 million fewer.
@pytest.mark.parametrize(
    ("config", "published"),
    [(Sam2HeadConfig(), 38.9e6), (sam2_small(), 46e6), (sam2_base_plus(), 80.8e6), (sam2_large(), 224.4e6)],
)
def test_sam_2_has_the_published_sizes_but_for_the_video_memory(
    config: Sam2HeadConfig, published: float
) -> None:
    part = _sam2_config(config)
    with torch.device("meta"):
        ours = Sam2Head(config, 4096, WIDTHS).sam
        whole = Sam2VideoModel(
            Sam2VideoConfig(
                vision_config=part.vision_config,
                prompt_encoder_config=part.prompt_encoder_config,
                mask_decoder_config=part.mask_decoder_config,
            )
        )
    assert count(whole) == pytest.approx(published, rel=0.01)
    sizes = {name: value.shape for name, value in whole.state_dict().items()}
    taken, ignored, unknown = translate(list(sizes), SAM_RULES)
    assert {name: sizes[name] for name in taken} == {n: v.shape for n, v in ours.state_dict().items()}
    memory = sum(sizes[name].numel() for name in ignored)
    assert unknown == [] and count(ours) + memory == count(whole)
    assert count(ours) == pytest.approx(published - 7.5e6, rel=0.01)


def test_key_names_and_shapes_of_the_full_model() -> None:
    shapes = {name: tuple(value.shape) for name, value in on_meta("uniresxx_7b").state_dict().items()}
    expected = {
        "mllm.low.vit.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "mllm.low.vit.embeddings.position_embedding.weight": (577, 1024),
        "mllm.low.vit.encoder.layers.23.mlp.fc1.weight": (4096, 1024),
        "mllm.high.backbone.embeddings.patch_embeddings.weight": (192, 3, 4, 4),
        "mllm.high.backbone.encoder.stages.2.layers.26.layer_scale_parameter": (768,),
        "mllm.high.backbone.encoder.stages.3.downsampling_layer.1.weight": (1536, 768, 2, 2),
        "mllm.image_tokens.low.0.weight": (4096, 1024),
        "mllm.image_tokens.low.2.weight": (4096, 4096),
        "mllm.object_tokens.mlp.0.weight": (4096, 2880),
        "mllm.part_tokens.mlp.2.weight": (4096, 4096),
        "mllm.exploitation.down.image.weight": (1024, 4096),
        "mllm.exploitation.blocks.1.parts.kv.weight": (2048, 1024),
        "mllm.llm.model.embed_tokens.weight": (32064, 4096),
        "mllm.llm.model.embed_tokens.rows_RD": (9, 4096),
        "mllm.llm.model.layers.31.self_attn.q_proj.base_layer.weight": (4096, 4096),
        "mllm.llm.model.layers.31.self_attn.q_proj.lora_A.default.weight": (64, 4096),
        "mllm.llm.model.layers.31.mlp.gate_proj.weight": (11008, 4096),
        "mllm.llm.lm_head.rows_RD": (9, 4096),
        "head.prompt.2.weight": (256, 4096),
        "head.attention.memory.weight": (256, 4096),
        "head.early.0.weight": (32, 192, 1, 1),
        "head.painting.1.objects.weight": (32, 4096),
        "head.sam.mask_decoder.conv_s0.weight": (32, 256, 1, 1),
        "head.sam.vision_encoder.backbone.blocks.47.mlp.proj_out.weight": (1152, 4608),
        "box_head.lateral.0.weight": (256, 384, 1, 1),
        "box_head.out.weight": (12, 256, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert sum("lora_A" in name for name in shapes) == 32 * 4
    assert not any("mlp" in name and "lora" in name for name in shapes)


def test_stages_train_the_parts_of_their_docstrings() -> None:
    def table(recipe: str) -> dict[str, Any]:
        return {row.part: row for row in parameter_table(on_meta(recipe))}

    joint, align = table("uniresxx_7b"), table("uniresxx_7b_align")
    assert joint["low"].trained == joint["high"].trained == joint["llm"].trained == 0
    assert joint["mask_encoder"].trained == 0 and joint["mask_encoder"].frozen > 200e6
    assert joint["head"].trained > 4e6  # the decoder, the prompt and what reads regions
    rank_64_on_4 = 32 * 4 * 64 * (4096 + 4096)
    assert joint["llm"].adapters == rank_64_on_4 + 2 * 9 * 4096
    assert align["llm"].adapters == 2 * 9 * 4096
    assert {part for part, row in align.items() if row.trained} == {
        "fusion",
        "regions",
        "exploitation",
        "all",
    }
    small = table("uniresxx_7b_24gb")
    assert small["high"].trained == small["mask_encoder"].trained == 0
    lines = format_table(list(joint.values())).splitlines()
    assert len(lines) == len(joint) + 1
    llm = next(line for line in lines if line.startswith("llm"))
    assert llm.split() == ["llm", "0.0", "67,182.6", "6,738,939.9", "6,806,122.5"]


@pytest.mark.parametrize("recipe", FULL)
def test_learning_rates_of_the_stages(recipe: str) -> None:
    """Both image towers and SAM's encoder are frozen, so none has a rate of its own."""
    found = KNOWN[recipe]()
    stage = recipe.rpartition("_")[2]
    assert found.optim.lr == {"align": 1e-3, "ground": 3e-4}.get(stage, 2e-4)
    assert {"low", "high", "mask_encoder"} <= {*found.model.tuning.frozen} and found.optim.lr_scale == ()
    assert found.optim.warmup_steps == 0.03 * found.optim.steps and found.optim.betas == (0.9, 0.95)


def test_states_of_one_stage_fit_the_next() -> None:
    """Only adapters and the box head are new from stage A to B; B and C have the same names."""
    a, b, c = ({*on_meta(f"uniresxx_7b{s}").state_dict()} for s in ("_align", "_ground", ""))
    assert b == c
    new = {name.replace(".base_layer.", ".") for name in b} - a
    assert new and all(".lora_" in name or name.startswith("box_head.") for name in new)


@pytest.mark.parametrize("head", ["sam", "pyramid"])
def test_the_full_model_takes_another_head(head: str) -> None:
    config = replace(KNOWN["uniresxx_7b"]().model, mask_head=head)
    frozen = ("low", "high", "mask_encoder") if head == "sam" else ("low",)
    config = replace(config, tuning=replace(config.tuning, frozen=frozen))
    with torch.device("meta"):
        model = UniRESPlusPlusModel(config, vocabulary())
    rows = {row.part: row for row in parameter_table(model)}
    assert rows["head"].trained > 4e6
    if head == "sam":
        assert count(model.head.sam) == pytest.approx(641e6, rel=0.01) and rows["mask_encoder"].trained == 0
    else:
        assert "mask_encoder" not in rows and rows["high"].trained > 196e6


def test_no_upsampled_map_of_all_stages_is_made() -> None:
    """The mean per stage: nothing as large as 2880 channels at stride 4 (425 MB per image at full size) exists."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from mllm.vision_flow import RegionTokens

    config = MLLMConfig(
        high_size=256,
        high=convnext((24, 48, 96, 192), patch=4),
        llm=tiny_llama(hidden_size=32),
        low=clip_vit(32),
        mgfe_heads=4,
    )
    largest = 0

    class ThroughputMeter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return out

    stages = [torch.randn(1, c, 64 // 2**i, 64 // 2**i) for i, c in enumerate(config.high_widths)]
    boxes = torch.tensor([[[0.0, 0, 200, 100]] * 12])
    tokens = RegionTokens(config, 12, True)
    with ThroughputMeter():
        tokens(stages, boxes)
    assert 0 < largest < sum(config.high_widths) * 64 * 64 / 4


def test_recipes_start_from_named_weights_only(capsys: pytest.CaptureFixture[str]) -> None:
    from train.assemble import open_job

    for recipe in FULL:
        first = r"weights\.llm .*weights\.low" if "qwen" in recipe else r"weights\.llava"
        with pytest.raises(InputError, match=rf"{first} .*weights\.high .*weights\.sam"):
            open_job(KNOWN[recipe](), None)
    recipe_7b = KNOWN["uniresxx_7b"]()
    weights = replace(recipe_7b.model.weights, llava="a", high="b")
    model = replace(recipe_7b.model, weights=weights)
    with pytest.raises(InputError, match=r"give --model\.weights\.sam"):
        open_job(replace(recipe_7b, model=model), None)
    named = replace(model, weights=replace(weights, sam="c"), mask_head="pyramid")
    with pytest.raises(InputError, match=r"weights\.sam is for --model\.mask_head sam or sam2"):
        open_job(replace(recipe_7b, model=named), None)


@pytest.mark.parametrize("installed", [False, True])
def test_flash_attention_is_refused_in_training(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows need branches that do not attend to each other; before any weight is made or read."""
    monkeypatch.setattr("mllm.prefix.is_flash_attn_2_available", lambda: installed)
    config = KNOWN["uniresxx_7b"]().model
    weights = replace(config.weights, llava="a", high="b", sam="c")
    config = replace(config, mllm=replace(config.mllm, attention="flash_attention_2"), weights=weights)
    with pytest.raises(InputError, match=r"--model\.mllm\.attention: .*'flex_attention' on a GPU"):
        build_for_training(config, vocabulary())


def test_help_of_a_full_recipe_builds_nothing() -> None:
    code = (
        "import sys\nfrom train.__main__ import main\n"
        "try:\n    main(['uniresxx_7b', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "--model.weights.llava" in run.stdout and "not yet measured" in run.stdout


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="is unknown"):
        TuningConfig(frozen=("lmm",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lora_rank=-1"):
        TuningConfig(lora_rank=-1)
    with pytest.raises(ValueError, match="attention"):
        replace(llava_7b(), attention="fast")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mask_head"):
        UniRESPlusPlusConfig.from_dict(UniRESPlusPlusConfig().to_dict() | {"mask_head": "same"})
    with pytest.raises(InputError, match="no fine map"):
        UniRESPlusPlusConfig.from_dict(
            UniRESPlusPlusConfig().to_dict() | {"mask_head": "sam", "dense_classes": [2, 2, 2]}
        )
