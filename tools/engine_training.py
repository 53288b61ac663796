"""`python -m tools.engine_training STORE --out DIR`: does a model learn from the data engine's store?

STORE is what the data engine made of scenes of `scenes_easy/train` that `uniresxx data export-scenes --first N`
wrote, by components that know the N scenes before these alone. For each seed, a tiny model learns the N labelled
scenes (masks, words, dense labels), and then goes on, for the same number of updates, in three ways:

  * labelled: the N labelled scenes again;
  * engine: a quarter of the expressions from these, three quarters from STORE;
  * truth: the same shares, with the scene graph's expressions of STORE's pictures in place of the engine's.

Dense labels and conversations are left out of the second stage, as the engine makes none. Each model answers
BENCHMARK. Prints the means and, for the differences, 95 % intervals of Student's t over the seeds; with `--record`
each run is a row of benchmarks/results/engine_training.csv. The same command continues, and what another one did for
its seeds is not done again. Exit codes: 0 done; 1 a run failed; 2 wrong input.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from benchmarks._common import RESULTS, ROOT, machine
from uniresxx.cli import exit_code
from uniresxx.data.guard import OWN_DATA
from uniresxx.data.scenes.record import scene_record
from uniresxx.data.store.preparation import Preparation
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import write_store
from uniresxx.errors import InputError
from uniresxx.files import write_atomic
from uniresxx.types import ImageRecord

PRESET, BENCHMARK = "scenes_easy", "scenes_easy/val"
PICTURES, EXPRESSIONS = 8, 12  # of a step, and of a picture
LEARNING_RATE = 6e-4  # of the second stage
SHARES = {"labelled": 1, "engine": 3}  # of the expressions shown in the second stage
ARMS = ("labelled", "engine", "truth")
SCORES = ("part", "object", "multi", "mIoU", "N-acc", "T-acc")


def scenes(numbers: Iterable[int], dense: bool) -> Iterator[ImageRecord]:
    """Training scenes with their truth; conversations are left out."""
    for number in numbers:
        record = replace(scene_record(PRESET, "train", number), dialogues=())
        yield record if dense else replace(record, dense=None, boxes={})


def truth_store(path: Path, numbers: Sequence[int], dense: bool) -> Path:
    """A store of training scenes as the scene graph describes them; an existing one stays."""

    def load() -> tuple[Iterable[ImageRecord], Mapping[str, Any]]:
        return scenes(numbers, dense), {}

    inputs = {"first": numbers[0], "last": numbers[-1], "pictures": len(numbers), "dense": dense}
    work = Preparation(path.name, {"train": load}, inputs=inputs, about={"guard": {"mode": OWN_DATA}})
    return write_store(path, work, False, lambda *_: None).path


def numbers_of(store: Store, first: int) -> list[int]:
    """Which training scenes the pictures of the engine's store are."""
    stems = [Path(record.image_id).stem for record in store]
    wrong = next((stem for stem in stems if not stem.isdecimal()), None)
    if wrong is not None:
        raise InputError(f"{store.path}: picture {wrong} is no scene that export-scenes wrote")
    return sorted(first + int(stem) - 1 for stem in stems)


def called(module: str, *words: str, log: Path) -> None:
    """Run a program of the clone; SystemExit with its log's place where it fails."""
    with log.open("ab") as stream:
        done = subprocess.run(
            [sys.executable, "-m", module, *words], cwd=ROOT, stdout=stream, stderr=stream, check=False
        )
    if done.returncode:
        raise SystemExit(f"python -m {module} failed with exit code {done.returncode}: see {log}")


def run_seed(out: Path, seed: int, stores: Mapping[str, Path], steps: tuple[int, int]) -> None:
    """The first stage of a seed, the three second stages, and their answers."""
    folder, common = (
        out / f"seed{seed}",
        [
            f"--seed={seed}", "--engine.device=cpu", "--engine.threads=1", f"--data.batch_images={PICTURES}",
            f"--data.expressions_per_image={EXPRESSIONS}", "--data.dialogue_share=0", "--optim.max_minutes=None",
            "--log.overlay_first_seconds=1e9", "--log.overlay_every=100000",
        ],
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    base, log = folder / "base", folder / "log.txt"
    first = ["tiny_scenes", f"--data.source={stores['dense']}", "--data.warmup_images=0"]
    called("train", *first, f"--optim.steps={steps[0]}", *common, "--out", str(base), log=log)
    for arm in ARMS:
        parts = {"labelled": stores["labelled"]} | ({} if arm == "labelled" else {"engine": stores[arm]})
        mixture = ",".join(f"{path}={SHARES[name]}" for name, path in parts.items())
        more = [f"--data.mixture={mixture}", f"--optim.steps={steps[1]}", f"--optim.lr={LEARNING_RATE}"]
        called(
            "train", "finetune", "--from", str(base), *more, *common, "--refusal_pictures=0",
            "--out", str(folder / arm), log=log,
        )  # fmt: skip
    for arm in ARMS:
        answer = ["--checkpoint", str(folder / arm), "--benchmark", BENCHMARK, "--device=cpu", "--chats=0"]
        called("eval", "run", *answer, "--out", str(folder / "eval" / arm), log=log)


def scores_of(folder: Path) -> dict[str, float]:
    """mIoU of each granularity and of all, N-acc and T-acc of an evaluation, in percent."""
    [path] = folder.rglob("metrics.json")
    [entry] = json.loads(path.read_text())
    levels = {name: entry["by_granularity"][name]["mIoU"] for name in ("part", "object", "multi")}
    return levels | {name: entry["overall"][name] for name in ("mIoU", "N-acc", "T-acc")}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of Student's t; the whole line for fewer than two values."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, -float("inf"), float("inf")
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def lines_of(found: Mapping[int, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """For people: means, differences from the labelled alone, and the share of what all truth gives."""
    lines = [
        f"{arm}: " + ", ".join(f"{key} {fmean(seed[arm][key] for seed in found.values()):.1f}" for key in SCORES)
        for arm in ARMS
    ]  # fmt: skip
    for arm in ("engine", "truth"):
        for key in SCORES:
            mean, low, high = interval([seed[arm][key] - seed["labelled"][key] for seed in found.values()])
            lines.append(f"{arm} - labelled, {key}: {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    shares = [100 * seed["engine"]["mIoU"] / seed["truth"]["mIoU"] for seed in found.values()]
    mean, low, high = interval(shares)
    return [*lines, f"engine / truth, mIoU: {mean:.1f} % [{low:.1f}, {high:.1f}]"]


def record(found: Mapping[int, Mapping[str, Mapping[str, float]]], about: Mapping[str, Any]) -> Path:
    """Write one row for each model to the results; `about` is of all rows."""
    rows = [
        {**machine(), **about, "seed": seed, "arm": arm, **values}
        for seed, arms in found.items()
        for arm, values in arms.items()
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = RESULTS / "engine_training.csv"
    write_atomic(path, text.getvalue().encode())
    return path


def main(argv: Sequence[str]) -> int:
    """Train, answer and compare; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.engine_training", description=__doc__)
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--labelled", type=int, default=1000, metavar="N", help="labelled scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), metavar="SEED")
    parser.add_argument("--steps", type=int, nargs=2, default=(400, 500), metavar="N", help="of both stages")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/engine_training.csv")
    words = parser.parse_args(argv)
    out = words.out.resolve()
    engine = Store.open(words.store.resolve())
    known, others = list(range(words.labelled)), numbers_of(engine, words.labelled)
    stores = {
        "dense": truth_store(out / "labelled_dense", known, True),
        "labelled": truth_store(out / "labelled", known, False),
        "engine": engine.path,
        "truth": truth_store(out / "truth", others, False),
    }
    found = {}
    for seed in words.seeds:
        run_seed(out, seed, stores, (words.steps[0], words.steps[1]))
        found[seed] = {arm: scores_of(out / f"seed{seed}" / "eval" / arm) for arm in ARMS}
        print("\n".join(lines_of(found)), flush=True)
    about = {"benchmark": BENCHMARK, "labelled": len(known), "others": len(others)}
    about |= {"steps": "+".join(map(str, words.steps)), "pictures_a_step": PICTURES}
    if words.record:
        print(record(found, about))
    means = {arm: round(fmean(seed[arm]["mIoU"] for seed in found.values()), 1) for arm in ARMS}
    print(json.dumps(means))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("engine_training", lambda: main(sys.argv[1:])))
