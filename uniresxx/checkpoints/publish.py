"""Files put into a folder that may be a user's: all of them, and never over what somebody else wrote there.

`.uniresxx.json` in the folder lists the files that this program wrote there, with their checksums. A file that is
not listed, or that was changed since, is the user's and is neither replaced nor removed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from uniresxx.checkpoints.tensors import read_json
from uniresxx.errors import InputError
from uniresxx.files import lock_file, sync_to_disk, to_json, write_atomic

MARKER = ".uniresxx.json"
_WRITING = ".uniresxx-writing"  # in the folder, while files are written
_MODEL_FILE = re.compile(r".*\.safetensors(\.index\.json)?|pytorch_model.*")

Content = bytes | Callable[[Path], Any]  # a file's bytes, or what writes it to a path
Checksums = dict[str, list[str]]  # file name -> sha256 of what this program wrote under it


def publish(
    folder: Path, files: Mapping[str, Content], replaces: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """Write `files` into `folder`, whole or not at all.

    Nothing changes in the folder before all new files are on the disk. The last file is moved in last, and its
    predecessor goes first: without it a reader takes the folder for incomplete, not for a mixture.

    Args:
        folder: made where it is missing.
        files: contents by name.
        replaces: whether a name belongs to what the new files replace; a file of such a name that an earlier
            call wrote and this one does not is removed.

    Returns:
        The names of the files.

    Raises:
        InputError: the folder holds a file of one of these names, or weights, that this program did not write,
            or another process writes there.
        OSError: the disk is full or refuses.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder")
    temporary = folder / _WRITING
    with lock_file(temporary / "lock", f"write into {folder}"):
        try:
            known = _checksums(folder)
            _refuse_foreign(folder, files, known)
            shutil.rmtree(temporary / "files", ignore_errors=True)
            (temporary / "files").mkdir()
            for name, content in files.items():
                write_file(temporary / "files" / name, content)
            new = {name: [sha256_of(temporary / "files" / name)] for name in files}
            old = [name for name in known if name not in files and replaces(name)]
            both = known | {name: known.get(name, []) + sums for name, sums in new.items()}
            write_atomic(folder / MARKER, to_json({"files": both}))
            for name in [[*files][-1], *old]:
                if _is_ours(folder / name, known):
                    (folder / name).unlink()
            for name in files:
                os.replace(temporary / "files" / name, folder / name)
            kept = {name: sums for name, sums in known.items() if name not in old}
            write_atomic(folder / MARKER, to_json({"files": kept | new}))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    sync_to_disk(folder)
    return list(files)


def write_file(path: Path, content: Content) -> None:
    """Write a new file and flush it to the disk."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    sync_to_disk(path)


def sha256_of(*paths: Path) -> str:
    """Of the files' contents, one after another."""
    total = sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _checksums(folder: Path) -> Checksums:
    """What this program wrote into the folder; empty without a list, or where the list is broken."""
    try:
        found: Any = read_json(folder / MARKER).get("files")
    except InputError:
        return {}
    if not isinstance(found, dict) or not all(isinstance(sums, list) for sums in found.values()):
        return {}
    return {name: sums for name, sums in found.items() if Path(name).name == name}


def _is_ours(path: Path, known: Checksums) -> bool:
    return path.is_file() and not path.is_symlink() and sha256_of(path) in known.get(path.name, [])


def _refuse_foreign(folder: Path, files: Mapping[str, Content], known: Checksums) -> None:
    """InputError where a file would be replaced, or weights joined, that this program did not write there."""
    for path in sorted(folder.iterdir()):
        content = files.get(path.name)
        if content is None and not _MODEL_FILE.fullmatch(path.name):
            continue
        same = isinstance(content, bytes) and path.is_file() and path.read_bytes() == content
        if not same and not _is_ours(path, known):
            raise InputError(
                f"{path} was not written by uniresxx or was changed since, and stays: name another folder"
            )
