"""Shards: files of records, one for each group of pictures and step, named by all that they depend on.

A file is JSON lines: a head, one picture per line, and the sha256 of what is before. It is written whole or not at
all, so whoever finds a whole one never does the work again, on whichever machine and after whichever interruption.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_engine.records import Picture
from uniresxx.files import write_atomic

FORMAT, VERSION = "uniresxx-engine-shard", 1


@dataclass(frozen=True, slots=True)
class Shard:
    """What a shard file holds."""

    head: Mapping[str, Any]
    pictures: tuple[Picture, ...]

    @property
    def failed(self) -> int:
        """How many of its pictures are in quarantine."""
        return sum(picture.failed is not None for picture in self.pictures)


def write_shard(path: Path, step: Mapping[str, Any], pictures: Sequence[Picture]) -> None:
    """Write a shard whole or not at all; OSError of the disk."""
    head = {"format": FORMAT, "version": VERSION, "step": step, "pictures": len(pictures)}
    lines = [head, *(picture.as_json() for picture in pictures)]
    content = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()
    end = json.dumps({"sha256": hashlib.sha256(content).hexdigest()}) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content + end.encode())


def read_shard(path: Path) -> Shard | None:
    """The shard of a file; None where there is none, or it is damaged or of another version: it is made anew."""
    try:
        content, _, end = path.read_bytes().rstrip(b"\n").rpartition(b"\n")
        content += b"\n"
        if json.loads(end) != {"sha256": hashlib.sha256(content).hexdigest()}:
            return None
    except (OSError, ValueError):
        return None
    head, *rows = map(json.loads, content.splitlines())
    if (head["format"], head["version"]) != (FORMAT, VERSION):
        return None
    return Shard(head, tuple(map(Picture.from_json, rows)))
