"""What the data engine costs beside its models: shards, files and workers, and how two workers share the work.

    python -m benchmarks.engine_overhead [--record]

The engine runs one step, a SAM of transformers with random weights, over made photographs. `overhead_percent`
compares the engine in one process with a bare loop that reads the same photographs and calls the same model, in CPU
time, which other programs hardly change; the masks' run lengths and measures are the engine's. `scaling_2` is the
wall time of one worker process over that of two, without the time in which they start.

`images_per_s_of_steps`: of the recipe `drawn` (classical components, then the round trip by the package's model),
one after another in this process. Those of models of full size are in docs/data_engine.md.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks._common import finish, interleaved, median_of, parser
from data_engine.executors.local import LocalExecutor
from data_engine.model import Model
from data_engine.pictures import Source, look_at, sources
from data_engine.records import Item
from data_engine.schedule import Worker, run_tasks
from data_engine.shards import write_shard
from data_engine.steps.base import Step
from data_engine.steps.objects import Segment
from data_engine.tasks import Done, Task, do
from uniresxx.data.scenes.presets import preset_of
from uniresxx.data.scenes.record import build_scene
from uniresxx.imaging.decode import read_photo
from uniresxx.types import Granularity


@dataclass(frozen=True)
class Sizes:
    """Of the photographs and of the model; boxes of each photograph."""

    pictures: int
    per_shard: int
    side: int
    width: int
    layers: int
    repeats: int
    scenes: int  # of the recipe `drawn`
    boxes: int = 4


FULL = Sizes(pictures=24, per_shard=3, side=512, width=192, layers=6, repeats=5, scenes=64)
SMALL = Sizes(pictures=4, per_shard=1, side=64, width=32, layers=1, repeats=1, scenes=4)


def make_model(folder: Path, sizes: Sizes) -> Model:
    """SAM with random weights, on one thread."""
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": sizes.width, "num_hidden_layers": sizes.layers, "num_attention_heads": 4,
        "image_size": sizes.side, "patch_size": 16, "output_channels": 64, "window_size": 7,
        "global_attn_indexes": [0], "num_pos_feats": 32, "mlp_dim": 4 * sizes.width,
    }  # fmt: skip
    prompt = {"hidden_size": 64, "image_size": sizes.side, "patch_size": 16}
    decoder = {"hidden_size": 64, "mlp_dim": 128, "num_attention_heads": 4}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    SamModel(config).save_pretrained(folder)
    return Model(kind="sam", source=str(folder), device="cpu")


def make_photographs(folder: Path, sizes: Sizes) -> list[Source]:
    """JPEG files of smooth noise."""
    folder.mkdir()
    for number in range(sizes.pictures):
        coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        photo.save(folder / f"{number:03d}.jpg", quality=90)
    return sources(folder, "made", None)


def make_inputs(root: Path, found: Sequence[Source], sizes: Sizes) -> list[Path]:
    """Shards of photographs with boxes, as a detector leaves them."""
    boxes = [(40.0 + 90 * n, 60.0, 180.0 + 90 * n, 300.0) for n in range(sizes.boxes)]
    items = [Item(f"o{n}", Granularity.OBJECT, "thing", box) for n, box in enumerate(boxes)]
    paths = []
    for start in range(0, len(found), sizes.per_shard):
        pictures = [
            look_at(item, root / "images").with_items(items)
            for item in found[start : start + sizes.per_shard]
        ]
        paths.append(root / f"input-{start}.jsonl")
        write_shard(paths[-1], {"step": "given"}, pictures)
    return paths


def tasks_of(root: Path, inputs: Sequence[Path], step: Step) -> list[Task]:
    """The step's tasks, with no output there yet."""
    shutil.rmtree(root / "out", ignore_errors=True)
    return [Task(root / "images", root / "out" / path.name, step, input=path) for path in inputs]


class Kept:
    """A worker that stays when the scheduler is done with it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def start(self, task: Task) -> Future[Done]:
        """As of the worker."""
        return self.worker.start(task)

    def stop(self) -> None:
        """Nothing: it is used again."""


class Started(LocalExecutor):
    """Gives out workers that have loaded their model, so that their start is not in the time."""

    def __init__(self, root: Path, inputs: Sequence[Path], step: Step, count: int) -> None:
        super().__init__()
        self.workers = [super(Started, self).worker(step) for _ in range(count)]
        [task, *_] = tasks_of(root, inputs, step)
        warm = [
            worker.start(replace(task, output=root / f"warm-{count}-{number}.jsonl"))
            for number, worker in enumerate(self.workers)
        ]
        for future in warm:
            future.result()
        self.free = [Kept(worker) for worker in self.workers]

    def worker(self, step: Step | None) -> Worker:
        """One of the started ones."""
        return self.free.pop()

    def seconds_of(self, tasks: Sequence[Task]) -> float:
        """Wall seconds of all tasks."""
        self.free = [Kept(worker) for worker in self.workers]
        start = time.perf_counter()
        run_tasks([[task] for task in tasks], self, lambda *_: None, len(self.workers))
        return time.perf_counter() - start

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.stop()


def engine_seconds(root: Path, inputs: Sequence[Path], step: Step) -> float:
    """CPU seconds of all tasks in this process."""
    tasks = tasks_of(root, inputs, step)
    start = time.process_time()
    done: list[Done] = [do(task) for task in tasks]
    spent = time.process_time() - start
    assert sum(item.pictures for item in done) and not sum(item.failed for item in done)
    return spent


def bare_seconds(model: Any, root: Path, found: Sequence[Source], boxes: Sequence[Any]) -> float:
    """CPU seconds of a loop over the same photographs and the same model."""
    start = time.process_time()
    for item in found:
        model.segment(read_photo(root / "images" / item.name), boxes)
    return time.process_time() - start


def step_speeds(root: Path, scenes: int) -> dict[str, float]:
    """Pictures in a second of each step's own work, on drawn scenes."""
    from data_engine.__main__ import main as data_engine

    (root / "scenes").mkdir()
    for number in range(scenes):
        pixels_yx3 = build_scene(preset_of("scenes_easy"), "val", number, 0).pixels_yx3
        Image.fromarray(pixels_yx3).save(root / "scenes" / f"{number:03d}.png")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        code = data_engine(["run", "drawn", "--images", str(root / "scenes"), "--out", str(root / "store")])
    assert code == 0
    costs = json.loads((root / "store.engine" / "timings.jsonl").read_text().splitlines()[-1])
    return {name: round(cost["pictures"] / cost["work_seconds"], 2) for name, cost in costs.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the last line is one JSON object."""
    from data_engine.components.table import box_segmenter_of
    from data_engine.run import pictures_of

    args = parser("engine_overhead", __doc__).parse_args(argv)
    torch.set_num_threads(1)
    sizes = SMALL if args.small else FULL
    with tempfile.TemporaryDirectory(prefix="engine_overhead-") as folder:
        root = Path(folder)
        found = make_photographs(root / "images", sizes)
        step = Segment(model=make_model(root / "model", sizes))
        inputs = make_inputs(root, found, sizes)
        boxes = [item.box for item in pictures_of(inputs[0])[0].items]
        model = box_segmenter_of(step.model)
        arms = {
            "bare": partial(bare_seconds, model, root, found, boxes),
            "engine": partial(engine_seconds, root, inputs, step),
        }
        interleaved(arms, 1)  # warm up
        cost = {name: median_of(values) for name, values in interleaved(arms, sizes.repeats).items()}
        with closing(Started(root, inputs, step, 1)) as one, closing(Started(root, inputs, step, 2)) as two:
            pools = {"1": one, "2": two}
            timed = {
                name: (lambda pool=pool: pool.seconds_of(tasks_of(root, inputs, step)))
                for name, pool in pools.items()
            }
            wall = interleaved(timed, sizes.repeats)
        speeds = step_speeds(root, sizes.scenes)
        by_workers = {name: median_of(values) for name, values in wall.items()}
    headline = {
        "scaling_2": round(by_workers["1"] / by_workers["2"], 2),
        "overhead_percent": round(100 * (cost["engine"] / cost["bare"] - 1), 2),
    }
    details = {
        "images_per_s": {
            "bare": round(sizes.pictures / cost["bare"], 2),
            **{f"segment, {name} workers": round(sizes.pictures / value, 2) for name, value in by_workers.items()},
        },
        "images_per_s_of_steps": speeds,
        "pictures": sizes.pictures, "boxes": sizes.boxes, "repeats": sizes.repeats,
    }  # fmt: skip
    finish("engine_overhead", headline, details, args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
