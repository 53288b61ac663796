"""`uniresxx data prepare`: make a store of a data set."""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from uniresxx.cli import OneLineParser
from uniresxx.cli.data import add_data_folder, add_store_options, parser_of, prepare_own, shard_bytes
from uniresxx.cli.data.progress import show_progress
from uniresxx.data.catalog import SCENES, splits_of, stream_benchmark
from uniresxx.data.guard import MODES, Guard, lines_of_report, stored_report
from uniresxx.data.own.left_out import lines_of_counts
from uniresxx.data.readers.files import record_opened
from uniresxx.data.store.folder import is_store
from uniresxx.data.store.preparation import Load, Preparation
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import write_store
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord

PREPARE = """read NAME (all its splits) or NAME/SPLIT from its native layout and write a store

Photos stay where they are, or are packed into tar shards in the store (--pack-images). Splits of NAME that are
not there are named and left out. The guard removes training images that belong to a val or test split of RefCOCO,
RefCOCO+, RefCOCOg (umd), gRefCOCO or RefCOCOm, as far as their annotations lie under --data; `strict` requires
all of them, `published_data` keeps everything and the store says so.
Your own photos and annotations: `uniresxx data prepare own --help`.
The same command continues after an interruption. STORE appears once it is complete; until then the work lies in
STORE.partial.
Exit codes: 0 done; 1 the disk failed; 2 wrong input; 75 stopped."""
STOPPED = 75


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_of("prepare", PREPARE)
    made.add_argument("name", metavar="NAME[/SPLIT]")
    add_data_folder(made)
    made.add_argument("--guard", choices=MODES, default="on", help="the leak guard (default: on)")
    add_store_options(made)
    return made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command line to (name, data, out, guard, pack_images, shard_mb, fresh)."""
    words = parser().parse_args(argv)
    shard_bytes(words)
    return words


def main(argv: Sequence[str]) -> int:
    """`uniresxx data prepare NAME|own … --out STORE`; returns the exit code."""
    is_own = list(argv[:1]) == [prepare_own.NAME]
    words = prepare_own.parse(argv[1:]) if is_own else parse(argv)
    try:
        with _stoppable():
            work = (
                prepare_own.preparation(words) if is_own else preparation(words.name, words.data, words.guard)
            )
            work = replace(work, shard_bytes=shard_bytes(words))
            for line in lines_of_report({**work.about["guard"], "removed": {}}):
                print(line, file=sys.stderr)
            store = write_store(words.out, work, words.fresh, show_progress)
    except KeyboardInterrupt:
        print(f"uniresxx data: stopped; {_next_step(words.out, words.fresh)}", file=sys.stderr)
        return STOPPED
    print("\n".join(lines_of_store(store)))
    return 0


def preparation(name: str, root: Path | None, mode: str) -> Preparation:
    """What `prepare` will write; reads the id lists of the guard, but no record yet."""
    dataset, _, split = name.partition("/")
    drawn = dataset in SCENES
    if not drawn and (root is None or not root.is_dir()):
        raise InputError(f"{root or name}: no such folder; --data DIR must be the root of the native layout")
    splits = [split] if split else splits_of(dataset, root)
    if not splits:
        raise InputError(f"{root}: holds no split of {dataset}; --data must name the folder above it")
    with record_opened() as opened:
        guard = None if drawn else Guard.of(mode, root)

    def loader(item: str) -> Load:
        def load() -> tuple[Iterable[ImageRecord], Mapping[str, Any]]:
            records = stream_benchmark(f"{dataset}/{item}", root)
            removed: Counter[str] = Counter()
            return (records if guard is None else guard.passing(item, records, removed)), removed

        return load

    return Preparation(
        name,
        {item: loader(item) for item in splits},
        image_root=None if drawn else root,
        inputs={"guard": mode},
        files=opened,
        about={"guard": {"mode": "drawn"} if guard is None else guard.report()},
    )


def _next_step(out: Path, fresh: bool) -> str:
    """What to do after an interruption; `--fresh` starts over every time."""
    if not fresh:
        return "the same command continues"
    return "the same command starts over" + ("" if is_store(out) else ", without --fresh it continues")


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops like Ctrl-C, so that schedulers can stop long work."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def lines_of_store(store: Store) -> list[str]:
    """A store in a few lines: name, fingerprint, counts, guard."""
    lines = [f"{store.path}: {store.name}, {len(store)} rows, fingerprint {store.fingerprint[:16]}"]
    for split, entry in store.meta["splits"].items():
        counts = ", ".join(f"{count} {what}" for what, count in entry["counts"].items() if count)
        lines.append(f"  {split}: {counts or 'nothing'}")
    lines += [f"  {split}: not there ({why})" for split, why in store.meta.get("missing", {}).items()]
    packed, own = store.meta.get("photos"), store.meta.get("own")
    if packed is not None:
        size = f"{packed['bytes'] / 10**6:,.1f} MB"
        lines.append(f"photos: {packed['photos']} packed, {size}, {len(packed['shards'])} tar shards")
    else:
        lines += _lines_of_photos(store)
    if own is not None:
        lines += [f"licence: {own['licence']}", *lines_of_counts(own["left_out"]["counts"])]
    return lines + lines_of_report(stored_report(store.meta))


def _lines_of_photos(store: Store) -> list[str]:
    """How many photos are there, and where the others were looked for."""
    found, count, folders = store.count_photos()
    if not count:
        return []
    if not folders and "own" in store.meta:  # it holds none of those that were missing
        found, count = store.meta["own"]["photos"]["found"], store.meta["own"]["photos"]["asked"]
    where = ", ".join(str(folder) for folder in folders[:3]) + (", …" if len(folders) > 3 else "")
    return [f"photos: {found} of {count} found" + (f", looked in {where}" if folders else "")]
