"""`python -m tools.studies NAME --out DIR`: what one idea of the method buys, on drawn scenes.

A study has arms: the tiny model (recipe `tiny_scenes`) with one thing changed each, or another model of its size,
trained from the start with the same seeds, pictures and number of updates, in one thread. Each answers
scenes_easy/val. Prints the means, and the
differences from the first arm with 95 % intervals of Student's t over the seeds that have both; `--record` writes
each run as a row of benchmarks/results/study_NAME.csv. The same command continues; another one may do other seeds or
arms with the same --out, and both print what all have finished. Exit codes: 0 done; 1 a run failed; 2 wrong input.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean

from tools.paired_runs import (
    BENCHMARK,
    SCORES,
    Found,
    Scores,
    answers_of,
    difference,
    is_scored,
    means,
    scene_store,
    score,
    scores_of,
    step_seconds,
    train,
    write_rows,
)
from uniresxx.cli import did_you_mean, exit_code
from uniresxx.errors import InputError

COST = "step_seconds"
WARMUP = 0.25  # of all pictures


# Of the study `methods`: the questions of tiny_scenes, its input of 64 pixels, and about its 2.9 M
# parameters for each model.
NO_DENSE = ("--model.loss.dense=0",)
NO_WORDS = "--model.loss.words=0"
SAME_QUESTIONS = ("--data.expressions_per_image=10", "--data.dialogue_share=0")
SMALL_PICTURES = (
    "--data.source=scenes_easy", "--data.first_preset=None", "--data.first_images=0",
    "--model.inputs.mllm.high_size=64", "--model.loss.presence=1",
)  # fmt: skip
LARGER_UNIRES = ("--model.vision", "num_hidden_layers=12", "--model.text", "num_hidden_layers=4")


@dataclass(frozen=True)
class Arm:
    """Options of `python -m train RECIPE`, and its share of the study's updates.

    `scenes:N` in an option is a store of the first N training scenes. With `trained_as` the model is that of another
    arm, and `asked` are options of `python -m eval run`.
    """

    options: tuple[str, ...] = ()
    updates: float = 1.0
    recipe: str = "tiny_scenes"
    trained_as: str | None = None
    asked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A question, and the arms that answer it; the others are compared with the first."""

    asks: str
    arms: Mapping[str, Arm]


def _off(*switches: str) -> Arm:
    return Arm(tuple(f"--model.{name}=False" for name in switches))


def _of(pictures: int, kinds: str = "", updates: float = 1.0) -> Arm:
    """The first training scenes alone, without conversations and warm-up; `kinds` as `[part+object]`."""
    mixture = f"--data.mixture=scenes:{pictures}{kinds}=1"
    return Arm((mixture, "--data.warmup_images=0", "--data.dialogue_share=0"), updates)


def _film_unet(updates: float = 1.0) -> Arm:
    return Arm((*SMALL_PICTURES, *SAME_QUESTIONS), updates, "film_unet_scenes")


def _unires(updates: float = 1.0) -> Arm:
    return Arm((*LARGER_UNIRES, *SAME_QUESTIONS), updates, "unires_tiny_scenes")


STUDIES: Mapping[str, Study] = {
    "streams": Study(
        "Do the region streams and their exploitation (MGFE) pay?",
        {
            "all": Arm(),
            "no object stream": _off("mllm.use_objects"),
            "no part stream": _off("mllm.use_parts"),
            "no streams": _off("mllm.use_objects", "mllm.use_parts"),
            "no fine features": _off("mllm.use_high"),
            "boxes: truth": Arm(("--model.boxes=truth",)),
            "boxes: shuffled": Arm(("--model.boxes=shuffled",)),
            "boxes: random": Arm(("--model.boxes=random",)),
            "no MGFE": _off(
                "mllm.objects_see_image",
                "mllm.parts_see_objects",
                "mllm.parts_see_image",
                "mllm.image_sees_regions",
            ),
            "objects do not see the image": _off("mllm.objects_see_image"),
            "parts do not see objects": _off("mllm.parts_see_objects"),
            "parts do not see the image": _off("mllm.parts_see_image"),
            "the image does not see regions": _off("mllm.image_sees_regions"),
            "regions not in the mask decoder": _off("head.region_memory"),
            "regions not painted": _off("head.paint_regions"),
            "state of [SEG] itself": Arm(("--model.mllm.prompt_state=own",)),
            "instances": Arm(("--model.instances=4",)),
        },
    ),
    "joint": Study(
        "Is one model of all granularities better than one for each?",
        {
            "joint": _of(4000),
            "part, a third of the updates": _of(4000, "[part]", 1 / 3),
            "object, a third of the updates": _of(4000, "[object]", 1 / 3),
            "multi and none, a third of the updates": _of(4000, "[multi+none]", 1 / 3),
            "part, all updates": _of(4000, "[part]"),
            "object, all updates": _of(4000, "[object]"),
            "multi and none, all updates": _of(4000, "[multi+none]"),
            "joint, nothing absent": _of(4000, "[part+object+multi]"),
        },
    ),
    "scale": Study(
        "Do more pictures or more granularities help?",
        {
            f"{pictures} pictures, {name}": _of(pictures, kinds)
            for pictures in (1000, 4000, 16000)
            for name, kinds in (("both", "[part+object]"), ("object", "[object]"), ("part", "[part]"))
        },
    ),
    "losses": Study(
        "What do the loss's resolution, more expressions a picture and conversations buy?",
        {
            "full": Arm(),
            "mask loss at the head's grid": Arm(("--model.loss.resolution=low",)),
            "mask loss at points": Arm(("--model.loss.resolution=points", "--model.loss.points=1024")),
            "2 expressions a picture": Arm(("--data.expressions_per_image=2",)),
            "5 expressions a picture": Arm(("--data.expressions_per_image=5",)),
            "20 expressions a picture": Arm(("--data.expressions_per_image=20",)),
            "no conversations": Arm(("--data.dialogue_share=0",)),
            "full, [SEG] or [REJ] alone decides": Arm(trained_as="full", asked=("--rule=token",)),
            "full, [SEG] given": Arm(trained_as="full", asked=("--decoding=forced",)),
        },
    ),
    "methods": Study(
        "Is UniRES++ better than the other methods at the same size and cost, without dense labels?",
        {
            "UniRES++": Arm((*NO_DENSE, *SAME_QUESTIONS)),
            # `loss.words` asks for the words of a question, and GSVA's has those of all expressions
            "UniRES++ without loss.words": Arm((*NO_DENSE, *SAME_QUESTIONS, NO_WORDS)),
            "GSVA's way, without loss.words": Arm(
                (*NO_DENSE, *SAME_QUESTIONS, NO_WORDS, "--model.ask_together=True")
            ),
            "FiLM-UNet": _film_unet(),
            "UniRES": _unires(),
            # by the time of an update, measured: 0.62 and 1.74 of UniRES++
            "FiLM-UNet, as long": _film_unet(1.6),
            "UniRES, as long": _unires(0.575),
        },
    ),
}


@dataclass(frozen=True)
class Size:
    """Updates of a training, and pictures of each."""

    steps: int
    pictures: int


def words_of(arm: Arm, size: Size, out: Path) -> list[str]:
    """The words behind `python -m train` of an arm; stores that it names are made."""
    warmup = round(WARMUP * size.steps * size.pictures)
    words = [arm.recipe, f"--data.batch_images={size.pictures}", f"--data.warmup_images={warmup}"]
    for option in arm.options:
        if found := re.search(r"scenes:(\d+)", option):
            store = scene_store(out / f"scenes_{found[1]}", range(int(found[1])), True)
            option = option.replace(found[0], str(store))
        words.append(option)
    return [*words, f"--optim.steps={round(size.steps * arm.updates)}"]


def folder_of(out: Path, arm: str, seed: int) -> Path:
    """Where the run of an arm is."""
    return out / f"seed{seed}" / re.sub(r"\W+", "_", arm)


def run(study: Study, out: Path, size: Size, jobs: int, which: Sequence[tuple[int, str]]) -> None:
    """Train and score what is asked, `jobs` at a time."""
    words = {arm: words_of(study.arms[arm], size, out) for _, arm in which}

    def one(seed: int, arm: str) -> None:
        about = study.arms[arm]
        folder = folder_of(out, about.trained_as or arm, seed)
        if about.trained_as is None:
            train(folder, seed, words[arm])
        scores = score(folder, answers_of(folder_of(out, arm, seed)), about.asked)
        print(f"{arm}, seed {seed}: " + ", ".join(f"{key} {scores[key]:.1f}" for key in SCORES), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        started = [pool.submit(one, *entry) for entry in which]
        try:
            for future in started:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def finished(study: Study, out: Path) -> Found:
    """Seed -> arm -> scores of everything that was ever scored in `out`."""
    found: dict[int, dict[str, Scores]] = {}
    for seed in sorted(int(folder.name.removeprefix("seed")) for folder in out.glob("seed*")):
        found[seed] = {}
        for arm, about in study.arms.items():
            answers = answers_of(folder_of(out, arm, seed))
            if is_scored(answers):
                seconds = step_seconds(folder_of(out, about.trained_as or arm, seed))
                found[seed][arm] = {**scores_of(answers), COST: seconds}
    return found


def table(found: Found, arms: Sequence[str]) -> Iterator[str]:
    """Markdown: the means of the first arm, and of each other one the differences from it with their intervals.

    The time of an update is relative to the first arm's.
    """
    yield "| arm | seeds | " + " | ".join(SCORES) + " | time of an update |"
    yield "|---" * (len(SCORES) + 3) + "|"
    base = arms[0]
    for arm in arms:
        seeds = sum(arm in scores for scores in found.values())
        if arm == base:
            cells = [f"{value:.1f}" for value in means(found, arm).values()] + ["1"]
        else:
            cells = [_cell(*difference(found, arm, base, key)) for key in SCORES]
            both = [scores for scores in found.values() if {arm, base} <= scores.keys()]
            cells.append(f"{fmean(scores[arm][COST] / scores[base][COST] for scores in both):.2f}")
        yield f"| {arm} | {seeds} | " + " | ".join(cells) + " |"


def _cell(mean: float, low: float, high: float) -> str:
    """A difference with its interval; of one seed without."""
    return f"{mean:+.1f}" + (f" ({low:+.1f} to {high:+.1f})" if isfinite(low) else "")


def main(argv: Sequence[str]) -> int:
    """Run a study and print its table; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.studies", description=__doc__)
    parser.add_argument("name", choices=STUDIES, metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), metavar="SEED")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="these alone, with the first (default: all)")
    parser.add_argument("--steps", type=int, default=600, metavar="N")
    parser.add_argument("--pictures", type=int, default=12, metavar="N", help="of each update")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at a time, a thread each")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/study_NAME.csv")
    options = parser.parse_args(argv)
    study = STUDIES[options.name]
    for arm in options.arms or ():
        if arm not in study.arms:
            raise InputError(
                f"--arms {arm!r}: unknown{did_you_mean(arm, study.arms)}; known: {', '.join(study.arms)}"
            )
    first = next(iter(study.arms))
    arms = [arm for arm in study.arms if not options.arms or arm == first or arm in options.arms]
    trained = [arm for arm in arms if study.arms[arm].trained_as is None]
    asked = [arm for arm in arms if arm not in trained]
    print(study.asks, flush=True)
    out = options.out.resolve()
    for some in (trained, asked):
        which = [(seed, arm) for seed in options.seeds for arm in some]
        run(study, out, Size(options.steps, options.pictures), options.jobs, which)
    found = finished(study, out)
    arms = [arm for arm in study.arms if any(arm in scores for scores in found.values())]
    print("\n".join(table(found, arms)))
    if options.record:
        about = {"study": options.name, "benchmark": BENCHMARK, "steps": options.steps}
        about |= {"pictures": options.pictures}
        print(write_rows(f"study_{options.name}", found, about))
    print(json.dumps({arm: round(means(found, arm)["mIoU"], 1) for arm in arms}))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("studies", lambda: main(sys.argv[1:])))
