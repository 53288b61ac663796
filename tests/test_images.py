"""Photos of every mode come out as a person sees them; everything else is one line that names the file."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.imaging.decode import decode_photo, photo_size, read_mask, read_photo
from uniresxx.types import ImageRecord

RED, BLUE = (200, 30, 40), (30, 40, 200)


def two_halves(width=40, height=24):
    """Left half red, right half blue."""
    photo = np.empty((height, width, 3), dtype=np.uint8)
    photo[:, : width // 2], photo[:, width // 2 :] = RED, BLUE
    return photo


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width, height):
    """A PNG of which only the header exists."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def chunk(kind, body):
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


BODY = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")  # no picture needs so few bytes

MODES = {
    "JPEG": ("RGB", "L", "CMYK", "1"),
    "PNG": ("RGB", "L", "RGBA", "LA", "P", "1"),
    "WEBP": ("RGB", "L", "RGBA", "LA", "P", "1"),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_every_mode_becomes_rgb(tmp_path, kind, mode):
    image = Image.fromarray(two_halves()).convert(mode, dither=Image.Dither.NONE)
    path = tmp_path / "photo.bin"  # the name says nothing, the content does
    path.write_bytes(saved(image, kind))
    photo = read_photo(path)
    assert photo.shape == (24, 40, 3) and photo.dtype == np.uint8
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(photo.astype(int) - expected)[:, [3, 12, 28, 36]].mean() < 15
    assert photo_size(path) == (24, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(tmp_path, kind, orientation):
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation]
    stored = two_halves()
    stored[:12] //= 2  # upper half darker: all eight orientations look different
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "p"
    options = (
        {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    )
    path.write_bytes(saved(Image.fromarray(stored), kind, exif=exif, **options))
    photo = read_photo(path)
    expected = turn(stored)
    assert photo.shape == expected.shape == (*photo_size(path), 3)
    assert np.abs(photo.astype(int) - expected.astype(int)).mean() < 8


def test_sixteen_bits_keep_their_brightness():
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    photo = decode_photo(saved(Image.fromarray(grey), "PNG"), "x")
    assert np.abs(photo[..., 0].astype(float) - grey / 257).max() <= 0.51
    assert np.array_equal(photo[..., 0], photo[..., 2])


def test_transparency_shows_white_without_warnings():
    rgba = np.dstack([two_halves(), np.full((24, 40), 255, np.uint8)])
    rgba[:, :10, 3] = 0
    palette = Image.fromarray(two_halves()).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo = decode_photo(saved(Image.fromarray(rgba), "PNG"), "x")
        flat = decode_photo(saved(palette, "PNG", transparency=bytes([255, 255, 0, 0])), "x")
    assert (photo[:, :10] == 255).all() and (photo[:, 10:20] == RED).all()
    assert flat.shape == (24, 40, 3)


def test_only_the_first_frame_of_an_animation():
    frames = [Image.fromarray(two_halves()), Image.new("RGB", (40, 24), "green")]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(decode_photo(data, "x"), two_halves())


@pytest.mark.parametrize("name", ["missing", "folder", "empty", "text", "ico", "fifo", "cut.jpg", "cut.png"])
def test_what_is_no_photo_is_one_line_with_the_name(tmp_path, name):
    path = tmp_path / f"my {name}"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))
    if name == "folder":
        path.mkdir()
    elif name == "fifo":
        os.mkfifo(path)
    elif name != "missing":
        full = {"cut.jpg": lambda: saved(image, "JPEG"), "cut.png": lambda: saved(image, "PNG")}
        content = {"empty": b"", "text": b"hello " * 20}
        if name == "ico":
            content[name] = saved(image, name.upper())
        path.write_bytes(content[name] if name in content else full[name]()[:-2000])
    with pytest.raises(InputError) as caught:
        read_photo(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def resized(form, mark, place, size, **options):
    """A picture of 8 x 8 pixels that says another size: `size` is written `place` bytes after its `mark`."""
    data = saved(Image.new("RGB", (8, 8)), form, **options)
    place += data.index(mark)
    return data[:place] + size + data[place + len(size) :]


@pytest.mark.parametrize(
    "data",
    [
        png_header(50_000, 50_000) + BODY,
        png_header(7072, 7072) + BODY,
        resized("JPEG", b"\xff\xc0", 5, struct.pack(">HH", 65500, 65500)),
        resized("WEBP", b"\x9d\x01\x2a", 3, b"\xff\x3f\xff\x3f"),
        resized("WEBP", b"\x2f", 1, b"\xff\xff\xff\x0f", lossless=True),
        resized(
            "WEBP",
            b"VP8X",
            12,
            b"\xff\x3f\0" * 2,
            save_all=True,
            append_images=[Image.new("RGB", (8, 8), "red")],
        ),
    ],
)
def test_size_is_capped_from_the_header(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="megapixels"):
            decode_photo(data, "big")


def png(*chunks):
    """A PNG of 8 x 8 pixels with more chunks after its header."""
    rows = zlib.compress((b"\0" + b"\x80" * 24) * 8)
    extra = b"".join(chunk(kind, body) for kind, body in chunks)
    return png_header(8, 8) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg(**options):
    return saved(Image.fromarray(two_halves()), "JPEG", **options)


def frame_header(data, width, height):
    """The SOF segment of a JPEG, with another size."""
    at = next(data.index(b"\xff" + bytes([kind])) for kind in (0xC0, 0xC2) if b"\xff" + bytes([kind]) in data)
    length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at, data[at : at + 5] + struct.pack(">HH", height, width) + data[at + 9 : at + length]


DEFLATED = zlib.compress(b"a" * 2**27, 9)  # 130 kB that unfold to 128 MiB


@pytest.mark.parametrize(
    "more",
    [
        (b"zTXt", b"k\0\0" + DEFLATED),
        (b"iTXt", b"k\0\1\0\0\0" + DEFLATED),
        (b"iCCP", b"k\0\0" + DEFLATED),
        (b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)),
        (b"IHDR", struct.pack(">IIBBBBB", 9, 8, 8, 2, 0, 0, 0)),
    ],
)
def test_chunks_that_unfold_and_second_headers_are_refused(more, tmp_path):
    data = png(more)
    assert len(data) < 200_000
    with pytest.raises(InputError, match=r"damaged|megapixels"):
        decode_photo(data, "x")
    (tmp_path / "m.png").write_bytes(data)
    with pytest.raises(InputError, match=r"m\.png.*(damaged|megapixels)"):
        read_mask(tmp_path / "m.png")
    assert photo_size(tmp_path / "m.png") is None


def test_many_text_chunks_are_refused_and_a_few_are_not():
    packed = (b"zTXt", b"k\0\0" + zlib.compress(b"a" * 900_000))
    assert decode_photo(png(packed, packed), "x").shape == (8, 8, 3)
    with pytest.raises(InputError, match="damaged"):
        decode_photo(png(*[packed] * 100), "x")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_second_frame_header_is_refused(progressive):
    data = jpeg(progressive=progressive)
    at, _ = frame_header(data, 1, 1)
    for size in ((11_000, 11_000), (60_000, 60_000), (41, 24)):
        with pytest.raises(InputError, match=r"damaged|megapixels"):
            decode_photo(
                data[:at] + frame_header(data, 40, 24)[1] + frame_header(data, *size)[1] + data[at:], "x"
            )


def test_scans_are_counted_up_to_the_end_of_the_picture():
    data = jpeg(progressive=True)
    at = data.rindex(b"\xff\xda")
    scan, end = data[at:-2], data[-2:]
    assert decode_photo(data[:at] + scan * 20 + end, "x").shape == (24, 40, 3)
    with pytest.raises(InputError, match="scans"):  # a kilobyte could keep a processor for minutes
        decode_photo(data[:at] + scan * 100 + end, "x")
    assert np.array_equal(decode_photo(data + b"\xff\xda" * 1000, "x"), decode_photo(data, "x"))
    comment = b"\xff\xfe" + struct.pack(">H", 2002) + b"\xff\xda" * 1000
    assert np.array_equal(decode_photo(data[:2] + comment + data[2:], "x"), decode_photo(data, "x"))


def test_a_png_whose_bytes_look_like_scans_is_read():
    body = np.tile(np.array([0xFF, 0xDA, 0, 2], dtype=np.uint8), (64, 48)).reshape(64, 64, 3)
    assert np.array_equal(decode_photo(saved(Image.fromarray(body), "PNG", compress_level=0), "x"), body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_over_the_cap_is_refused_before_it_is_decoded(kind, monkeypatch):
    data = saved(Image.new("L", (8000, 7000)), kind)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(InputError, match="8000 x 7000 pixels are over the cap of 50 megapixels"):
        decode_photo(data, "x")


def test_exif_that_points_at_itself_or_lies_about_its_length():
    loop = b"MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08"
    lies = b"MM\0*\0\0\0\x08\xff\xff" + b"\1\x12\0\1\xff\xff\xff\xff\0\0\0\0" * 5000
    for exif in (loop, lies, b"II*\0\xff\xff\xff\xff"):
        assert decode_photo(png((b"eXIf", exif)), "x").shape == (8, 8, 3)
        segment = b"Exif\0\0" + exif
        data = jpeg()
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
        assert decode_photo(data, "x").shape == (24, 40, 3)


def test_only_the_first_of_many_frames_is_decoded():
    frames = [Image.new("L", (64, 64), shade % 256) for shade in range(300)]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (decode_photo(data, "x") == 0).all()


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_header_sizes_agree_with_the_decoder(tmp_path, lossless, alpha):
    image = Image.new("RGBA" if alpha else "RGB", (71, 33), (9, 8, 7, 100)[: 4 if alpha else 3])
    for kind, options in (("WEBP", {"lossless": lossless}), ("PNG", {}), ("JPEG", {"progressive": lossless})):
        path = tmp_path / kind
        path.write_bytes(saved(image.convert("RGB") if kind == "JPEG" else image, kind, **options))
        assert photo_size(path) == (33, 71) == read_photo(path).shape[:2]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.data())
def test_damaged_files_raise_input_error_only(kind, data):
    content = bytearray(saved(Image.fromarray(two_halves()), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    try:
        photo = decode_photo(bytes(content), "x")
    except InputError:
        return
    assert photo.ndim == 3 and photo.shape[2] == 3


def test_photo_of_checks_the_size(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(two_halves()), "PNG"))
    assert photo_of(ImageRecord("1", 24, 40, (), path=str(path))).shape == (24, 40, 3)
    with pytest.raises(InputError, match=r"24 x 40 .* 40 x 24"):
        photo_of(ImageRecord("1", 40, 24, (), path=str(path)))
    with pytest.raises(InputError, match="neither"):
        photo_of(ImageRecord("1", 40, 24, ()))
    pixels = two_halves()
    assert photo_of(ImageRecord("1", 24, 40, (), pixels=pixels)) is pixels


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "P"])
def test_masks_are_everything_above_zero(tmp_path, mode):
    values = np.zeros((6, 8), dtype=np.uint16 if mode == "I;16" else np.uint8)
    values[1:3, 2:5], values[3, 3] = 255, 254
    image = Image.fromarray(values) if mode != "1" else Image.fromarray(values > 0)
    path = tmp_path / "m.png"
    path.write_bytes(saved(image.convert("P") if mode == "P" else image, "PNG"))
    assert np.array_equal(read_mask(path), values > 0)
    path.write_bytes(saved(Image.fromarray(two_halves()), "JPEG"))
    with pytest.raises(InputError, match="PNG"):
        read_mask(path)
