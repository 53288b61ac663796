"""Mask heads of SAM and SAM 2 against transformers' own decoders; batched against one expression at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Sam2Model, SamModel

from mllm.config import TuningConfig
from mllm.tokens import Vocabulary
from tests.test_model import CONFIG, batch_of, picture
from uniresxx.imaging import masks
from uniresxx.model.config import PyramidHeadConfig, Sam2HeadConfig, SamHeadConfig
from uniresxx.model.heads.base import HeadInputs, RegionBoxes
from uniresxx.model.heads.pyramid import PyramidHead
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
WIDTHS = (8, 16, 24, 32)


def all_on(config: SamHeadConfig | Sam2HeadConfig) -> SamHeadConfig | Sam2HeadConfig:
    return replace(config, region_memory=True, fuse_early=True, paint_regions=True)


MAKE = {
    "pyramid": lambda: PyramidHead(PyramidHeadConfig(width=16, heads=2, paint_regions=True), D, WIDTHS),
    "sam": lambda: SamHead(SAM, D, WIDTHS),
    "sam+": lambda: SamHead(all_on(SAM), D, WIDTHS),
    "sam2": lambda: Sam2Head(SAM2, D, WIDTHS),
    "sam2+": lambda: Sam2Head(all_on(SAM2), D, WIDTHS),
}
# parameters that start at zero, so that step 0 is the published decoder; SAM's early filter has two of its own
CLOSED = ("gate", "early.filter.2", "early.0", "early.1")


SAMS = [kind for kind in MAKE if kind != "pyramid"]


def is_closed(name: str) -> bool:
    return any(part in name for part in CLOSED) and "sam." not in name


def head(kind: str, closed: bool = False) -> nn.Module:
    """Random weights everywhere: transformers starts some of SAM's at zero, which would hide mistakes."""
    torch.manual_seed(0)
    made = MAKE[kind]()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not (closed and is_closed(name)):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def inputs(images: int, seed: int = 0) -> HeadInputs:
    """Maps, tokens, boxes and pixels of some images; a few regions are not real."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(images, *size, generator=generator)

    def boxes(count: int) -> tuple[Tensor, Tensor]:
        corner = torch.rand(images, count, 2, generator=generator) * 24
        valid = torch.rand(images, count, generator=generator) > 0.3
        return torch.cat((corner, corner + 6), dim=-1), valid

    objects, parts = boxes(3), boxes(4)
    return HeadInputs(
        [draw(width, 16 // 2**i, 16 // 2**i) for i, width in enumerate(WIDTHS)],
        draw(D, 4, 4), draw(7, D), torch.cat((objects[1], parts[1]), dim=1), RegionBoxes(*objects, *parts, 48.0),
        draw(3, 64, 64),
    )  # fmt: skip


def only(given: HeadInputs, b: int) -> HeadInputs:
    """One image of some."""
    own = slice(b, b + 1)
    boxes = RegionBoxes(*(x[own] for x in given.boxes[:4]), given.boxes.side)
    image, regions, valid = (x[own] for x in given[1:4])
    return HeadInputs(
        [stage[own] for stage in given.stages], image, regions, valid, boxes, given.pixels_B3SS[own]
    )


def published(made: nn.Module, pixels: Tensor, states: Tensor) -> object:
    """What transformers' whole model answers, its prompt encoder replaced by the projected states."""
    theirs = (SamModel if isinstance(made, SamHead) else Sam2Model)(made.sam.config).eval()
    theirs.load_state_dict(made.sam.state_dict())
    no_mask = theirs.prompt_encoder(None, None, None, None)[1]
    theirs.prompt_encoder.forward = lambda **_: (made.prompt(states)[None, :, None], no_mask)
    return theirs(pixel_values=pixels, multimask_output=False)


@pytest.mark.parametrize("kind", SAMS)
def test_step_0_is_transformers_own_model_for_the_same_prompt(kind: str) -> None:
    made, given, states = head(kind, closed=True), inputs(2), torch.randn(3, D)
    with torch.no_grad():
        got = made(made.encode(given), states, torch.tensor([1, 1, 1]))
        expected = published(made, given.pixels_B3SS[1:], states)
    masks, iou = expected.pred_masks[0, :, 0], expected.iou_scores[0, :, 0]
    assert masks.shape == got.masks_Ehw.shape == (3, 16, 16) and masks.std() > 1e-3
    torch.testing.assert_close(got.masks_Ehw, masks, atol=1e-5, rtol=1e-5)
    if "2" in kind:
        torch.testing.assert_close(got.quality_E.sigmoid(), iou, atol=1e-5, rtol=1e-5)
        presence = expected.object_score_logits[0, :, 0]
        torch.testing.assert_close(got.presence_E, presence, atol=1e-5, rtol=1e-5)
    else:
        torch.testing.assert_close(got.quality_E / 4 + 0.5, iou, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sam+", "sam2+"])
def test_each_closed_way_learns_from_step_0_and_then_changes_the_mask(kind: str) -> None:
    made, given, states = head(kind, closed=True), inputs(2), torch.randn(3, D)
    image_of = torch.tensor([0, 1, 1])
    first = made(made.encode(given), states, image_of).masks_Ehw
    first.square().sum().backward()
    closed = {name: p for name, p in made.named_parameters() if is_closed(name)}
    fused = 2 if kind == "sam+" else 4  # weights and biases
    painted = 1 if kind == "sam+" else 3
    assert len(closed) == 1 + fused + painted
    with torch.no_grad():
        for name, parameter in closed.items():
            assert parameter.grad is not None and parameter.grad.all() and parameter.grad.isfinite().all(), (
                name
            )
            change = torch.linspace(0.2, 1, parameter.numel()).view_as(
                parameter
            )  # LayerNorm undoes an equal one
            parameter.add_(change)
            assert not torch.allclose(made(made.encode(given), states, image_of).masks_Ehw, first), name
            parameter.sub_(change)


@pytest.mark.parametrize("kind", ["sam+", "sam2+"])
def test_prompts_read_real_regions_and_image_tokens_alone(kind: str) -> None:
    made, given, states = head(kind), inputs(1), torch.randn(2, D)
    made.painting = nn.ModuleList() if kind == "sam2+" else None  # regions reach the prompt, and nothing else

    def masks(changed: HeadInputs) -> Tensor:
        with torch.no_grad():
            return made(made.encode(changed), states, torch.tensor([0, 0])).masks_Ehw

    first = masks(given)
    for valid in (True, False):
        where = (given.region_valid_BM == valid)[..., None]
        assert where.any()
        other = masks(given._replace(regions_BMD=given.regions_BMD + where * 1.0))
        assert torch.allclose(other, first, atol=1e-6) is not valid
    assert not torch.allclose(masks(given._replace(image_BDhw=given.image_BDhw + 1)), first)


@pytest.mark.parametrize("kind", ["pyramid", "sam", "sam2"])
def test_region_memory_is_a_switch_that_matters(kind: str) -> None:
    for on in (True, False):
        torch.manual_seed(0)
        made = {
            "pyramid": lambda on: PyramidHead(
                PyramidHeadConfig(width=16, heads=2, region_memory=on), D, WIDTHS
            ),
            "sam": lambda on: SamHead(replace(SAM, region_memory=on), D, WIDTHS),
            "sam2": lambda on: Sam2Head(replace(SAM2, region_memory=on), D, WIDTHS),
        }[kind](on).eval()
        given, states, first = inputs(1), torch.randn(2, D), torch.zeros(2, dtype=torch.long)
        other = given._replace(regions_BMD=given.regions_BMD + 1)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            a, b = (made(made.encode(x), states, first).masks_Ehw for x in (given, other))
        assert torch.equal(a, b) is not on


@pytest.mark.parametrize("kind", list(MAKE))
def test_heads_batched_over_images_and_expressions_equal_one_at_a_time(kind: str) -> None:
    made, given, states = head(kind), inputs(3), torch.randn(5, D)
    image_of = torch.tensor([2, 0, 0, 1, 2])
    with torch.no_grad():
        together = made(made.encode(given), states, image_of)
        for e, b in enumerate(image_of.tolist()):
            alone = made(made.encode(only(given, b)), states[e : e + 1], torch.zeros(1, dtype=torch.long))
            for one, all_of_them in zip(alone, together, strict=True):
                torch.testing.assert_close(one[0], all_of_them[e], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sam+", "sam2+"])
def test_every_trained_weight_of_a_head_gets_a_gradient(kind: str) -> None:
    made = head(kind)
    output = made(made.encode(inputs(2)), torch.randn(3, D), torch.tensor([0, 1, 1]))
    (output.masks_Ehw.square().mean() + output.quality_E.sum() + output.presence_E.sum()).backward()
    silent = [
        n for n, p in made.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert silent == []
    assert not any(p.requires_grad for p in made.sam.prompt_encoder.parameters())


def test_the_presence_of_sam_depends_on_the_picture_and_shapes_no_mask() -> None:
    made, given, states = head("sam"), inputs(1), torch.randn(2, D)
    zeros = torch.zeros(2, dtype=torch.long)
    output = made(made.encode(given), states, zeros)
    other = made(made.encode(given._replace(pixels_B3SS=given.pixels_B3SS.flip(-1))), states, zeros)
    assert not torch.allclose(output.presence_E, other.presence_E)
    output.presence_E.sum().backward()
    assert made.sam.mask_decoder.output_hypernetworks_mlps[0].proj_in.weight.grad is None


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_the_whole_model_trains_and_answers_with_a_sam_head(kind: str, words: Vocabulary) -> None:
    tuning = TuningConfig(frozen=("mask_encoder",))
    config = replace(
        CONFIG, mask_head=kind, sam=all_on(SAM), sam2=all_on(SAM2), tuning=tuning, dense_classes=(0, 0, 0),
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
    cast_frozen(half, TuningConfig(frozen_dtype="bf16"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = half(batch)
    assert torch.isfinite(half.loss(rounded, batch).total(half.counts(batch)))

    photos, texts = [r.pixels for r in records], [["the red square", "both squares"], ["red"]]
    together = model.answer(model.encode_images(photos), texts, Decoding(max_new_tokens=3))
    alone = model.answer(model.encode_images(photos[1:]), texts[1:], Decoding(max_new_tokens=3))[0]
    assert together[2].text == alone.text
    assert together[2].p_absent == pytest.approx(alone.p_absent, abs=1e-4)
    a, b = (p.rle or p.mask_if_forced for p in (together[2], alone))
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
