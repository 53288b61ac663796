"""`python -m tools.engine_training STORE --out DIR`: does a model learn from the data engine's store?

STORE is what the data engine made of scenes of `scenes_easy/train` that `uniresxx data export-scenes --first N`
wrote, by components that know the N scenes before these alone. For each seed, a tiny model learns the N labelled
scenes (masks, words, dense labels), and then goes on, for the same number of updates, in three ways:

  * labelled: the N labelled scenes again;
  * engine: a quarter of the expressions from these, three quarters from STORE;
  * truth: the same shares, with the scene graph's expressions of STORE's pictures in place of the engine's.

Dense labels and conversations are left out of the second stage, as the engine makes none. Each model answers
scenes_easy/val. Prints the means and, for the differences, 95 % intervals of Student's t over the seeds; with
`--record` each run is a row of benchmarks/results/engine_training.csv. The same command continues, and what another
one did for its seeds is not done again. Exit codes: 0 done; 1 a run failed; 2 wrong input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.paired_runs import (
    BENCHMARK,
    SCORES,
    Found,
    Scores,
    difference,
    interval,
    means,
    scene_store,
    score,
    train,
    write_rows,
)
from uniresxx.cli import exit_code
from uniresxx.data.store.read import Store
from uniresxx.errors import InputError

PICTURES, EXPRESSIONS = 8, 12  # of a step, and of a picture
LEARNING_RATE = 6e-4  # of the second stage
SHARES = {"labelled": 1, "engine": 3}  # of the expressions shown in the second stage
ARMS = ("labelled", "engine", "truth")


def numbers_of(store: Store, first: int) -> list[int]:
    """Which training scenes the pictures of the engine's store are."""
    stems = [Path(record.image_id).stem for record in store]
    wrong = next((stem for stem in stems if not stem.isdecimal()), None)
    if wrong is not None:
        raise InputError(f"{store.path}: picture {wrong} is no scene that export-scenes wrote")
    return sorted(first + int(stem) - 1 for stem in stems)


def run_seed(out: Path, seed: int, stores: Mapping[str, Path], steps: tuple[int, int]) -> None:
    """The first stage of a seed, and the three second stages."""
    folder = out / f"seed{seed}"
    common = [
        f"--data.batch_images={PICTURES}", f"--data.expressions_per_image={EXPRESSIONS}",
        "--data.dialogue_share=0",
    ]  # fmt: skip
    first = ["tiny_scenes", f"--data.source={stores['dense']}", "--data.warmup_images=0"]
    train(folder / "base", seed, [*first, f"--optim.steps={steps[0]}", *common])
    for arm in ARMS:
        parts = {"labelled": stores["labelled"]} | ({} if arm == "labelled" else {"engine": stores[arm]})
        mixture = ",".join(f"{path}={SHARES[name]}" for name, path in parts.items())
        more = [f"--data.mixture={mixture}", f"--optim.steps={steps[1]}", f"--optim.lr={LEARNING_RATE}"]
        words = ["finetune", "--from", str(folder / "base"), *more, *common, "--refusal_pictures=0"]
        train(folder / arm, seed, words)


def lines_of(found: Found) -> list[str]:
    """For people: means, differences from the labelled alone, and the share of what all truth gives."""
    lines = [
        f"{arm}: " + ", ".join(f"{key} {value:.1f}" for key, value in means(found, arm).items())
        for arm in ARMS
    ]
    for arm in ("engine", "truth"):
        for key in SCORES:
            mean, low, high = difference(found, arm, "labelled", key)
            lines.append(f"{arm} - labelled, {key}: {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    shares = [100 * seed["engine"]["mIoU"] / seed["truth"]["mIoU"] for seed in found.values()]
    mean, low, high = interval(shares)
    return [*lines, f"engine / truth, mIoU: {mean:.1f} % [{low:.1f}, {high:.1f}]"]


def main(argv: Sequence[str]) -> int:
    """Train, answer and compare; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.engine_training", description=__doc__)
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--labelled", type=int, default=1000, metavar="N", help="labelled scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), metavar="SEED")
    parser.add_argument("--steps", type=int, nargs=2, default=(400, 2000), metavar="N", help="of both stages")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/engine_training.csv")
    words = parser.parse_args(argv)
    out = words.out.resolve()
    engine = Store.open(words.store.resolve())
    known, others = list(range(words.labelled)), numbers_of(engine, words.labelled)
    stores = {
        "dense": scene_store(out / "labelled_dense", known, True),
        "labelled": scene_store(out / "labelled", known, False),
        "engine": engine.path,
        "truth": scene_store(out / "truth", others, False),
    }
    found: dict[int, dict[str, Scores]] = {}
    for seed in words.seeds:
        run_seed(out, seed, stores, (words.steps[0], words.steps[1]))
        found[seed] = {arm: score(out / f"seed{seed}" / arm) for arm in ARMS}
        print("\n".join(lines_of(found)), flush=True)
    about = {"benchmark": BENCHMARK, "labelled": len(known), "others": len(others)}
    about |= {"steps": "+".join(map(str, words.steps)), "pictures_a_step": PICTURES}
    if words.record:
        print(write_rows("engine_training", found, about))
    print(json.dumps({arm: round(means(found, arm)["mIoU"], 1) for arm in ARMS}))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("engine_training", lambda: main(sys.argv[1:])))
