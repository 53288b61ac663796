"""Which kinds of files are photos, and what is said of the others."""

from __future__ import annotations

import io
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, features

from uniresxx.errors import InputError
from uniresxx.imaging import formats
from uniresxx.imaging.decode import decode_photo, photo_header, photo_size, read_photo

HALVES = np.full((24, 40, 3), 30, dtype=np.uint8)
HALVES[:, 20:] = 220


def saved(kind, **options):
    stream = io.BytesIO()
    Image.fromarray(HALVES).save(stream, format=kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "PNG", "WEBP"])
def test_lossless_kinds_are_read(tmp_path, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "photo"
    path.write_bytes(saved(kind, **options))
    assert np.array_equal(read_photo(path), HALVES) and photo_size(path) == (24, 40)


def test_the_first_frame_of_a_gif_is_the_photo():
    frames = [Image.fromarray(HALVES), Image.new("RGB", (40, 24), "red")]
    stream = io.BytesIO()
    frames[0].save(stream, format="GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_photo(stream.getvalue(), "x"), HALVES)


def test_white_shows_through_a_gif():
    picture = Image.fromarray(HALVES).quantize(4)
    stream = io.BytesIO()
    picture.save(stream, format="GIF", transparency=picture.getpixel((0, 0)))
    found = decode_photo(stream.getvalue(), "x")
    assert (found[:, :20] == 255).all() and np.array_equal(found[:, 20:], HALVES[:, 20:])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read(tmp_path):
    path = tmp_path / "a.avif"
    path.write_bytes(saved("AVIF", quality=100))
    assert np.abs(read_photo(path).astype(int) - HALVES).max() < 24
    assert photo_header(path).upright == (24, 40)


def test_avif_without_its_plug_in_is_named(monkeypatch):
    monkeypatch.setattr(formats, "_registered", lambda name: False)
    with pytest.raises(InputError, match="x: is an AVIF picture, which this Pillow cannot read"):
        decode_photo(box(b"avif"), "x")


def box(brand, *more):
    """The first box of a file in the ISO base media format."""
    body = b"ftyp" + brand + b"\0\0\0\0" + b"".join(more)
    return (4 + len(body)).to_bytes(4, "big") + body + b"\0" * 300


def test_heic_without_its_plug_in_says_what_to_install(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    for data in (box(b"heic"), box(b"mif1", b"mif1", b"heic")):
        with pytest.raises(InputError, match=r"x: is a HEIC picture: run `pip install pillow-heif`, or save"):
            decode_photo(data, "x")


def test_heic_is_opened_by_its_plug_in(monkeypatch):
    """A plug-in that takes the place of pillow-heif and reads a PNG behind the first box."""

    class Heif(Image.Image):
        pass

    def opened(stream, name):
        return Image.open(io.BytesIO(stream.read()[len(box(b"heic")) :]))

    plugin = ModuleType("pillow_heif")
    plugin.register_heif_opener = lambda thumbnails: Image.register_open(
        "HEIF", opened, lambda start: start[4:8] == b"ftyp"
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(formats, "find_spec", lambda name: plugin)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    formats._register_heif.cache_clear()
    assert np.array_equal(decode_photo(box(b"heic") + saved("PNG"), "x"), HALVES)
    formats._register_heif.cache_clear()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"%PDF-1.7 ...", "is a PDF document, not a picture in JPEG, PNG"),
        (b"<svg xmlns='x'>", "is an SVG drawing"),
        (b"<?xml version='1.0'?>\n<svg>", "is an SVG drawing"),
        (b"<!doctype html><p>404", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"\0\0\0\x0cJXL \r\n", "a JPEG XL picture"),
        (b"P6 3 3 255 ", "a PNM picture"),
        (b"PK\x03\x04abc", "a ZIP archive"),
        (box(b"isom"), "is a film"),
        (box(b"crx "), "a camera's raw file"),
        (b"\x93NUMPY\x01\0", "a numpy array"),
        ("only words, \u00fc".encode(), "is a text file"),
        (bytes(range(128, 250)), "not a picture in JPEG, .* or its header is damaged"),
    ],
)  # fmt: skip
def test_what_is_no_photo_is_named(data, says):
    with pytest.raises(InputError, match=says) as caught:
        decode_photo(data, "x")
    assert str(caught.value).startswith("x: ") and "\n" not in str(caught.value)
