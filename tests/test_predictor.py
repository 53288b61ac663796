"""The Predictor: a photo is encoded once; every kind of photo and every mistake."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uniresxx.data.scenes.looks import looks_drawn
from uniresxx.data.scenes.record import scene_record
from uniresxx.errors import InputError
from uniresxx.imaging.decode import read_photo
from uniresxx.imaging.inputs import MAX_ANSWER_CHARACTERS, MAX_CHARACTERS
from uniresxx.imaging.overlay import draw_overlay
from uniresxx.prediction import Instance, Prediction
from uniresxx.predictor import EXPRESSIONS_AT_ONCE, PHOTOS_AT_ONCE, Predictor, layers_of
from uniresxx.segmenters.base import Segmenter
from uniresxx.testing import ColourSegmenter
from uniresxx.types import Decoding, Question

PHOTOS = Path(__file__).parent / "data" / "photos" / "images"


def card(height=40, width=60):
    """Grey with a red block, rows 5-9, columns 10-19."""
    photo = np.full((height, width, 3), 90, dtype=np.uint8)
    photo[5:10, 10:20] = (255, 0, 0)
    return photo


def ready(photo=None):
    predictor = Predictor(ColourSegmenter())
    predictor.set_image(card() if photo is None else photo)
    return predictor


def test_stub_keeps_the_protocol():
    assert isinstance(ColourSegmenter(), Segmenter)


def test_masks_are_at_the_photo_size():
    found = ready().segment(["the red block", "the blue cat"])
    mask = found[0].mask
    assert mask.shape == (40, 60) and mask.sum() == 50 and mask[5:10, 10:20].all()
    assert found[1].rejected and found[1].mask is None


def test_many_questions_encode_the_photo_once():
    predictor = ready()
    for _ in range(3):
        predictor.segment(["red", "green"])
    predictor.segment("red")
    assert predictor.segmenter.encoded == 1


def test_path_picture_and_array_agree(tmp_path):
    Image.fromarray(card()).save(tmp_path / "card.png")
    answers = []
    for photo in (tmp_path / "card.png", str(tmp_path / "card.png"), Image.fromarray(card()), card()):
        answers.append(ready(photo).segment("red")[0].rle)
    assert all(answer == answers[0] for answer in answers)


def test_exif_orientation_is_applied_to_pictures_and_files(tmp_path):
    turned = Image.fromarray(np.rot90(card(), 1).copy())  # orientation 6 turns it back
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert (ready(tmp_path / "turned.png").photo == card()).all()
    assert (ready(Image.open(tmp_path / "turned.png")).photo == card()).all()


def odd_pictures():
    """Pictures that Pillow's own conversion to RGB would turn into other colours than `read_photo` does."""
    shade = np.linspace(0, 65535, 30 * 20).reshape(20, 30)
    glass = Image.fromarray(
        np.dstack([np.zeros((20, 30, 3)), np.full((20, 30), 40)]).astype(np.uint8), "RGBA"
    )
    palette = Image.fromarray((shade // 256).astype(np.uint8)).convert("P")
    return {
        "transparent": glass,
        "grey and transparent": glass.convert("LA"),
        "16-bit grey": Image.fromarray(shade.astype(np.uint16)),
        "one transparent colour": palette,
        "plain": Image.fromarray(card()),
    }


@pytest.mark.parametrize("name", list(odd_pictures()))
def test_an_opened_picture_gives_the_pixels_of_its_file(tmp_path, name):
    extra = {"transparency": 200} if name == "one transparent colour" else {}
    odd_pictures()[name].save(tmp_path / "odd.png", **extra)
    by_path = ready(tmp_path / "odd.png").photo
    with Image.open(tmp_path / "odd.png") as opened:
        assert (ready(opened).photo == by_path).all()
    assert len(np.unique(by_path)) > 1 or name.endswith("transparent")


def test_a_picture_that_breaks_while_it_is_decoded_is_wrong_input(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(InputError, match=r"picture.*damaged"):
        Predictor(ColourSegmenter()).set_image(opened)
    closed = Image.open(tmp_path / "whole.png")
    closed.close()
    with pytest.raises(InputError, match=r"picture.*damaged"):
        Predictor(ColourSegmenter()).set_image(closed)


def test_the_callers_array_stays_theirs():
    photo = card()
    predictor = ready(photo)
    photo[:] = 0
    assert not predictor.segment("red")[0].rejected
    assert (predictor.photo == card()).all()


def test_grey_arrays_and_pictures_become_rgb():
    assert ready(np.zeros((4, 5), dtype=np.uint8)).photo.shape == (4, 5, 3)
    assert ready(Image.new("L", (5, 4))).photo.shape == (4, 5, 3)
    assert ready(Image.new("CMYK", (5, 4))).photo.shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("photo", "says"),
    [
        (np.zeros((4, 5, 3), dtype=np.float32), "float32"),
        (np.zeros((3, 4, 5), dtype=np.uint8), r"\(3, 4, 5\)"),
        (np.zeros((0, 5, 3), dtype=np.uint8), r"\(0, 5, 3\)"),
        (np.zeros((1, 1, 3), dtype=np.uint8), "1 x 1 pixels"),
        (np.zeros((1, 900, 3), dtype=np.uint8), "900 x 1 pixels"),
        (Image.new("L", (20_000, 3_000)), "over the cap"),
        (7, "int"),
        ("missing.jpg", "missing.jpg"),
    ],
)
def test_wrong_photos_are_refused_and_the_current_one_stays(photo, says):
    predictor = ready()
    with pytest.raises(InputError, match=says):
        predictor.set_image(photo)
    assert not predictor.segment("red")[0].rejected


def test_segment_needs_a_photo():
    with pytest.raises(InputError, match="set_image"):
        Predictor(ColourSegmenter()).segment("red")


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u00a0", "\u200b", "\x00"])
def test_empty_expressions_are_refused(text):
    with pytest.raises(InputError, match="empty expression"):
        ready().segment(["red", text])
    with pytest.raises(InputError, match="empty expression"):
        ready().segment(Question(text))


def test_length_cap():
    predictor = ready()
    assert predictor.segment("red " + "x" * (MAX_CHARACTERS - 4))
    with pytest.raises(InputError, match=f"{MAX_CHARACTERS + 1} characters.*cap is {MAX_CHARACTERS}"):
        predictor.segment("x" * (MAX_CHARACTERS + 1))
    with pytest.raises(InputError, match="int"):
        predictor.segment([3])


def test_bytes_that_are_no_text_do_not_crash():
    predictor = ready()
    predictor.segment("caf\udce9")  # how Python shows a Latin-1 byte of a command line
    assert predictor.segmenter.asked[-1][0] == "caf?"


@pytest.mark.parametrize("text", ["[SEG]", "<image> [REJ] <object><part>", "{expression}", "{0}"])
def test_special_tokens_are_passed_on_as_plain_text(text):
    predictor = ready()
    assert len(predictor.segment([text, "red"])) == 2
    assert predictor.segmenter.asked[-2][0] == text


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["red", "green", "the red and the blue"]), max_size=3 * EXPRESSIONS_AT_ONCE))
def test_order_and_number_are_kept_over_chunks(texts):
    predictor = ready()
    found = predictor.segment(texts)
    assert [prediction.rejected for prediction in found] == ["red" not in text for text in texts]


def test_decoding_and_history_reach_the_model():
    predictor = Predictor(ColourSegmenter(), Decoding(template="{expression}"))
    predictor.set_image(card())
    found = predictor.segment([Question("and it?", (("red", "[SEG]."),))])
    assert not found[0].rejected
    assert predictor.segmenter.asked == [("and it?", (("red", "[SEG]."),), "{expression}")]


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ((("x" * (MAX_CHARACTERS + 1), "[SEG]."),), f"{MAX_CHARACTERS + 1} characters"),
        ((("red", "[SEG]."), ("red", "x" * (MAX_ANSWER_CHARACTERS + 1))), f"cap is {MAX_ANSWER_CHARACTERS}"),
        (((" ", "[SEG]."),), "empty expression"),
        ((("red", 3),), "answer in a history must be text, not int"),
        (((None, "[SEG]."),), "must be text, not NoneType"),
        ((("red",),), "pair"),
        (("red",), "pair"),
    ],
)
def test_what_a_history_may_hold(history, says):
    predictor = ready()
    with pytest.raises(InputError, match=says):
        predictor.segment(Question("and it?", history))
    assert predictor.segmenter.asked == []


def test_a_history_reaches_the_model_unchanged():
    predictor = ready()
    predictor.segment(Question("and it?", ((" red ", ""), ("caf\udce9", " [SEG] \udce9."))))
    assert predictor.segmenter.asked[0][1] == (("red", ""), ("caf?", " [SEG] ?."))


def test_layers_list_the_phrases_of_a_long_answer():
    predictor = ready()
    texts = ["red and blue", "green"]
    layers = list(layers_of(texts, predictor.segment(texts)))
    assert [layer.text for layer in layers] == ["red", "blue", "green"]
    assert [layer.mask is None for layer in layers] == [False, True, True]
    draw_overlay(card(), layers)


def test_rejected_wins_over_a_mask():
    found = ready().segment("red")[0]
    assert Prediction(rejected=True, rle=found.rle, text="").mask is None


def png_of(photo):
    stream = BytesIO()
    Image.fromarray(photo).save(stream, format="PNG")
    return stream.getvalue()


def test_the_bytes_of_a_file_are_a_photo():
    assert (ready(png_of(card())).photo == card()).all()
    for data, says in ((b"", "empty"), (b"GIF89a", "not a picture"), (png_of(card())[:60], "damaged")):
        with pytest.raises(InputError, match=says):
            Predictor(ColourSegmenter()).set_image(data)


def test_a_prediction_knows_what_was_asked_of_which_photo():
    predictor = ready()
    found = predictor.segment(["the\nred block", Question("it", (("red", "[SEG]."),))])
    assert [one.asked for one in found] == ["the red block", "it"]
    assert all(one.photo is predictor.photo for one in found)


def test_many_photos_are_answered_in_order_a_few_together(tmp_path):
    photos = []
    for number in range(2 * PHOTOS_AT_ONCE + 1):
        photo = np.full((20, 30 + number, 3), 90, dtype=np.uint8)
        photo[: number + 1, :2] = (255, 0, 0)
        photos.append(photo)
    Image.fromarray(photos[1]).save(tmp_path / "one.png")
    given = [(tmp_path / "one.png" if k == 1 else photo, ["red", "green"]) for k, photo in enumerate(photos)]
    predictor = ready()
    found = list(predictor.segment_many(given))
    assert [row[0].mask.sum() for row in found] == [2 * (k + 1) for k in range(len(photos))]
    assert all(len(row) == 2 and row[1].rejected for row in found)
    assert predictor.segmenter.encoded == 1 + 3
    assert found[1][0].photo == tmp_path / "one.png" and found[1][0].plot()
    assert (predictor.photo == card()).all()  # the current photo stays


def test_many_photos_take_one_text_and_stop_at_a_wrong_one():
    predictor = Predictor(ColourSegmenter())
    assert list(predictor.segment_many([])) == []
    assert [len(row) for row in predictor.segment_many([(card(), "red"), (card(), [])])] == [1, 0]
    with pytest.raises(InputError, match="empty expression"):
        list(predictor.segment_many([(card(), " ")]))
    with pytest.raises(InputError, match=r"missing\.png"):
        list(predictor.segment_many([(card(), "red"), ("missing.png", "red")]))


def test_a_bad_photo_among_many_is_named_and_has_no_predictions():
    bad = []
    rows = [(card(), "red"), ("missing.png", ["red", "green"]), (card(), ["red", "green"])]
    found = list(Predictor(ColourSegmenter()).segment_many(rows, on_bad_photo=lambda *told: bad.append(told)))
    assert [len(row) for row in found] == [1, 0, 2] and [photo for photo, _ in bad] == ["missing.png"]


def test_instances_need_a_model_that_tells_them_apart():
    predictor = ready()
    with pytest.raises(InputError, match="does not tell instances apart"):
        predictor.segment("red", instances=True)
    with pytest.raises(InputError, match="does not tell instances apart"):
        next(predictor.segment_many([(card(), "red")], instances=True))


class Twins(ColourSegmenter):
    """Gives its mask as an instance, too."""

    finds_instances = True

    def answer(self, encoded, texts, decoding, on_text=None):
        return [
            replace(p, instances=(Instance(p.rle, 0.5),)) for p in super().answer(encoded, texts, decoding)
        ]


def test_instances_are_given_where_they_are_wanted():
    predictor = Predictor(Twins())
    predictor.set_image(card())
    assert predictor.segment("red")[0].instances == ()
    (instance,) = predictor.segment("red", instances=True)[0].instances
    assert instance.box == (10, 5, 20, 10)


def test_a_chat_sends_the_turns_that_a_message_points_back_to():
    predictor = ready()
    first = predictor.chat("Where is the red block?")
    assert "mask 1 (50 pixels" in first.words and len(first.segments) == 1
    assert predictor.chat("and what is it?").prediction.text == "A test card."
    assert predictor.chat("the blue cat").segments[0].mask is None
    histories = [history for _, history, _ in predictor.segmenter.asked]
    assert histories == [(), (("Where is the red block?", "[SEG]."),), ()]
    assert {template for *_, template in predictor.segmenter.asked} == {"{expression}"}
    predictor.reset_chat()
    predictor.chat("and what is it?")
    assert predictor.segmenter.asked[-1][1] == ()


def test_another_photo_begins_another_conversation():
    predictor = ready()
    predictor.chat("the red block")
    predictor.set_image(card())
    predictor.chat("its left side")
    assert predictor.segmenter.asked[-1][1] == ()
    with pytest.raises(InputError, match="set_image"):
        Predictor(ColourSegmenter()).chat("red")


def test_two_phrases_give_two_segments():
    answer = ready().chat("the red block, the blue cat")
    assert [(part.phrase, part.mask is None) for part in answer.segments] == [
        ("the red block", False),
        ("the blue cat", True),
    ]
    assert answer.prediction.photo is not None and answer.prediction.asked == "the red block, the blue cat"


def test_a_model_of_drawn_scenes_says_once_that_it_sees_a_photograph(caplog):
    photo = next(PHOTOS.rglob("*.jpg"))
    predictor = Predictor(ColourSegmenter(), saw_only_scenes=True)
    predictor.set_image(scene_record("scenes_easy", "train", 0).pixels)
    assert not caplog.records
    predictor.set_image(photo)
    list(predictor.segment_many([(photo, "red")]))
    assert len(caplog.records) == 1 and "drawn scenes only" in caplog.text
    Predictor(ColourSegmenter()).set_image(photo)  # a model that is not known to have seen scenes only
    assert len(caplog.records) == 1


@pytest.mark.parametrize("preset", ["scenes_easy", "scenes"])
def test_scenes_look_drawn_and_photographs_do_not(preset):
    for number in range(6):
        pixels = scene_record(preset, "train", number).pixels
        large = np.asarray(Image.fromarray(pixels).resize((300, 300), Image.Resampling.BICUBIC))
        assert looks_drawn(pixels) and looks_drawn(pixels.repeat(3, axis=0).repeat(3, axis=1))
        assert looks_drawn(large)
    for path in PHOTOS.rglob("*.jpg"):
        assert not looks_drawn(read_photo(path))
    assert not looks_drawn(np.zeros((2, 2, 3), dtype=np.uint8))
