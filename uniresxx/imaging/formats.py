"""Kinds of picture files: which are opened, which suffixes they have, and what a file is that is not opened."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from PIL import Image

from uniresxx.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")  # of files in these formats
AVIF_SUFFIXES, HEIF_SUFFIXES = (".avif",), (".heic", ".heif")
# what people take for photos: folders are searched for it, and a word with such an end is no expression
PHOTO_SUFFIXES = (*SUFFIXES, ".jfif", *AVIF_SUFFIXES, *HEIF_SUFFIXES)
HEIF_PLUGIN = "pillow_heif"  # a plug-in of Pillow that people install themselves
_HEIF_BRANDS = ("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1")
_OTHER_SUFFIXES = (
    ".jp2", ".jxl", ".svg", ".psd", ".pdf", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".ppm", ".pgm",
    ".tga", ".ico", ".exr", ".mp4", ".mov", ".zip", ".json", ".jsonl", ".csv", ".txt", ".npy",
)  # fmt: skip
# first bytes of files that are often taken for photos, and what such a file is
_KINDS: tuple[tuple[bytes, str], ...] = (
    (rb"%PDF", "a PDF document"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (rb"\x00\x00\x00\x0cJXL |\xff\x0a", "a JPEG XL picture"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg|<svg)", "an SVG drawing"),
    (rb"\s*(<!DOCTYPE html|<html|<head)", "a web page"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
    (rb"P[1-6]\s", "a PNM picture"),
    (rb"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (rb"\x00\x00\x01\x00", "an icon"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"\x1a\x45\xdf\xa3|RIFF....AVI ", "a film"),
    (rb"FUJIFILMCCD-RAW|IIU\x00|IIRO", "a camera's raw file"),
    (rb"\x93NUMPY", "a numpy array"),
)
_ADVICE = "save it as JPEG or PNG"


def formats_for(data: bytes) -> tuple[str, ...]:
    """The formats in which a file with these first bytes is opened.

    Raises InputError where it is HEIC or AVIF and Pillow has no plug-in for it; the message lacks the file's name.
    """
    if _brands(data).intersection(("avif", "avis")):
        if not _registered("AVIF"):
            raise InputError(f"is an AVIF picture, which this Pillow cannot read; {_ADVICE}")
        return ("AVIF",)
    if _brands(data).intersection(_HEIF_BRANDS):
        if find_spec(HEIF_PLUGIN) is None:
            raise InputError(f"is a HEIC picture: run `pip install pillow-heif`, or {_ADVICE}")
        _register_heif()
        return ("HEIF",)
    return FORMATS


def what_it_is(data: bytes) -> str:
    """What a file is that is no photo, from its first bytes: "a PDF document"; "" where it is not known."""
    for pattern, name in _KINDS:
        if re.match(pattern, data[:1024], re.DOTALL | re.IGNORECASE):
            return name
    if _brands(data):
        return "a camera's raw file" if "crx " in _brands(data) else "a film"
    return "a text file" if _is_text(data[:1024]) else ""


def has_suffix_of_a_file(word: str) -> bool:
    """Whether a word ends as file names do, so that it was meant as a file and not as an expression."""
    return word.lower().endswith((*PHOTO_SUFFIXES, *_OTHER_SUFFIXES))


def _brands(data: bytes) -> set[str]:
    """The brands of a file in the ISO base media format (HEIF, AVIF, MP4); empty where it is none."""
    if data[4:8] != b"ftyp":
        return set()
    box = data[8 : max(16, min(int.from_bytes(data[:4], "big"), 256))]
    return {box[at : at + 4].decode("latin-1") for at in range(0, len(box), 4) if at != 4}


def _is_text(data: bytes) -> bool:
    try:
        return all(letter.isprintable() or letter.isspace() for letter in data.decode())
    except UnicodeDecodeError:
        return False


def _registered(name: str) -> bool:
    Image.init()
    return name in Image.OPEN


@cache
def _register_heif() -> None:
    """Tell Pillow of the plug-in. It is not a requirement, so it is imported by name."""
    import_module(HEIF_PLUGIN).register_heif_opener(thumbnails=False)
