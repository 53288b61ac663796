"""Photos as they lie on a disk: headers, EXIF frames, TIFF and BMP, photos that arrive late, LMDB files cut short."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from uniresxx.cli import main as program
from uniresxx.data.mixture.open import open_mixture
from uniresxx.data.mixture.parts import MixturePart
from uniresxx.data.readers.lmdb_pages import check_whole
from uniresxx.data.store.photos import photo_of
from uniresxx.data.store.read import Store
from uniresxx.errors import InputError
from uniresxx.imaging.decode import (
    PhotoHeader,
    decode_photo,
    photo_header,
    photo_size,
    read_photo,
    turned_raw,
    turned_upright,
)

W, H = 30, 20


def pixels(seed=0):
    """Blocks of plain colour, which JPEG keeps nearly as they are."""
    blocks = np.random.default_rng(seed).integers(0, 255, (H // 10, W // 10, 3), dtype=np.uint8)
    return blocks.repeat(10, 0).repeat(10, 1)


def saved(path, orientation=1, **options):
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(pixels()).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_turning_is_that_of_the_decoder_and_the_header_agrees(tmp_path, orientation, suffix):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    path = saved(tmp_path / f"p.{suffix}", orientation, **options)
    photo, header = read_photo(path), photo_header(path)
    assert header == PhotoHeader((H, W), orientation) and header.upright == photo.shape[:2] == photo_size(
        path
    )
    np.testing.assert_array_equal(turned_raw(turned_upright(pixels(), orientation), orientation), pixels())
    apart = np.abs(turned_upright(pixels(), orientation).astype(int) - photo)
    assert apart.max() <= (12 if suffix == "jpg" else 0)


def test_the_header_of_a_png_is_found_behind_its_pixels_too(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    content = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    data = io.BytesIO()
    Image.fromarray(pixels()).save(data, "PNG")
    (tmp_path / "p.png").write_bytes(data.getvalue()[:-12] + chunk + data.getvalue()[-12:])
    assert photo_header(tmp_path / "p.png").upright == read_photo(tmp_path / "p.png").shape[:2] == (W, H)


def test_a_header_is_read_without_the_pixels(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (3000, 2000)).save(data, "PNG")
    (tmp_path / "p.png").write_bytes(data.getvalue()[:60])
    assert photo_header(tmp_path / "p.png").stored == (2000, 3000)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_photos_of_every_kind(tmp_path, mode, compression):
    deep = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257)
    image = deep if mode == "I;16" else Image.fromarray(pixels()).convert(mode)
    image.save(tmp_path / "p.tif", compression=compression)
    expected = np.asarray(image.convert("RGB")) if mode != "I;16" else pixels()[..., :1].repeat(3, 2)
    np.testing.assert_array_equal(read_photo(tmp_path / "p.tif"), expected)


def test_tiff_photos_that_nobody_can_show_are_one_line(tmp_path):
    Image.fromarray(np.zeros((H, W), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(pixels()).save(tmp_path / "odd.tif", compression="lzma")
    data = io.BytesIO()
    Image.fromarray(pixels()).save(data, "BMP")
    huge = bytearray(data.getvalue())
    huge[18:26] = (50_000).to_bytes(4, "little") * 2
    for content, word in (
        ((tmp_path / "float.tif").read_bytes(), "floating-point"),
        ((tmp_path / "odd.tif").read_bytes(), "compressed as 'lzma'"),
        (bytes(huge), "megapixels"),
    ):
        with pytest.raises(InputError, match=word) as caught:
            decode_photo(content, "the.tif")
        assert "the.tif" in str(caught.value) and "\n" not in str(caught.value)


# ---- native sets


def grefcoco(root, orientation=None, segmentations=None):
    """Two photos with a target each and one ref on both annotations, in its native layout."""
    (root / "grefcoco").mkdir(parents=True)
    (root / "images" / "train2014").mkdir(parents=True)
    names = [f"COCO_train2014_{number:012d}.jpg" for number in (1, 2)]
    box = [2, 2, 12, 2, 12, 9, 2, 9]
    segmentations = segmentations or [[box], [box]]
    images = [{"id": k, "file_name": name, "width": W, "height": H} for k, name in enumerate(names, 1)]
    annotations = [{"id": 10 + k, "image_id": k, "segmentation": segmentations[k - 1]} for k in (1, 2)]
    refs = [
        {
            "ref_id": k,
            "image_id": k,
            "ann_id": [10 + k],
            "split": "train",
            "sentences": [{"sent": "it", "sent_id": k}],
        }
        for k in (1, 2)
    ]
    (root / "grefcoco" / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations})
    )
    (root / "grefcoco" / "grefs(unc).json").write_text(json.dumps(refs))
    if orientation is not None:
        for name in names:
            saved(root / "images" / "train2014" / name, orientation, quality=100, subsampling=0)
    return names


def prepare(root, out, capsys, *words):
    code = program(["data", "prepare", "grefcoco", "--data", str(root), "--out", str(out), *words])
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "folder", ["images/train2014", "images", "train2014", "images/mscoco/images/train2014"]
)
def test_photos_that_arrive_after_their_store_are_found(tmp_path, capsys, folder):
    names = grefcoco(tmp_path / "d")
    code, printed = prepare(tmp_path / "d", tmp_path / "s", capsys)
    assert code == 0 and f"photos: 0 of 2 found, looked in {tmp_path / 'd' / 'images/train2014'}" in printed
    (tmp_path / "d" / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        saved(tmp_path / "d" / folder / name)
    assert program(["data", "verify", str(tmp_path / "s")]) == 0
    code, printed = prepare(tmp_path / "d", tmp_path / "s", capsys)
    assert code == 0 and "photos: 2 of 2 found" in printed
    assert photo_of(Store.open(tmp_path / "s")[0]).shape == (H, W, 3)


def test_photos_in_the_raw_frame_are_read_so_and_verify_says_it(tmp_path, capsys):
    grefcoco(tmp_path / "d", orientation=6)
    for words in ((), ("--pack-images",)):
        assert prepare(tmp_path / "d", tmp_path / f"s{len(words)}", capsys, *words)[0] == 0
        store = Store.open(tmp_path / f"s{len(words)}")
        assert np.abs(photo_of(store[0]).astype(int) - pixels()).max() <= 12
        assert program(["data", "verify", str(store.path)]) == 0
        assert "orientation: 2; annotated: 2 in the raw frame" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [[[2, 2, 9, 9]], [], [["x"] * 6], {"size": [H, W], "counts": [3]}])
def test_one_bad_annotation_takes_only_its_refs(tmp_path, capsys, caplog, bad):
    grefcoco(tmp_path / "d", 1, segmentations=[bad, [[2, 2, 12, 2, 12, 9]]])
    assert prepare(tmp_path / "d", tmp_path / "s", capsys)[0] == 0
    assert "left out 1" in caplog.text and "ann 11" in caplog.text
    assert [record.image_id for record in Store.open(tmp_path / "s")] == ["2"]


# ---- LMDB


def lmdb_of(path, values):
    with (
        lmdb.open(str(path), subdir=False, map_size=2**24) as environment,
        environment.begin(write=True) as write,
    ):
        for key, value in values.items():
            write.put(key.encode(), value)


@pytest.mark.parametrize("count", [1, 3, 400])
def test_every_page_of_an_lmdb_is_needed_or_not_as_its_tree_says(tmp_path, count):
    path = tmp_path / "x.lmdb"
    lmdb_of(path, {f"{k:05d}": pickle.dumps(bytes(3000 * (k % 7))) for k in range(count)})
    whole = path.read_bytes()
    check_whole(path)
    pages = len(whole) // 4096
    for keep in range(0, pages, max(1, pages // 40)):
        path.write_bytes(whole[: keep * 4096 + 100])
        with pytest.raises(InputError, match="cut short"):
            check_whole(path)
    path.write_bytes(whole + bytes(4096))
    check_whole(path)
    path.write_bytes(b"x" * 9000)
    with pytest.raises(InputError, match="is no LMDB"):
        check_whole(path)


def test_pages_that_were_freed_at_the_end_may_be_missing(tmp_path):
    path = tmp_path / "x.lmdb"
    lmdb_of(path, {"a": bytes(100), "b": bytes(50_000)})
    with lmdb.open(str(path), subdir=False, map_size=2**24) as environment:
        for change in (lambda write: write.delete(b"b"), *[lambda write: write.put(b"c", b"d")] * 4):
            with environment.begin(write=True) as write:
                change(write)  # later ones take the pages at the start that earlier ones freed
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 4096 * 3)
    check_whole(path)
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as read,
    ):
        assert read.get(b"a") == bytes(100) and read.get(b"b") is None


# ---- training


@pytest.mark.parametrize("granularities", [(), ("none",)])
def test_a_mixture_without_a_target_is_refused(tmp_path, granularities):
    Path(tmp_path / "photos").mkdir()
    Image.new("RGB", (W, H)).save(tmp_path / "photos" / "a.png")
    rows = "photo,mask,sentence\na.png,,the dog\n"
    if granularities:
        Image.new("1", (W, H), 1).save(tmp_path / "m.png")
        rows += "a.png,m.png,the wall\n"
    (tmp_path / "s.csv").write_text(rows)
    place = {"photos": tmp_path / "photos", "sentences": tmp_path / "s.csv", "out": tmp_path / "s"}
    words = [word for key, value in place.items() for word in (f"--{key}", str(value))]
    assert program(["data", "prepare", "own", *words, "--name", "nothing", "--licence", "own"]) == 0
    part = MixturePart(str(tmp_path / "s"), granularities=granularities)
    with pytest.raises(InputError, match=r"nothing/train.*: no target"):
        open_mixture([part], 4, 0)
    with pytest.raises(InputError, match="was not prepared with a guard"):
        open_mixture([part], 4, 0, guard="strict")
    if granularities:
        assert len(open_mixture([MixturePart(str(tmp_path / "s"))], 4, 0).parts) == 1
