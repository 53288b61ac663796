"""GSVA's way of asking: what is learned is what is asked, and an answer goes on from the model's own decisions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mllm.chat import IGNORE
from mllm.tokens import REJ, SEG
from train.assemble import open_job
from train.recipes import KNOWN
from uniresxx.data.scenes import scene_record
from uniresxx.data.store.photos import photo_of
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.types import AS_TYPED, EVALUATION_TEMPLATE, Decoding, ImageRecord, Question

TRAINED_AS_ASKED = 1  # TRAINING_TEMPLATES[1] is the question of an evaluation


@pytest.fixture(scope="module")
def model() -> UniRESPlusPlusModel:
    recipe = KNOWN["tiny_scenes"]()
    recipe = replace(recipe, model=replace(recipe.model, ask_together=True))
    torch.manual_seed(0)
    return open_job(recipe, None).model.eval()


def scene(number: int) -> ImageRecord:
    record = scene_record("scenes_easy", "val", number)
    return replace(record, expressions=record.expressions[: 6 - number], dialogues=())


def test_a_row_has_one_question_and_a_decision_for_each_expression(model: UniRESPlusPlusModel) -> None:
    record = scene(0)
    sample = model.collator.sample(record, photo_of(record), [TRAINED_AS_ASKED] * 6)
    assert set(sample.row.branch_T) == {0}
    marks = [SEG if e.rle else REJ for e in record.expressions]
    texts = [e.text for e in record.expressions]
    answer = ", ".join(f"{text}: {mark}" for text, mark in zip(texts, marks, strict=True))
    said = model.vocabulary.decode(sample.row.ids_T)
    assert f"segment {', '.join(texts)}." in said
    learned = [token for token in sample.row.labels_T if token != IGNORE]
    assert model.vocabulary.decode(learned).replace(":[", ": [").startswith(f"{answer}.")
    decided = [sample.row.labels_T[place] for place in sample.row.decisions]
    assert decided == [model.vocabulary.seg if mark == SEG else model.vocabulary.rej for mark in marks]


def test_an_answer_has_the_states_that_training_has_for_the_models_own_decisions(
    model: UniRESPlusPlusModel,
) -> None:
    records = [scene(0), scene(1)]
    seen: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    encoded = model.encode_images([photo_of(record) for record in records])
    texts = [[e.text for e in record.expressions] for record in records]
    predictions = model.answer(encoded, texts, Decoding(template=EVALUATION_TEMPLATE, rule="token"))
    assert len(predictions) == 11
    some = next(e.rle for e in records[0].expressions if e.rle)
    decided = iter(p.text == SEG for p in predictions)  # not p.rejected: an empty mask is never accepted
    as_decided = [
        replace(
            record,
            expressions=tuple(replace(e, rle=some if next(decided) else None) for e in record.expressions),
        )
        for record in records
    ]
    samples = [
        model.collator.sample(r, photo_of(r), [TRAINED_AS_ASKED] * len(r.expressions)) for r in as_decided
    ]
    with torch.no_grad():
        model(model.collator.collate(samples))
    hook.remove()
    answered, trained = seen
    torch.testing.assert_close(answered, trained, atol=1e-5, rtol=0)


def test_a_typed_question_is_answered_as_ever(model: UniRESPlusPlusModel) -> None:
    record = scene(0)
    encoded = model.encode_images([photo_of(record)])
    asked = [[Question("Segment the car.", (("Segment the dog.", "[REJ]."),))]]
    [one] = model.answer(encoded, asked, Decoding(template=AS_TYPED))
    apart = replace(model.config, ask_together=False)
    model.config, kept = apart, model.config
    try:
        [other] = model.answer(encoded, asked, Decoding(template=AS_TYPED))
    finally:
        model.config = kept
    assert one == other
