"""Opening a data set: unpickle, parse and index it in every process, or map a prepared store.

The benchmark draws a native set with the published counts of RefCOCO (outlines and words are random), and
`uniresxx data prepare` makes a store of it. Each arm opens the set in a fresh process and the arms take turns.
Imports come before the clock starts; file caches are warm.

classic: `refs(unc).p` is unpickled, `instances.json` is parsed, and the dicts are built that refer.py builds.
store: `Store.open`, then the first row and a random row.

`time_ratio` and `memory_ratio` are classic / store. `growth_100x` is the time to open a store of 100,000 rows over
the time to open one of 1,000 rows. All are medians. Memory is what belongs to the process alone (Private_Clean and
Private_Dirty of /proc/self/smaps_rollup), so the benchmark needs Linux, and 0.6 GB of disk while it runs.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import ROOT, finish, interleaved, median_of, parser
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import Preparation, write_store

NAME = "data_startup"
# split -> images, refs, sentences: RefCOCO unc, as published
SPLITS = {
    "train": (16_994, 42_404, 120_624),
    "val": (1_500, 3_811, 10_834),
    "testA": (750, 1_975, 5_657),
    "testB": (750, 1_810, 5_095),
}
ANNOTATIONS = 196_771
CORNERS = (12, 64)  # of an outline, our choice: some 500 bytes of JSON per annotation, as in COCO's files
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
SMAPS = Path("/proc/self/smaps_rollup")
PAGE = 4096  # bytes; a smaller difference in memory counts as one page


@dataclass(frozen=True)
class Sizes:
    """How much is drawn and how often it is opened."""

    splits: Mapping[str, tuple[int, int, int]]
    annotations: int
    growth_rows: tuple[int, int]
    repeats: int
    growth_repeats: int


FULL = Sizes(SPLITS, ANNOTATIONS, (1_000, 100_000), 5, 11)
SMALL = Sizes(
    {"train": (20, 40, 90), "val": (8, 9, 10), "testA": (4, 4, 5), "testB": (4, 4, 5)}, 100, (5, 500), 1, 1
)


def write_native(root: Path, sizes: Sizes) -> None:
    """Write `root/refcoco/instances.json` and `refs(unc).p`."""
    folder = root / "refcoco"
    folder.mkdir(parents=True)
    images = sum(count for count, _, _ in sizes.splits.values())
    content = {
        "images": [
            {"id": number, "file_name": file_name(number), "height": 480, "width": 640, "license": 1}
            for number in range(images)
        ],
        "annotations": list(outlines(sizes.annotations, images)),
        "categories": [{"id": n, "name": f"kind {n}", "supercategory": "thing"} for n in range(1, 91)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(list(refs(sizes.splits, images)), 0))


def file_name(image: int) -> str:
    """COCO's pattern."""
    return f"COCO_train2014_{image:012d}.jpg"


def outlines(count: int, images: int) -> Iterator[dict[str, Any]]:
    """Uneven round outlines; annotation k lies on image k modulo `images`."""
    draw = np.random.default_rng(0)
    for number in range(count):
        corners = int(draw.integers(*CORNERS))
        angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radius = draw.uniform(8, 90) * draw.uniform(0.8, 1.2, corners)
        x = np.clip(draw.uniform(40, 600) + radius * np.cos(angle), 0, 639).round(2)
        y = np.clip(draw.uniform(40, 440) + radius * np.sin(angle), 0, 479).round(2)
        yield {
            "id": number + 1,
            "image_id": number % images,
            "category_id": 1 + number % 90,
            "iscrowd": 0,
            "area": round(float(np.pi * (radius**2).mean()), 4),
            "bbox": [round(float(v), 2) for v in (x.min(), y.min(), np.ptp(x), np.ptp(y))],
            "segmentation": [np.column_stack([x, y]).ravel().tolist()],
        }


def refs(splits: Mapping[str, tuple[int, int, int]], images: int) -> Iterator[dict[str, Any]]:
    """Refs of all splits; ref j of a split lies on its image j modulo their number, each on another annotation."""
    draw = random.Random(0)
    first = ref_id = sent_id = 0
    for split, (count, total, sentences) in splits.items():
        for number in range(total):
            image = first + number % count
            own = range(sent_id, sent_id + sentences // total + (number < sentences % total))
            yield {
                "ref_id": ref_id,
                "image_id": image,
                "file_name": file_name(image),
                "split": split,
                "ann_id": 1 + image + images * (number // count),
                "category_id": 1 + (image + images * (number // count)) % 90,
                "sent_ids": list(own),
                "sentences": [sentence(draw, number) for number in own],
            }
            ref_id, sent_id = ref_id + 1, own.stop
        first += count


def sentence(draw: random.Random, sent_id: int) -> dict[str, Any]:
    """One to seven random words."""
    tokens = draw.choices(WORDS, k=draw.randint(1, 7))
    return {"tokens": tokens, "raw": " ".join(tokens), "sent_id": sent_id, "sent": " ".join(tokens)}


def make(work: Path, sizes: Sizes) -> None:
    """Write the native set, its store, and the two stores that differ in rows only."""
    print("writing the native set and its stores (minutes)", flush=True)
    write_native(work / "native", sizes)
    command = [sys.executable, "-m", "uniresxx", "data", "prepare", "refcoco"]
    command += ["--root", str(work / "native"), "--out", str(work / "store")]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    few = sizes.growth_rows[0]
    records = list(Store.open(work / "store").records("train")[:few])
    for rows in sizes.growth_rows:
        repeated = records * (rows // few)
        write_store(work / f"rows-{rows}", Preparation("growth", {"train": lambda r=repeated: (r, {})}))  # type: ignore[misc]


def private_bytes() -> int:
    """Memory that belongs to this process alone."""
    found = re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", SMAPS.read_text(encoding="ascii"), re.M)
    return 1024 * sum(map(int, found))


def classic(root: Path) -> list[dict[Any, Any]]:
    """Load both files and build the dicts of refer.py."""
    refs = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())  # this program wrote it
    with (root / "refcoco" / "instances.json").open("rb") as stream:
        instances = json.load(stream)
    by_id = {row["id"]: row for row in instances["annotations"]}
    annotations_of_image: dict[int, list[Any]] = {}
    refs_of_image: dict[int, list[Any]] = {}
    refs_of_category: dict[int, list[Any]] = {}
    for row in instances["annotations"]:
        annotations_of_image.setdefault(row["image_id"], []).append(row)
    for ref in refs:
        refs_of_image.setdefault(ref["image_id"], []).append(ref)
        refs_of_category.setdefault(ref["category_id"], []).append(ref)
    sentences = [(item, ref) for ref in refs for item in ref["sentences"]]
    return [
        by_id, annotations_of_image, refs_of_image, refs_of_category,
        {row["id"]: row for row in instances["images"]},
        {row["id"]: row["name"] for row in instances["categories"]},
        {ref["ref_id"]: ref for ref in refs},
        {ref["ref_id"]: by_id[ref["ann_id"]] for ref in refs},
        {ref["ann_id"]: ref for ref in refs},
        {item["sent_id"]: item for item, _ in sentences},
        {item["sent_id"]: ref for item, ref in sentences},
        {item["sent_id"]: item["tokens"] for item, _ in sentences},
    ]  # fmt: skip


def open_once(arm: str, place: str) -> dict[str, float]:
    """Seconds and private bytes of one arm, measured in this process; "open" is a store without its rows."""
    gc.collect()
    before, start = private_bytes(), time.perf_counter()
    opened: Any = classic(Path(place)) if arm == "classic" else Store.open(Path(place))
    if arm == "store":
        _ = opened[0], opened[random.Random(1).randrange(len(opened))]
    return {"seconds": time.perf_counter() - start, "bytes": float(private_bytes() - before)}


def fresh(arm: str, place: Path) -> dict[str, float]:
    """`open_once` in a new process."""
    code = f"import json, sys; from benchmarks.{NAME} import open_once; print(json.dumps(open_once(*sys.argv[1:])))"
    command = [sys.executable, "-c", code, arm, str(place)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def measure(work: Path, sizes: Sizes) -> tuple[dict[str, float], dict[str, Any]]:
    """(headline, details)."""
    arms = {
        "classic": partial(fresh, "classic", work / "native"),
        "store": partial(fresh, "store", work / "store"),
    }
    for arm in arms.values():
        arm()  # warms the file cache
    runs = interleaved(arms, sizes.repeats)
    seconds = {arm: median_of([run["seconds"] for run in found]) for arm, found in runs.items()}
    memory = {arm: max(median_of([run["bytes"] for run in found]), PAGE) for arm, found in runs.items()}
    stores = {f"{rows}": partial(fresh, "open", work / f"rows-{rows}") for rows in sizes.growth_rows}
    growth = {
        rows: median_of([run["seconds"] for run in found])
        for rows, found in interleaved(stores, sizes.growth_repeats).items()
    }
    few, many = growth.values()
    headline = {
        "time_ratio": seconds["classic"] / seconds["store"],
        "memory_ratio": memory["classic"] / memory["store"],
        "growth_100x": many / few,
    }
    details = {
        "seconds": {arm: round(value, 4) for arm, value in seconds.items()},
        "mb": {arm: round(value / 1e6, 2) for arm, value in memory.items()},
        "seconds_by_rows": {rows: round(value, 5) for rows, value in growth.items()},
    }
    return {key: float(f"{value:.4g}") for key, value in headline.items()}, details


def main(argv: Sequence[str] | None = None) -> int:
    """The benchmark."""
    words = parser(NAME, __doc__).parse_args(argv)
    if not SMAPS.is_file():
        print(f"{NAME}: error: it needs Linux to measure private memory ({SMAPS})", file=sys.stderr)
        return 2
    sizes = SMALL if words.small else FULL
    with tempfile.TemporaryDirectory(prefix="data-startup-") as folder:
        make(Path(folder), sizes)
        headline, details = measure(Path(folder), sizes)
    finish(NAME, headline, details, words.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
