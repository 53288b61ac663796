"""The folders that a preparation writes: which are ours, and how a finished one takes its place.

A store is written in OUT.partial and renamed to OUT once it is complete. In both folders only files that this program
wrote are removed; whatever else lies there stays.
"""

from __future__ import annotations

import json
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from uniresxx.data.store.folder import FORMAT, INDEX, META, RECORDS
from uniresxx.errors import InputError
from uniresxx.files import sync_to_disk

MANIFEST, LOCK = "manifest.json", ".uniresxx.lock"
PIECES = re.compile(r"\d{4,}-\d{7,}\.chunk")
_HALF_WRITTEN = re.compile(r"\.writing-\w+")  # what write_atomic leaves when it is killed
_OURS = re.compile(
    "|".join(
        (
            *map(re.escape, (META, RECORDS, INDEX, LOCK)),
            PIECES.pattern,
            r"photos\.bin",
            r"photos-\d{5,}\.tar",
            _HALF_WRITTEN.pattern,
        )
    )
)


def partial_of(out: Path) -> Path:
    """The folder beside `out` in which the store is written."""
    return out.parent / f"{out.name}.partial"


def check_output(out: Path) -> None:
    """InputError where `out` or its partial folder holds something that this program did not write there."""
    if out.name in ("", ".."):
        raise InputError(f"{out}: --out must name a folder of its own, as stores/refcoco")
    if out.exists() and not is_empty(out) and not _is_ours(out):
        raise InputError(f"{out} exists and is not a store: name another --out")
    partial = partial_of(out)
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise InputError(
            f"{partial} is not a folder, and the store is written there first: name another --out"
        )
    if partial.is_dir() and not is_empty(partial) and not _is_partial(partial):
        raise InputError(
            f"{partial} holds files that uniresxx did not write, and the store is written there first: "
            "name another --out"
        )


def is_empty(folder: Path) -> bool:
    """Whether this is a folder without anything in it."""
    return folder.is_dir() and not any(folder.iterdir())


def _is_ours(out: Path) -> bool:
    """Whether a folder is a store, its metadata damaged or not."""
    damaged = all((out / name).is_file() for name in (META, RECORDS, INDEX))
    return damaged or _json(out / META).get("format") == FORMAT


def _is_partial(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return _is_manifest(folder / MANIFEST) or names == {LOCK} or any(map(PIECES.fullmatch, names))


def _is_manifest(path: Path) -> bool:
    return path.name == MANIFEST and {"inputs", "splits"} <= _json(path).keys()


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def has_pieces(partial: Path) -> bool:
    """Whether a partial folder holds work that can be continued."""
    return any(PIECES.fullmatch(path.name) for path in partial.iterdir())


def remove_pieces(folder: Path) -> None:
    """Remove what only the writing of a store needs."""
    for path in folder.iterdir():
        if PIECES.fullmatch(path.name) or path.name == LOCK or _is_manifest(path):
            path.unlink(missing_ok=True)


def remove_ours(folder: Path, *, but: str = "") -> None:
    """Remove the files of this program (but one) from a folder, and the folder where nothing else is in it."""
    for path in folder.iterdir():
        ours = _OURS.fullmatch(path.name) or _is_manifest(path)
        if ours and path.name != but and not path.is_dir():
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        folder.rmdir()


def put(partial: Path, out: Path) -> None:
    """The finished folder in its place. An old store there goes last; files of others in it move to the new one."""
    for path in partial.iterdir():
        if _HALF_WRITTEN.fullmatch(path.name):
            path.unlink()
    if not out.exists() or is_empty(out):
        partial.rename(out)
        sync_to_disk(out.parent)
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-replaced-", dir=out.parent))
        old = aside / out.name
        out.rename(old)
        try:
            partial.rename(out)
        except OSError:
            old.rename(out)
            aside.rmdir()
            raise
        sync_to_disk(out.parent)
        remove_pieces(out)
        remove_ours(old)
        for path in old.iterdir() if old.is_dir() else ():
            if not (out / path.name).exists():
                path.rename(out / path.name)
        for folder in (old, aside):
            with suppress(OSError):  # gone, or holds what the new store has under the same name
                folder.rmdir()
    remove_pieces(out)
