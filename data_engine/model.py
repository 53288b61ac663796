"""Which model takes a role, and what its results depend on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniresxx.checkpoints.folders import checkpoint_identity
from uniresxx.checkpoints.resolve import resolve

SAMPLE_BYTES = 2**20
OWN = "segmenter"  # the kind of the models of this project


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model takes a role.

    Args:
        kind: a word of the role's table in `data_engine.components.table`.
        source: a folder or a hub id, or what the kind asks for in that table.
        device: as of `uniresxx segment --device`.
        dtype: of the weights.
        revision: changes nothing but the identity: raise it when the model behind `source` has changed.
    """

    kind: str
    source: str = ""
    device: str = "auto"
    dtype: str = "float32"
    revision: str = ""

    def identity(self) -> dict[str, Any]:
        """What results depend on: of a local folder, its files' sizes and contents (of large ones, both ends).

        A model of this project is known by its checkpoint, wherever that lies. InputError where it is not there.
        """
        known = {"kind": self.kind, "source": self.source, "dtype": self.dtype, "revision": self.revision}
        if self.kind == OWN:
            return known | {"source": checkpoint_identity(resolve(self.source or None, lambda line: None))}
        folder = Path(self.source)
        if self.source and folder.is_dir():
            known["source"] = folder.resolve().name
            known["files"] = files_digest(folder)
        return known


def files_digest(folder: Path) -> str:
    """A hash of the names, sizes and contents of the files in a folder; of large files, of both ends."""
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            with path.open("rb") as stream:
                ends = stream.read(SAMPLE_BYTES)
                stream.seek(max(0, size - SAMPLE_BYTES))
                ends += stream.read(SAMPLE_BYTES)
            content.update(f"{path.relative_to(folder).as_posix()} {size} ".encode() + ends)
    return content.hexdigest()[:16]
