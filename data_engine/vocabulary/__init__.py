"""Part vocabularies: for each category the names of its parts, each with a short definition.

A file is JSON: {"format", "version", "provenance", "categories": {category: {part: definition}}}. `coco` and `drawn`
come with the project; any other name is a path. docs/data_engine.md has the question with which a language model is
asked for a new one, and how it is reviewed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniresxx.data.readers.part_names import category_noun, part_noun
from uniresxx.errors import InputError

FORMAT, VERSION = "uniresxx-parts", 1
SHIPPED = {name: Path(__file__).with_name(f"{name}.json") for name in ("coco", "drawn")}
Parts = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The parts of each category, and where the words come from."""

    categories: Parts
    provenance: Mapping[str, Any]

    def parts_of(self, category: str) -> Mapping[str, str]:
        """Names and definitions; empty for a category without parts."""
        return self.categories.get(category, {})

    def comparison(self, named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
        """What another hierarchy, pairs of category and part, has and this one lacks, and the other way round.

        Only categories of both are compared; names are nouns as the readers of part sets make them.
        """
        theirs: dict[str, set[str]] = {}
        for category, part in named:
            theirs.setdefault(category_noun(category), set()).add(part_noun(part))
        both = sorted(theirs.keys() & self.categories.keys())

        def names(more: Parts | Mapping[str, set[str]], than: Parts | Mapping[str, set[str]]) -> list[str]:
            return [f"{name}: {part}" for name in both for part in sorted(set(more[name]) - set(than[name]))]

        return {"lacking": names(theirs, self.categories), "more": names(self.categories, theirs)}


def load_vocabulary(name: str) -> Vocabulary:
    """The vocabulary `coco` or `drawn`, or that of a file. InputError naming what is wrong in it."""
    path = SHIPPED.get(name, Path(name))
    if not path.is_file():
        raise InputError(
            f"{name!r} is no part vocabulary: give {', '.join(SHIPPED)} or the path of a JSON file"
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON ({error})") from None
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path}: must be an object with format {FORMAT!r} and version {VERSION}")
    categories, provenance = content.get("categories"), content.get("provenance")
    if not isinstance(categories, dict) or not isinstance(provenance, dict) or not provenance:
        raise InputError(
            f"{path}: must have categories and a provenance, which says where the words are from"
        )
    for category, parts in categories.items():
        rows = parts.items() if isinstance(parts, dict) else [(None, None)]
        for part, definition in rows:
            if not (isinstance(part, str) and part.strip() and isinstance(definition, str) and definition):
                raise InputError(f"{path}: {category}: must map names of parts to definitions, not {part!r}")
    return Vocabulary(categories, provenance)
