"""The folder of a store: the names of its files, its metadata, and what a path means. Needs no Arrow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError

FORMAT, VERSION = "uniresxx-store", 3
META, RECORDS, INDEX = "meta.json", "records.arrow", "index.bin"


def is_store(path: Path) -> bool:
    """Whether a path is a store's folder (whole or not)."""
    return (path / META).is_file()


def store_named(name: str) -> tuple[Path, str | None] | None:
    """STORE or STORE/SPLIT as (folder, split or None); None where the name is no path of a store."""
    path = Path(name)
    if is_store(path):
        return path, None
    return (path.parent, path.name) if is_store(path.parent) and path.name else None


def meta_checksum(meta: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of the metadata without its own checksum."""
    content = {key: value for key, value in meta.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_meta(path: Path) -> dict[str, Any]:
    """Checked metadata of a store; InputError names what is wrong with it."""
    if not is_store(path):
        raise InputError(f"{path}: is no store (no {META}); `uniresxx data prepare` makes one")
    try:
        meta = json.loads((path / META).read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{path}: {META} is damaged; prepare the store again") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{path}: {META} is not of a store of this program")
    if meta.get("version") != VERSION:
        raise InputError(
            f"{path}: is of store format {meta.get('version')!r}, this program reads {VERSION}; "
            "prepare the store again, or use the version of the program that made it"
        )
    if meta.get("checksum") != meta_checksum(meta):
        raise InputError(f"{path}: {META} does not match its checksum; prepare the store again")
    for name, entry in meta["files"].items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != entry["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
            raise InputError(f"{path}: {name} {found}; copy the whole store again, or prepare it again")
    return meta
