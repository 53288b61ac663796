"""Opening a data set: the classic way (unpickle, parse JSON, index, in every process) against a prepared store.

A native set of RefCOCO's size is generated (outlines and words are drawn at random, counts are the published
ones) and `uniresxx data prepare` makes a store of it. Then each way opens it in fresh processes that take
turns; imports come before the clock starts and file caches are warm.

Timed. classic: `refs(unc).p` is unpickled, `instances.json` parsed, and the twelve dicts are built that
refer.py builds; with --refer PATH, `REFER(root, "refcoco", "unc")` of that file itself (Python 2 or 3; its
imports for drawing are left out). store: `Store.open`, which reads no row, and then the first and a random row
of it, so that time_ratio and memory_ratio count a data set that gives samples. The details also say what opening
alone takes (its memory is below a page) and how long one pass over all rows is.
Memory is private: Private_Clean + Private_Dirty of /proc/self/smaps_rollup, after less before, in the process
itself. growth_100x: time to open a store of 100 times the rows over that of the small one, the same records
repeated and written as rows of their own. Medians. On a busy machine a long arm is interrupted more often than
a short one: processor_time_ratio in the details is free of that. The set takes 0.6 GB of disk, in --work DIR or
for as long as this runs.
"""

from __future__ import annotations

import gc
import json
import pickle
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast, overload

import numpy as np

from benchmarks._common import ROOT, finish, interleaved, median_of, parser
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import Preparation, write_store
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord

# split -> images, refs, sentences: RefCOCO unc, as published
SPLITS = {
    "train": (16_994, 42_404, 120_624),
    "val": (1_500, 3_811, 10_834),
    "testA": (750, 1_975, 5_657),
    "testB": (750, 1_810, 5_095),
}
ANNOTATIONS = 196_771
CORNERS = (12, 64)  # of an outline, our choice: some 500 bytes of JSON per annotation, as COCO's files have
GROWTH_ROWS = (1_000, 100_000)
REPEATS, GROWTH_REPEATS = 5, 11
WORDS = (
    "man",
    "woman",
    "dog",
    "left",
    "right",
    "red",
    "blue",
    "white",
    "big",
    "front",
    "shirt",
    "near",
    "the",
)
SMALLEST = 4096  # bytes; a difference below one page is taken for one


@dataclass(frozen=True)
class Sizes:
    """What is generated and how often it is opened."""

    splits: Mapping[str, tuple[int, int, int]]
    annotations: int
    growth: tuple[int, int]
    repeats: int
    growth_repeats: int


FULL = Sizes(SPLITS, ANNOTATIONS, GROWTH_ROWS, REPEATS, GROWTH_REPEATS)
SMALL = Sizes(
    {"train": (20, 40, 90), "val": (8, 9, 10), "testA": (4, 4, 5), "testB": (4, 4, 5)}, 100, (5, 500), 1, 1
)


# ---- the native set


def write_native(root: Path, sizes: Sizes) -> None:
    """`root/refcoco/instances.json` and `refs(unc).p` (protocol 0 with Python-2 strings), as released."""
    folder = root / "refcoco"
    folder.mkdir(parents=True)
    images = sum(count for count, _, _ in sizes.splits.values())
    content = {
        "images": [_image(number) for number in range(images)],
        "annotations": _annotations(sizes.annotations, images),
        "categories": [{"id": n, "name": f"kind {n}", "supercategory": "thing"} for n in range(1, 91)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "refs(unc).p").write_bytes(python_2(pickle.dumps(list(_refs(sizes.splits, images)), 0)))


def _image(number: int) -> dict[str, Any]:
    name = f"COCO_train2014_{1000 + number:012d}.jpg"
    return {"id": 1000 + number, "file_name": name, "height": 480, "width": 640, "license": 1 + number % 8}


def _annotations(count: int, images: int) -> list[dict[str, Any]]:
    """Round outlines with a wobble; annotation k lies on image k modulo `images`."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        corners = int(draw.integers(*CORNERS))
        angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radius = draw.uniform(8, 90) * draw.uniform(0.8, 1.2, corners)
        x = np.clip(draw.uniform(40, 600) + radius * np.cos(angle), 0, 639).round(2)
        y = np.clip(draw.uniform(40, 440) + radius * np.sin(angle), 0, 479).round(2)
        left, top = float(x.min()), float(y.min())
        found.append(
            {
                "id": number + 1,
                "image_id": 1000 + number % images,
                "category_id": 1 + number % 90,
                "iscrowd": 0,
                "area": round(float(np.pi * (radius**2).mean()), 4),
                "bbox": [left, top, round(float(x.max()) - left, 2), round(float(y.max()) - top, 2)],
                "segmentation": [np.column_stack([x, y]).ravel().tolist()],
            }
        )
    return found


def _refs(splits: Mapping[str, tuple[int, int, int]], images: int) -> Iterator[dict[str, Any]]:
    """Refs of all splits; ref j of a split is on its image j modulo their number, each on another annotation."""
    draw = random.Random(0)
    first = ref_id = sent_id = 0
    for split, (count, refs, sentences) in splits.items():
        for number in range(refs):
            image = first + number % count
            own = sentences // refs + (number < sentences % refs)
            sents = [_sentence(draw, sent_id + place) for place in range(own)]
            yield {
                "sent_ids": [item["sent_id"] for item in sents],
                "file_name": f"COCO_train2014_{1000 + image:012d}_{number % 9}.jpg",
                "ann_id": 1 + image + images * (number // count),
                "ref_id": ref_id,
                "image_id": 1000 + image,
                "split": split,
                "sentences": sents,
                "category_id": 1 + (image + images * (number // count)) % 90,
            }
            ref_id, sent_id = ref_id + 1, sent_id + own
        first += count


def _sentence(draw: random.Random, sent_id: int) -> dict[str, Any]:
    tokens = draw.choices(WORDS, k=draw.randint(1, 7))
    text = " ".join(tokens)
    return {"tokens": tokens, "raw": text, "sent_id": sent_id, "sent": text}


def python_2(pickled: bytes) -> bytes:
    """Protocol 0 with byte strings, as Python 2 wrote it; the texts hold no V, quote or backslash."""
    return re.sub(rb"V([^\n]*)\n", rb"S'\1'\n", pickled)


# ---- the stores


class Repeated(Sequence[ImageRecord]):
    """Records over and over, up to a number of rows."""

    def __init__(self, records: Sequence[ImageRecord], rows: int) -> None:
        self.records, self.total = records, rows

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self.total))]
        if not 0 <= index < self.total:
            raise IndexError(index)
        return self.records[index % len(self.records)]


def make(work: Path, sizes: Sizes) -> None:
    """The native set, its store and the two stores of the growth; what is whole already is kept."""
    if not (work / "native" / "done").is_file():
        print("writing the native set", flush=True)
        write_native(work / "native", sizes)
        (work / "native" / "done").touch()
    command = [sys.executable, "-m", "uniresxx", "data", "prepare", "refcoco"]
    command += ["--root", str(work / "native"), "--out", str(work / "store")]
    print("preparing the store", flush=True)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    records = Store.open(work / "store").records("train")[: sizes.growth[0]]
    some = list(records)
    for rows in sizes.growth:
        print(f"writing a store of {rows} rows", flush=True)
        again = Repeated(some, rows)
        write_store(work / f"rows-{rows}", Preparation("growth", {"train": lambda r=again: (r, {})}))  # type: ignore[misc]


# ---- the arms, each in a process of its own


def private_bytes() -> int:
    """Private memory of this process."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return 1024 * sum(int(kb) for kb in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.M))


def classic(root: Path) -> dict[str, Any]:
    """Everything in dicts: the indices that refer.py builds, under our names."""
    with (root / "refcoco" / "refs(unc).p").open("rb") as stream:
        refs = pickle.load(stream)  # written by this program a moment ago
    with (root / "refcoco" / "instances.json").open("rb") as stream:
        instances = json.load(stream)
    annotations = {item["id"]: item for item in instances["annotations"]}
    found: dict[str, Any] = {
        "refs": {item["ref_id"]: item for item in refs},
        "annotations": annotations,
        "images": {item["id"]: item for item in instances["images"]},
        "categories": {item["id"]: item["name"] for item in instances["categories"]},
        "annotation_of_ref": {item["ref_id"]: annotations[item["ann_id"]] for item in refs},
        "ref_of_annotation": {item["ann_id"]: item for item in refs},
    }
    several: dict[str, dict[int, list[Any]]] = {
        "annotations_of_image": {},
        "refs_of_image": {},
        "refs_of_kind": {},
    }
    for item in instances["annotations"]:
        several["annotations_of_image"].setdefault(item["image_id"], []).append(item)
    for item in refs:
        several["refs_of_image"].setdefault(item["image_id"], []).append(item)
        several["refs_of_kind"].setdefault(item["category_id"], []).append(item)
    pairs = [(sentence, item) for item in refs for sentence in item["sentences"]]
    found["sentences"] = {sentence["sent_id"]: sentence for sentence, _ in pairs}
    found["ref_of_sentence"] = {sentence["sent_id"]: item for sentence, item in pairs}
    found["tokens"] = {sentence["sent_id"]: sentence["tokens"] for sentence, _ in pairs}
    return found | several


class _Anything(ModuleType):
    """Stands for a module that refer.py imports to draw; the data needs none of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name)


def refer_class(path: Path) -> Callable[[str, str, str], Any]:
    """The class REFER of a refer.py, of Python 2 or 3; InputError where the file has none."""
    drawing = ("skimage", "skimage.io", "matplotlib", "matplotlib.pyplot", "matplotlib.collections")
    for name in (*drawing, "matplotlib.patches", "external", "pycocotools"):
        sys.modules[name] = _Anything(name)
    old_pickle = ModuleType("cPickle")
    vars(old_pickle)["load"] = lambda file: pickle.load(file.buffer)  # Python 2 opened it as text
    sys.modules["cPickle"] = old_pickle
    try:
        source = path.read_text(encoding="utf-8").expandtabs(8)
        if re.search(r"^\s*print [^(=]", source, re.M):
            source = re.sub(r"^(\s*)print (.+)$", r"\1print(\2)", source, flags=re.M)
        module = {"__name__": "refer", "__file__": str(path)}
        exec(compile(source, str(path), "exec"), module)
        return cast(Callable[[str, str, str], Any], module["REFER"])
    except (OSError, ValueError, SyntaxError, ImportError, KeyError) as error:
        raise InputError(f"{path}: is no refer.py ({error})") from None


def child(arm: str, place: str, refer: str) -> dict[str, float]:
    """Open once and measure; runs in a fresh process. Seconds and private bytes."""
    ways: dict[str, Callable[[], Any]] = {
        "classic": lambda: classic(Path(place)),
        "store": lambda: Store.open(Path(place)),
    }
    if arm == "classic" and refer:
        load = refer_class(Path(refer))
        ways["classic"] = lambda: load(place, "refcoco", "unc")
    gc.collect()
    before, start, worked = private_bytes(), time.perf_counter(), time.process_time()
    opened = ways[arm]()
    found = {"seconds": time.perf_counter() - start, "bytes": float(private_bytes() - before)}
    if isinstance(opened, Store):
        _ = opened[0], opened[random.Random(1).randrange(len(opened))]
        found["seconds_with_rows"] = time.perf_counter() - start
        found["bytes_with_rows"] = float(private_bytes() - before)
    return found | {"processor": time.process_time() - worked}


def fresh(arm: str, place: Path, refer: str = "") -> dict[str, float]:
    """`child` in a new process."""
    code = (
        "import json, sys; from benchmarks.data_startup import child; print(json.dumps(child(*sys.argv[1:])))"
    )
    command = [sys.executable, "-c", code, arm, str(place), refer]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{arm} on {place}: failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def read_all(path: Path) -> float:
    """Seconds of one pass over every row of a store."""
    start = time.perf_counter()
    for _ in Store.open(path):
        pass
    return time.perf_counter() - start


# ---- the whole


def _four_digits(ratio: float) -> float:
    """Rounded, however small: tiny sizes on a busy machine give any ratio, but not none."""
    return float(f"{ratio:.4g}")


def measure(work: Path, sizes: Sizes, refer: str) -> tuple[dict[str, float], dict[str, Any]]:
    """(headline, details)."""
    for arm, place in (("classic", "native"), ("store", "store")):
        fresh(arm, work / place, refer)  # warms the file cache
    arms = {
        "classic": lambda: fresh("classic", work / "native", refer),
        "store": lambda: fresh("store", work / "store"),
    }
    found = {
        arm: {key: median_of([run[key] for run in runs]) for key in runs[0]}
        for arm, runs in interleaved(arms, sizes.repeats).items()
    }
    few, many = sizes.growth
    growth = interleaved(
        {
            "few": lambda: fresh("store", work / f"rows-{few}")["seconds"],
            "many": lambda: fresh("store", work / f"rows-{many}")["seconds"],
        },
        sizes.growth_repeats,
    )
    old, new = found["classic"], found["store"]
    headline = {
        "time_ratio": _four_digits(old["seconds"] / new["seconds_with_rows"]),
        "memory_ratio": _four_digits(old["bytes"] / max(new["bytes_with_rows"], SMALLEST)),
        "growth_100x": _four_digits(median_of(growth["many"]) / median_of(growth["few"])),
    }
    details = {
        "classic_is": "refer.py" if refer else "built in",
        "classic_seconds": round(old["seconds"], 3),
        "classic_processor_seconds": round(old["processor"], 3),
        "store_processor_seconds": round(new["processor"], 4),
        "processor_time_ratio": round(old["processor"] / max(new["processor"], 1e-6), 1),
        "classic_mb": round(old["bytes"] / 1e6, 1),
        "store_seconds": round(new["seconds_with_rows"], 4),
        "store_mb": round(new["bytes_with_rows"] / 1e6, 2),
        "store_seconds_open_only": round(new["seconds"], 5),
        "store_mb_open_only": round(new["bytes"] / 1e6, 3),
        "time_ratio_open_only": round(old["seconds"] / new["seconds"], 1),
        "store_seconds_to_read_all_rows": round(read_all(work / "store"), 2),
        "growth_rows": [few, many],
        "growth_seconds": {name: round(median_of(runs), 5) for name, runs in growth.items()},
        "native_mb": _megabytes(work / "native"),
        "store_file_mb": _megabytes(work / "store"),
        "sizes": asdict(sizes),
    }
    return headline, details


def _megabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser("data_startup", __doc__)
    options.add_argument(
        "--refer", default="", metavar="PATH", help="measure this refer.py as the classic way"
    )
    options.add_argument(
        "--work", type=Path, default=None, metavar="DIR", help="keep the generated set in DIR"
    )
    words = options.parse_args(argv)
    if not Path("/proc/self/smaps_rollup").is_file():
        print(
            "data_startup: needs Linux (/proc/self/smaps_rollup) to measure private memory", file=sys.stderr
        )
        return 2
    sizes = SMALL if words.small else FULL
    refer = str(Path(words.refer).resolve()) if words.refer else ""
    with tempfile.TemporaryDirectory(prefix="data-startup-") as temporary:
        work = Path(temporary) if words.work is None else words.work
        make(work.resolve(), sizes)
        try:
            headline, details = measure(work.resolve(), sizes, refer)
        except InputError as error:
            print(f"data_startup: {error}", file=sys.stderr)
            return 2
    finish("data_startup", headline, details, words.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
