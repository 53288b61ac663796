"""File names made from what people typed, writes that happen whole or not at all, locks, versions."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from uniresxx.errors import InputError

LONGEST_NAME = 60  # characters; with suffixes stays far below the 255 bytes of common file systems


def safe_name(text: str, otherwise: str = "x") -> str:
    """A file name part out of any text: ASCII letters, digits, `-` and `_`; never empty, hidden or a path."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9-]+", "_", plain)[:LONGEST_NAME].strip("_-") or otherwise


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary neighbour, so a crash or a full disk leaves the old file.

    Raises OSError (with the path of the target) where the disk is full or the folder cannot be written.
    """
    handle, temporary = -1, ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def to_json(value: Any) -> bytes:
    """Readable JSON; NaN and infinity are refused."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON whole or not at all; NaN is refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json(value))


@contextmanager
def lock_file(path: Path, activity: str) -> Iterator[None]:
    """Hold the lock file `path` while one process works.

    Args:
        path: a file of its own, such as OUT/.lock; missing folders are made. The file stays, the lock ends with
            the process, however it ends.
        activity: what this process does, as "train into runs/a"; part of the error.

    Raises:
        InputError: another process holds the lock (the message names it), or `path` cannot be written.
    """
    import fcntl

    if path.parent.exists() and not path.parent.is_dir():
        raise InputError(f"cannot {activity}: {path.parent} is a file; name a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+")
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot {activity}: {path}: {reason}; name another folder") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read(200).strip() or "another process"
            raise InputError(f"cannot {activity}: {owner} works there; wait for it or stop it") from None
        with suppress(OSError):  # a full disk costs the name of this process, not the lock
            stream.truncate(0)
            os.write(stream.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
        yield


@contextmanager
def folder_turn(folder: Path) -> Iterator[None]:
    """Wait until no other process has its turn in `folder`, then take it: for short writes. Leaves no file."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync_to_disk(path: Path) -> None:
    """Make a written file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's file mode mask; mkstemp makes private files, results are ordinary ones."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as PNG."""
    stream = BytesIO()
    picture.save(stream, format="PNG", compress_level=3)
    return stream.getvalue()


def versions() -> dict[str, str | None]:
    """Versions and commit that a number was made with."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("uniresxx", "numpy", "torch", "transformers", "tokenizers", "pycocotools"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found | {"commit": _commit()}


def _commit() -> str | None:
    """The clone's commit with `+` where files differ from it; None outside a clone."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
