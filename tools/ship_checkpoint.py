"""Make the model that comes with the package from a run: `python -m tools.ship_checkpoint RUN`.

Writes weights in bf16, config, tokenizer, recipe.json and about.json into uniresxx/assets/tiny. about.json says which
recipe and commit the model is of, and its scores on the first 100 pictures of scenes_easy/val, which
tests/test_shipped.py repeats. The weights are read as fp32 again, so answers are computed in fp32.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from uniresxx.checkpoints.folders import RECIPE, STATE
from uniresxx.checkpoints.publish import sha256_of
from uniresxx.checkpoints.resolve import ABOUT, SHIPPED, resolve
from uniresxx.checkpoints.tensors import CONFIG, TOKENIZER, WEIGHTS, read_json, read_tensors, write_tensors
from uniresxx.data.catalog import load_benchmark
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.evaluation.run import evaluate
from uniresxx.files import versions, write_json
from uniresxx.segmenters.base import Segmenter
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding

BENCHMARK, PICTURES = "scenes_easy/val", 100
MOST_BYTES = 8 * 10**6  # of the folder


def main() -> int:
    """Write the folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="run folder, or a checkpoint of it")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder for the model")
    options = parser.parse_args()
    source = resolve(options.run, print)
    write_model(source, options.out)
    about = describe(source) | measure(load_segmenter(options.out, device="cpu"))
    about["weights_sha256"] = sha256_of(options.out / WEIGHTS)
    write_json(options.out / ABOUT, about)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.1f} MB, {about['scores']['overall']}")
    return 0 if size <= MOST_BYTES else 1


def write_model(source: Path, out: Path) -> None:
    """Write the files of a checkpoint, its weights in bf16."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
        for name, tensor in read_tensors(source / WEIGHTS).items()
    }
    write_tensors(out / WEIGHTS, weights)
    for name in (TOKENIZER, RECIPE, CONFIG):
        shutil.copyfile(source / name, out / name)


def describe(source: Path) -> dict[str, Any]:
    """What made the checkpoint of a run."""
    recipe = read_json(source / RECIPE)
    return {
        "recipe": recipe["recipe"]["name"],
        "seed": recipe["recipe"]["seed"],
        "step": read_json(source / STATE)["step"],
        "commit": recipe["versions"]["commit"],
        "trained_with": recipe["versions"],
        "measured_with": versions(),
    }


def measure(segmenter: Segmenter) -> dict[str, Any]:
    """Scores on the first pictures of the benchmark, in percent, and a digest of the predictions."""
    records = load_benchmark(BENCHMARK, None)[:PICTURES]
    with tempfile.TemporaryDirectory() as folder:
        path = evaluate(segmenter, records, BENCHMARK, Decoding(), Path(folder))
        entry = score_file(path, records, BENCHMARK)
        digest = sha256(path.read_bytes()).hexdigest()
    scores = {key: entry[key] for key in ("overall", "by_granularity")}
    return {
        "benchmark": BENCHMARK,
        "pictures": PICTURES,
        "expressions": entry["n_expressions"],
        "scores": scores,
        "predictions_sha256": digest,
    }


if __name__ == "__main__":
    raise SystemExit(main())
