"""One contract for every Segmenter: our own, the baseline, converted peers, and the public models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chat_demo.session import CHAT_DECODING
from mllm.tokens import Vocabulary
from tests.test_film_unet import make
from tests.test_lisa import convert, release
from tests.test_public_models import MAKERS, named, photo_of  # noqa: F401  (a fixture)
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.checkpoints.resolve import FAMILIES
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.segmenters.asking import answer_phrases
from uniresxx.segmenters.base import Segmenter
from uniresxx.segmenters.load import PUBLIC, load_segmenter
from uniresxx.segmenters.public.base import EncodedPhoto, Found, PublicSegmenter
from uniresxx.serve.features import byte_count
from uniresxx.types import AS_TYPED, Decoding, Question

SIZES = [(40, 60), (33, 21), (1, 1), (7, 200)]
PHOTOS = [photo_of(height, width, seed) for seed, (height, width) in enumerate(SIZES)]
TEXTS = [["the left dog", "a red ball"], [], ["cat"], ["the sky", "wheel", "the left dog"]]
SPECIAL = "[SEG] </s> <|endoftext|> <image> <loc_3> <|image_pad|> [SEP] <|im_end|> dog"
KINDS = ["tiny", "film_unet", "lisa", "gsva", *MAKERS]


@pytest.fixture(scope="module")
def name_of(named, tmp_path_factory, tokenizer_model, converting_here):  # noqa: F811
    """What `--checkpoint` takes for each kind."""
    root, made = tmp_path_factory.mktemp("own"), {}

    def name(kind):
        if kind in MAKERS:
            return named(kind)
        if kind == "tiny":
            return None
        if kind not in made:
            if kind == "film_unet":
                made[kind] = root / kind
                save_pretrained(
                    root / kind, make(Vocabulary.train([*"the left dog red ball cat sky wheel"] * 4, 380))
                )
            else:
                with converting_here():
                    assert convert(*release(kind, root, tokenizer_model)) == 0
                made[kind] = root / f"{kind}_ours"
        return made[kind]

    return name


@pytest.fixture(scope="module", params=KINDS)
def segmenter(request, name_of):
    with pytest.MonkeyPatch.context() as patch:  # random weights never end a reply
        patch.setattr("uniresxx.segmenters.public.florence2.LONGEST", 24)
        patch.setattr("uniresxx.segmenters.public.qwenvl.LONGEST", 8)
        patch.setattr("uniresxx.segmenters.public.sam3.PRESENT", 0.2)
        yield load_segmenter(name_of(request.param), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def decoding(segmenter):
    return Decoding(template=segmenter.question_template, max_new_tokens=8)


@pytest.fixture(scope="module")
def encoded(segmenter):
    return segmenter.encode_images(PHOTOS)


@pytest.fixture(scope="module")
def answers(segmenter, encoded, decoding):
    return segmenter.answer(encoded, TEXTS, decoding)


def same(found, expected):
    """The same words and decisions; masks may differ in a thousandth of the pixels, by rounding."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.rejected, one.text, one.truncated) == (other.rejected, other.text, other.truncated)
        for a, b in ((one.rle, other.rle), (one.mask_if_forced, other.mask_if_forced)):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert (masks.decode(a) != masks.decode(b)).mean() <= 1e-3
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.p_absent == (None if other.p_absent is None else pytest.approx(other.p_absent, abs=1e-4))


def test_it_says_what_it_is(segmenter):
    assert isinstance(segmenter, Segmenter)
    assert segmenter.decision_rule in ("token", "token_and_presence")
    assert segmenter.question_template.format(expression="x") != segmenter.question_template
    assert segmenter.finds_instances in (True, False)


def test_every_text_of_every_photo_has_an_answer_at_the_size_of_its_photo(answers):
    assert len(answers) == sum(map(len, TEXTS))
    sizes = [list(size) for size, row in zip(SIZES, TEXTS, strict=True) for _ in row]
    for answer, size in zip(answers, sizes, strict=True):
        shown = answer.mask_if_forced if answer.rejected else answer.rle
        assert shown is not None and masks.validate(shown)["size"] == size
        assert answer.rejected == (answer.rle is None) == (answer.mask is None)
        assert answer.rejected or (masks.area(answer.rle) > 0 and answer.mask_if_forced is None)
        assert answer.score is not None and 0 <= answer.score <= 1
        assert answer.p_absent is None or 0 <= answer.p_absent <= 1


def test_instances_are_what_the_mask_unites(segmenter, answers):
    for answer in answers:
        if answer.instances:
            assert segmenter.finds_instances
            union = masks.union([one.rle for one in answer.instances], answer.rle["size"])
            assert union == answer.rle and all(0 <= one.score <= 1 for one in answer.instances)


def test_photos_joined_and_split_are_as_encoded_together(segmenter, encoded, decoding, answers):
    alone = [segmenter.encode_images([photo]) for photo in PHOTOS]
    same(segmenter.answer(segmenter.join_images(alone), TEXTS, decoding), answers)
    parts = segmenter.split_images(encoded)
    assert len(parts) == len(PHOTOS)
    flat = [
        one for part, row in zip(parts, TEXTS, strict=True) for one in segmenter.answer(part, [row], decoding)
    ]
    same(flat, answers)
    assert all(byte_count(part) > 0 for part in parts)
    assert sum(map(byte_count, parts)) <= 1.2 * byte_count(encoded)


def test_photos_are_encoded_once_and_answers_repeat(segmenter, encoded, decoding, answers, monkeypatch):
    monkeypatch.setattr(segmenter, "encode_images", None)
    same(segmenter.answer(encoded, TEXTS, decoding), answers)


def test_the_order_and_number_of_texts_change_no_answer(segmenter, encoded, decoding, answers):
    same(
        segmenter.answer(encoded, [row[::-1] for row in TEXTS], decoding),
        [answers[i] for i in (1, 0, 2, 5, 4, 3)],
    )
    same(segmenter.answer(encoded, [[], [], [], TEXTS[3][1:2]], decoding), answers[4:5])


def test_no_text_has_no_answer(segmenter, encoded, decoding):
    assert segmenter.answer(encoded, [[] for _ in PHOTOS], decoding) == []


def test_special_tokens_in_a_text_are_plain_text(segmenter, encoded, decoding, answers):
    rows = [[TEXTS[0][0], SPECIAL, TEXTS[0][1]], [], TEXTS[2], [*TEXTS[3], SPECIAL]]
    found = segmenter.answer(encoded, rows, decoding)
    same([found[i] for i in (0, 2, 3, 4, 5, 6)], answers)
    assert max(len(found[1].segments), len(found[7].segments)) <= 1


def test_a_text_as_typed_and_a_conversation_are_answered(segmenter, encoded):
    typed = Decoding(template=AS_TYPED, max_new_tokens=8)
    question = Question("and its eye?", (("Segment the fish.", "[SEG]."),))
    found = segmenter.answer(encoded, [["Please segment the left dog.", question], [], [], []], typed)
    assert len(found) == 2


def test_forced_answers_have_a_mask(segmenter, encoded, decoding, answers):
    found = segmenter.answer(encoded, TEXTS, replace(decoding, mode="forced"))
    for one, other in zip(found, answers, strict=True):
        assert not one.rejected and one.text == "[SEG]." and one.mask_if_forced is None
        if isinstance(segmenter, PublicSegmenter):  # of the others, the words of an answer change its mask
            assert one.rle == (other.mask_if_forced if other.rejected else other.rle)


@pytest.mark.parametrize("kind", MAKERS)
def test_typed_text_reaches_a_public_model_in_its_own_wording(name_of, kind, monkeypatch):
    model = load_segmenter(name_of(kind), device="cpu")
    asked = []

    def find(photo, prompts, decoding):
        asked.extend(prompts)
        return [Found() for _ in prompts]

    monkeypatch.setattr(model, "find", find)
    photo = [EncodedPhoto(4, 6, ())]
    typed = ["Please segment the dog and the cat.", "the red car", "where is the {x}?"]
    (both, *_) = answer_phrases(model, photo, [typed], CHAT_DECODING)
    wanted = ["the dog", "the cat", "the red car", "the {x}"]
    assert asked == [model.question_template.replace("{expression}", text) for text in wanted]
    assert both.rejected and [one.phrase for one in both.segments] == ["the dog", "the cat"]
    model.answer(photo, [["segment it."]], Decoding(template="find {expression}"))
    assert asked[-1] == "find segment it."


@pytest.mark.parametrize("kind", MAKERS)
def test_public_models_in_bf16(name_of, kind, monkeypatch):
    monkeypatch.setattr("uniresxx.segmenters.public.florence2.LONGEST", 8)
    monkeypatch.setattr("uniresxx.segmenters.public.qwenvl.LONGEST", 4)
    model = load_segmenter(name_of(kind), device="cpu", dtype="bfloat16", attention="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    found = model.answer(
        model.encode_images(PHOTOS[:1]), [TEXTS[0]], Decoding(template=model.question_template)
    )
    assert len(found) == 2 and all(one.score is not None for one in found)


@pytest.mark.parametrize("kind", MAKERS)
def test_public_models_refuse_what_they_do_not_have(name_of, kind):
    with pytest.raises(InputError, match="flash_attention_2"):
        load_segmenter(name_of(kind), device="cpu", attention="flash_attention_2")
    model = load_segmenter(name_of(kind), device="cpu")
    other = {"token": "token_and_presence", "token_and_presence": "token"}[model.decision_rule]
    with pytest.raises(InputError, match=other):
        model.answer(model.encode_images(PHOTOS[:1]), [["x"]], Decoding(rule=other))


def test_the_tables_name_the_same_families():
    assert PUBLIC.keys() == FAMILIES.keys()
