"""What a command line of `uniresxx segment` asks: which photos, which expressions of each, and what is written."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from uniresxx.cli import placement_words
from uniresxx.cli.segment.tables import Category, read_labels, read_table
from uniresxx.errors import InputError
from uniresxx.imaging.formats import PHOTO_SUFFIXES, has_suffix_of_a_file
from uniresxx.imaging.inputs import checked
from uniresxx.imaging.overlay import one_line

# words that stand in a phrase and hardly alone
_WITHIN_PHRASES = frozenset(
    ("the", "a", "an", "of", "in", "on", "at", "with", "to", "from", "by", "and", "or", "that", "which", "is")
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A photo and what is asked of it, each text once; `ids` are those of a table, by text."""

    photo: str
    texts: tuple[str, ...]
    ids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """A checked command line."""

    asked: tuple[Asked, ...]
    out: Path
    checkpoint: str | None = None  # None: the model that comes with uniresxx
    form: str = "json"
    threshold: float | None = None
    labels: Mapping[str, Category] | None = None  # sentence -> its category
    export: Mapping[str, Any] = field(default_factory=dict)  # fields of annotations.Options
    placement: Mapping[str, Any] = field(default_factory=dict)  # options of Predictor.from_pretrained


def job_of(options: argparse.Namespace) -> Job:
    """The job of parsed options; InputError says what is wrong or missing."""
    words: list[str] = options.words
    if options.table is not None:
        if words or options.expression:
            extra = one_line([*words, *options.expression][0])
            raise InputError(f"--table names photos and sentences, so {extra!r} is too much: leave it out")
        asked = merged(read_table(options.table))
    else:
        photos, expressions = sorted_words(words, options.expression, options.out)
        asked = merged((photo, text, None) for photo in photos for text in expressions)
    texts = dict.fromkeys(text for one in asked for text in one.texts)
    export = {name: getattr(options, name) for name in ("tolerance", "min_area", "holes", "overlap")}
    return Job(
        asked,
        options.out,
        options.checkpoint,
        options.format,
        options.threshold,
        None if options.labels is None else read_labels(options.labels, texts),
        {name: value for name, value in export.items() if value is not None},
        placement_words(options),
    )


def merged(rows: Iterable[tuple[str, str, str | None]]) -> tuple[Asked, ...]:
    """Rows of photo, text and id as one entry per photo, in the order of their first rows.

    Photos are the same where their full paths are; each text is asked once. Raises
    InputError for a text that cannot be asked.
    """
    photos: dict[str, str] = {}
    texts: dict[str, dict[str, list[str]]] = {}
    clean: dict[str, str] = {}
    places: dict[str, str] = {}
    for photo, text, row_id in rows:
        if text not in clean:
            clean[text] = str(checked(text))
        if photo not in places:
            places[photo] = os.path.realpath(photo)
        place = places[photo]
        photos.setdefault(place, photo)
        ids = texts.setdefault(place, {}).setdefault(clean[text], [])
        if row_id is not None:
            ids.append(row_id)
    return tuple(
        Asked(photo, tuple(texts[place]), {text: tuple(ids) for text, ids in texts[place].items() if ids})
        for place, photo in photos.items()
    )


def sorted_words(words: Sequence[str], more: Sequence[str], out: Path) -> tuple[list[str], list[str]]:
    """Photos and expressions of a command line; `more` are expressions whatever they look like.

    Raises InputError where photos or expressions are missing, or a word among the expressions looks like a path.
    """
    first = next((at for at, word in enumerate(words) if not names_photos(word)), len(words))
    for word in words[first:]:
        if looks_like_path(word):
            raise InputError(
                f"{one_line(word)!r} {_what_path(word)}, not an expression: name photos and folders first; "
                "to ask it as an expression, put -e before it"
            )
    photos = [photo for word in words[:first] for photo in photos_of(word, out)]
    if not photos:
        wrong = f": {one_line(words[0])!r} is not a file" if words else ""
        raise InputError(f"no photo{wrong}; name existing photos or folders first, then the expressions")
    if len(words) == first and not more:
        raise InputError("no expression: after the photos, say what to segment")
    if hint := unquoted(words[first:]):
        print(f"note: {hint}", file=sys.stderr)
    return photos, [*words[first:], *more]


def unquoted(expressions: Sequence[str]) -> str:
    """What is said where expressions of one word each look like one phrase without quotes, else ""."""
    alone = len(expressions) > 1 and not any(" " in word for word in expressions)
    if not alone or _WITHIN_PHRASES.isdisjoint(map(str.lower, expressions)):
        return ""
    return f'{len(expressions)} expressions of one word each; to ask one phrase, quote it: "{" ".join(expressions)}"'


def names_photos(word: str) -> bool:
    """Whether a leading word names photos: `-`, a file, a folder, a pattern, or a name with a photo's suffix."""
    return word == "-" or os.path.exists(word) or word.lower().endswith(PHOTO_SUFFIXES) or is_pattern(word)


def is_pattern(word: str) -> bool:
    """Whether a word is a pattern of file names, such as photos/*.jpg."""
    return has_magic(word) and (looks_like_path(word) or bool(re.fullmatch(r"[*?]+", word)))


def looks_like_path(word: str) -> bool:
    """Whether a word was meant as a file or a folder, so that it is not asked as an expression."""
    if os.path.exists(word) or has_suffix_of_a_file(word):
        return True
    if not {"/", os.sep} & set(word):
        return False
    rooted = word.startswith(("/", "./", "../", "~/"))
    return rooted or not re.search(r"\s", word) or bool(re.fullmatch(r"\.[A-Za-z]\w{0,4}", Path(word).suffix))


def _what_path(word: str) -> str:
    if os.path.isdir(word):
        return "is a folder"
    return "is a file" if os.path.exists(word) else "looks like a path, and nothing is there"


def photos_of(word: str, out: Path) -> list[str]:
    """The photos that a word names; InputError where it is a pattern without any, or an address."""
    if word == "-":
        return _listed()
    if re.match(r"(?i)https?://", word):
        raise InputError(f"{one_line(word)!r} is a web address: download the photo and name the file")
    if os.path.isdir(word):
        return list(_below(Path(word), out)) or [word]  # without photos: reported, and the others are done
    if is_pattern(word) and not os.path.exists(word):
        found = sorted(path for path in glob(word, recursive=True) if os.path.isfile(path))
        if not found:
            raise InputError(f"the pattern {one_line(word)!r} matches no file")
        return found
    return [word]


def _below(folder: Path, out: Path) -> Iterator[str]:
    """Photos in a folder and all below it by name; hidden ones and those in `out` are left out."""
    results = out.resolve()
    for place, folders, files in os.walk(folder):
        kept = (
            name for name in folders if not name.startswith(".") and (Path(place, name).resolve() != results)
        )
        folders[:] = sorted(kept)
        if Path(place).resolve() == results:
            continue
        for name in sorted(files):
            if name.lower().endswith(PHOTO_SUFFIXES) and not name.startswith("."):
                yield str(Path(place, name))


def _listed() -> list[str]:
    """The photos listed on standard input, one per line, or ended by NUL as `find -print0` does."""
    if sys.stdin is None:
        raise InputError("-: standard input is closed: pipe a list of photos into it")
    text = os.fsdecode(sys.stdin.buffer.read())
    found = [line for line in (text.split("\0") if "\0" in text else text.splitlines()) if line.strip()]
    if not found:
        raise InputError("-: standard input lists no photo; give one path per line")
    return found
