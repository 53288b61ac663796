"""The commands of `uniresxx data` that make and check stores: prepare, verify."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from uniresxx.cli import OneLineParser
from uniresxx.data.catalog import SCENES, load_benchmark, splits_of
from uniresxx.data.guard import MODES, Guard, lines_of_report, stored_report
from uniresxx.data.store.read import Store, is_store
from uniresxx.data.store.shards import SHARD_BYTES
from uniresxx.data.store.verify import check_store
from uniresxx.data.store.write import Preparation, is_output, write_store
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord

PREPARE = """read NAME (all its splits) or NAME/SPLIT from its native layout and write a store

Photos stay where they are, or are packed into tar shards in the store (--pack-images). Splits of NAME that are
not there are named and left out. The guard removes training images that belong to a val or test split of RefCOCO,
RefCOCO+, RefCOCOg (umd), gRefCOCO or RefCOCOm, as far as their annotations lie under --root; `strict` wants
all of them there, `published_data` keeps everything and says so in the store.
The same command continues after an interruption. Exit codes: 0 done; 1 the disk; 2 wrong input; 75 stopped."""
VERIFY = """check every photo (there, decodes, its size) and every mask of a store, and list what is wrong

Exit codes: 0 all well; 1 something is wrong; 2 no store."""
STOPPED = 75
MAX_SHARD_MB = 1_000_000
# what may hold annotations; photos and mask files are too many to look at one by one
ANNOTATIONS = (
    ".p",
    ".pkl",
    ".pickle",
    ".json",
    ".jsonl",
    ".parquet",
    ".arrow",
    ".mdb",
    ".lmdb",
    ".tsv",
    ".csv",
)
NO_ANNOTATIONS = (
    "images",
    "masks",
    "train2014",
    "val2014",
    "test2014",
    "train2017",
    "val2017",
    "saiapr_tc-12",
)


def _parser(command: str, description: str) -> OneLineParser:
    return OneLineParser(
        prog=f"uniresxx data {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _show(what: str, done: int, of: int) -> None:
    """Progress on stderr: one line that changes on a terminal, a line per tenth elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{what}: {done} of {of}\x1b[K", end="\n" if done >= of else "", file=sys.stderr, flush=True)
    elif done >= of or _tenth(done, of) != _tenth(done - 256, of):
        print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)


def _tenth(done: int, of: int) -> int:
    return 10 * max(done, 0) // max(of, 1)


def inputs_of(root: Path | None) -> dict[str, str]:
    """Size and time of every annotation file under `root`: what must be the same to continue.

    Links are followed, as the readers follow them. Stores, whole or partial, are no input: they may lie in
    `root/stores`.
    """
    found: dict[str, str] = {}
    walked: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True) if root is not None else ():
        real = os.path.realpath(folder)
        if real in walked or is_output(Path(folder)):  # a link may lead back up
            folders.clear()
            continue
        walked.add(real)
        folders[:] = sorted(name for name in folders if name.lower() not in NO_ANNOTATIONS)
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix.lower() in ANNOTATIONS and path.is_file():
                status = path.stat()
                stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(status.st_mtime))
                fraction = f"{status.st_mtime_ns % 10**9:09d}"
                place = path.relative_to(root or folder).as_posix()
                # a name need not be UTF-8, the manifest is
                place = place.encode("utf-8", "backslashreplace").decode()
                found[place] = f"{status.st_size} bytes of {stamp}.{fraction}"
    return found


def preparation(name: str, root: Path | None, mode: str) -> Preparation:
    """What `prepare` will write; reads the id lists of the guard, but no record yet."""
    dataset, _, split = name.partition("/")
    drawn = dataset in SCENES
    if not drawn and (root is None or not root.is_dir()):
        raise InputError(f"{root or name}: no such folder; --root DIR must be the root of the native layout")
    splits = [split] if split else splits_of(dataset, root)
    if not splits:
        raise InputError(f"{root}: holds no split of {dataset}; --root must name the folder above it")
    guard = None if drawn else Guard.of(mode, root)

    def loader(item: str) -> Callable[[], tuple[Sequence[ImageRecord], Mapping[str, Any]]]:
        def load() -> tuple[Sequence[ImageRecord], Mapping[str, Any]]:
            records = load_benchmark(f"{dataset}/{item}", root)
            return (records, {}) if guard is None else guard.apply(item, records)

        return load

    return Preparation(
        name,
        {item: loader(item) for item in splits},
        image_root=None if drawn else root,
        inputs={"guard": mode, **inputs_of(None if drawn else root)},
        about={"guard": {"mode": "drawn"} if guard is None else guard.report()},
    )


def parse_prepare(argv: Sequence[str]) -> argparse.Namespace:
    """Command line of prepare to (name, root, out, guard, pack_images, shard_mb, fresh)."""
    parser = _parser("prepare", PREPARE)
    parser.add_argument("name", metavar="NAME[/SPLIT]")
    parser.add_argument("--root", type=Path, default=None, metavar="DIR", help="root of the native layouts")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    parser.add_argument("--guard", choices=MODES, default="on", help="the leak guard (default: on)")
    parser.add_argument(
        "--pack-images",
        action="store_true",
        help="copy the photos into the store, as tar shards with an index",
    )
    parser.add_argument(
        "--shard-mb",
        type=int,
        default=SHARD_BYTES // 10**6,
        metavar="MB",
        help="size of a shard (default: 1000)",
    )
    parser.add_argument("--fresh", action="store_true", help="start over, whatever is there")
    words = parser.parse_args(argv)
    if not 1 <= words.shard_mb <= MAX_SHARD_MB:
        raise InputError(f"--shard-mb {words.shard_mb} must be 1 to {MAX_SHARD_MB}")
    return words


def prepare(argv: Sequence[str]) -> int:
    """`uniresxx data prepare NAME --root DIR --out STORE`; returns the exit code."""
    words = parse_prepare(argv)
    try:
        with _stoppable():
            work = preparation(words.name, words.root, words.guard)
            if words.pack_images:
                work = replace(work, shard_bytes=words.shard_mb * 10**6)
            for line in lines_of_report({**work.about["guard"], "removed": {}}):
                print(line, file=sys.stderr)
            store = write_store(words.out, work, words.fresh, _show)
    except KeyboardInterrupt:
        print(f"uniresxx data: stopped; {_way_on(words.out, words.fresh)}", file=sys.stderr)
        return STOPPED
    print("\n".join(lines_of_store(store)))
    return 0


def _way_on(out: Path, fresh: bool) -> str:
    """What to do after an interruption; `--fresh` means what it says every time."""
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
    """What a store says of itself: name, fingerprint, counts, guard."""
    lines = [f"{store.path}: {store.name}, {len(store)} rows, fingerprint {store.fingerprint[:16]}"]
    for split, entry in store.meta["splits"].items():
        counts = ", ".join(f"{count} {what}" for what, count in entry["counts"].items() if count)
        lines.append(f"  {split}: {counts or 'nothing'}")
    lines += [f"  {split}: not there ({why})" for split, why in store.meta.get("missing", {}).items()]
    packed = store.meta.get("photos")
    if packed is not None:
        size = f"{packed['bytes'] / 10**6:,.1f} MB"
        lines.append(f"photos: {packed['photos']} packed, {size}, {len(packed['shards'])} tar shards")
    return lines + lines_of_report(stored_report(store.meta))


def parse_verify(argv: Sequence[str]) -> argparse.Namespace:
    """Command line of verify to (store, images)."""
    parser = _parser("verify", VERIFY)
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--images", type=Path, default=None, metavar="DIR", help="where the photos lie now")
    return parser.parse_args(argv)


def verify(argv: Sequence[str]) -> int:
    """`uniresxx data verify STORE`; returns the exit code."""
    words = parse_verify(argv)
    store, wrong = Store.open(words.store, words.images), 0
    for done, lines in check_store(store):
        for line in lines:
            print(line)
        wrong += len(lines)
        _show("verify", done, len(store))
    print(f"{store.path}: {len(store)} rows checked, {wrong or 'nothing'} wrong")
    return 1 if wrong else 0
