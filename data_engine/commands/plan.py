"""`python -m data_engine plan`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_engine.assemble import kept_items
from data_engine.executors.local import LocalExecutor
from data_engine.pictures import sources
from data_engine.recipe import BUILT_IN, Recipe, recipe_named
from data_engine.run import Job, pictures_of, run_steps
from uniresxx.cli import OneLineParser, PageFormatter
from uniresxx.errors import InputError

PLAN = """the steps of a recipe, and with --images what N pictures would cost

With --images, the first pictures of DIR go through all steps in this process, in a folder that is removed again. From
their seconds, without the time to load the models, follow the hours of this machine or GPU for N pictures, and from
their results the size of shards and store.

Exit codes: 0 done; 1 too many pictures failed, or the disk; 2 wrong input."""


def parser() -> OneLineParser:
    """The parser of the command."""
    made = OneLineParser(prog="python -m data_engine plan", description=PLAN, formatter_class=PageFormatter)
    made.add_argument("recipe", metavar="RECIPE", help=f"{', '.join(BUILT_IN)}, or a JSON file")
    made.add_argument("--images", type=Path, metavar="DIR", help="the pictures")
    made.add_argument("--sample", type=int, default=8, metavar="K", help="how many are tried (default: 8)")
    made.add_argument("--pictures", type=int, metavar="N", help="for how many (default: those in DIR)")
    made.add_argument("--price", type=float, default=2.0, metavar="X", help="of an hour (default: 2)")
    made.add_argument("--json", action="store_true", help="print the recipe as a file to change, and no more")
    return made


def main(argv: Sequence[str]) -> int:
    """Print the plan; returns the exit code."""
    words = parser().parse_args(argv)
    recipe = recipe_named(words.recipe)
    if words.json:
        print(json.dumps(recipe.as_json(), indent=1))
        return 0
    for step in recipe.steps:
        named = {key: value for key, value in step.identity().items() if key not in ("step", "version")}
        options = ", ".join(f"{key} {_shown(value)}" for key, value in named.items())
        print(f"{step.NAME}: {options}")
    if words.images is None:
        print("add --images DIR to try some pictures and see the cost")
        return 0
    if words.sample < 1 or (words.pictures is not None and words.pictures < 1):
        raise InputError("--sample and --pictures must be 1 or more")
    found = sources(words.images.resolve(), "not stated", None)
    total = words.pictures or len(found)
    with tempfile.TemporaryDirectory(prefix="data_engine-") as folder:
        print(
            "\n".join(
                lines_of(
                    _tried(recipe, words.images, found[: words.sample], Path(folder)), total, words.price
                )
            )
        )
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['kind']} {value['source']}".strip()
    return str(value[:8] if isinstance(value, list) else value)


def _tried(recipe: Recipe, images: Path, found: Sequence[Any], folder: Path) -> dict[str, Any]:
    """What the sample cost: seconds per picture of each step, bytes and expressions per picture."""
    job = Job(replace(recipe, budget=1.0), images.resolve(), folder / "store")
    finished = run_steps(job, found, LocalExecutor(in_process=True))
    timings = json.loads((job.folder / "timings.jsonl").read_text().splitlines()[-1])
    pictures = [picture for path in finished for picture in pictures_of(path)]
    shards = sum(path.stat().st_size for path in (job.folder / "shards").rglob("*.jsonl"))
    return {
        "seconds": {name: cost["work_seconds"] / cost["pictures"] for name, cost in timings.items()},
        "shard_bytes": shards / len(pictures),
        "expressions": sum(len(kept_items(picture)) for picture in pictures) / len(pictures),
    }


def lines_of(tried: Mapping[str, Any], total: int, price: float) -> list[str]:
    """A plan for `total` pictures as lines."""
    hours = {name: seconds * total / 3600 for name, seconds in tried["seconds"].items()}
    lines = [f"for {total:,} pictures, one after another on this machine:"]
    lines += [
        f"  {name}: {1000 * tried['seconds'][name]:.1f} ms a picture, {value:,.2f} hours"
        for name, value in hours.items()
    ]
    spent = sum(hours.values())
    return [
        *lines,
        f"  in all {spent:,.2f} hours, {spent * price:,.2f} at {price:g} an hour",
        f"  {tried['expressions'] * total:,.0f} expressions, {tried['shard_bytes'] * total / 1e9:,.3f} GB of shards",
    ]
