"""The FiLM-UNet baseline on toy pictures: coloured squares that are asked for by colour and side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mllm.config import MLLMConfig, tiny_llama
from mllm.tokens import Vocabulary
from train.recipes import KNOWN
from uniresxx.checkpoints.folders import CONFIG, save_pretrained
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.imaging.masks import encode
from uniresxx.model.collate import collate, make_sample
from uniresxx.model.config import LossConfig, UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.segmenters.base import Segmenter
from uniresxx.segmenters.film_unet.config import FilmUNetConfig
from uniresxx.segmenters.film_unet.modeling import FilmUNet, questions_of
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import (
    Batch,
    Decoding,
    Dialogue,
    Expression,
    Granularity,
    ImageRecord,
    Phrase,
    Question,
    Turn,
)

torch.set_num_threads(1)
SIDE = 32
COLOURS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 230)}
TOY = FilmUNetConfig(
    inputs=UniRESPlusPlusConfig(
        mllm=MLLMConfig(
            low_size=SIDE,
            high_size=SIDE,
            llm=tiny_llama(vocab_size=400, num_hidden_layers=1),
        ),
        boxes="truth",
    ),
    widths=(16, 32, 64),
    text_width=32,
)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    words = ["the left square", "the right square", *COLOURS, "now the other one", "segment find show"]
    return Vocabulary.train(words * 4, 380)


def toy_record(left: str, right: str, height: int = SIDE) -> ImageRecord:
    """Two squares; every colour and both sides are asked for, absent colours have no mask."""
    pixels = np.full((height, SIDE, 3), 120, dtype=np.uint8)
    boxes = {left: (slice(6, 16), slice(3, 13)), right: (slice(8, 20), slice(18, 30))}
    masks = {}
    for colour, box in boxes.items():
        pixels[box] = COLOURS[colour]
        mask = np.zeros((height, SIDE), dtype=bool)
        mask[box] = True
        masks[colour] = encode(mask)
    asked = {colour: masks.get(colour) for colour in COLOURS}
    asked |= {"the left square": masks[left], "the right square": masks[right]}
    expressions = tuple(
        Expression(f"toy/{left}{right}/{text}", text, Granularity.OBJECT if rle else Granularity.NONE, rle)
        for text, rle in asked.items()
    )
    this, that = (Phrase("it", masks[colour], Granularity.OBJECT) for colour in (left, right))
    both = (this, Phrase("cat", None, Granularity.NONE))
    turns = (Turn("the left square", (this,)), Turn("now the other one", (that,)), Turn("both", both))
    dialogue = Dialogue("toy", turns)
    return ImageRecord(f"{left}{right}", height, SIDE, expressions, pixels=pixels, dialogues=(dialogue,))


RECORDS = (toy_record("red", "blue"), toy_record("green", "red", 24), toy_record("blue", "green"))


def batch_of(records: tuple[ImageRecord, ...], vocabulary: Vocabulary, talk: bool = True) -> Batch:
    samples = [
        make_sample(
            r,
            photo_of(r),
            r.expressions,
            r.dialogues if talk and i != 1 else (),
            range(5),
            TOY.view,
            vocabulary,
        )
        for i, r in enumerate(records)
    ]
    return collate(samples, TOY.view, vocabulary)


def decisions(batch: Batch) -> list[tuple[int, int]]:
    """(row, position) of each."""
    return list(zip(batch.image_of_expr_E.tolist(), batch.seg_position_E.tolist(), strict=True))


def make(vocabulary: Vocabulary, config: FilmUNetConfig = TOY) -> FilmUNet:
    torch.manual_seed(0)
    return FilmUNet(config, vocabulary)


def test_forward_and_backward_reach_every_parameter(vocabulary: Vocabulary) -> None:
    model, batch = make(vocabulary), batch_of(RECORDS, vocabulary)
    output = model(batch)
    count = len(batch.present_E)
    assert output.masks_Ehw.shape == (count, SIDE // 2, SIDE // 2)
    assert output.quality_E.shape == output.presence_E.shape == (count,)
    terms, counts = model.loss(output, batch), model.counts(batch)
    assert terms.sums.keys() == counts.keys() == {"mask", "dice", "quality", "presence"}
    assert counts["presence"] == count and 0 < counts["mask"] == int(batch.present_E.sum()) < count
    terms.total(counts).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_batch_without_decisions_has_a_finite_loss(vocabulary: Vocabulary) -> None:
    model = make(vocabulary)
    words = Dialogue("words", (Turn("what is it?", answer="two squares"),))
    empty = collate(
        [make_sample(RECORDS[0], photo_of(RECORDS[0]), (), (words,), (), TOY.view, vocabulary)],
        TOY.view,
        vocabulary,
    )
    total = model.loss(model(empty), empty).total(model.counts(empty))
    assert total.item() == 0.0
    total.backward()


def test_questions_are_the_branch_up_to_the_decision(vocabulary: Vocabulary) -> None:
    """Against a loop that reads each row token by token."""
    batch = batch_of(RECORDS, vocabulary)
    ids_EQ, length_E = questions_of(batch, vocabulary.pad)
    for e, (b, stop) in enumerate(decisions(batch)):
        question = [
            int(batch.token_ids_BT[b, t])
            for t in range(stop + 1)
            if batch.branch_BT[b, t] == batch.branch_BT[b, stop]
        ]
        assert ids_EQ[e, : length_E[e]].tolist() == question
        assert (ids_EQ[e, length_E[e] :] == vocabulary.pad).all()
        assert question[0] == vocabulary.user
        assert int(batch.token_ids_BT[b, stop + 1]) in (vocabulary.seg, vocabulary.rej)


def test_an_answer_changes_nothing_of_its_own_decision(vocabulary: Vocabulary) -> None:
    model, batch = make(vocabulary).eval(), batch_of(RECORDS, vocabulary)
    before = model(batch)
    garbled = batch.token_ids_BT.clone()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 380, garbled.shape, generator=generator)
    single = torch.ones(len(batch.present_E), dtype=torch.bool)
    for e, (b, stop) in enumerate(decisions(batch)):
        after = (batch.branch_BT[b] == batch.branch_BT[b, stop]) & (torch.arange(garbled.shape[1]) > stop)
        garbled[b, after] = noise[b, after]  # of a conversation, all after its first decision
        single[e] = batch.expression_ids[e] != "toy"
    firsts = [e for e in range(len(single)) if single[e] or (e and single[e - 1])]
    assert int((~single).sum()) == 8 and len(firsts) == int(single.sum()) + 2
    after = model(replace(batch, token_ids_BT=garbled, labels_BT=torch.zeros_like(garbled)))
    assert torch.equal(before.masks_Ehw[firsts], after.masks_Ehw[firsts])
    assert torch.equal(before.presence_E[firsts], after.presence_E[firsts])
    assert torch.equal(before.quality_E[firsts], after.quality_E[firsts])
    later = [e for e in range(len(single)) if e not in firsts]
    assert (before.presence_E[later] != after.presence_E[later]).all()  # earlier turns are read


def test_a_batch_equals_one_image_at_a_time(vocabulary: Vocabulary) -> None:
    model = make(vocabulary).eval()
    with torch.no_grad():
        together = model(batch_of(RECORDS, vocabulary, talk=False))
        apart = [model(batch_of((record,), vocabulary, talk=False)) for record in RECORDS]
    for name in ("masks_Ehw", "quality_E", "presence_E"):
        one_by_one = torch.cat([getattr(output, name) for output in apart])
        assert (getattr(together, name) - one_by_one).abs().max() <= 1e-5


def losses_of_training(model: Any, batch: Any, steps: int, lr: float) -> list[float]:
    """Train a model on one batch; the loss of every step."""
    optimizer, losses = torch.optim.AdamW(model.train().parameters(), lr), []
    for _ in range(steps):
        loss = model.loss(model(batch), batch).total(model.counts(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def train_toy(vocabulary: Vocabulary, steps: int) -> tuple[FilmUNet, list[float]]:
    """The toy model on the toy pictures, with the loss of every step."""
    model = make(vocabulary)
    return model, losses_of_training(model, batch_of(RECORDS, vocabulary), steps, 3e-3)


def test_it_learns_and_a_saved_model_answers_the_same(vocabulary: Vocabulary, tmp_path: Path) -> None:
    model, losses = train_toy(vocabulary, 60)
    assert losses[-1] < 0.5 * losses[0]
    save_pretrained(tmp_path, model)
    loaded = load_segmenter(tmp_path)
    assert isinstance(loaded, Segmenter) and isinstance(loaded, FilmUNet) and loaded.config == TOY
    photos = [r.pixels for r in RECORDS if r.pixels is not None]
    history = (("the left square", "[SEG]."),)
    texts = [[e.text for e in r.expressions] for r in RECORDS[:2]]
    texts.append([Question("now the other one", history)])
    answers = model.answer(model.encode_images(photos), texts, Decoding())
    assert answers == loaded.answer(loaded.encode_images(photos), texts, Decoding())
    assert {a.text for a in answers} == {"[SEG].", "[REJ]."}
    asked_of = [record for record, row in zip(RECORDS, texts, strict=True) for _ in row]
    for answer, record in zip(answers, asked_of, strict=True):
        mask = answer.mask_if_forced if answer.rejected else answer.rle
        assert mask is not None and mask["size"] == [record.height, record.width]
        assert answer.rejected == (answer.text == "[REJ].") == (answer.rle is None)
        assert answer.p_absent is not None and answer.rejected == (answer.p_absent >= 0.5)
    truth = [e.rle is None for r in RECORDS[:2] for e in r.expressions]
    assert sum(a.rejected == t for a, t in zip(answers, truth, strict=False)) >= 8  # of 10 memorised


def test_answers_do_not_depend_on_the_batch_or_the_rule(vocabulary: Vocabulary) -> None:
    model, photos = make(vocabulary).eval(), [r.pixels for r in RECORDS if r.pixels is not None]
    texts = [["red"], [], ["segment the left square", "blue"]]
    together = model.answer(model.encode_images(photos), texts, Decoding(rule="token"))
    alone = [
        model.answer(model.encode_images([photos[b]]), [[text]], Decoding(rule="token_and_presence"))[0]
        for b, row in enumerate(texts)
        for text in row
    ]
    assert [(a.rejected, a.text) for a in together] == [(a.rejected, a.text) for a in alone]
    np.testing.assert_allclose([a.score for a in together], [a.score for a in alone], atol=1e-5)
    assert model.answer(model.encode_images(photos), [[], [], []], Decoding()) == []


def test_an_answer_without_a_pixel_is_not_there(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(vocabulary).eval()
    empty = np.zeros((4, 4), dtype=bool)
    monkeypatch.setattr("uniresxx.segmenters.film_unet.modeling.photo_masks", lambda *_: [empty])
    photo = RECORDS[0].pixels
    assert photo is not None
    answer = model.answer(model.encode_images([photo]), [["the red square"]], Decoding())[0]
    assert answer.rejected and answer.rle is None


@pytest.mark.parametrize("stats", ["half", "clip"])
def test_training_and_answering_give_the_same_logits(vocabulary: Vocabulary, stats: str) -> None:
    """One expression through the batch and through encode_images and answer, whatever normalises the pixels."""
    mllm = replace(TOY.inputs.mllm, high_stats=stats)
    config = replace(TOY, inputs=replace(TOY.inputs, mllm=mllm))
    model, record = make(vocabulary, config).eval(), RECORDS[1]
    sample = make_sample(record, photo_of(record), record.expressions[:1], (), (0,), config.view, vocabulary)
    batch = collate([sample], config.view, vocabulary)
    with torch.no_grad():
        output = model(batch)
    assert record.pixels is not None
    answer = model.answer(model.encode_images([record.pixels]), [[record.expressions[0].text]], Decoding())[0]
    assert answer.score == pytest.approx(float(output.quality_E.sigmoid()), abs=1e-6)
    assert answer.p_absent == pytest.approx(1 - float(output.presence_E.sigmoid()), abs=1e-6)


def test_the_recipe_has_the_parameters_of_the_compared_model(vocabulary: Vocabulary) -> None:
    film, compared = KNOWN["film_unet_scenes"](), KNOWN["scenes_hour"]()
    assert isinstance(film.model, FilmUNetConfig) and film.model.inputs == compared.model
    assert (film.data, film.optim, film.seed) == (compared.data, compared.optim, compared.seed)
    models = FilmUNet(film.model, vocabulary), UniRESPlusPlusModel(compared.model, vocabulary)
    own, other = (sum(p.numel() for p in model.parameters()) for model in models)
    ratio = own / other
    assert abs(ratio - 1) <= 0.10, f"{ratio:.3f} of the compared parameters: change widths or text_width"


def test_config_round_trip_and_refusals(vocabulary: Vocabulary, tmp_path: Path) -> None:
    assert FilmUNetConfig.from_dict(json.loads(json.dumps(TOY.to_dict()))) == TOY
    former = TOY.to_dict()
    former["inputs"]["boxes"] = "segmenter"
    assert FilmUNetConfig.from_dict(former).inputs.boxes == "classical"
    with pytest.raises(InputError, match="model_type"):
        FilmUNetConfig.from_dict(TOY.inputs.to_dict())
    with pytest.raises(InputError, match="does not fit"):
        FilmUNetConfig.from_dict(TOY.to_dict() | {"depth": 3})
    with pytest.raises(InputError, match=r"does not fit.*half"):
        FilmUNetConfig.from_dict(TOY.to_dict() | {"loss": TOY.to_dict()["loss"] | {"resolution": "half"}})
    refused = {
        "widths .16, 20": {"widths": (16, 20)},
        "widths .16,": {"widths": (16,)},
        "text_width": {"text_width": 0},
        "high_size=32": {"widths": (16,) * 6},
        "dense": {"loss": LossConfig(dense=0.5)},
        "resolution": {"loss": LossConfig(resolution="photo")},
    }
    for word, change in refused.items():
        with pytest.raises(InputError, match=word):
            replace(TOY, **change)
    save_pretrained(tmp_path, make(vocabulary))
    small = TOY.to_dict()
    small["inputs"]["mllm"]["llm"]["vocab_size"] = 100
    (tmp_path / CONFIG).write_text(json.dumps(small))
    with pytest.raises(InputError, match="exceeds"):
        load_segmenter(tmp_path)
