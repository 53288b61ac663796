"""Mask heads of SAM and SAM 2 against transformers' own decoders; batched against one expression at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mllm.config import TuningConfig
from mllm.tokens import Vocabulary
from tests.test_model import CONFIG, batch_of, picture
from uniresxx.imaging import masks
from uniresxx.model.config import Sam2HeadConfig, SamHeadConfig
from uniresxx.model.heads.sam import Sam2Head, SamHead
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.processing import PixelNorm, pixels, tensors_of, view_photo
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.model.tuning import cast_frozen
from uniresxx.types import Decoding

SAM = SamHeadConfig(
    size=64, width=32, layers=3, heads=2, global_blocks=(1,), window=2, decoder_width=32, decoder_mlp=32,
    decoder_heads=2,
)  # fmt: skip
SAM2 = Sam2HeadConfig(
    size=64, width=8, blocks=(1, 2, 2, 1), heads=(1, 2, 2, 2), windows=(4, 2, 2, 2), global_blocks=(4,),
    background=4, decoder_width=32, decoder_mlp=32, decoder_heads=2,
)  # fmt: skip
D = 24


def head(kind: str) -> nn.Module:
    """Random weights everywhere: transformers starts some of SAM's at zero, which would hide mistakes."""
    torch.manual_seed(0)
    made = {
        "sam": lambda: SamHead(SAM, D),
        "sam+early": lambda: SamHead(replace(SAM, fuse_early=True), D),
        "sam2": lambda: Sam2Head(SAM2, D),
    }[kind]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def encode(made: nn.Module, pixels: Tensor) -> object:
    return made.encode([], torch.empty(0), torch.empty(0), torch.empty(0), pixels)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_the_decoder_is_transformers_own_for_the_same_prompt(kind: str) -> None:
    made = head(kind)
    sam = made.sam
    sam.mask_decoder.dynamic_multimask_via_stability = False  # always the single mask's token, as we take it
    pixels, states = torch.randn(2, 3, 64, 64), torch.randn(3, D)
    image_of = torch.tensor([0, 0, 0])
    with torch.no_grad():
        got = made(encode(made, pixels), states, image_of)
        embedded = sam.get_image_embeddings(pixels)
        extra = {}
        if kind == "sam2":
            extra = {"high_resolution_features": [m[:1] for m in embedded[:-1]]}
            embedded = embedded[-1]
        masks, iou, *rest = sam.mask_decoder(
            image_embeddings=embedded[:1],
            image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=made.prompt(states)[None, :, None],
            dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(
                1, -1, *embedded.shape[-2:]
            ),
            multimask_output=False,
            **extra,
        )
    assert masks[0, :, 0].shape == got.masks_Ehw.shape == (3, 16, 16)
    torch.testing.assert_close(got.masks_Ehw, masks[0, :, 0], atol=1e-5, rtol=1e-5)
    if kind == "sam2":
        torch.testing.assert_close(got.quality_E.sigmoid(), iou[0, :, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.presence_E, rest[-1][0, :, 0], atol=1e-5, rtol=1e-5)
    else:
        torch.testing.assert_close(got.quality_E / 4 + 0.5, iou[0, :, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sam", "sam+early", "sam2"])
def test_heads_batched_over_images_and_expressions_equal_one_at_a_time(kind: str) -> None:
    made = head(kind)
    pixels, states = torch.randn(3, 3, 64, 64), torch.randn(5, D)
    image_of = torch.tensor([2, 0, 0, 1, 2])
    with torch.no_grad():
        together = made(encode(made, pixels), states, image_of)
        for e, b in enumerate(image_of.tolist()):
            alone = made(encode(made, pixels[b : b + 1]), states[e : e + 1], torch.zeros(1, dtype=torch.long))
            torch.testing.assert_close(alone.masks_Ehw[0], together.masks_Ehw[e], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(alone.quality_E[0], together.quality_E[e], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(alone.presence_E[0], together.presence_E[e], atol=1e-5, rtol=1e-5)


def test_early_fusion_starts_as_plain_sam_and_then_matters() -> None:
    torch.manual_seed(0)
    fused = SamHead(replace(SAM, fuse_early=True), D).eval()
    plain = SamHead(SAM, D).eval()
    left = plain.load_state_dict({k: v for k, v in fused.state_dict().items() if not k.startswith("early")})
    assert not left.missing_keys and not left.unexpected_keys
    pixels, states, image_of = torch.randn(1, 3, 64, 64), torch.randn(2, D), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        a, b = (m(encode(m, pixels), states, image_of).masks_Ehw for m in (fused, plain))
        assert torch.equal(a, b)
        fused.early[-1].weight.normal_()
        assert not torch.allclose(fused(encode(fused, pixels), states, image_of).masks_Ehw, b)


@pytest.mark.parametrize("kind", ["sam+early", "sam2"])
def test_every_trained_weight_of_a_head_gets_a_gradient(kind: str) -> None:
    made = head(kind)
    output = made(encode(made, torch.randn(2, 3, 64, 64)), torch.randn(3, D), torch.tensor([0, 1, 1]))
    (output.masks_Ehw.square().mean() + output.quality_E.sum() + output.presence_E.sum()).backward()
    silent = [
        n for n, p in made.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert silent == []
    assert not any(p.requires_grad for p in made.sam.prompt_encoder.parameters())


def test_no_expression_gives_no_mask() -> None:
    for kind in ("sam", "sam2"):
        made = head(kind)
        features = encode(made, torch.randn(1, 3, 64, 64))
        output = made(features, torch.zeros(0, D), torch.zeros(0, dtype=torch.long))
        assert output.masks_Ehw.shape == (0, 16, 16) and output.presence_E.shape == (0,)


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_the_whole_model_trains_and_answers_with_a_sam_head(kind: str, words: Vocabulary) -> None:
    tuning = TuningConfig(frozen=("mask_encoder",))
    config = replace(
        CONFIG, mask_head=kind, sam=SAM, sam2=SAM2, tuning=tuning, dense_classes=(0, 0, 0),
        loss=replace(CONFIG.loss, dense=0.0),
    )  # fmt: skip
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(config, words).eval()
    records = [picture(0), picture(1, 20, 32)]
    batch = batch_of(records, words, config)
    assert batch.pixels_mask_B3SS is not None and batch.pixels_mask_B3SS.shape == (2, 3, 64, 64)
    model.loss(model(batch), batch).total(model.counts(batch)).backward()
    encoder = [p for n, p in model.head.named_parameters() if "vision_encoder" in n]
    assert not any(p.requires_grad or p.grad is not None for p in encoder)
    assert model.head.sam.mask_decoder.iou_token.weight.grad.any() and model.head.prompt[0].weight.grad.any()
    assert model.mllm.llm.model.layers[0].self_attn.q_proj.weight.grad.any()

    half = UniRESPlusPlusModel(config, words).eval()
    half.load_state_dict(model.state_dict())
    cast_frozen(half, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = half(batch)
    assert torch.isfinite(half.loss(rounded, batch).total(half.counts(batch)))

    photos, texts = [r.pixels for r in records], [["the red square", "both squares"], ["red"]]
    together = model.answer(model.encode_images(photos), texts, Decoding(max_new_tokens=3))
    alone = model.answer(model.encode_images(photos[1:]), texts[1:], Decoding(max_new_tokens=3))[0]
    assert together[2].text == alone.text
    assert together[2].p_absent == pytest.approx(alone.p_absent, abs=1e-4)
    a, b = (p.mask or p.mask_if_forced for p in (together[2], alone))
    assert a is not None and b is not None and tuple(a["size"]) == (20, 32)
    both = masks.area(masks.union([a, b], (20, 32))) - masks.intersection_area(a, b)
    assert both <= 2


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_an_image_blind_model_zeroes_the_frame_of_a_sam_head_too(kind: str, words: Vocabulary) -> None:
    for blind in (True, False):
        config = replace(
            CONFIG, mask_head=kind, sam=SAM, sam2=SAM2, mllm=replace(CONFIG.mllm, blind_to_image=blind),
            dense_classes=(0, 0, 0), loss=replace(CONFIG.loss, dense=0.0),
        )  # fmt: skip
        torch.manual_seed(0)
        model = UniRESPlusPlusModel(config, words).eval()
        with torch.no_grad():
            for parameter in model.head.parameters():  # transformers starts some at zero
                parameter.add_(0.1 * torch.randn_like(parameter))
        batches = [batch_of([picture(i)], words, config) for i in (0, 1)]
        with torch.no_grad():
            a, b = (model.encode_images([picture(i).pixels]).features.image_BChw for i in (0, 1))
            first = model(batches[0]).head.masks_Ehw
            other = model(replace(batches[0], pixels_mask_B3SS=batches[1].pixels_mask_B3SS)).head.masks_Ehw
        assert torch.equal(a, b) is torch.equal(first, other) is blind


def test_the_mask_frame_is_that_of_sams_own_processor() -> None:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    rng = np.random.default_rng(0)
    for height, width in ((48, 80), (61, 37)):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        photo = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        config = replace(CONFIG, mask_head="sam", sam=replace(SAM, size=128), dense_classes=(0, 0, 0))
        ours = PixelNorm("imagenet")(tensors_of([view_photo(photo, config)], config)["pixels_mask_B3SS"])
        processor = SamImageProcessorPil(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128})
        theirs = processor(Image.fromarray(photo), return_tensors="pt")["pixel_values"]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 0.05, (height, width)


@pytest.mark.parametrize("stats", ["half", "clip", "imagenet"])
def test_pixels_are_normalised_by_the_published_numbers(stats: str) -> None:
    from transformers.image_utils import (
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
        OPENAI_CLIP_MEAN,
        OPENAI_CLIP_STD,
    )

    published = {
        "half": ([0.5] * 3, [0.25] * 3),
        "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    }
    mean, std = (np.array(values) for values in published[stats])
    photo = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    expected = ((photo / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(PixelNorm(stats)(pixels([photo]))[0].numpy(), expected, atol=1e-5)
