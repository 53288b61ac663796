"""`uniresxx segment`: the files it writes, the lines it prints, and its errors."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from uniresxx.cli import main as uniresxx_main
from uniresxx.cli.segment import parser
from uniresxx.cli.segment.answers import Answers
from uniresxx.cli.segment.job import Asked, job_of
from uniresxx.errors import InputError
from uniresxx.files import safe_name, write_atomic
from uniresxx.imaging import masks
from uniresxx.predictor import Predictor
from uniresxx.testing import ColourSegmenter


def run(argv):
    return uniresxx_main(["segment", *argv])


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    segmenter = ColourSegmenter()
    loader = classmethod(lambda cls, path, decoding=None, **options: cls(segmenter))
    monkeypatch.setattr(Predictor, "from_pretrained", loader)
    return segmenter


@pytest.fixture(scope="session", autouse=True)
def checkpoint(tmp_path_factory):
    """A folder that has the files of a model."""
    folder = tmp_path_factory.mktemp("ck")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    CHECKPOINT.append(str(folder))


CHECKPOINT: list[str] = []


def photo_at(path, colour=(255, 0, 0), suffix_format=None):
    picture = np.full((40, 60, 3), 90, dtype=np.uint8)
    picture[5:10, 10:20] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, format=suffix_format)
    return str(path)


def segment(tmp_path, *words):
    return run([*words, "--checkpoint", CHECKPOINT[0], "--out", str(tmp_path / "out")])


def asked(words):
    """Photos and texts of a command line."""
    return {one.photo: one.texts for one in job_of(parser().parse_intermixed_args(words)).asked}


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
    printed = capsys.readouterr().out
    assert "the red block: 50 pixels, score 0.88" in printed
    assert "a blue cat: not there" in printed


def test_expression_options_may_stand_anywhere(tmp_path):
    photo = photo_at(tmp_path / "card.png")
    words = ["--out", "o", photo, "red", "--checkpoint", "c", "and blue", "-e", "a.png", "--expression=-x"]
    assert asked(words) == {photo: ("red", "and blue", "a.png", "-x")}


def test_photos_are_the_leading_files_and_image_names(tmp_path):
    plain = photo_at(tmp_path / "no_suffix", suffix_format="PNG")
    words = [plain, "gone.JPEG", "x.webp", "y.HEIC", "the dog"]
    assert asked(words) == dict.fromkeys(words[:4], ("the dog",))


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


def test_a_photo_is_encoded_once(tmp_path, stub):
    segment(tmp_path, photo_at(tmp_path / "a.png"), photo_at(tmp_path / "b.png"), "red", "green", "blue")
    assert stub.encoded == 2


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


def results(out):
    """Records by file name, after a check that every mask beside them is named by one and is there."""
    records = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    named = {entry["mask_png"] for record in records.values() for entry in record["expressions"]} - {None}
    assert named == {path.name for path in out.glob("*.mask_*.png")}
    assert {record["overlay"] for record in records.values()} == {p.name for p in out.glob("*.overlay.png")}
    for record in records.values():
        for entry in record["expressions"]:
            if entry["mask_png"]:
                with Image.open(out / entry["mask_png"]) as picture:
                    assert np.array_equal(np.array(picture) > 0, masks.decode(entry["mask"]))
    return records


def texts_of(record):
    return [entry["text"] for entry in record["expressions"]]


def test_more_expressions_for_a_photo_are_added_to_its_entry(tmp_path, stub):
    photo = photo_at(tmp_path / "card.png")
    for words in (["red", "blue"], ["the red one"], ["blue", "red", "green"]):
        assert segment(tmp_path, photo, *words) == 0
        found = results(tmp_path / "out")
    assert list(found) == ["card"] and texts_of(found["card"]) == ["red", "blue", "the red one", "green"]
    assert [text for text, *_ in stub.asked] == ["red", "blue", "the red one", "green"]  # none twice


def test_answers_about_a_former_photo_are_kept_apart(tmp_path):
    photo = photo_at(tmp_path / "card.png")
    assert segment(tmp_path, photo, "red", "blue") == 0
    photo_at(tmp_path / "card.png", (0, 0, 255))
    assert segment(tmp_path, photo, "blue") == 0  # of the new picture
    found = results(tmp_path / "out")
    assert [texts_of(found[name]) for name in ("card", "card_2")] == [["red", "blue"], ["blue"]]
    assert [found[name]["expressions"][-1]["rejected"] for name in ("card", "card_2")] == [True, False]
    assert segment(tmp_path, photo, "blue", "red") == 0  # all that the first entry holds: it is replaced
    assert set(results(tmp_path / "out")) == {"card", "card_2"}


def test_a_mask_that_no_json_of_ours_names_stays(tmp_path):
    photo, out = photo_at(tmp_path / "card.png"), tmp_path / "out"
    segment(tmp_path, photo, "red")
    (out / "card.mask_07_mine.png").write_bytes(b"mine")  # a name like ours
    assert segment(tmp_path, photo, "red") == 0
    assert (out / "card.mask_07_mine.png").read_bytes() == b"mine"


def test_a_mask_goes_when_the_thing_is_gone(tmp_path):
    photo = photo_at(tmp_path / "card.png")
    segment(tmp_path, photo, "red")
    photo_at(tmp_path / "card.png", (90, 90, 90))
    assert segment(tmp_path, photo, "red") == 0
    assert list(results(tmp_path / "out")) == ["card"]
    assert not list((tmp_path / "out").glob("*.mask_*"))


def test_photos_of_one_name_in_two_calls_keep_their_results(tmp_path, monkeypatch):
    for folder, colour in (("1", (255, 0, 0)), ("2", (0, 255, 0))):
        photo_at(tmp_path / folder / "x.png", colour)
        monkeypatch.chdir(tmp_path / folder)  # the same words, another photo
        assert run(["x.png", "red", "--checkpoint", CHECKPOINT[0], "--out", "../out"]) == 0
    found = results(tmp_path / "out")
    assert {name: record["expressions"][0]["rejected"] for name, record in found.items()} == {
        "x": False,
        "x_2": True,
    }
    segment(tmp_path, str(tmp_path / "1" / "x.png"), "blue")
    found = results(tmp_path / "out")
    assert [texts_of(found[name]) for name in ("x", "x_2")] == [["red", "blue"], ["red"]]


def test_a_photo_given_twice_has_one_entry(tmp_path, monkeypatch, stub):
    photo = photo_at(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    assert segment(tmp_path, photo, "x.png", "./x.png", "red", "red ", "blue") == 0
    assert texts_of(results(tmp_path / "out")["x"]) == ["red", "blue"] and stub.encoded == 1


@pytest.mark.parametrize("name", ["a.json", "a.overlay.png", "a.mask_01_red.png"])
@pytest.mark.parametrize(
    "content", [b"{}", b"[1]", b'{"photo": "a.png", "overlay": 3, "expressions": [{}]}', b"\xff"]
)
def test_a_file_of_the_users_is_never_replaced(tmp_path, name, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(content)
    assert segment(tmp_path, photo_at(tmp_path / "a.png"), "red") == 0
    assert (tmp_path / "out" / name).read_bytes() == content
    (tmp_path / "out" / name).unlink()
    assert set(results(tmp_path / "out")) == {"a_2"}


def test_a_json_cannot_name_files_outside_of_its_results(tmp_path):
    photo, out = photo_at(tmp_path / "a.png"), tmp_path / "out"
    segment(tmp_path, photo, "red")
    record = json.loads((out / "a.json").read_text())
    kept = [tmp_path / "b.mask_01_x.png", out / "notes.txt", out / "b.mask_01_x.png"]
    for path in kept:
        path.write_bytes(b"mine")
    for name in ("../b.mask_01_x.png", "notes.txt", "b.mask_01_x.png", str(kept[0])):
        record["expressions"][0]["mask_png"] = name
        (out / "a.json").write_text(json.dumps(record))
        photo_at(tmp_path / "a.png", (255, 0, len(name)))
        assert segment(tmp_path, photo, "red") == 0
    assert all(path.read_bytes() == b"mine" for path in kept)


@pytest.mark.parametrize(
    "word",
    ["photos", "missing.heic", "b.BMP", "scan.tif", "sub/b", "./the dog", "my photos/a b.raw", "../x.gif", "c.jpg",
     "notes", "m.json"],
)  # fmt: skip
@pytest.mark.parametrize("after", [(), ("the fish",)])
def test_what_looks_like_a_path_is_refused_not_asked(tmp_path, monkeypatch, capsys, word, after):
    photo_at(tmp_path / "a.png")
    photo_at(tmp_path / "photos" / "b.png")
    (tmp_path / "notes").write_text("")
    monkeypatch.chdir(tmp_path)
    assert segment(tmp_path, "a.png", "the dog", word, *after) == 2
    printed = capsys.readouterr().err
    assert word in printed and "put -e before it" in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["the black and/or white dog", "item no. 3 of 1/2", "mr. smith"])
def test_words_with_a_slash_or_a_dot_are_asked(tmp_path, text):
    photo = photo_at(tmp_path / "a.png")
    assert asked([photo, text]) == {photo: (text,)}


@given(st.lists(st.text(min_size=1, max_size=300), max_size=6))
def test_names_are_safe_and_different(stems):
    answers, names = Answers(Path("out"), {}), []
    for number, stem in enumerate(stems):
        photo = Asked(f"{number}/{stem.replace(chr(0), '')}.png", ("red",))
        names.append(answers.place_for(photo, "").name)
        answers.taken.add(names[-1].lower())
    assert len({name.lower() for name in names}) == len(stems)
    for name in names:
        assert name and len(name) < 80 and name.isascii() and not set(name) & set("/\\.: \n")


@given(st.text(max_size=400))
def test_safe_name(text):
    name = safe_name(text)
    assert 0 < len(name) <= 60 and name == safe_name(name)


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    segment(tmp_path, photo_at(tmp_path / "a.png"), "red \x1b[31m\nsecond line")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "second line: 50 pixels" in printed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no photo"),
        (["the dog"], "'the dog' is not a file"),
        (["a.png"], "no expression"),
        (["a.png", ""], "empty expression"),
        (["a.png", "x", "--frobnicate"], "--frobnicate"),
    ],
)
def test_wrong_command_lines(tmp_path, capsys, words, says):
    assert segment(tmp_path, *words) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not (tmp_path / "out").exists()


def test_no_model_and_out_in_the_way(tmp_path, capsys):
    photo = photo_at(tmp_path / "a.png")
    assert run([photo, "red", "--checkpoint", str(tmp_path / "none")]) == 2
    assert run([photo, "red", "--checkpoint", CHECKPOINT[0], "--out", photo]) == 2
    assert run([photo, "red", "--checkpoint", CHECKPOINT[0], "--out", f"{photo}/deeper"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "does not exist" in lines[0] and "in the way" in lines[1]


def test_help_is_not_an_error(capsys):
    with pytest.raises(SystemExit) as stop:
        run(["--help"])
    assert stop.value.code == 0
    assert "PHOTO… " in capsys.readouterr().out


def test_the_main_command_reaches_it(tmp_path):
    words = [
        photo_at(tmp_path / "a.png"),
        "red",
        "--checkpoint",
        CHECKPOINT[0],
        "--out",
        str(tmp_path / "out"),
    ]
    assert uniresxx_main(["segment", *words]) == 0
    assert (tmp_path / "out" / "a.json").exists()


class Killed(BaseException):
    """The process ends."""


def named_in(out):
    """Every picture that a JSON of the folder names."""
    found = set()
    for path in out.glob("*.json"):
        record = json.loads(path.read_text())
        found |= {record["overlay"], *record.get("removing", [])}
        found |= {entry["mask_png"] for entry in record["expressions"]}
    return found


@pytest.mark.parametrize("step", range(9))
def test_killed_anywhere_leaves_no_mask_that_no_json_names(tmp_path, monkeypatch, stub, step):
    photo, out = photo_at(tmp_path / "a.png"), tmp_path / "out"
    segment(tmp_path, photo, "red", "green")
    photo_at(tmp_path / "a.png", (0, 255, 0))  # the red mask must go, a green one comes
    steps = iter(range(9))

    def counted(function):
        def call(*words, **options):
            if next(steps) == step:
                raise Killed
            return function(*words, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("uniresxx.cli.segment.answers.write_atomic", counted(write_atomic))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        with suppress(Killed):
            segment(tmp_path, photo, "red", "green")
    assert {path.name for path in out.glob("*.png")} <= named_in(out)
    stub.asked.clear()
    assert segment(tmp_path, photo, "red", "green") == 0
    assert set(results(out)) == {"a"} and results(out)["a"]["complete"]
    assert {path.name for path in out.iterdir()} == {"a.json", "a.overlay.png", "a.mask_02_green.png"}
    assert not stub.asked or step == 0  # the answers were in the JSON


def test_the_same_command_continues_after_a_stop(tmp_path, monkeypatch, capsys, stub):
    photos = [photo_at(tmp_path / f"{name}.png") for name in "abcd"]
    answer, calls = ColourSegmenter.answer, []

    def stopping(self, *words):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, *words)

    monkeypatch.setattr(ColourSegmenter, "answer", stopping)
    assert segment(tmp_path, *photos, "red") == 75
    assert capsys.readouterr().err == (
        "uniresxx segment: stopped after 2 of 4 photos; the same command continues\n"
    )
    assert segment(tmp_path, *photos, "red") == 0 and len(calls) == 5
    said = capsys.readouterr().out
    assert "4 photos: 2 answered, 2 done before; 4 masks, 0 not there -> " in said and "a.png" not in said
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(Predictor, "from_pretrained", None)  # nothing to ask: the model is not loaded
    assert segment(tmp_path, *photos, "red") == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "b.mask_01_red.png").unlink()
    assert segment(tmp_path, *photos, "red") == 0  # a picture was lost: it is drawn from the JSON
    assert (tmp_path / "out" / "b.mask_01_red.png").exists()


def test_other_weights_or_another_threshold_answer_again(tmp_path, stub):
    photo = photo_at(tmp_path / "a.png")
    segment(tmp_path, photo, "red", "blue")
    assert segment(tmp_path, photo, "red", "blue", "--threshold", "0.9") == 0
    (record,) = results(tmp_path / "out").values()
    red, blue = record["expressions"]
    assert (red["rejected"], red["mask"], red["score"]) == (False, None, 0.875)
    assert red["left_out"] == "score 0.88 is below the threshold of 0.9" and blue["rejected"]
    assert segment(tmp_path, photo, "red", "blue", "--threshold", "0.5") == 0
    assert results(tmp_path / "out")["a"]["expressions"][0]["mask_png"] == "a.mask_01_red.png"
    Path(CHECKPOINT[0], "model.safetensors").write_bytes(b"other weights")
    asked_before = len(stub.asked)
    assert segment(tmp_path, photo, "red", "blue", "--threshold", "0.5") == 0
    assert len(stub.asked) == asked_before + 2
    assert run([photo, "red", "--threshold", "2"]) == 2


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
    photo_at(tmp_path / "a.png", (255, 1, 0))
    with files_no_longer_than(10):
        code = segment(tmp_path, photo, "red")
    assert code == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "File too large" in printed.err and "a.json" in printed.err
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
