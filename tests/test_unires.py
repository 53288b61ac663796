"""UniRES: the encoder against transformers' CLIP, each block by its properties, the whole model on toy pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mllm.tower_families import clip_vit
from tests.test_film_unet import RECORDS, SIDE, losses_of_training
from tests.test_four_doors import SCENE, same_mask_at_all_doors
from train.memory_estimate import Sizes
from train.memory_unires import estimate_unires
from train.recipes import KNOWN
from uniresxx.checkpoints.folders import CONFIG, save_pretrained
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.model.config import LossConfig
from uniresxx.model.heads.attention import key_bias
from uniresxx.segmenters.base import Collator, Segmenter
from uniresxx.segmenters.load import load_segmenter
from uniresxx.segmenters.unires.batch import UniresBatch
from uniresxx.segmenters.unires.config import UniresConfig, clip_text
from uniresxx.segmenters.unires.decoder import DecoderLayer, RegionFilter, first_stage, second_stage
from uniresxx.segmenters.unires.encoder import GroupedVision
from uniresxx.segmenters.unires.heads import MaskHead, PresenceHead
from uniresxx.segmenters.unires.modeling import Unires
from uniresxx.segmenters.unires.vocabulary import ClipVocabulary, expression_of
from uniresxx.types import Decoding, ImageRecord, Question

torch.set_num_threads(1)
TOY = UniresConfig(
    vision=clip_vit(32, 4, 2, 64, 8), text=clip_text(24, 2, 2, 48, rows=300), size=SIDE, low_groups=3,
    high_groups=2, width=32, heads=2, presence=True,
)  # fmt: skip
PLAIN = replace(TOY, presence=False)


def toy_vocabulary() -> ClipVocabulary:
    return ClipVocabulary.train(["the left square", "the right square", "red green blue"] * 4, 300)


@pytest.fixture(scope="module")
def vocabulary() -> ClipVocabulary:
    return toy_vocabulary()


def make(vocabulary: ClipVocabulary, config: UniresConfig = TOY) -> Unires:
    torch.manual_seed(0)
    return Unires(config, vocabulary).eval()


def batch_of(
    records: tuple[ImageRecord, ...], vocabulary: ClipVocabulary, config: UniresConfig = TOY
) -> UniresBatch:
    collator: Collator = make(vocabulary, config).collator
    batch = collator.collate([collator.sample(r, photo_of(r), ()) for r in records])
    assert isinstance(batch, UniresBatch)
    return batch


def untouched(model: nn.Module) -> list[str]:
    """Parameters without a gradient."""
    return [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


# --- the encoder


def test_without_groups_the_encoder_equals_transformers_clip() -> None:
    config = replace(TOY, low_groups=0, high_groups=0)
    torch.manual_seed(1)
    vision = GroupedVision(config).eval()
    values = {key: value for key, value in config.vision.items() if key != "model_type"}
    clip = CLIPVisionModel(CLIPVisionConfig(**values, image_size=SIDE)).eval()
    clip.load_state_dict(vision.clip.state_dict())
    pixels_B3HW = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        found, expected = vision(pixels_B3HW), clip(pixels_B3HW)
    assert (found.tokens_BTD - expected.last_hidden_state).abs().max() <= 1e-5
    assert found.low_BGD.shape == found.high_BGD.shape == (2, 0, 32)


@pytest.mark.parametrize("level", ["low", "high"])
def test_groups_of_a_level_act_in_their_half_alone(level: str) -> None:
    """Low-level groups change patches before the middle, high-level ones after it."""
    torch.manual_seed(1)
    vision, seen = GroupedVision(TOY).eval(), {}
    first, second = vision.halves
    assert len(first) == len(second) == 2
    for name, layer in (("first", first[-1]), ("second", second[-1])):
        layer.register_forward_hook(lambda *args, name=name: seen.update({name: args[2][:, :17]}))
    pixels_B3HW = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        before = vision(pixels_B3HW)
        was = dict(seen)
        getattr(vision, level).mul_(-1)
        after = vision(pixels_B3HW)
    assert before.low_BGD.shape == (1, 3, 32) and before.high_BGD.shape == (1, 2, 32)
    assert before.tokens_BTD.shape == (1, 17, 32)
    assert torch.equal(was["first"], seen["first"]) == (level == "high")
    assert torch.equal(before.low_BGD, after.low_BGD) == (level == "high")
    assert not torch.equal(was["second"], seen["second"])
    assert not torch.equal(before.high_BGD, after.high_BGD)


def test_a_last_odd_block_belongs_to_the_second_half() -> None:
    first, second = GroupedVision(replace(TOY, vision=clip_vit(32, 5, 2, 64, 8))).halves
    assert (len(first), len(second)) == (2, 3)


# --- the blocks


def test_a_region_filter_reads_the_words_and_no_padding() -> None:
    torch.manual_seed(2)
    block = RegionFilter(32, 2, 2)
    groups_EGC, text_EMC = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    bias_EM = key_bias(torch.arange(5) < torch.tensor([[5], [2]]))
    found = block(groups_EGC, text_EMC, bias_EM)
    assert found.shape == (2, 3, 32)
    garbled = text_EMC.clone()
    garbled[1, 2:] = 9.0
    assert torch.equal(found, block(groups_EGC, garbled, bias_EM))
    garbled[1, 1] = 9.0
    assert not torch.equal(found[1], block(groups_EGC, garbled, bias_EM)[1])
    found.sum().backward()
    assert set(untouched(block)) <= {"attention.k.bias"}  # softmax does not see it


def test_a_region_filter_is_residual_twice() -> None:
    """With the last matrix of both steps at zero it gives its groups back."""
    block = RegionFilter(32, 2, 2)
    for layer in (block.attention.out, block.mlp[-1]):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    groups_EGC = torch.randn(2, 3, 32)
    assert torch.equal(block(groups_EGC, torch.randn(2, 4, 32), torch.zeros(2, 4)), groups_EGC)


@pytest.mark.parametrize("mixing", [True, False])
def test_the_decoders_run_the_shared_step_per_image_without_a_difference(mixing: bool) -> None:
    torch.manual_seed(3)
    layers = [DecoderLayer(32, 2, 2, mixing) for _ in range(2)]
    patches_BNC, text_EMC, image_E = torch.randn(2, 16, 32), torch.randn(3, 4, 32), torch.tensor([0, 0, 1])
    bias_EM = key_bias(torch.arange(4) < torch.tensor([[4], [2], [3]]))
    found = first_stage(layers, patches_BNC, text_EMC, bias_EM, image_E)
    x_ENC = patches_BNC[image_E]
    for layer in layers:
        x_ENC = layer.from_memory(layer.among_patches(x_ENC), text_EMC, bias_EM)
    assert found.shape == (3, 16, 32) and torch.allclose(found, x_ENC, atol=1e-6)
    assert not torch.equal(found[0], found[1])  # one image, other words


def test_only_mixing_lets_a_patch_see_another() -> None:
    torch.manual_seed(3)
    for mixing in (True, False):
        layer = DecoderLayer(32, 2, 2, mixing)
        patches_ENC = torch.randn(1, 16, 32, requires_grad=True)
        second_stage([layer], patches_ENC, torch.randn(1, 5, 32))[0, 0].sum().backward()
        assert patches_ENC.grad is not None
        assert bool(patches_ENC.grad[0, 1:].abs().sum() > 0) is mixing
        assert set(untouched(layer)) <= {"own.k.bias", "cross.k.bias"}


def test_a_layer_without_memory_needs_none() -> None:
    layer = DecoderLayer(32, 2, 2, True, has_memory=False)
    assert second_stage([layer], torch.randn(1, 16, 32), torch.empty(1, 0, 32)).isfinite().all()


def test_the_mask_head_puts_each_cell_where_its_patch_is() -> None:
    """Against a loop over patches and cells."""
    torch.manual_seed(4)
    head = MaskHead(32, 16, cells=2)
    patches_BND, x_ENC, image_E = torch.randn(2, 9, 32), torch.randn(3, 9, 16), torch.tensor([0, 1, 1])
    look_BNSF = head.encode(patches_BND)
    masks_Ehw = head(x_ENC, look_BNSF, image_E)
    assert masks_Ehw.shape == (3, 6, 6)
    x = head.norm(x_ENC)
    for e, n, s in np.ndindex(3, 9, 4):
        expected = look_BNSF[image_E[e], n, s] @ head.meaning(x[e, n]) + head.plain(x[e, n])[s]
        row, column = 2 * (n // 3) + s // 2, 2 * (n % 3) + s % 2
        assert torch.isclose(masks_Ehw[e, row, column], expected, atol=1e-5)
    masks_Ehw.square().sum().backward()
    assert untouched(head) == []


def test_the_presence_head_gives_a_number_per_expression() -> None:
    head = PresenceHead(32)
    found = head(torch.randn(3, 16, 32), torch.randn(3, 32))
    found.square().sum().backward()
    assert found.shape == (3,) and untouched(head) == []


# --- words


def test_words_are_those_between_start_and_end(vocabulary: ClipVocabulary) -> None:
    ids = vocabulary.encode("Segment the LEFT square, please.", 77)
    assert ids == vocabulary.encode("the left square", 77)
    assert (ids[0], ids[-1]) == (vocabulary.start, vocabulary.end)
    assert vocabulary.tokenizer.decode(ids[1:-1]).strip() == "the left square"
    forged = vocabulary.encode("<|endoftext|>", 77)
    assert forged.count(vocabulary.end) == 1
    assert vocabulary.encode("the left square " * 40, 10)[-1] == vocabulary.end
    assert len(vocabulary.encode("the left square " * 40, 10)) == 10
    assert expression_of("the cat and the dog") == "the cat and the dog" and expression_of("") == ""


# --- the whole model


@pytest.mark.parametrize("change", [{}, {"presence": False}, {"low_groups": 0}, {"low_groups": 0, "high_groups": 0},
                                    {"mixing": False, "stage1_layers": 2, "stage2_layers": 2}])  # fmt: skip
def test_forward_and_backward_reach_every_parameter(
    vocabulary: ClipVocabulary, change: dict[str, Any]
) -> None:
    config = replace(TOY, **change)
    model, batch = make(vocabulary, config), batch_of(RECORDS, vocabulary, config)
    output = model(batch)
    count = len(batch.present_E)
    assert output.masks_Ehw.shape == (count, SIDE // 2, SIDE // 2)
    terms, counts = model.loss(output, batch), model.counts(batch)
    assert (
        terms.sums.keys() == counts.keys() == {"mask", "dice"} | ({"presence"} if config.presence else set())
    )
    assert counts["mask"] == int(batch.present_E.sum())
    assert (count > counts["mask"]) is config.presence  # without it, what is not there is not asked
    terms.total(counts).backward()
    expected = {n for n, _ in model.named_parameters() if n.endswith("k_proj.bias") or n.endswith(".k.bias")}
    unread = {"vision.low", "vision.high"}  # without tokens, where a level is off
    assert set(untouched(model)) <= expected | unread


@pytest.mark.parametrize("resolution", ["full", "low", "points", "photo"])
def test_every_resolution_of_the_mask_loss_works(vocabulary: ClipVocabulary, resolution: Any) -> None:
    config = replace(PLAIN, loss=LossConfig(resolution=resolution, points=64))
    model, batch = make(vocabulary, config), batch_of(RECORDS, vocabulary, config)
    total = model.loss(model(batch), batch).total(model.counts(batch))
    assert total.isfinite() and len(batch.masks_photo) == (3 if resolution == "photo" else 0)


def test_a_batch_without_expressions_has_a_finite_loss(vocabulary: ClipVocabulary) -> None:
    empty = batch_of((replace(RECORDS[0], expressions=()),), vocabulary)
    model = make(vocabulary)
    total = model.loss(model(empty), empty).total(model.counts(empty))
    assert total.item() == 0.0
    total.backward()


def test_a_batch_equals_one_image_at_a_time(vocabulary: ClipVocabulary) -> None:
    model = make(vocabulary)
    with torch.no_grad():
        together = model(batch_of(RECORDS, vocabulary))
        apart = [model(batch_of((record,), vocabulary)) for record in RECORDS]
    assert together.presence_E is not None
    assert (together.masks_Ehw - torch.cat([o.masks_Ehw for o in apart])).abs().max() <= 1e-5
    assert (together.presence_E - torch.cat([o.presence_E for o in apart])).abs().max() <= 1e-5


def train_toy(vocabulary: ClipVocabulary, steps: int) -> tuple[Unires, list[float]]:
    """The toy model on the toy pictures, with the loss of every step."""
    model = make(vocabulary)
    return model, losses_of_training(model, batch_of(RECORDS, vocabulary), steps, 2e-3)


def test_it_learns_and_a_saved_model_answers_the_same(vocabulary: ClipVocabulary, tmp_path: Path) -> None:
    model, losses = train_toy(vocabulary, 60)
    assert losses[-1] < 0.5 * losses[0]
    save_pretrained(tmp_path, model)
    loaded = load_segmenter(tmp_path)
    assert isinstance(loaded, Segmenter) and isinstance(loaded, Unires) and loaded.config == TOY
    photos = [r.pixels for r in RECORDS if r.pixels is not None]
    texts: list[list[str | Question]] = [[e.text for e in r.expressions] for r in RECORDS[:2]]
    texts.append([Question("the left square", (("the right square", "[SEG]."),))])
    answers = model.answer(model.encode_images(photos), texts, Decoding())
    again = loaded.answer(loaded.encode_images(photos), texts, Decoding())
    np.testing.assert_allclose([a.score for a in again], [a.score for a in answers], atol=1e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    batch = batch_of(RECORDS, vocabulary)
    with torch.no_grad():  # tensors that lie elsewhere in memory may be summed in another order
        assert torch.allclose(model(batch).masks_Ehw, loaded(batch).masks_Ehw, atol=1e-4)
    asked_of = [record for record, row in zip(RECORDS, texts, strict=True) for _ in row]
    for answer, record in zip(answers, asked_of, strict=True):
        mask = answer.mask_if_forced if answer.rejected else answer.rle
        assert mask is not None and mask["size"] == [record.height, record.width]
        assert answer.rejected == (answer.rle is None) and answer.p_absent is not None
    truth = [e.rle is None for r in RECORDS[:2] for e in r.expressions]
    assert sum(a.rejected == t for a, t in zip(answers, truth, strict=False)) >= 8  # of 10 memorised


def test_answers_do_not_depend_on_the_batch(
    vocabulary: ClipVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, photos = make(vocabulary), [r.pixels for r in RECORDS if r.pixels is not None]
    texts = [["red"], [], ["segment the left square", "blue"]]
    encoded = model.encode_images(photos)
    together = model.answer(encoded, texts, Decoding())
    parts = model.split_images(encoded)
    alone = [model.answer(parts[b], [[text]], Decoding())[0] for b, row in enumerate(texts) for text in row]
    joined = model.join_images(parts)
    monkeypatch.setattr("uniresxx.segmenters.unires.modeling.DECODED_AT_ONCE", 2)
    for others in (alone, model.answer(joined, texts, Decoding())):
        assert [(a.rejected, a.text) for a in together] == [(a.rejected, a.text) for a in others]
        np.testing.assert_allclose([a.score for a in together], [a.score for a in others], atol=1e-5)
    assert model.answer(encoded, [[], [], []], Decoding()) == []


def test_training_and_answering_give_the_same_logits(vocabulary: ClipVocabulary) -> None:
    model, record = make(vocabulary), RECORDS[1]
    with torch.no_grad():
        output = model(batch_of((record,), vocabulary))
    assert record.pixels is not None and output.presence_E is not None
    texts = [[f"Segment {e.text}." for e in record.expressions]]
    answers = model.answer(model.encode_images([record.pixels]), texts, Decoding())
    np.testing.assert_allclose([a.score for a in answers], output.presence_E.sigmoid(), atol=1e-6)


def test_without_presence_nothing_is_rejected_but_an_empty_mask(vocabulary: ClipVocabulary) -> None:
    model, photo = make(vocabulary, PLAIN), RECORDS[0].pixels
    assert photo is not None and model.decision_rule == "token"
    encoded = model.encode_images([photo])
    with pytest.raises(InputError, match="no presence score"):
        model.answer(encoded, [["red"]], Decoding(rule="token_and_presence"))
    with torch.no_grad():
        for sign, rejected in ((1.0, False), (-1.0, True)):
            model.mask.plain.bias.fill_(sign * 1e3)
            answer = model.answer(encoded, [["red"]], Decoding())[0]
            assert answer.rejected is rejected and answer.score is None and answer.p_absent is None
    forced = model.answer(encoded, [["red"]], Decoding(mode="forced"))[0]
    assert not forced.rejected and forced.rle is not None


def test_predictor_command_chat_and_server_give_the_same_mask(
    vocabulary: ClipVocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_mask_at_all_doors(make(vocabulary, PLAIN), SCENE, tmp_path, monkeypatch)


def test_it_answers_in_bf16(vocabulary: ClipVocabulary, tmp_path: Path) -> None:
    save_pretrained(tmp_path, make(vocabulary))
    model = load_segmenter(tmp_path, device="cpu", dtype="bfloat16")
    assert isinstance(model, Unires) and model.patches.weight.dtype == torch.bfloat16
    photos = [r.pixels for r in RECORDS if r.pixels is not None]
    answers = model.answer(model.encode_images(photos), [["red", "the left square"]] * 3, Decoding())
    assert len(answers) == 6 and all(0 <= (a.score or 0.0) <= 1 for a in answers)


# --- config, recipes, memory


def test_config_round_trip_and_refusals(vocabulary: ClipVocabulary, tmp_path: Path) -> None:
    assert UniresConfig.from_dict(json.loads(json.dumps(TOY.to_dict()))) == TOY
    with pytest.raises(InputError, match="model_type"):
        UniresConfig.from_dict({"model_type": "film_unet"})
    with pytest.raises(InputError, match="does not fit"):
        UniresConfig.from_dict(TOY.to_dict() | {"depth": 3})
    refused = {
        "heads": {"heads": 5}, "low_groups=-1": {"low_groups": -1}, "cells=0": {"cells": 0},
        "pixel_stats": {"pixel_stats": "none"}, "dense": {"loss": LossConfig(dense=1.0)},
    }  # fmt: skip
    for word, change in refused.items():
        with pytest.raises(InputError, match=word):
            replace(TOY, **change)
    wrong: dict[str, dict[str, Any]] = {
        "multiple of the patch": {"size": 33}, "no first and second half": {"vision": clip_vit(32, 1, 2, 64, 8)},
        "clip_vision_model": {"vision": {"model_type": "vit"}}, "clip_text_model": {"text": {"model_type": "bert"}},
        "exceeds": {"text": clip_text(24, 2, 2, 48, rows=100)},
    }  # fmt: skip
    for word, change in wrong.items():
        with pytest.raises(ValueError, match=word):
            Unires(replace(TOY, **change), vocabulary)
    save_pretrained(tmp_path, make(vocabulary))
    (tmp_path / CONFIG).write_text(json.dumps(TOY.to_dict() | {"size": 33}))
    with pytest.raises(InputError, match="multiple of the patch"):
        load_segmenter(tmp_path)


# CLIP ViT-B/16 and ViT-L/14 have 149.6 and 427.6 million parameters (their model cards and safetensors indexes), less
# both projections into the common space.
PUBLISHED = {
    "unires_vit_b": 149.62e6 - 2 * 512 * 512 - 256 * 512,
    "unires_vit_l": 427.62e6 - 768 * (768 + 1024),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_encoders_are_the_published_ones(name: str) -> None:
    config = KNOWN[name]().model
    with torch.device("meta"):
        model = Unires(config, ClipVocabulary.train([], 400))
    own = sum(p.numel() for part in (model.vision.clip, model.text) for p in part.parameters())
    patches = config.grid**2 + 1
    published = (224 // config.vision["patch_size"]) ** 2 + 1
    own -= (patches - published) * config.vision["hidden_size"]
    assert own == pytest.approx(PUBLISHED[name], rel=1e-3)
    assert config.pretrained and not config.presence


@pytest.mark.parametrize("name", [name for name in KNOWN if name.startswith("unires_")])
def test_recipes_ask_for_expressions_alone(name: str) -> None:
    recipe = KNOWN[name]()
    assert recipe.name == name and recipe.data.dialogue_share == 0.0
    if "zero_shot" in name:  # RefCOCO's sentences are in composed_parts too
        assert "refcoco" not in recipe.data.mixture and "composed" not in recipe.data.mixture


def test_the_plan_of_activations_is_what_a_step_keeps(vocabulary: ClipVocabulary) -> None:
    config = replace(PLAIN, width=64)
    model, batch = make(vocabulary, config).train(), batch_of(RECORDS, vocabulary, config)
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    alive: list[torch.UntypedStorage] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(model(batch), batch).total(model.counts(batch))
    images, expressions = len(RECORDS), len(batch.present_E)
    assert expressions % images == 0
    predicted = estimate_unires(config, Sizes(images, expressions // images, batch.text_EQ.shape[1]), False)
    assert predicted.saved == pytest.approx(sum(kept.values()), rel=0.1)
    assert predicted.peak >= predicted.saved
