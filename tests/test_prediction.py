"""What a Prediction tells, plots and saves, and where the phrases of an answer stand in its text."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.imaging.decode import read_mask
from uniresxx.model.answering import prediction_of
from uniresxx.prediction import Instance, Prediction, Segment, phrases_in, plot
from uniresxx.predictor import Predictor
from uniresxx.scoring.predictions import from_json, to_json
from uniresxx.testing import ColourSegmenter


def card():
    """Grey with a red block, rows 5-9, columns 10-19, and a blue one, rows 20-29, columns 40-49."""
    photo = np.full((40, 60, 3), 90, dtype=np.uint8)
    photo[5:10, 10:20] = (255, 0, 0)
    photo[20:30, 40:50] = (0, 0, 255)
    return photo


def answered(*texts):
    predictor = Predictor(ColourSegmenter())
    predictor.set_image(card())
    return predictor.segment(list(texts))


def test_mask_box_and_score():
    red, green = answered("red", "green")
    assert red.mask.sum() == 50 and red.box == (10, 5, 20, 10) and red.score == 0.875
    assert green.rejected and green.mask is None and green.box is None and green.p_absent == 0.97


def test_a_repr_is_short_and_says_what_was_found():
    red, green = answered("red", "green")
    assert repr(red) == (
        "Prediction('red', 50 pixels in (10, 5, 20, 10), score 0.88, p_absent 0.10, text '[SEG].')"
    )
    assert repr(green) == "Prediction('green', not there, p_absent 0.97, text '[REJ].')"
    assert repr(Segment("wheel", red.rle, None)) == "Segment('wheel', 50 pixels in (10, 5, 20, 10))"
    assert repr(Instance(red.rle, 0.5)) == "Instance(50 pixels in (10, 5, 20, 10), score 0.50)"
    assert "counts" not in repr(answered("red and blue"))


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("[SEG].", [""]),
        ("the fish: [SEG], its eye: [REJ].", ["the fish", "its eye"]),
        ("a: [SEG], [SEG], b [REJ]", ["a", "", "b"]),
        ("Two.", []),
        ("", []),
        ("Sure, [SEG].", ["Sure"]),
    ],
)
def test_each_phrase_stands_at_its_place_in_the_text(text, phrases):
    found = phrases_in(text)
    assert [phrase for phrase, _ in found] == phrases
    for phrase, span in found:
        assert (span is None) == (not phrase)
        assert span is None or text[slice(*span)] == phrase


def test_segments_have_their_places_and_keep_them_in_a_file():
    (both,) = answered("red and blue")
    assert [both.text[slice(*part.span)] for part in both.segments] == ["red", "blue"]
    again = from_json(to_json("x/y/1", both), (40, 60))
    assert again.segments == both.segments


@pytest.mark.parametrize("span", [[1], [0, 1.5], "0-1", [True, 2]])
def test_a_wrong_place_in_a_file_is_refused(span):
    (both,) = answered("red and blue")
    line = to_json("x/y/1", both)
    line["segments"][0]["span"] = span
    with pytest.raises(InputError, match="span"):
        from_json(line)


def test_an_answer_without_a_pixel_is_not_there():
    none, some = np.zeros((4, 4), dtype=bool), np.eye(4, dtype=bool)
    found = prediction_of("[SEG].", [none], [True], [0.9], [0.1])
    assert found.rejected and found.mask is None
    found = prediction_of("a: [SEG], b: [SEG].", [none, some], [True, True], [0.9, 0.8], [0.1, 0.2])
    assert not found.rejected and found.segments[0].rle is None and found.mask.sum() == 4


def test_plot_draws_photo_and_legend():
    red, green = answered("red", "green")
    picture = red.plot()
    assert picture.width >= 60 and picture.height > 40
    assert plot([red, green]).height > picture.height  # a further line
    with pytest.raises(InputError, match="no photo"):
        Prediction(rejected=True, rle=None, text="").plot()


def test_the_name_says_what_is_saved(tmp_path):
    red, green = answered("red", "green")
    assert red.save(tmp_path / "red.png") == tmp_path / "red.png"
    assert (read_mask(tmp_path / "red.png") == red.mask).all()
    assert set(np.unique(np.asarray(Image.open(tmp_path / "red.png")))) == {0, 255}
    for name in ("red.overlay.png", "red.jpg", "RED.JPEG"):
        with Image.open(red.save(tmp_path / name)) as picture:
            assert picture.size == red.plot().size and picture.mode == "RGB"
    green.save(tmp_path / "green.overlay.png")
    with pytest.raises(InputError, match="'green' is not there"):
        green.save(tmp_path / "green.png")
    with pytest.raises(InputError, match=r"\.png"):
        red.save(tmp_path / "red.tiff")
    assert not (tmp_path / "green.png").exists()


def test_photo_and_question_do_not_change_what_is_equal():
    red = answered("red")[0]
    plain = Prediction(False, red.rle, red.text, red.score, red.p_absent)
    assert plain == red and red.asked == "red" and plain.asked == ""
    assert masks.area(red.rle) == 50
