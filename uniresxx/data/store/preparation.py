"""What a store is made of, and whether that is still what it was when a store was begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniresxx.data.readers.files import MISSING, state_of
from uniresxx.data.store.folder import VERSION
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord

ROWS_PER_BATCH = 256  # about 2 MB of RefCOCO, checked and parsed at one go
# a split is read only when its rows are needed: its records, passed over once, and notes for the metadata, which are
# complete when the records are
Load = Callable[[], tuple[Iterable[ImageRecord], Mapping[str, Any]]]


@dataclass(frozen=True)
class Preparation:
    """What a store is made of.

    Args:
        name: NAME or NAME/SPLIT.
        splits: how the records of each split are read.
        image_root: the data folder; paths of photos and of annotation files are kept below it.
        inputs: JSON; what else must be the same to continue.
        files: annotation files that were read already (by the guard), with their state.
        about: JSON, goes into the metadata.
        shard_bytes: size of the tar shards that photos are packed into; None: they stay where they are.
    """

    name: str
    splits: Mapping[str, Load]
    image_root: Path | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    shard_bytes: int | None = None

    def identity(self) -> dict[str, Any]:
        """What must be the same to continue, files apart."""
        return {
            "version": VERSION,
            "name": self.name,
            "splits": ", ".join(self.splits),
            "rows_per_batch": ROWS_PER_BATCH,
            "photos": "not packed" if self.shard_bytes is None else f"in shards of {self.shard_bytes} bytes",
            **self.inputs,
        }

    def states(self, files: Mapping[Path, str]) -> dict[str, str]:
        """The states of files by their names below the data folder."""
        root = self.image_root
        return {
            path.relative_to(root).as_posix() if root and path.is_relative_to(root) else str(path): state
            for path, state in files.items()
        }

    def begin(self) -> dict[str, Any]:
        """What a manifest notes first: the identity and the files read so far."""
        return {**self.identity(), **self.states(self.files)}

    def refuse_changes(self, path: Path, then: Mapping[str, Any]) -> None:
        """InputError where `path`, made from `then`, was made from another input than there is now.

        Files count only where they were read: those that `then` names are looked at again.
        """
        fixed = self.begin()
        again = {name: state_of((self.image_root or Path()) / name) for name in then if name not in fixed}
        now = {**fixed, **again}
        changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
        if changed:
            some = "; ".join(
                f"{key}: {then.get(key, MISSING)} then, {now.get(key, MISSING)} now" for key in changed[:5]
            )
            some += f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise InputError(f"{path}: was prepared from another input ({some}); --fresh starts over")
