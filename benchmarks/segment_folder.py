"""`uniresxx segment` on a folder: 7 expressions in one call against one call per expression, and what a start costs.

    python -m benchmarks.segment_folder [--record]

`expressions_ratio`: CPU time of one call per expression over that of one call with all 7, on the same photographs and
the same loaded model: reading, decoding, answering, mask and overlay PNGs, JSON. One call encodes a photo and its
visual prefix once, the other way seven times. Sizes of the model are those of `benchmarks.training_step`. Weights are
random, so answers are cut after ANSWER tokens, which is what a trained model says: `[SEG]`, a full stop, the end.

`startup_cpu_s`: CPU time of the whole command, user and system, on a sample scene with the model that comes with the
package. Beside it `torch_cpu_s`, of `import torch` alone, and `transformers_cpu_s`, of torch and transformers' model
classes (Python's garbage collector runs there, as anywhere). The three take turns, in median. Modules are compiled
once, as after any first start. `wrong_option_cpu_s`: of a command line with a wrong option.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from benchmarks._common import ROOT, finish, interleaved, median_of, parser
from benchmarks._photographs import EXPRESSIONS, TEXTS, make_record
from benchmarks.training_step import Sizes, full, small
from mllm.tokens import Vocabulary
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.cli.segment.answers import Answers
from uniresxx.cli.segment.job import Asked, Job
from uniresxx.cli.segment.model import Model, model_of
from uniresxx.cli.segment.work import Tally, answer_all
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.predictor import Predictor
from uniresxx.types import Decoding

PHOTOS, REPEATS, STARTS = 4, 5, 5
ANSWER = 3  # tokens
SCENE, SENTENCE = "assets/scenes/01.png", "the red house"
SEED = 0


def saved_model(folder: Path, sizes: Sizes) -> None:
    """Random weights as a `from_pretrained` folder."""
    torch.manual_seed(SEED)
    config = UniRESPlusPlusConfig(mllm=sizes.mllm, head=PyramidHeadConfig(width=16, heads=2), boxes="grid")
    folder.mkdir()
    save_pretrained(folder, UniRESPlusPlusModel(config, Vocabulary.train(TEXTS, sizes.mllm.token_count)))


def saved_photos(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Made photographs as PNG files."""
    folder.mkdir()
    for number in range(count):
        pixels = make_record(number, size).pixels
        assert pixels is not None
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(map(str, folder.iterdir()))


def loaded(folder: Path) -> Model:
    """The model of the folder, ready to answer."""
    model = model_of(str(folder), {"device": "cpu"})
    segmenter = Predictor.from_pretrained(folder, device="cpu").segmenter
    decoding = Decoding(template=segmenter.question_template, max_new_tokens=ANSWER)
    model.loaded = Predictor(segmenter, decoding)
    return model


def calls(
    model: Model, photos: Sequence[str], texts: Sequence[Sequence[str]]
) -> Callable[[], tuple[float, Any]]:
    """One call of the command for each list of texts: CPU seconds, and the masks by photo and text."""

    def work() -> tuple[float, Any]:
        found = {}
        with TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
            start = time.process_time()
            for number, asked in enumerate(texts):
                folder = Path(out, str(number))
                folder.mkdir()
                job = Job(tuple(Asked(photo, tuple(asked)) for photo in photos), folder)
                answer_all(job, model, Answers(folder, model.made_by), Tally())
            seconds = time.process_time() - start
            for path in Path(out).glob("*/*.json"):
                for entry in json.loads(path.read_text())["expressions"]:
                    found[path.stem, entry["text"]] = entry["mask"]
        return seconds, found

    return work


def cpu_of(command: Sequence[str], compiled: Path, code: int = 0) -> Callable[[], float]:
    """CPU seconds, user and system, of a process that ends with this exit code; `compiled` keeps its modules."""

    def work() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(compiled),
            "PYTHONDONTWRITEBYTECODE": "",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    return work


def startup(folder: Path, starts: int) -> dict[str, float]:
    """Medians of the CPU seconds of a start, and of what it cannot avoid."""
    segment, compiled = ["-m", "uniresxx", "segment", SCENE, SENTENCE, "--device", "cpu"], folder / "compiled"
    arms = {
        "startup_cpu_s": lambda: cpu_of(
            [*segment, "--out", str(folder / f"out{time.monotonic_ns()}")], compiled
        )(),
        "torch_cpu_s": cpu_of(["-c", "import torch"], compiled),
        "transformers_cpu_s": cpu_of(["-c", "from transformers import PreTrainedModel"], compiled),
        "wrong_option_cpu_s": cpu_of([*segment, "--chekpoint", "x"], compiled, code=2),
    }
    for measure in arms.values():  # compiles what it imports
        measure()
    found = interleaved(arms, starts)
    return {name: round(median_of(seconds), 2) for name, seconds in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the last line is one JSON object."""
    options = parser("segment_folder", __doc__).parse_args(argv)
    torch.set_num_threads(1)
    sizes, photos, repeats, starts = (
        (small(), 1, 1, 1) if options.small else (full(), PHOTOS, REPEATS, STARTS)
    )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        saved_model(folder / "model", sizes)
        files = saved_photos(folder / "photos", photos, sizes.photo)
        model = loaded(folder / "model")
        arms = {
            "together": calls(model, files, [TEXTS]),
            "one_by_one": calls(model, files, [[text] for text in TEXTS]),
        }
        arms["together"]()  # what is made at first use belongs to neither
        found = interleaved(arms, repeats)
        seconds = {name: median_of([cpu for cpu, _ in runs]) for name, runs in found.items()}
        first, second = (runs[0][1] for runs in found.values())
        assert first.keys() == second.keys() and len(first) == photos * EXPRESSIONS
        starting = startup(folder, starts)
    details = {
        "photos": photos,
        "size": list(sizes.photo),
        "cpu_seconds_per_photo": {name: round(value / photos, 3) for name, value in seconds.items()},
        "same_masks": f"{sum(first[key] == second[key] for key in first)} of {len(first)}",
        **{name: value for name, value in starting.items() if name != "startup_cpu_s"},
    }
    headline = {
        "expressions_ratio": round(seconds["one_by_one"] / seconds["together"], 2),
        "startup_cpu_s": starting["startup_cpu_s"],
    }
    finish("segment_folder", headline, details, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
