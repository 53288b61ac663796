"""`uniresxx segment`: what it writes, what it says, what it does when something is wrong."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from uniresxx.cli import main as uniresxx_main
from uniresxx.cli.segment import names_for, parse, run
from uniresxx.errors import InputError
from uniresxx.files import safe_name, write_atomic
from uniresxx.imaging import masks
from uniresxx.predictor import Predictor
from uniresxx.testing import ColourSegmenter


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    segmenter = ColourSegmenter()
    door = classmethod(lambda cls, path, decoding=None: cls(segmenter))
    monkeypatch.setattr(Predictor, "from_pretrained", door)
    return segmenter


def photo_at(path, colour=(255, 0, 0), suffix_format=None):
    picture = np.full((40, 60, 3), 90, dtype=np.uint8)
    picture[5:10, 10:20] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, format=suffix_format)
    return str(path)


def segment(tmp_path, *words):
    return run([*words, "--checkpoint", "ck", "--out", str(tmp_path / "out")])


def test_one_photo_two_expressions(tmp_path, capsys):
    photo = photo_at(tmp_path / "card.png")
    assert segment(tmp_path, photo, "the red block", "a blue cat") == 0
    out = tmp_path / "out"
    mask_name = "card.mask_01_the_red_block.png"
    assert sorted(path.name for path in out.iterdir()) == ["card.json", mask_name, "card.overlay.png"]
    with Image.open(out / mask_name) as picture:
        mask = np.array(picture)
    assert mask.shape == (40, 60) and set(np.unique(mask)) == {0, 255}
    assert (mask > 0).sum() == 50 and (mask[5:10, 10:20] == 255).all()
    record = json.loads((out / "card.json").read_text())
    assert (record["photo"], record["width"], record["height"]) == (photo, 60, 40)
    red, cat = record["expressions"]
    assert red["text"] == "the red block" and not red["rejected"] and red["score"] == 0.875
    assert red["mask"]["size"] == [40, 60] and masks.area(red["mask"]) == 50 and red["mask_png"] == mask_name
    assert (cat["rejected"], cat["mask"], cat["mask_png"], cat["score"]) == (True, None, None, None)
    assert cat["p_absent"] == 0.97
    said = capsys.readouterr().out
    assert "the red block: 50 pixels, score 0.88" in said
    assert "a blue cat: not there" in said


def test_expression_options_may_stand_anywhere(tmp_path):
    photo = photo_at(tmp_path / "card.png")
    words = ["--out", "o", photo, "red", "--checkpoint", "c", "and blue", "-e", "a.png", "--expression=-x"]
    job = parse(words)
    assert job.photos == (photo,) and job.expressions == ("red", "and blue", "a.png", "-x")


def test_photos_are_the_leading_files_and_image_names(tmp_path):
    plain = photo_at(tmp_path / "no_suffix", suffix_format="PNG")
    job = parse([plain, "gone.JPEG", "x.webp", "the dog", "photo.jpg", "--checkpoint", "c", "--out", "o"])
    assert job.photos == (plain, "gone.JPEG", "x.webp")
    assert job.expressions == ("the dog", "photo.jpg")


def test_a_very_long_word_is_an_expression_not_a_crash(tmp_path, capsys):
    photo = photo_at(tmp_path / "card.png")
    assert segment(tmp_path, photo, "red " + "y" * 400) == 0
    assert segment(tmp_path, photo, "red", "y" * 501) == 2
    assert "501 characters" in capsys.readouterr().err


def test_one_bad_photo_does_not_cost_the_others_theirs(tmp_path, capsys):
    good, also = photo_at(tmp_path / "a.png"), photo_at(tmp_path / "b.png")
    (tmp_path / "bad.jpg").write_bytes(b"")
    assert segment(tmp_path, good, str(tmp_path / "bad.jpg"), also, "red") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "bad.jpg" in captured.err
    assert {"a.json", "b.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_photo_is_looked_at_once(tmp_path, stub):
    segment(tmp_path, photo_at(tmp_path / "a.png"), photo_at(tmp_path / "b.png"), "red", "green", "blue")
    assert stub.looks == 2


def test_several_phrases_in_one_expression(tmp_path):
    segment(tmp_path, photo_at(tmp_path / "a.png"), "red and blue")
    entry = json.loads((tmp_path / "out" / "a.json").read_text())["expressions"][0]
    phrases = [(part["phrase"], part["mask"] is None) for part in entry["segments"]]
    assert phrases == [("red", False), ("blue", True)]


def test_same_names_from_two_folders_stay_apart(tmp_path):
    one = photo_at(tmp_path / "1" / "x.png")
    two, three = photo_at(tmp_path / "2" / "X.png", (0, 255, 0)), photo_at(tmp_path / "3" / "x.jpg")
    assert segment(tmp_path, one, two, three, "green") == 0
    out = tmp_path / "out"
    records = {name: json.loads((out / f"{name}.json").read_text()) for name in ("x", "X_2", "x_3")}
    assert [records[name]["photo"] for name in ("x", "X_2", "x_3")] == [one, two, three]
    assert not records["X_2"]["expressions"][0]["rejected"]


def test_results_never_replace_a_photo(tmp_path):
    out = tmp_path / "out"
    first, second = photo_at(tmp_path / "x.png"), photo_at(out / "x.overlay.png")
    third = photo_at(out / "x_2.mask_01_red.png")
    before = [Path(path).read_bytes() for path in (first, second, third)]
    assert segment(tmp_path, first, second, third, "red") == 0
    assert [Path(path).read_bytes() for path in (first, second, third)] == before
    assert (out / "x_3.json").exists()


@given(st.lists(st.text(min_size=1, max_size=300), max_size=6))
def test_names_are_safe_and_different(stems):
    names = names_for([f"{stem.replace(chr(0), '')}.png" for stem in stems], Path("out"))
    assert len({name.lower() for name in names}) == len(stems)
    for name in names:
        assert name and len(name) < 80 and name.isascii() and not set(name) & set("/\\.: \n")


@given(st.text(max_size=400))
def test_safe_name(text):
    name = safe_name(text)
    assert 0 < len(name) <= 60 and name == safe_name(name)


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    segment(tmp_path, photo_at(tmp_path / "a.png"), "red \x1b[31m\nsecond line")
    said = capsys.readouterr().out
    assert "\x1b" not in said and "second line: 50 pixels" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no photo"),
        (["the dog"], "'the dog' is no file"),
        (["a.png"], "no expression"),
        (["a.png", ""], "empty expression"),
        (["a.png", "x", "--frobnicate"], "--frobnicate"),
    ],
)
def test_wrong_command_lines(tmp_path, capsys, words, says):
    assert segment(tmp_path, *words) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "out").exists()


def test_missing_options_and_out_in_the_way(tmp_path, capsys):
    photo = photo_at(tmp_path / "a.png")
    assert run([photo, "red", "--out", "o"]) == 2
    assert run([photo, "red", "--checkpoint", "c", "--out", photo]) == 2
    assert run([photo, "red", "--checkpoint", "c", "--out", f"{photo}/deeper"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "--checkpoint" in lines[0] and "in the way" in lines[1]


def test_help_is_not_an_error(capsys):
    with pytest.raises(SystemExit) as stop:
        run(["--help"])
    assert stop.value.code == 0
    assert "PHOTO… " in capsys.readouterr().out


def test_the_main_command_reaches_it(tmp_path):
    words = [photo_at(tmp_path / "a.png"), "red", "--checkpoint", "c", "--out", str(tmp_path / "out")]
    assert uniresxx_main(["segment", *words]) == 0
    assert (tmp_path / "out" / "a.json").exists()


@contextmanager
def files_no_longer_than(size):
    """The operating system refuses to write more, as a full disk does (EFBIG in place of ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_one_line_exit_1_and_keeps_what_was_there(tmp_path, capsys):
    photo = photo_at(tmp_path / "a.png")
    assert segment(tmp_path, photo, "red") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    with files_no_longer_than(10):
        code = segment(tmp_path, photo, "red")
    assert code == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "File too large" in said.err and "a.mask_01_red.png" in said.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_atomic_write_leaves_nothing_behind(tmp_path):
    target = tmp_path / "x.json"
    write_atomic(target, b"old")
    with files_no_longer_than(10), pytest.raises(OSError, match=r"x\.json"):
        write_atomic(target, b"n" * 100)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"] and target.read_bytes() == b"old"
    with pytest.raises(OSError, match="missing"):
        write_atomic(tmp_path / "missing" / "y", b"")


def test_errors_of_the_model_are_not_hidden(tmp_path, monkeypatch):
    """A bug must keep its traceback; only documented errors become a line."""
    monkeypatch.setattr(ColourSegmenter, "answer", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segment(tmp_path, photo_at(tmp_path / "a.png"), "red")


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)
