"""What is behind the page of `python -m chat_demo`, without a browser: conversations, edits, corrections, views."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("prometheus_client", reason="no serve extra: pip install -e '.[demo]'")

from chat_demo.web import review as reviews
from chat_demo.web import talk as talks
from chat_demo.web.corrections import Corrections, Decision
from chat_demo.web.downloads import masks_zip, overlay_png, rle_json
from chat_demo.web.edits import clicked, painted
from chat_demo.web.examples import examples
from chat_demo.web.kept import Kept
from chat_demo.web.models import Model, Reply, load, photo_of
from chat_demo.web.review_items import Item, guessed, queue_of
from chat_demo.web.talk import Talk, details_of, lines_of, sure_words, talk_value
from chat_demo.web.views import picture_value
from uniresxx.annotations import FORMATS
from uniresxx.data.store.read import Store
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.imaging.marking import DARK, Lines, colour_of, outline
from uniresxx.prediction import Segment
from uniresxx.testing import ColourSegmenter
from uniresxx.types import Granularity

ROOT = Path(__file__).resolve().parents[1]


def card() -> np.ndarray:
    """A grey photo with a red and a blue block."""
    photo = np.full((40, 60, 3), 90, dtype=np.uint8)
    photo[5:10, 10:20] = (255, 0, 0)
    photo[20:35, 30:50] = (0, 0, 255)
    return photo


def png(photo: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def model():
    made = Model(ColourSegmenter(), "colours", False)
    yield made
    made.close()


def talked(kept: Kept, model: Model, *texts: str) -> Talk:
    """A conversation about the card."""
    photo = photo_of(png(card()), "card.png")
    talk, picture = kept.add_photo(Talk(), photo)
    talk = talks.with_picture(talk, picture)
    for text in texts:
        *_, reply = model.replies(photo, talks.question_for(talk, text))
        talk = talks.with_reply(talk, talk.current, text, reply)
    return talk


# --- models and conversations ---


def test_words_come_before_the_reply_and_the_photo_is_encoded_once(model):
    photo = photo_of(png(card()), "card.png")
    *words, first = model.replies(photo, "the red block")
    assert all(isinstance(said, str) for said in words) and isinstance(first, Reply)
    second = model.answer(photo, "the blue block")
    assert (first.encoded, second.encoded, model.segmenter.encoded) == (True, False, 1)
    assert masks.area(first.prediction.rle) == 50 and masks.area(second.prediction.rle) == 300


def test_a_model_that_is_named_twice_is_refused():
    with pytest.raises(InputError, match="given twice"):
        load(["runs/a", "runs/b", "runs/a"], {}, print)


def test_bad_texts_and_photos_are_refused_in_words(model):
    photo = photo_of(png(card()), "card.png")
    with pytest.raises(InputError, match="empty expression"):
        list(model.replies(photo, "  "))
    for data, words in ((b"", "empty"), (b"GIF89a", "not a picture"), (png(card())[:60], "x.png")):
        with pytest.raises(InputError, match=words):
            photo_of(data, "x.png")


def test_a_conversation_comes_back_from_the_disk_as_it_was(tmp_path, model):
    kept = Kept(tmp_path)
    talk = talked(kept, model, "the red block and the blue block", "the green block", "what do you see?")
    kept.save(talk)
    again = kept.load(talk.token)
    assert again == talk and again.pictures[0].thumb.startswith("data:image/png")
    assert kept.photo(again, 0).data == png(card())
    assert (tmp_path / talk.token / "picture_01").is_file()


@pytest.mark.parametrize("token", ["", "..", "../" * 7 + "x", "A" * 22, "a/b" + "c" * 19, "A" * 21 + "\0"])
def test_no_token_leads_elsewhere(tmp_path, token):
    (tmp_path / "secret.json").write_text("{}")
    with pytest.raises(InputError, match="opens no conversation"):
        Kept(tmp_path / "conversations").load(token)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value["pictures"][0].update(file="../../secret"),
        lambda value: value["pictures"][0].update(height="tall"),
        lambda value: value["pictures"][0]["turns"][0]["phrases"][0]["mask"].update(size=[9, 9]),
        lambda value: value.pop("pictures"),
    ],
)
def test_a_spoilt_conversation_is_refused(tmp_path, model, spoil):
    kept = Kept(tmp_path)
    talk = talked(kept, model, "the red block")
    kept.save(talk)
    path = tmp_path / talk.token / "conversation.json"
    value = json.loads(path.read_text())
    spoil(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match="damaged"):
        kept.load(talk.token)


def test_pictures_keep_their_own_turns(tmp_path, model):
    kept = Kept(tmp_path)
    talk = talked(kept, model, "the red block")
    talk, second = kept.add_photo(talk, photo_of(png(card()[:, ::-1]), "mirrored.png"))
    talk = talks.with_picture(talk, second)
    assert (talk.current, talk.shown, talk.turn) == (1, -1, None)
    assert talks.question_for(talk, "where is it?").history == ()
    back = talks.with_current(talk, 0)
    assert back.turn is not None and back.turn.question == "the red block"
    assert talks.question_for(back, "where is it?").history == (("the red block", "[SEG]."),)
    assert talks.with_current(talk, 7) == talk
    assert [one["current"] for one in talk_value(talk)["pictures"]] == [False, True]


def test_lines_say_what_is_there_and_what_is_not(tmp_path, model):
    talk = talked(Kept(tmp_path), model, "the red block and the green block", "what do you see?")
    mixed, plain = (list(lines_of(turn)) for turn in talk.pictures[0].session.turns)
    assert mixed[0] == {
        "text": "the red block", "number": 1, "colour": "rgb(255,168,0)", "score": 0.88, "pixels": 50,
    }  # fmt: skip
    assert mixed[1]["absent"] and "green" in mixed[1]["text"]
    assert plain == [{"text": "A test card.", "absent": False}]
    assert sure_words(0.03) == "97 % sure that it is there"
    assert sure_words(0.8) == "80 % sure that it is not there"
    assert sure_words(None) == ""
    shown = dict(details_of(talks.with_current(talk, 0, 0)))
    assert shown["Model"] == "colours" and shown["Picture size"] == "60 x 40 pixels"


# --- views and downloads ---


def decoded(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_layers_are_the_mask_and_the_outline_of_every_overlay():
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:10, 10:20] = True
    value = picture_value(
        card(), "card.png", [Segment("a", None, None), Segment("b", masks.encode(mask), 0.5)]
    )
    absent, there = value["layers"]
    assert (absent["there"], absent["mask"]) == (False, "")
    factor = value["width"] // 60
    drawn = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    assert np.array_equal(decoded(there["mask"])[..., 1] == 255, drawn)
    bright, dark = outline(drawn, Lines.at(drawn.shape))
    lines = decoded(there["outline"])
    assert {tuple(pixel) for pixel in lines[bright].tolist()} == {(*colour_of(1), 255)}
    assert {tuple(pixel) for pixel in lines[dark].tolist()} == {(*DARK, 255)}
    assert not lines[~(bright | dark)].any()
    assert np.array_equal(decoded(value["src"])[::factor, ::factor], card())


def test_downloads_are_the_masks_at_the_size_of_the_photo(tmp_path, model):
    talk = talked(Kept(tmp_path), model, "the red block and the green block")
    segments = talk.turn.segments
    with zipfile.ZipFile(io.BytesIO(masks_zip(segments))) as folder:
        (name,) = folder.namelist()
        assert name == "01_the_red_block.png"
        picture = np.asarray(Image.open(io.BytesIO(folder.read(name))))
    assert np.array_equal(picture == 255, (card() == (255, 0, 0)).all(axis=2))
    phrases = json.loads(rle_json("card.png", "?", segments))["phrases"]
    assert [one["segmentation"] is None for one in phrases] == [False, True]
    assert Image.open(io.BytesIO(overlay_png(card(), segments))).format == "PNG"
    with pytest.raises(InputError, match="no mask"):
        masks_zip(segments[1:])


# --- edits ---


def test_a_click_adds_or_takes_away_the_region_of_one_colour():
    red, blue = ((card() == colour).all(axis=2) for colour in ((255, 0, 0), (0, 0, 255)))
    nothing = np.zeros((40, 60), dtype=bool)
    both = clicked(card(), clicked(card(), nothing, 12, 7, True), 40, 30, True)
    assert np.array_equal(both, red | blue)
    assert np.array_equal(clicked(card(), both, 31.9, 20.2, False), red)
    with pytest.raises(InputError, match="not in the picture"):
        clicked(card(), nothing, 60, 3, True)
    with pytest.raises(InputError, match="not in the picture"):
        clicked(card(), nothing, float("nan"), 3, True)


def test_a_click_takes_the_region_that_a_model_finds_there():
    nothing, found = np.zeros((40, 60), dtype=bool), np.zeros((40, 60), dtype=bool)
    found[5:25, 10:30] = True
    asked = []

    def region_at(x: float, y: float) -> np.ndarray:
        asked.append((x, y))
        return found

    assert np.array_equal(clicked(card(), nothing, 12, 7, True, region_at), found)
    assert np.array_equal(clicked(card(), ~nothing, 12, 7, False, region_at), ~found)
    assert asked == [(12, 7), (12, 7)] and found.sum() == 400


def test_a_models_clicks_need_no_question_before():
    places = []

    class Clickable(ColourSegmenter):
        def region_at(self, encoded, x: float, y: float) -> np.ndarray:
            places.append((x, y, len(encoded)))
            return np.ones((40, 60), dtype=bool)

    photo = photo_of(png(card()), "card.png")
    model, other = Model(Clickable(), "clickable", True), Model(ColourSegmenter(), "colours", True)
    try:
        assert model.region_at(photo, 3.0, 4.0).all() and model.region_at(photo, 5.0, 6.0).all()
        assert other.region_at(photo, 3.0, 4.0) is None
    finally:
        model.close()
        other.close()
    assert places == [(3.0, 4.0, 1), (5.0, 6.0, 1)]


def test_a_click_on_a_speck_adds_a_small_disc():
    photo = np.full((200, 200, 3), 90, dtype=np.uint8)
    photo[99:101, 99:101] = (255, 0, 0)
    added = clicked(photo, np.zeros((200, 200), dtype=bool), 99, 99, True)
    assert added[99, 99] and 10 <= added.sum() <= 40


def test_strokes_are_as_wide_as_the_brush_and_undo_each_other():
    mask = np.zeros((40, 60), dtype=bool)
    stroke = painted(mask, [(10, 20), (30, 20)], 3, erase=False)
    rows, columns = np.nonzero(stroke)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 23, 7, 33)
    assert not painted(stroke, [(10, 20), (30, 20)], 3, erase=True).any()
    assert painted(mask, [(5, 5)], 0.4, erase=False)[5, 5]


@pytest.mark.parametrize(
    ("points", "radius"),
    [([], 2), ("12", 2), ([(1,)], 2), ([("a", 1)], 2), ([(1, 1)], 0), ([(1, 1)], float("nan")),
     ([(1, 1)], 1e9), ([(float("inf"), 1)], 2), ([(0, 0)] * 2001, 2), (None, 2) ],
)  # fmt: skip
def test_strokes_that_cannot_be_drawn_are_refused(points, radius):
    with pytest.raises(InputError):
        painted(np.zeros((40, 60), dtype=bool), points or [], radius, erase=False)


# --- the queue and the corrections ---


def scene_folder(tmp_path):
    Image.fromarray(card()).save(tmp_path / "card.png")
    (tmp_path / "table.csv").write_text(
        "photo,sentence\ncard.png,the red block\ncard.png,the green block\nnone.png,the red block\n"
    )
    return tmp_path


def test_the_queue_begins_with_the_least_certain_and_names_what_is_left_out(tmp_path, model):
    said = []
    items = queue_of(scene_folder(tmp_path) / "table.csv", None, model, said.append)
    assert [item.text for item in items] == ["the red block", "the green block"]
    assert [item.certainty for item in items] == [0.875, 0.97]
    assert any("none.png" in line for line in said)
    with pytest.raises(InputError, match="no such file"):
        queue_of(tmp_path / "nowhere", None, model, said.append)
    with pytest.raises(InputError, match=r"sentences\.json"):
        queue_of(tmp_path, None, model, said.append)


def test_predictions_of_an_evaluation_are_a_queue(tmp_path, model):
    from uniresxx.data.catalog import open_benchmark
    from uniresxx.scoring.predictions import JsonlWriter

    record = open_benchmark("scenes_easy/val", None)[0]
    first, second = record.expressions[:2]
    with JsonlWriter(tmp_path / "predictions.jsonl") as file:
        file.write({"expression_id": first.expression_id, "rejected": True, "mask": None, "p_absent": 0.9})
        file.write(
            {"expression_id": second.expression_id, "rejected": False, "mask": second.rle, "score": 0.3}
        )
    about = {"benchmark": "scenes_easy/val", "benchmark_sha256": "x", "checkpoint": "runs/a"}
    (tmp_path / "evaluation.json").write_text(json.dumps(about))
    items = queue_of(tmp_path / "predictions.jsonl", None, model, print)
    assert [(item.key, item.certainty, item.model) for item in items] == [
        (second.expression_id, 0.3, "runs/a"),
        (first.expression_id, 0.9, "runs/a"),
    ]
    assert np.array_equal(items[0].load().pixels, record.pixels)


def test_what_two_runs_answer_differently_is_a_queue(tmp_path, model):
    """Found by one alone; half of the mask; the same mask; rejected by both."""
    from uniresxx.data.catalog import open_benchmark
    from uniresxx.scoring.predictions import JsonlWriter

    record = next(
        r for r in open_benchmark("scenes_easy/val", None) if sum(bool(e.rle) for e in r.expressions) > 3
    )
    items = [item for item in record.expressions if item.rle][:4]
    half = masks.decode(items[1].rle)
    half[:, : int(np.flatnonzero(half.any(axis=0)).mean())] = False
    answers = {
        "a": [items[0].rle, items[1].rle, items[2].rle, None],
        "b": [None, masks.encode(half), items[2].rle, None],
    }
    paths = []
    for run, found in answers.items():
        (tmp_path / run).mkdir()
        paths.append(tmp_path / run / "predictions.jsonl")
        with JsonlWriter(paths[-1]) as file:
            for item, rle in zip(items, found, strict=True):
                file.write(
                    {"expression_id": item.expression_id, "rejected": rle is None, "mask": rle, "score": 0.5}
                )
        about = {"benchmark": "scenes_easy/val", "benchmark_sha256": "x", "checkpoint": f"runs/{run}"}
        (tmp_path / run / "evaluation.json").write_text(json.dumps(about))
    queue = queue_of(paths[0], None, model, print, paths[1])
    assert [(item.key, item.rle, item.model) for item in queue] == [
        (items[0].expression_id, items[0].rle, "runs/a"),
        (items[1].expression_id, items[1].rle, "runs/a"),
    ]
    with pytest.raises(InputError, match="none to look at"):
        queue_of(paths[0], None, model, print, paths[0])
    (tmp_path / "b" / "evaluation.json").write_text(json.dumps(about | {"benchmark": "scenes_easy/test"}))
    with pytest.raises(InputError, match=r"about scenes_easy/val, --against .* about scenes_easy/test"):
        queue_of(paths[0], None, model, print, paths[1])


@pytest.mark.parametrize(
    ("text", "kind"),
    [("the red car", "object"), ("wheel of the red car", "part"), ("all cars", "multi"), ("the dogs", "multi"),
     ("the dog's tail", "part"), ("the left bus", "object")],
)  # fmt: skip
def test_what_a_sentence_probably_means(text, kind):
    assert guessed(text) == kind


def test_a_review_goes_through_the_queue_and_can_be_undone():
    red = masks.encode((card() == (255, 0, 0)).all(axis=2))
    blue = masks.encode((card() == (0, 0, 255)).all(axis=2))
    items = [Item(str(n), None, "card.png", f"the {n}", Granularity.OBJECT, red, 0.5) for n in range(2)]
    review = reviews.opened(items)
    assert reviews.decision_of(review, True).author == "model"
    edited = reviews.changed(review, blue)
    assert reviews.decision_of(edited, True).author == "human"
    assert reviews.undone(edited) == review and reviews.undone(review) == review
    assert reviews.changed(review, masks.empty(40, 60)).rle is None
    absent = reviews.decision_of(edited, False)
    assert (absent.rle, absent.granularity, absent.author) == (None, "none", "human")
    after = reviews.decided(edited)
    assert (after.place, after.rle, after.earlier, after.decided) == (1, red, (), frozenset("0"))
    assert reviews.at(after, 2) == after
    many = review
    for number in range(80):
        many = reviews.changed(many, (blue, red)[number % 2])
    assert len(many.earlier) == reviews.MOST_UNDO


def decision(key: str, rle, **more) -> Decision:
    made = Decision(key, f"the {key}", Granularity.OBJECT, rle, "human", f"a {key}", "colours", 0.5)
    return replace(made, **more)


def test_corrections_become_a_store_and_every_annotation_format(tmp_path):
    red = masks.encode((card() == (255, 0, 0)).all(axis=2))
    blue = masks.encode((card() == (0, 0, 255)).all(axis=2))
    photo = photo_of(png(card()), "card.png")
    corrections = Corrections(tmp_path)
    with pytest.raises(InputError, match="at least one"):
        corrections.write_store()
    corrections.add(photo, "card.png", decision("one", blue))
    corrections.add(photo, "card.png", decision("two", None, granularity=Granularity.NONE))
    corrections.add(photo, "card.png", decision("one", red, author="model"))
    assert (corrections.version, len(corrections)) == (3, 2)
    assert len(Corrections(tmp_path).latest()) == 2  # read again from the disk
    store = Store.open(corrections.write_store())
    (record,) = store
    kept = {item.source["key"]: item for item in record.expressions}
    assert kept["one"].rle == red and kept["one"].source["author"] == "model"
    assert kept["two"].rle is None and kept["two"].source["author"] == "human"
    assert store.meta["corrections"] == {"version": 3, "model": 1, "human": 1}
    corrections.add(photo, "card.png", decision("one", blue))
    (record,) = Store.open(corrections.write_store())
    assert record.expressions[0].rle == blue
    for form in FORMATS:
        with zipfile.ZipFile(io.BytesIO(corrections.exported(form))) as folder:
            answers = json.loads(folder.read("provenance.json"))["photos"][0]["answers"]
            assert [answer["author"] for answer in answers] == ["human", "human"]
    with zipfile.ZipFile(io.BytesIO(corrections.exported("coco"))) as folder:
        coco = json.loads(folder.read(next(name for name in folder.namelist() if "provenance" not in name)))
    assert coco["annotations"][0]["attributes"]["model"] == "human, after colours"


def test_the_examples_come_with_sentences_of_each_kind():
    found = examples()
    assert [one.name for one in found] == ["01.png", "02.png", "03.png", "04.png"]
    assert all(len(one.sentences) >= 4 for one in found)
    assert found[0].photo.pixels.shape == (64, 64, 3)
