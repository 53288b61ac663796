"""UniRES++ as a whole: losses, batches, answers, checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mllm.chat import render
from mllm.config import MLLMConfig, tiny_llama
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit, convnext
from train.assemble import open_job
from train.recipes import KNOWN
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.data.mixture.batches import Batches, SceneSource
from uniresxx.data.mixture.mix import Mixture, OpenedPart
from uniresxx.data.scenes import preset_of
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.evaluation.regions import encode_records
from uniresxx.imaging import masks
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.answering import prediction_of
from uniresxx.model.collate import PackedCollator, collate, make_sample
from uniresxx.model.config import LossConfig, PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.heads.pyramid import HeadOutput, PyramidHead
from uniresxx.model.losses import mask_sums, true_iou
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.processing import view_photo
from uniresxx.model.templates import TRAINING_TEMPLATES, asked_branches, dialogue_turn, generated_turn
from uniresxx.predictor import Predictor
from uniresxx.segmenters.base import Segmenter
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import (
    Batch,
    DecisionRule,
    Decoding,
    Dialogue,
    Expression,
    Granularity,
    ImageRecord,
    Phrase,
    Question,
    Turn,
)

TINY = MLLMConfig(
    low=clip_vit(32, 1, 2), low_size=32, high=convnext((8, 16, 24, 32)), high_size=32,
    llm=tiny_llama(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=340),
    max_objects=3, max_parts=4, mgfe_heads=4,
)  # fmt: skip
CONFIG = UniRESPlusPlusConfig(
    mllm=TINY, head=PyramidHeadConfig(width=16, heads=2), loss=LossConfig(dense=0.5), dense_classes=(3, 3, 3)
)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(
        [*TRAINING_TEMPLATES, "the red square", "the blue square", "both squares"] * 3, 340
    )


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary) -> UniRESPlusPlusModel:
    return new_model(vocabulary)


def new_model(vocabulary: Vocabulary, config: UniRESPlusPlusConfig = CONFIG) -> UniRESPlusPlusModel:
    torch.manual_seed(0)
    return UniRESPlusPlusModel(config, vocabulary).eval()


def picture(index: int, height: int = 32, width: int = 32) -> ImageRecord:
    """Two squares on grey; four expressions and one dialogue."""
    rng = np.random.default_rng(index)
    pixels = np.full((height, width, 3), 120, dtype=np.uint8)
    dense = np.zeros((height, width, 3), dtype=np.uint8)
    rles = []
    for colour, place in ((0, 2), (2, 18)):
        y = int(rng.integers(2, height - 12))
        mask = np.zeros((height, width), dtype=bool)
        mask[y : y + 9, place : place + 9] = True
        pixels[mask] = 30
        pixels[mask, colour] = 220
        dense[mask] = (1, 1 + colour // 2, 0)
        rles.append(masks.encode(mask))
    both = masks.union(rles, (height, width))

    def expression(n: int, text: str, kind: Granularity, rle: masks.RLE | None) -> Expression:
        return Expression(f"toy/train/{index}_{n}", text, kind, rle, masks.area(rle) if rle else 0)

    return ImageRecord(
        str(index), height, width,
        (
            expression(0, "the red square", Granularity.OBJECT, rles[0]),
            expression(1, "the blue square", Granularity.PART, rles[1]),
            expression(2, "both squares", Granularity.MULTI, both),
            expression(3, "the green square", Granularity.NONE, None),
        ),
        pixels=pixels, dense=dense,
        dialogues=(
            Dialogue(f"toy/train/{index}_d", (
                Turn("red and green?", (Phrase("red", rles[0], Granularity.OBJECT),
                                        Phrase("green", None, Granularity.NONE))),
                Turn("how many?", answer="two."),
            )),
        ),
    )  # fmt: skip


def batch_of(
    records: list[ImageRecord], vocabulary: Vocabulary, config: UniRESPlusPlusConfig = CONFIG
) -> Batch:
    samples = [
        make_sample(r, photo_of(r), r.expressions, r.dialogues, range(len(r.expressions)), config, vocabulary)
        for r in records
    ]
    return collate(samples, config, vocabulary)


def gradients(model: UniRESPlusPlusModel, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step over micro-batches, the way the loop does it."""
    model.zero_grad()
    counts: dict[str, int] = {}
    for batch in batches:
        for key, value in model.counts(batch).items():
            counts[key] = counts.get(key, 0) + value
    total = 0.0
    for batch in batches:
        loss = model.loss(model(batch), batch).total(counts)
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_batch_1_accumulated_8_times_equals_a_batch_of_8(
    model: UniRESPlusPlusModel, vocabulary: Vocabulary
) -> None:
    records = [picture(i) for i in range(8)]
    # Unequal images: one without any target, one with a single expression.
    records[1] = replace(records[1], expressions=records[1].expressions[3:], dialogues=())
    records[5] = replace(records[5], expressions=records[5].expressions[:1], dialogues=())
    whole = gradients(model, [batch_of(records, vocabulary)])
    cut = gradients(model, [batch_of([r], vocabulary) for r in records])
    assert whole[0] == pytest.approx(cut[0], rel=1e-5)
    assert whole[1].keys() == cut[1].keys()
    for name, gradient in whole[1].items():
        torch.testing.assert_close(gradient, cut[1][name], atol=2e-5, rtol=1e-3, msg=name)


def test_every_part_learns(model: UniRESPlusPlusModel, vocabulary: Vocabulary) -> None:
    opened = new_model(vocabulary)
    for name, parameter in opened.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.5)
    _, found = gradients(opened, [batch_of([picture(0), picture(1)], vocabulary)])
    silent = [n for n, p in opened.named_parameters() if n not in found or not found[n].any()]
    # CLIP's final norm works on the CLS token alone, which LLaVA-type models do not read.
    assert [n for n in silent if "post_layernorm" not in n] == []


def test_mask_losses_equal_the_formulas_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator)
    truth = torch.rand(3, 4, 5, generator=generator) > 0.5
    valid = torch.rand(3, 4, 5, generator=generator) > 0.2
    bce = dice = 0.0
    for e in range(3):
        p, g = logits[e][valid[e]].sigmoid().double(), truth[e][valid[e]].double()
        bce += float(-(g * p.log() + (1 - g) * (1 - p).log()).mean())
        dice += float(1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1))
    got = mask_sums(logits, truth & valid, valid)
    assert (float(got[0]), float(got[1])) == pytest.approx((bce, dice), rel=1e-5)
    iou = true_iou(torch.where(truth, 5.0, -5.0), truth, torch.ones_like(valid))
    assert iou.tolist() == [1.0, 1.0, 1.0]


def test_masks_are_supervised_only_where_the_truth_has_one(
    model: UniRESPlusPlusModel, vocabulary: Vocabulary
) -> None:
    record = replace(picture(0), dialogues=(), expressions=picture(0).expressions[3:])
    batch = batch_of([record], vocabulary)
    sums = model.loss(model(batch), batch).sums
    assert float(sums["mask"]) == float(sums["dice"]) == float(sums["quality"]) == 0.0
    assert float(sums["presence"]) > 0.0


def test_answers_do_not_depend_on_the_batch(model: UniRESPlusPlusModel) -> None:
    photos = [picture(0).pixels, picture(1, 20, 41).pixels, picture(2, 50, 33).pixels]
    texts = [["the red square", "both squares"], ["a much longer question about the blue square"], ["green"]]
    together = model.answer(model.encode_images(photos), texts, Decoding(max_new_tokens=4))
    alone = [
        model.answer(model.encode_images([photo]), [[text]], Decoding(max_new_tokens=4))[0]
        for photo, row in zip(photos, texts, strict=True)
        for text in row
    ]
    sizes = [(32, 32)] * 2 + [(20, 41), (50, 33)]
    for one, other, size in zip(together, alone, sizes, strict=True):
        assert one.text == other.text
        assert one.rejected == other.rejected
        assert one.p_absent == pytest.approx(other.p_absent, abs=1e-4)
        a, b = (p.rle or p.mask_if_forced for p in (one, other))
        assert a is not None and b is not None and tuple(a["size"]) == size
        assert masks.area(masks.union([a, b], size)) - masks.intersection_area(a, b) <= 2


def test_a_photo_is_encoded_once_for_all_its_questions(
    model: UniRESPlusPlusModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towers, prefix and the mask head's features are computed once, whatever is asked later."""
    calls: list[str] = []
    for owner, name in (
        (type(model.mllm), "encode_image"),
        (type(model.mllm), "prefill"),
        (PyramidHead, "encode"),
    ):
        original = getattr(owner, name)

        def counted(self: object, *args: object, _name: str = name, _do: object = original) -> object:
            calls.append(_name)
            return _do(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(owner, name, counted)
    predictor = Predictor(model, Decoding(max_new_tokens=2))
    predictor.set_image(picture(0).pixels)
    for text in ("the red square", Question("and blue?", (("the red square", "[SEG]."),))):
        predictor.segment(text)
    predictor.segment([f"square {i}" for i in range(40)])
    assert sorted(calls) == ["encode", "encode_image", "prefill"]


def test_answers_come_in_parts_without_a_change(
    model: UniRESPlusPlusModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer masks at once and a cache of one row: the same text and masks, states within rounding."""
    encoded = model.encode_images([picture(0).pixels, picture(1, 20, 32).pixels])
    texts = [["the red square", "both"], ["the blue square", "wheel", "the green square"]]
    whole = model.answer(encoded, texts, Decoding(max_new_tokens=4))
    monkeypatch.setattr("uniresxx.model.answering.ANSWERS_AT_ONCE", 2)
    parts = model.answer(encoded, texts, Decoding(max_new_tokens=4, cache_bytes=1))
    for a, b in zip(whole, parts, strict=True):
        assert (a.text, a.rle, a.mask_if_forced) == (b.text, b.rle, b.mask_if_forced)
        assert a.p_absent == pytest.approx(b.p_absent, abs=1e-4) and a.score == pytest.approx(
            b.score, abs=1e-4
        )
    assert "cache_bytes" not in Decoding(cache_bytes=1).describe("token")


def always_seg(vocabulary: Vocabulary, then: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits that ask for [SEG], and from the second step on for `then`."""
    steps = itertools.chain([vocabulary.seg], itertools.repeat(vocabulary.encode(then)[-1]))

    def logits(states: torch.Tensor) -> torch.Tensor:
        token = torch.full(states.shape[:-1], next(steps))
        return torch.nn.functional.one_hot(token, CONFIG.mllm.token_count).float() * 50

    return logits


@pytest.mark.parametrize("template", ["Segment {expression}.", "{expression}"])
def test_a_question_for_one_phrase_ends_at_the_full_stop(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    model = new_model(vocabulary)
    monkeypatch.setattr(model.mllm, "logits", always_seg(vocabulary, "."))
    decoding = Decoding(template=template, max_new_tokens=6)
    answer = model.answer(model.encode_images([picture(0).pixels]), [["the red square"]], decoding)[0]
    assert (answer.text, answer.truncated) == ("[SEG].", False)


@pytest.mark.parametrize("rule", ["token", "token_and_presence"])
def test_an_answer_without_a_pixel_is_not_there(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, rule: DecisionRule
) -> None:
    model = new_model(vocabulary)
    record = picture(0)
    encoded = model.encode_images([record.pixels])
    for pixels, rejected in ((0, True), (1, False)):
        mask = np.arange(32 * 32).reshape(32, 32) < pixels
        monkeypatch.setattr("uniresxx.model.answering.photo_masks", lambda *_, mask=mask: [mask])
        monkeypatch.setattr(model.mllm, "logits", always_seg(vocabulary, "."))
        monkeypatch.setattr(model.head, "forward", certain(model.head.forward))
        answer = model.answer(encoded, [["the red square"]], Decoding(rule=rule))[0]
        assert answer.text == "[SEG]." and answer.p_absent < 0.5
        assert answer.rejected is rejected and (answer.rle is None) is rejected
        assert [part.rle is None for part in answer.segments] == [rejected]
        assert (answer.mask_if_forced is not None) is rejected


def certain(forward: Callable[..., HeadOutput]) -> Callable[..., HeadOutput]:
    """A mask head that sees everything in the picture."""

    def output(*args: object) -> HeadOutput:
        plain = forward(*args)
        return plain._replace(presence_E=torch.full_like(plain.presence_E, 9.0))

    return output


def test_of_several_masks_those_without_a_pixel_are_left_out() -> None:
    some, none = np.eye(4, dtype=bool), np.zeros((4, 4), dtype=bool)
    answer = prediction_of("a: [SEG], b: [SEG].", [some, none], [True, True], [0.3, 0.9], [0.1, 0.1])
    assert answer.rle == masks.encode(some) and not answer.rejected and answer.score == 0.3
    assert [part.rle for part in answer.segments] == [masks.encode(some), None]


def test_marks_typed_by_a_user_change_no_count(model: UniRESPlusPlusModel) -> None:
    photo = picture(0).pixels
    encoded = model.encode_images([photo])
    for text in ("[SEG] [SEG] [REJ] <image>", "<object><part><image>" * 3):
        prediction = model.answer(encoded, [[text]], Decoding(max_new_tokens=3))[0]
        assert len(prediction.segments) <= 3  # at most one per generated token, none per typed mark
        ids = asked_branches([[text]], Decoding(), model.vocabulary, CONFIG.mllm.chat)[1][0]
        assert not {model.vocabulary.seg, model.vocabulary.rej, model.vocabulary.image} & set(ids)
    assert encoded.prefix.length == model.encode_images([picture(1).pixels]).prefix.length


def test_a_photo_of_one_pixel_and_one_without_boxes_get_answers(model: UniRESPlusPlusModel) -> None:
    for photo in (np.zeros((1, 1, 3), dtype=np.uint8), np.full((40, 7, 3), 255, dtype=np.uint8)):
        prediction = model.answer(
            model.encode_images([photo]), [["the red square"]], Decoding(max_new_tokens=2)
        )[0]
        rle = prediction.rle or prediction.mask_if_forced
        assert rle is not None and tuple(rle["size"]) == photo.shape[:2]


def test_history_reaches_the_answer(model: UniRESPlusPlusModel) -> None:
    encoded = model.encode_images([picture(0).pixels])
    asked = [Question("and its roof?"), Question("and its roof?", (("segment the car.", "[SEG]."),))]
    rows = asked_branches([asked], Decoding(template="{expression}"), model.vocabulary, CONFIG.mllm.chat)[1]
    assert len(rows[1]) > len(rows[0]) and model.vocabulary.seg in rows[1]
    a, b = model.answer(encoded, [asked], Decoding(template="{expression}", max_new_tokens=2))
    assert a.p_absent != b.p_absent


def test_generated_turns_render_to_the_same_row(vocabulary: Vocabulary) -> None:
    turn = dialogue_turn(picture(0).dialogues[0].turns[0])
    learned = render([turn], vocabulary)
    start = learned.ids_T.index(vocabulary.assistant) + 1
    text = vocabulary.decode(learned.ids_T[start:])
    assert text == "red: [SEG], green: [REJ]."
    assert render([generated_turn(turn.question, text)], vocabulary) == learned


def test_a_checkpoint_answers_as_the_model_does(model: UniRESPlusPlusModel, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "m", model)
    loaded = load_segmenter(tmp_path / "m")
    assert isinstance(loaded, Segmenter) and isinstance(model, Segmenter)
    photo = picture(3).pixels
    ask = [["the red square", "both squares"]]
    assert loaded.answer(loaded.encode_images([photo]), ask, Decoding()) == model.answer(
        model.encode_images([photo]), ask, Decoding()
    )


def test_config_round_trip_and_refusals() -> None:
    assert UniRESPlusPlusConfig.from_dict(CONFIG.to_dict()) == CONFIG
    with pytest.raises(InputError, match="another kind"):
        UniRESPlusPlusConfig.from_dict({"model_type": "llava"})
    with pytest.raises(InputError, match="unknown_field"):
        UniRESPlusPlusConfig.from_dict(CONFIG.to_dict() | {"unknown_field": 1})


def test_former_values_in_a_config_are_read_as_the_current_ones() -> None:
    written = CONFIG.to_dict()
    assert written["boxes"] == "classical"
    assert UniRESPlusPlusConfig.from_dict(written | {"boxes": "segmenter"}) == CONFIG
    with pytest.raises(InputError, match="boxes='segments'"):
        UniRESPlusPlusConfig.from_dict(written | {"boxes": "segments"})


def test_truth_boxes_are_refused_without_truth() -> None:
    """Also where only one level is known, as of a data set that marks no parts."""
    objects = replace(picture(0), boxes={"object": np.array([[0.0, 0.0, 4.0, 4.0]])})
    for record in (None, replace(objects, boxes={}), objects):
        with pytest.raises(InputError, match="ablation"):
            view_photo(picture(0).pixels, replace(CONFIG, boxes="truth"), record)


@pytest.mark.parametrize("boxes", ["shuffled", "random"])
def test_box_controls_keep_counts_move_boxes_and_ignore_the_batch(vocabulary: Vocabulary, boxes: str) -> None:
    plain, control = new_model(vocabulary), new_model(vocabulary, replace(CONFIG, boxes=boxes))
    photos = [picture(0).pixels, picture(1).pixels]
    a, b = plain.encode_images(photos), control.encode_images(photos)
    assert torch.equal(a.prefix.valid_BL, b.prefix.valid_BL)
    real, used, alone = (
        plain.regions(a)[0],
        control.regions(b)[0],
        control.regions(control.encode_images(photos[:1]))[0],
    )
    for stream in ("object", "part"):
        assert len(real[stream]) == len(used[stream]) > 0 and not np.allclose(real[stream], used[stream])
        assert np.array_equal(used[stream], alone[stream])
        assert (used[stream] >= -1e-3).all() and (used[stream] <= 32 + 1e-3).all()
        if boxes == "shuffled":
            sizes = [np.sort((r[stream][:, 2:] - r[stream][:, :2]), axis=0) for r in (real, used)]
            np.testing.assert_allclose(*sizes, atol=1e-3)


def test_truth_boxes_are_used_only_where_the_config_names_them(vocabulary: Vocabulary) -> None:
    record = replace(picture(0), boxes={"object": np.array([[1.0, 2, 9, 9]]), "part": np.zeros((0, 4))})
    with_truth = new_model(vocabulary, replace(CONFIG, boxes="truth"))
    assert np.allclose(with_truth.regions(encode_records(with_truth, [record]))[0]["object"], [[1, 2, 9, 9]])
    plain = new_model(vocabulary)
    assert not np.allclose(plain.regions(encode_records(plain, [record]))[0]["object"][:1], [[1, 2, 9, 9]])


def test_boxes_never_lie_on_the_padding() -> None:
    for height, width in ((25, 32), (32, 21), (64, 60)):
        letterbox = Letterbox.fit(height, width, 32)
        view = view_photo(picture(0, 32, 32).pixels[:height, :width] if height < 33 else
                          np.tile(picture(0).pixels, (2, 2, 1))[:height, :width], CONFIG)  # fmt: skip
        for boxes in (view.boxes.objects, view.boxes.parts):
            assert (boxes[:, 2] <= letterbox.inner_width).all() and (
                boxes[:, 3] <= letterbox.inner_height
            ).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_batch_without_expressions_or_without_words_has_a_loss(
    model: UniRESPlusPlusModel, vocabulary: Vocabulary
) -> None:
    talk = Dialogue("toy/train/talk", (Turn("how many?", answer="two."),))
    for dialogues in ((talk,), ()):
        record = replace(picture(0), expressions=(), dialogues=dialogues)
        batch = batch_of([record, record], vocabulary)
        terms = model.loss(model(batch), batch)
        assert torch.isfinite(terms.total(model.counts(batch)))
        assert batch.token_ids_BT.dtype == torch.long


def test_losses_are_summed_in_fp32_whatever_the_logits_are(
    model: UniRESPlusPlusModel, vocabulary: Vocabulary
) -> None:
    batch = batch_of([picture(0), picture(1)], vocabulary)
    with torch.no_grad():
        output = model(batch)
        head = output.head
        rounded = [t.bfloat16() for t in (head.masks_Ehw, head.quality_E, head.presence_E)]
        low = output._replace(head=HeadOutput(*rounded))
        same = output._replace(head=HeadOutput(*(t.float() for t in rounded)))
        a, b = (model.loss(o, batch).total(model.counts(batch)) for o in (low, same))
    assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_the_own_state_of_a_mark_is_the_prompt_in_training_too(vocabulary: Vocabulary) -> None:
    config = replace(CONFIG, mllm=replace(TINY, prompt_state="own"))
    own, before = new_model(vocabulary, config), new_model(vocabulary)
    batch = batch_of([picture(0)], vocabulary)
    with torch.no_grad():
        assert torch.equal(own(batch).logits_YV, before(batch).logits_YV)
        assert not torch.allclose(own(batch).head.masks_Ehw, before(batch).head.masks_Ehw)


def test_unknown_words_in_the_config_are_refused() -> None:
    for wrong in ({"boxes": "truht"}, {"decision_rule": "maybe"}, {"head": {"width": 60}}):
        values = CONFIG.to_dict() | wrong
        with pytest.raises(InputError, match="does not fit"):
            UniRESPlusPlusConfig.from_dict(values)


def test_options_that_a_source_would_ignore_are_refused() -> None:
    recipe = KNOWN["tiny_scenes"]()
    for changes in ({"split": "val"}, {"first_images": 5}, {"source": "mini_real"}):
        with pytest.raises(InputError):
            open_job(replace(recipe, data=replace(recipe.data, **changes)), None)


def test_batches_are_a_pure_function_of_step_and_micro(vocabulary: Vocabulary) -> None:
    source = Mixture((OpenedPart("pictures", [picture(i) for i in range(5)], 3),), seed=3)
    whole = Batches(source, PackedCollator(CONFIG, vocabulary), 7, 6, 1, 3, 0.5)
    halves = Batches(source, PackedCollator(CONFIG, vocabulary), 7, 3, 2, 3, 0.5)
    late_first = [whole(2, 0), whole(0, 0)]
    for step in (0, 2):
        one = whole(step, 0)
        two = [halves(step, 0), halves(step, 1)]
        assert one.expression_ids == two[0].expression_ids + two[1].expression_ids
        assert torch.equal(one.pixels_high_B3HW, torch.cat([b.pixels_high_B3HW for b in two]))
        assert torch.equal(one.masks_EHW, torch.cat([b.masks_EHW for b in two]))
    assert torch.equal(late_first[1].token_ids_BT, whole(0, 0).token_ids_BT)


def test_an_epoch_shows_every_record_once() -> None:
    source = Mixture((OpenedPart("pictures", [picture(i) for i in range(5)], 3),), seed=3)
    for epoch in range(3):
        assert sorted(source(slot).image_id for slot in range(5 * epoch, 5 * epoch + 5)) == list("01234")


def test_curriculum_changes_the_preset_at_its_slot() -> None:
    source = SceneSource("scenes", 0, "scenes_easy", 2)
    assert [source(slot).height for slot in (0, 1, 2, 3)] == [64, 64, 128, 128]


@pytest.mark.parametrize(("preset", "colours"), [("scenes_easy", 6), ("scenes", 8)])
def test_the_first_warmup_is_exact_by_pixel_and_names_what_is_absent(preset: str, colours: int) -> None:
    plain, warmup = SceneSource(preset, 0), SceneSource(preset, 0, warmup_slots=6)
    for slot in range(6):
        record, warmed = plain(slot), warmup(slot)
        asked = {
            e.expression_id.rsplit("_", 1)[1]: e for e in warmed.expressions if "_warmup_" in e.expression_id
        }
        assert record.dense is not None and np.array_equal(record.pixels, warmed.pixels)
        things, left = record.dense[..., 0] > 0, np.arange(record.width) < record.width // 2
        expected = {"left": things & left, "right": things & ~left}
        names = preset_of(preset).colours
        expected |= {name: record.dense[..., 1] == i for i, name in enumerate(names, start=1)}
        assert len(names) == colours
        for name, mask in expected.items():
            if 0 < mask.sum() < 12:
                assert name not in asked
            elif mask.any():
                assert np.array_equal(masks.decode(asked[name].rle), mask)
            else:
                assert asked[name].rle is None and asked[name].granularity == "none"
        kept = {e.expression_id for e in warmed.expressions} - {e.expression_id for e in asked.values()}
        assert kept < {e.expression_id for e in record.expressions}
    assert warmup(6).expressions == plain(6).expressions


def test_a_fifth_of_the_branches_are_conversations_where_there_are_enough(vocabulary: Vocabulary) -> None:
    batches = Batches(SceneSource("scenes_easy", 0), PackedCollator(CONFIG, vocabulary), 7, 1, 1, 10, 0.2)
    single = talk = 0
    for slot in range(40):
        row = batches.draw(slot).sample.row
        turns = [row.ids_T[i] == vocabulary.assistant for i in range(len(row.ids_T))]
        branches = row.branch_T[-1] + 1
        chosen = min(10, len(batches.source(slot).expressions))
        single, talk = single + chosen, talk + branches - chosen
        assert sum(turns) >= branches
    assert 0.15 <= talk / (single + talk) <= 0.25


def test_unlabelled_pixels_do_not_count(model: UniRESPlusPlusModel, vocabulary: Vocabulary) -> None:
    record = picture(0)
    assert record.dense is not None
    hidden = record.dense.copy()
    hidden[8:24, :, 2] = 255
    one, two = (batch_of([replace(record, dense=d)], vocabulary) for d in (record.dense, hidden))
    with torch.no_grad():
        output = model(one)
        full, masked = (float(model.loss(output, batch).sums["dense"]) for batch in (one, two))
    assert np.isfinite(masked) and 0 < masked < full


def test_words_are_told_as_they_are_generated(model: UniRESPlusPlusModel) -> None:
    told: list[tuple[int, str]] = []
    photos = [picture(0).pixels, picture(1).pixels]
    texts = [["the red square", "it"], ["a blue thing"]]
    decoding = Decoding(template="{expression}", max_new_tokens=4, cache_bytes=1)
    found = model.answer(
        model.encode_images(photos), texts, decoding, lambda i, words: told.append((i, words))
    )
    assert {number for number, _ in told} == {0, 1, 2}
    for number, prediction in enumerate(found):
        words = [words for other, words in told if other == number]
        assert words[-1] == prediction.text and len(words) <= 4
        assert all(later.startswith(before) for before, later in itertools.pairwise(words))


def test_the_oldest_turns_go_where_the_context_is_full(
    model: UniRESPlusPlusModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = model.encode_images([picture(0).pixels])
    turns = tuple((f"the square {number}", "[SEG].") for number in range(40))
    short = Question("and blue?", turns[-3:])
    decoding = Decoding(template="{expression}", max_new_tokens=3)
    _, ((*ids,),) = asked_branches([[short]], decoding, model.vocabulary, model.config.mllm.chat)
    limit = encoded.prefix.length + len(ids) + decoding.max_new_tokens
    llm = model.config.mllm.llm | {"max_position_embeddings": limit}
    monkeypatch.setattr(model.mllm, "config", replace(model.config.mllm, llm=llm))
    long, fits = model.answer(encoded, [[Question("and blue?", turns), short]], decoding)
    assert (long.dropped_turns, fits.dropped_turns) == (37, 0)
    assert replace(long, dropped_turns=0).text == fits.text and long.p_absent == pytest.approx(fits.p_absent)
