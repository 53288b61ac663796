"""What `uniresxx segment` asks: photos from folders, patterns, lists and tables; the files of annotation tools."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from uniresxx import annotations
from uniresxx.cli import main as uniresxx_main
from uniresxx.cli.segment import FORMATS, parser
from uniresxx.cli.segment.job import job_of, unquoted
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.predictor import Predictor
from uniresxx.testing import ColourSegmenter


def photo_at(path, colour=(255, 0, 0)):
    picture = np.full((40, 60, 3), 90, dtype=np.uint8)
    picture[5:10, 10:20] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with photos/{a.png, b.JPG, deep/c.gif}, a hidden one and a text file."""
    for name in ("a.png", "b.JPG", "deep/c.gif", ".hidden.png", ".cache/d.png"):
        photo_at(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(*words):
    """Photos and texts of a command line."""
    return {one.photo: one.texts for one in job_of(parser().parse_intermixed_args(words)).asked}


def test_a_folder_is_all_photos_below_it(folder):
    assert list(asked("photos", "red")) == ["photos/a.png", "photos/b.JPG", "photos/deep/c.gif"]
    assert next(iter(asked("photos/deep", "photos", "red"))) == "photos/deep/c.gif"


def test_a_folder_that_holds_the_results_is_asked_without_them(folder):
    photo_at(folder / "photos" / "found" / "a.overlay.png")
    assert len(asked("photos", "red", "--out", "photos/found")) == 3
    assert len(asked("photos", "red", "--out", "elsewhere")) == 4


def test_patterns_are_expanded_and_questions_are_not(folder):
    assert list(asked("photos/*.png", "red")) == ["photos/a.png"]
    assert list(asked("photos/**/*.gif", "red")) == ["photos/deep/c.gif"]
    assert asked("photos/a.png", "is it red?", "what [is] this") == {
        "photos/a.png": ("is it red?", "what [is] this")
    }


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("photos/*.bmp", "matches no file"),
        ("https://example.org/a.png", "download the photo"),
        ("sub/b", "'sub/b' looks like a path, and nothing is there"),
    ],
)
def test_what_names_no_photo_is_said(folder, word, says):
    with pytest.raises(InputError, match=says):
        asked(word, "red")


@pytest.mark.parametrize("text", ["photos/a.png\n\nphotos/b.JPG\n", "photos/a.png\0photos/b.JPG\0"])
def test_a_list_of_photos_on_standard_input(folder, monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert asked("-", "red") == {"photos/a.png": ("red",), "photos/b.JPG": ("red",)}


def test_an_empty_or_closed_standard_input_is_said(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(InputError, match="lists no photo"):
        asked("-", "red")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        asked("-", "red")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["the", "red", "house"], '"the red house"'),
        (["wheel", "of", "it"], '"wheel of it"'),
        (["red", "house"], ""),
        (["the"], ""),
        (["the red house", "door"], ""),
    ],
)
def test_words_that_look_like_one_phrase_get_a_hint(words, hint):
    assert (hint in unquoted(words)) if hint else unquoted(words) == ""


def test_the_hint_is_printed_and_the_words_are_asked(folder, capsys):
    assert asked("photos/a.png", "the", "red", "house") == {"photos/a.png": ("the", "red", "house")}
    assert capsys.readouterr().err.startswith("note: 3 expressions of one word each")


CSV = "\ufeffPhoto;Sentence;id\r\nphotos/a.png;the red, one;7\r\nphotos/b.JPG;red;8\r\nphotos/a.png;blue;\r\n"
LINES = "".join(
    json.dumps(row) + "\n"
    for row in (
        {"image": "photos/a.png", "text": "the red, one", "id": 7},
        {"image": "photos/b.JPG", "text": "red", "id": "8"},
        {"image": "./photos/a.png", "text": "blue"},
    )
)


@pytest.mark.parametrize("text", [CSV, LINES])
def test_a_table_has_a_photo_and_a_sentence_in_each_row(folder, monkeypatch, text):
    (folder / "table").write_text(text)
    monkeypatch.chdir("/")  # paths are relative to the table
    found = job_of(parser().parse_intermixed_args(["--table", str(folder / "table")])).asked
    assert [one.texts for one in found] == [("the red, one", "blue"), ("red",)]
    assert [dict(one.ids) for one in found] == [{"the red, one": ("7",)}, {"red": ("8",)}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("photo,sentence\n", "has no rows"),
        ("photo,words\na.png,red\n", r"no column for the sentence: call it sentence .*columns: photo, words"),
        ("sentence\nred\n", "no column for the photo"),
        ("photo,sentence\na.png,red\n,blue\nb.png,\n", "row 2 has no photo; row 3 has no sentence"),
        ('{"photo": "a.png", "text": "x"}\n{"photo"\n', "line 2 is no JSON"),
        ('{"photo": "a.png", "text": "x"}\n3\n', "a line is no object"),
        ("photo,sentence\na.png," + "x" * 501 + "\n", "501 characters"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(folder, text, says):
    (folder / "t.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        asked("--table", "t.csv")


def test_a_table_stands_alone(folder):
    (folder / "t.csv").write_text("photo,sentence\na.png,red\n")
    for words in (["photos/a.png"], ["-e", "red"]):
        with pytest.raises(InputError, match="too much"):
            asked("--table", "t.csv", *words)
    with pytest.raises(InputError, match="is not a file"):
        asked("--table", "missing.csv")


def labels(text, *sentences):
    with open("map.csv", "w", encoding="utf-8") as stream:
        stream.write(text)
    words = ["photos/a.png", *sentences, "--format", "coco", "--labels", "map.csv"]
    return job_of(parser().parse_intermixed_args(words)).labels


def test_labels_give_sentences_a_category_with_a_fixed_id(folder):
    found = labels(
        "sentence,category,category_id\nthe red  one,thing,5\nred,thing,5\nblue,sky,2\n", "red", "the red one"
    )
    assert {text: (one.name, one.number) for text, one in found.items()} == {
        "the red one": ("thing", 5), "red": ("thing", 5), "blue": ("sky", 2)
    }  # fmt: skip
    assert labels("sentence,id\nred,3\n", "red")["red"].name == "red"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sentence,category_id\nred,1\n", "no category for 'blue'"),
        ("sentence,category,id\nred,a,1\nblue,a,2\n", "'a' has the ids 1 and 2"),
        ("sentence,category,id\nred,a,1\nblue,b,1\n", "id 1 is given to 'a' and 'b'"),
        ("sentence,category,id\nred,a,x\nblue,b,1\n", "row 1 has no sentence, or its id is no whole number"),
        ("sentence,category\nred,a\n", "no column for the category's id"),
    ],
)
def test_wrong_labels_are_one_line(folder, text, says):
    with pytest.raises(InputError, match=says):
        labels(text, "red", "blue")


def test_options_of_annotation_files_need_a_format(folder, capsys):
    assert uniresxx_main(["segment", "photos/a.png", "red", "--min-area", "3"]) == 2
    assert "--min-area is for annotation files: add --format, one of coco" in capsys.readouterr().err


def test_every_format_of_the_exports_is_offered():
    assert set(FORMATS[1:]) == set(annotations.FORMATS)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A folder that has the files of a model, which finds pure colours."""
    segmenter = ColourSegmenter()
    loader = classmethod(lambda cls, path, decoding=None, **options: cls(segmenter))
    monkeypatch.setattr(Predictor, "from_pretrained", loader)
    made = tmp_path / "ck"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def test_a_folder_becomes_a_coco_file(folder, checkpoint, capsys):
    photo_at(folder / "photos" / "b.png", (0, 0, 255))
    (folder / "map.csv").write_text("sentence,category,category_id\nred,rose,4\nblue,sky,9\n")
    words = ["segment", "photos", "red", "blue", "--checkpoint", str(checkpoint), "--out", "out"]
    words += ["--format", "coco", "--labels", "map.csv"]
    for _ in range(2):  # the second time from the answers alone
        assert uniresxx_main(words) == 0
    assert "wrote coco for 4 photos" in capsys.readouterr().out
    found = json.loads((folder / "out" / "instances.json").read_text())
    assert {(one["id"], one["name"]) for one in found["categories"]} == {(4, "rose"), (9, "sky")}
    assert len(found["images"]) == 4
    for one in found["annotations"]:
        assert masks.area(one["segmentation"]) == one["area"] > 0
    assert {one["category_id"] for one in found["annotations"]} >= {9}
    assert (
        not list((folder / "out").rglob("*.overlay.png"))
        and len(list((folder / "out/answers").iterdir())) == 4
    )


@pytest.mark.parametrize("form", FORMATS[1:])
def test_every_format_is_written(folder, checkpoint, form, capsys):
    words = ["segment", "photos/a.png", "red", "blue", "--checkpoint", str(checkpoint), "--out", form]
    assert uniresxx_main([*words, "--format", form, "--threshold", "0.1"]) == 0
    assert f"wrote {form} for 1 photos" in capsys.readouterr().out
    assert any(path.is_file() and "answers" not in path.parts for path in (folder / form).rglob("*"))


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "photos", "shown"), [(Terminal, 3, True), (Terminal, 1, False), (io.StringIO, 3, False)]
)
def test_progress_is_shown_on_a_terminal_for_several_photos(monkeypatch, stream, photos, shown):
    from uniresxx.cli.segment.work import progress_bar

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", stream())
    with progress_bar(photos) as show:
        show(1)
    assert ("1/3" in sys.stderr.getvalue()) == shown
