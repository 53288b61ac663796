"""Pretrained parts in every published layout against transformers' own forward."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamModel,
)

from mllm.chat_templates import LLAVA_1_5, ChatTemplate
from mllm.config import MLLMConfig, TuningConfig, tiny_llama
from mllm.loading import folder_of, load_sam, weight_files
from mllm.loading_llm import load_llava
from mllm.modeling import MLLM
from mllm.tokens import SPECIAL_TOKENS, Vocabulary
from mllm.tower_families import clip_vit, convnext
from mllm.tower_loading import load_high, load_low
from tests.test_heads import SAM, SAM2, all_on
from tests.test_model import batch_of, picture
from train.engines.base import Engine
from train.recipes import KNOWN
from train.step import do_step
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.cli import main as command
from uniresxx.errors import InputError
from uniresxx.model.build import build_for_training, open_vocabulary
from uniresxx.model.config import (
    BoxHeadConfig,
    PyramidHeadConfig,
    UniRESPlusPlusConfig,
    WeightsConfig,
)
from uniresxx.model.heads.base import HeadInputs, RegionBoxes
from uniresxx.model.heads.sam import Sam2Head, SamHead, _sam2_config, _sam_config
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.tuning import part_of
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding

SMALL = MLLMConfig(
    low=clip_vit(32, 3, 2, 48, 14), low_size=28, low_select_layer=-2, low_stats="clip",
    high=convnext((8, 16, 24, 32), (1, 1, 2, 1), 4, 1e-6), high_size=64, high_stats="clip", projector="mlp2x_gelu",
    llm=tiny_llama(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        rms_norm_eps=1e-5, vocab_size=340,
    ),
    max_objects=3, max_parts=4, mgfe_heads=4, chat=ChatTemplate(before_image="<s><image>"), fusion_starts_as_low=True,
)  # fmt: skip
VIT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
)  # fmt: skip
CORPUS = ["segment the left wheel of the red car", "USER: ASSISTANT:"] * 5


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(CORPUS, 320)


@pytest.fixture
def model(vocabulary: Vocabulary) -> MLLM:
    torch.manual_seed(1)
    return MLLM(SMALL, vocabulary).eval()


def scrambled(module: nn.Module) -> nn.Module:
    """Every tensor random: some are zero or one at first, which would hide a wrong key."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval()


def llava() -> LlavaForConditionalGeneration:
    torch.manual_seed(2)
    text = LlamaConfig(
        vocab_size=330, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        rms_norm_eps=1e-5,
    )  # fmt: skip
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VIT), text_config=text, image_token_index=329)
    return scrambled(LlavaForConditionalGeneration(config))


def rewrite(folder: Path, rules: list[tuple[str, str]], drop: str = "^$") -> Path:
    """The same tensors under other names."""
    path = folder / "model.safetensors"
    tensors = {}
    for name, value in load_file(path).items():
        for pattern, target in rules:
            name = re.sub(pattern, target, name)
        if not re.search(drop, name):
            tensors[name] = value
    save_file(tensors, path)
    return folder


LAYOUTS: dict[str, list[tuple[str, str]]] = {
    "as save_pretrained writes": [],
    "llava-hf hub files": [(r"^vision_tower\.", "vision_tower.vision_model.")],
    "transformers in memory": [
        (r"^language_model\.model\.", "model.language_model."), (r"^language_model\.lm_head", "lm_head"),
        (r"^vision_tower", "model.vision_tower"), (r"^multi_modal", "model.multi_modal"),
    ],
    "original LLaVA": [
        (r"^language_model\.", ""), (r"^multi_modal_projector\.linear_1", "model.mm_projector.0"),
        (r"^multi_modal_projector\.linear_2", "model.mm_projector.2"),
        (r"^vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
    ],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_llava_gives_its_own_features(model: MLLM, tmp_path: Path, layout: str) -> None:
    theirs = llava()
    theirs.save_pretrained(tmp_path)
    rewrite(tmp_path, LAYOUTS[layout])
    reports = load_llava(model, str(tmp_path), with_tower=True)
    assert [len(r.loaded) > 0 and r.new == [] for r in reports] == [True] * 3
    pixels, ids = torch.randn(2, 3, 28, 28), torch.randint(0, 300, (2, 7))
    with torch.no_grad():
        tower = theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(model.low(pixels), tower, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            model.image_tokens.low(tower), theirs.model.multi_modal_projector(tower), atol=1e-5, rtol=1e-5
        )
        special = set(model.vocabulary.special)
        ids[torch.isin(ids, torch.tensor(sorted(special)))] = 200  # their rows start elsewhere
        ours = model.llm(input_ids=ids).logits[..., :330]
        expected = theirs.lm_head(theirs.model.language_model(input_ids=ids).last_hidden_state)
        plain = [i for i in range(330) if i not in special]
        torch.testing.assert_close(ours[..., plain], expected[..., plain], atol=1e-5, rtol=1e-5)


def test_new_token_rows_start_from_what_they_stand_for(model: MLLM, tmp_path: Path) -> None:
    theirs = llava()
    theirs.save_pretrained(tmp_path)
    load_llava(model, str(tmp_path), with_tower=True)
    table = theirs.model.language_model.embed_tokens.weight
    v = model.vocabulary
    torch.testing.assert_close(model.embed.weight[v.user], table[v.encode("USER:")].mean(0))
    grown = model.embed.weight[:330].clone()
    assert torch.isfinite(model.embed.weight[v.seg]).all()
    assert (model.embed.weight[v.seg] - grown.mean(0)).abs().max() < 0.1


def test_a_llava_folder_without_its_tower_is_refused_unless_clip_is_named(
    model: MLLM, tmp_path: Path
) -> None:
    llava().save_pretrained(tmp_path / "llava")
    folder = rewrite(tmp_path / "llava", [], drop="^vision_tower")
    with pytest.raises(ValueError, match=r"no tower inside.*--model\.weights\.low too"):
        load_llava(model, str(folder), with_tower=True)
    load_llava(model, str(folder), with_tower=False)
    tower = scrambled(CLIPVisionModel(CLIPVisionConfig(**VIT)))
    tower.save_pretrained(tmp_path / "clip")
    load_low(model, str(tmp_path / "clip"))
    pixels = torch.randn(1, 3, 28, 28)
    expected = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(model.low(pixels), expected, atol=1e-5, rtol=1e-5)


def test_clip_of_both_towers_gives_its_vision_tower(model: MLLM, tmp_path: Path) -> None:
    text = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=99,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    theirs = scrambled(CLIPModel(CLIPConfig(vision_config=VIT, text_config=text)))
    theirs.save_pretrained(tmp_path)
    report = load_low(model, str(tmp_path))
    assert "logit_scale" in report.ignored
    pixels = torch.randn(2, 3, 28, 28)
    expected = theirs.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(model.low(pixels), expected, atol=1e-5, rtol=1e-5)


TIMM = [
    (r"^embeddings\.patch_embeddings\.", "stem.0."), (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.", ""), (r"\.downsampling_layer\.", ".downsample."), (r"\.layers\.", ".blocks."),
    (r"\.dwconv\.", ".conv_dw."), (r"(blocks\.\d+)\.layernorm\.", r"\1.norm."), (r"\.pwconv", ".mlp.fc"),
    (r"\.layer_scale_parameter", ".gamma"), (r"^layernorm\.", "head.norm."),
]  # fmt: skip


@pytest.mark.parametrize("layout", ["transformers", "timm", "open_clip"])
def test_convnext_gives_its_own_stage_maps(model: MLLM, tmp_path: Path, layout: str) -> None:
    torch.manual_seed(3)
    theirs = scrambled(ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])))
    theirs.save_pretrained(tmp_path)
    if layout != "transformers":
        rewrite(tmp_path, TIMM)
    if layout == "open_clip":
        rewrite(tmp_path, [("^", "visual.trunk.")])
        tensors = load_file(tmp_path / "model.safetensors")
        tensors |= {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.weight": torch.ones(3)}
        tensors |= {"visual.head.mlp.fc1.weight": torch.ones(3, 3), "text_projection": torch.ones(3, 3)}
        save_file(tensors, tmp_path / "model.safetensors")
    report = load_high(model, str(tmp_path))
    assert report.new and all("hidden_states_norms" in name for name in report.new)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        x, raw = theirs.embeddings(pixels), []
        for stage in theirs.encoder.stages:
            x = stage(x)
            raw.append(x)
        norms = model.high.backbone.hidden_states_norms  # ours alone, new
        for index, (ours, expected) in enumerate(zip(model.high(pixels), raw, strict=True), 1):
            torch.testing.assert_close(ours, norms[f"stage{index}"](expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("twin", [True, False])
def test_sam_gives_its_own_image_embedding(tmp_path: Path, twin: bool) -> None:
    theirs = scrambled(SamModel(_sam_config(SAM)))
    theirs.save_pretrained(tmp_path)
    if twin:  # published files hold the shared positional code once or twice
        rewrite(tmp_path, [], drop="^prompt_encoder.shared_embedding")
    head = SamHead(SAM, 16, (8, 16)).eval()
    report = load_sam(head.sam, str(tmp_path))
    assert report.new == []
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        got = head.encode(pixels_alone(pixels)).image_BChw
        torch.testing.assert_close(got, theirs.get_image_embeddings(pixels), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            head.sam.get_image_wide_positional_embeddings(), theirs.get_image_wide_positional_embeddings()
        )


def pixels_alone(pixels: torch.Tensor) -> HeadInputs:
    """What a head reads that uses nothing of ours."""
    none = torch.empty(0)
    return HeadInputs([], none, none, none, RegionBoxes(none, none, none, none, 1.0), pixels)


def sam_2(video: bool) -> nn.Module:
    """transformers' own model of still images, or the whole one of published folders, with random weights."""
    torch.manual_seed(4)
    config = _sam2_config(SAM2)
    if video:
        parts = {
            name: getattr(config, f"{name}_config") for name in ("vision", "prompt_encoder", "mask_decoder")
        }
        whole = Sam2VideoConfig(
            **{f"{name}_config": part for name, part in parts.items()}, image_size=SAM2.size,
            memory_attention_num_layers=1,
        )  # fmt: skip
    made = Sam2VideoModel(whole) if video else Sam2Model(config)
    with torch.no_grad():  # some start at zero, which would hide a wrong key
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize("video", [False, True])
def test_sam_2_gives_its_own_masks_for_the_same_prompt(tmp_path: Path, video: bool) -> None:
    theirs = sam_2(video)
    theirs.save_pretrained(tmp_path)
    made = Sam2Head(SAM2, 24, (8, 16)).eval()
    report = load_sam(made.sam, str(tmp_path))
    assert report.new == [] and bool(report.ignored) == video
    assert not {name.partition(".")[0] for name in report.ignored} & {n for n, _ in made.sam.named_children()}
    theirs.mask_decoder.dynamic_multimask_via_stability = (
        False  # always the single mask's token, as we take it
    )
    pixels, states = torch.randn(1, 3, 64, 64), torch.randn(3, 24)
    with torch.no_grad():
        got = made(made.encode(pixels_alone(pixels)), states, torch.zeros(3, dtype=torch.long))
        *fine, image = maps_of(theirs, pixels)
        masks, iou, *_, presence = theirs.mask_decoder(
            image_embeddings=image,
            image_positional_embeddings=theirs.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=made.prompt(states)[None, :, None],
            dense_prompt_embeddings=theirs.prompt_encoder.no_mask_embed.weight[:, :, None, None].expand_as(
                image
            ),
            multimask_output=False,
            high_resolution_features=fine,
        )
    torch.testing.assert_close(got.masks_Ehw, masks[0, :, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.quality_E.sigmoid(), iou[0, :, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.presence_E, presence[0, :, 0], atol=1e-5, rtol=1e-5)


def maps_of(theirs: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Maps of a SAM 2, finest first, as its decoder takes them; from its flattened ones where it is for video."""
    if isinstance(theirs, Sam2Model):
        return list(theirs.get_image_embeddings(pixels))
    flat = theirs.get_image_features(pixels, return_dict=True).fpn_hidden_states
    maps = [x.permute(1, 2, 0) for x in flat]  # (h w, B, C) each
    maps[-1] = maps[-1] + theirs.no_memory_embedding.reshape(1, -1, 1)
    return [x.unflatten(-1, (int(x.shape[-1] ** 0.5),) * 2) for x in maps]


def test_what_is_no_sam_2_is_refused_by_name(tmp_path: Path) -> None:
    sam_2(video=False).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    good, sam = load_file(path), Sam2Head(SAM2, 24, (8, 16)).sam
    lost = "vision_encoder.backbone.blocks.0.attn.qkv.weight"
    for tensors, message in (
        ({k: v for k, v in good.items() if k != lost}, f"1 missing: {lost}"),
        (good | {"mask_decoder.extra.weight": torch.ones(2)}, r"1 unexpected: mask_decoder\.extra\.weight"),
        (good | {"no_memory_embedding": torch.ones(1, 1, 5)}, r"no_memory_embedding \(1, 1, 5\) instead of"),
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=message):
            load_sam(sam, str(tmp_path))


def test_what_does_not_fit_is_named(model: MLLM, tmp_path: Path) -> None:
    theirs = scrambled(CLIPVisionModel(CLIPVisionConfig(**VIT)))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def refused(tensors: dict[str, torch.Tensor], message: str) -> None:
        save_file(tensors, path)
        with pytest.raises(ValueError, match=message):
            load_low(model, str(tmp_path))

    short = {k: v for k, v in good.items() if "layers.2.mlp" not in k}
    refused(short, r"4 missing: encoder.layers.2.mlp.fc1.bias")
    refused(good | {"extra.weight": torch.ones(2)}, "1 unexpected: extra.weight")
    refused(good | {"post_layernorm.bias": torch.ones(5)}, r"post_layernorm.bias \(5,\) instead of \(32,\)")
    save_file(short, path)
    after = model.state_dict()
    missing_first = [k for k in before if not torch.equal(before[k], after[k]) and "low" not in k]
    assert missing_first == []


def test_errors_of_unreadable_sources_give_the_reason(model: MLLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        load_low(model, str(tmp_path / "nowhere"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"pickles and are never opened"):
        load_low(model, str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_low(model, str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "one.safetensors"}})
    )
    with pytest.raises(ValueError, match=r"names one\.safetensors, missing in"):
        weight_files(tmp_path)


def whole(tmp_path: Path, **changes: Any) -> UniRESPlusPlusConfig:
    """A small config whose sources are folders made here."""
    theirs = llava()
    theirs.save_pretrained(tmp_path / "llava")
    (tmp_path / "llava" / "tokenizer.json").write_text(Vocabulary.train(CORPUS, 320, LLAVA_1_5).to_json())
    ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])).save_pretrained(
        tmp_path / "trunk"
    )
    weights = WeightsConfig(
        llava=str(tmp_path / "llava"), high=str(tmp_path / "trunk"), required=("llava", "high")
    )
    return UniRESPlusPlusConfig(
        mllm=SMALL, head=PyramidHeadConfig(width=16, heads=2), weights=weights, **changes
    )


def test_a_model_for_training_is_built_from_named_folders(tmp_path: Path) -> None:
    tuning = TuningConfig(frozen=("low",), lora_rank=2, lora_alpha=4, token_rows="new", frozen_dtype="bf16")
    config = whole(tmp_path, tuning=tuning)
    vocabulary = open_vocabulary(config, [])
    lines: list[str] = []
    model = build_for_training(config, vocabulary, lines.append)
    assert [line.partition(":")[0] for line in lines[:4]] == ["LLM", "projector", "low tower", "high tower"]
    assert "adapters" in lines[4] and "lora" in lines[0]
    embed = model.mllm.embed
    torch.testing.assert_close(embed.rows_RD, embed.weight[embed.row_ids_R].float(), atol=1e-2, rtol=1e-2)
    kinds = {p.requires_grad: set() for p in model.parameters()}
    for parameter in model.parameters():
        kinds[parameter.requires_grad].add(parameter.dtype)
    assert kinds == {True: {torch.float32}, False: {torch.bfloat16}}
    for name, parameter in model.named_parameters():  # nothing is left as the memory came
        assert torch.isfinite(parameter).all() and parameter.abs().max() < 1e3, name
    plain = MLLM(config.mllm, vocabulary).eval()
    load_llava(plain, str(tmp_path / "llava"), with_tower=True)
    rotary = [m.llm.model.rotary_emb.inv_freq for m in (plain, model.mllm)]
    assert torch.equal(*rotary)
    layer = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(
        plain.llm.state_dict()[layer], model.mllm.llm.state_dict()[layer].float(), atol=1e-2, rtol=1e-2
    )
    with pytest.raises(InputError, match=r"--model\.weights\.high: .*neither a folder"):
        build_for_training(replace(config, weights=replace(config.weights, high="gone")), vocabulary)
    with pytest.raises(InputError, match=r"give --model\.weights\.high"):
        build_for_training(replace(config, weights=replace(config.weights, high=None)), vocabulary)


SIZES = (
    "low", "low_size", "high", "high_size", "llm", "max_objects", "max_parts", "mgfe_heads",
)  # fmt: skip


@pytest.mark.parametrize("stage", ["uniresxx_7b", "uniresxx_7b_24gb"])
def test_a_full_recipe_with_small_numbers_trains_saves_and_answers(tmp_path: Path, stage: str) -> None:
    """Every switch of the full size, from named folders, in mixed precision; only the sizes are small."""
    recipe = KNOWN[stage]()
    small = {name: getattr(SMALL, name) for name in SIZES}
    mllm = replace(recipe.model.mllm, **small, mgfe_width=16)
    config = replace(
        recipe.model,
        mllm=mllm,
        sam2=all_on(SAM2),
        box_head=BoxHeadConfig(width=16, convs=1, min_score=0.0),  # proposes before it is trained
        loss=replace(recipe.model.loss, points=100),
        weights=replace(whole(tmp_path).weights, sam=str(tmp_path / "sam2")),
    )
    sam_2(video=True).save_pretrained(tmp_path / "sam2")
    vocabulary = open_vocabulary(config, [])
    model = build_for_training(config, vocabulary)
    records = [picture(0), picture(1, 20, 32)]
    batch = batch_of(records, vocabulary, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = Engine(model, recipe)
    model.train()
    result = do_step(engine, model, [batch], 200)
    assert not result.skipped and "box" in result.terms
    moved = {part_of(n) for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"fusion", "regions", "exploitation", "box_head", "llm", "head"}
    assert next(model.mllm.low.parameters()).dtype == torch.bfloat16

    model.eval()
    photos, ask = [r.pixels for r in records], [["the red square", "both"], ["wheel"]]
    answers = model.answer(model.encode_images(photos), ask, Decoding(max_new_tokens=3))
    assert len(answers) == 3 and all(a.p_absent is not None for a in answers)
    save_pretrained(tmp_path / "saved", model)
    loaded = load_segmenter(tmp_path / "saved")
    assert isinstance(loaded, UniRESPlusPlusModel) and loaded.config == config
    assert [p.dtype for p in loaded.parameters()] == [p.dtype for p in model.parameters()]
    again = loaded.answer(loaded.encode_images(photos), ask, Decoding(max_new_tokens=3))
    for one, other in zip(answers, again, strict=True):
        assert other.p_absent == pytest.approx(one.p_absent, abs=1e-6) and other.text == one.text
    if config.tuning.lora_rank:
        layer = model.mllm.llm.model.layers[1].self_attn.q_proj
        expected = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
        target = "mllm.llm.model.layers.1.self_attn.q_proj.weight"
        for dtype, kept in (("auto", torch.bfloat16), ("float32", torch.float32)):
            out = tmp_path / f"merged_{dtype}"
            assert command(["export", str(tmp_path / "saved"), str(out), "--merge", "--dtype", dtype]) == 0
            found = load_file(out / "model.safetensors")
            assert found[target].dtype == kept and torch.equal(found[target], expected.to(kept))
            assert found["mllm.image_tokens.low.0.weight"].dtype == torch.float32


def test_a_hub_id_is_asked_for_weights_and_never_for_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append({"name": name} | options)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert folder_of("openai/clip-vit-large-patch14-336@abc") == tmp_path
    assert asked == [
        {
            "name": "openai/clip-vit-large-patch14-336",
            "revision": "abc",
            "allow_patterns": ["*.safetensors", "*.json", "*.jinja"],
            "ignore_patterns": ["*/*", "consolidated*"],
        }
    ]


def test_a_pretrained_tokenizer_gets_our_tokens_once(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>", "<image>"])
    plain.train_from_iterator(CORPUS, trainer)
    size = plain.get_vocab_size()
    vocabulary = Vocabulary.extend(plain)
    assert len(vocabulary) == size + len(SPECIAL_TOKENS) - 1  # <image> was there
    assert vocabulary.image == 3 and len(set(vocabulary.special)) == len(SPECIAL_TOKENS)
    ids = vocabulary.encode("[SEG] <image> </s> wheel")
    assert not {*vocabulary.special, 2} & set(ids)
    assert vocabulary.decode([*vocabulary.encode("the red car"), vocabulary.seg]) == "the red car [SEG]"
    again = Vocabulary.extend(Tokenizer.from_str(vocabulary.to_json()))
    assert again.special == vocabulary.special and len(again) == len(vocabulary)
