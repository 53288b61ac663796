"""Files found by the names that annotation files give them, which were made on another computer.

The base name decides. If several files have it, the one whose path agrees for more folders; then the one that lies
nearer to the file that names it.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import unquote

from uniresxx.errors import InputError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SERVED = re.compile(r"[?&]d=([^&]*)")  # Label Studio's /data/local-files/?d=PATH
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio puts 8 hex digits before the name


def name_parts(name: str) -> tuple[str, ...]:
    """Folders and base name of a path or an address, whichever slashes it has; () where it names nothing."""
    served = _SERVED.search(name)
    if served is not None:
        name = unquote(served[1])
    elif _ADDRESS.match(name):
        name = unquote(re.split(r"[?#]", name)[0].partition("://")[2])
    parts = (composed(part.strip()) for part in re.split(r"[/\\]+", name))
    return tuple(part for part in parts if part not in ("", ".", ".."))


def composed(text: str) -> str:
    """Text in Unicode's composed form: file systems and tools write the same name in several."""
    return unicodedata.normalize("NFC", text)


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order of name; links are followed, hidden names left out."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


class FileIndex:
    """The files below a folder that have one of some suffixes, by base name."""

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder")
        self.root, self.count = root, 0
        self._by_name: dict[str, list[Path]] = {}
        self._folded: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in files_below(root):
            if path.suffix.lower() in suffixes:
                self.count += 1
                name = composed(path.name)
                self._by_name.setdefault(name, []).append(path)
                self._folded.setdefault(name.casefold(), []).append(path)
                self._by_stem.setdefault(composed(path.stem), []).append(path)

    def find(
        self, name: str, folder: Path, without_suffix: bool = False, but: Collection[Path] = ()
    ) -> Path | None:
        """The file that a name means, None where there is none.

        Args:
            name: as written.
            folder: of the file that names it.
            without_suffix: the name has no suffix.
            but: files that are meant only where no other has the name.
        """
        parts = name_parts(name)
        if not parts:
            return None
        found = self._called(parts[-1], without_suffix) or self._called(unquote(parts[-1]), without_suffix)
        if found is None:
            return None
        rest = [path for path in found if path not in but] or found
        if len(rest) == 1:
            return rest[0]
        return max(rest, key=lambda path: _agreement(parts[:-1], folder, path))

    def _called(self, name: str, without_suffix: bool) -> list[Path] | None:
        """The files of a base name, else without Label Studio's prefix, else in another case."""
        table = self._by_stem if without_suffix else self._by_name
        uploaded = _UPLOADED.fullmatch(name)
        names = (name, uploaded[1]) if uploaded else (name,)
        found = next((table[item] for item in names if item in table), None)
        if found is None and not without_suffix:
            found = next(
                (self._folded[item.casefold()] for item in names if item.casefold() in self._folded), None
            )
        return found


def _agreement(folders: tuple[str, ...], near: Path, path: Path) -> tuple[int, int, int]:
    """How well a path agrees with the folders of a name: at its end, anywhere, and with the naming file's folder."""
    own = tuple(composed(part) for part in path.absolute().parts[:-1])
    at_end = 0
    for one, other in zip(reversed(folders), reversed(own), strict=False):
        if one != other:
            break
        at_end += 1
    anywhere = len(set(folders) & set(own))
    return at_end, anywhere, len(Path(os.path.commonpath([near.absolute(), path.absolute()])).parts)
