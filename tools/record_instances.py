"""Record what SA-Co's public evaluator gives on made cases: `tests/data/instances/saco.json`.

    python tools/record_instances.py SAM3

SAM3 is a git checkout of facebookresearch/sam3. Its own `CGF1Evaluator` runs here on files in its own form. A case is
one image with one phrase: run lengths of true and found masks on a small grid. Some found masks are true ones with
wrong pixels, some twice the same, some without a pixel; every fourth case has nothing to find.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.imaging import masks

OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "instances" / "saco.json"
CODE = "sam3/eval/cgf1_eval.py"
H, W = 12, 16
SEED = 20261127
# what the file holds -> the cases that it was computed over
SETS = {"all": slice(None), "some": slice(20, 70), "only with something to find": None}

Case = dict[str, list[str]]  # run lengths of "true" and "found"


def cases_of(count: int) -> list[Case]:
    """Made cases, the same every time."""
    rng = np.random.default_rng(SEED)
    return [_case(rng, nothing=k % 4 == 3) for k in range(count)]


def _case(rng: np.random.Generator, nothing: bool) -> Case:
    true = [] if nothing else [_rectangle(rng) for _ in range(rng.integers(1, 5))]
    found = []
    for mask_yx in true:
        if rng.random() < 0.8:
            wrong_yx = rng.random((H, W)) < rng.choice([0.0, 0.02, 0.1])
            found.append(mask_yx ^ wrong_yx)
    if found and rng.random() < 0.25:
        found.append(found[0])
    extra = int(rng.integers(0, 3)) if rng.random() < 0.4 else 0
    found += [_rectangle(rng) for _ in range(extra)]
    if rng.random() < 0.1:
        found.append(np.zeros((H, W), bool))
    order = rng.permutation(len(found))
    return {"true": [_counts(m) for m in true], "found": [_counts(found[k]) for k in order]}


def _rectangle(rng: np.random.Generator) -> np.ndarray:
    mask_yx = np.zeros((H, W), bool)
    y, x = rng.integers(0, H - 3), rng.integers(0, W - 3)
    mask_yx[y : y + rng.integers(2, 7), x : x + rng.integers(2, 8)] = True
    return mask_yx


def _counts(mask_yx: np.ndarray) -> str:
    return masks.encode(mask_yx)["counts"]


def public_scores(checkout: Path, cases: Sequence[Case]) -> dict[str, float]:
    """What the public evaluator prints about the cases."""
    spec = importlib.util.spec_from_file_location("cgf1_eval", checkout / CODE)
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    images = [{"id": k, "is_instance_exhaustive": True, "height": H, "width": W} for k in range(len(cases))]
    true = [(k, counts) for k, case in enumerate(cases) for counts in case["true"]]
    annotations = [
        {"id": n + 1, "iscrowd": 0, **_segmentation(k, counts)} for n, (k, counts) in enumerate(true)
    ]
    found = [
        {"score": 1.0, **_segmentation(k, counts)} for k, case in enumerate(cases) for counts in case["found"]
    ]
    categories = [{"id": 1, "name": "phrase"}]
    with tempfile.TemporaryDirectory() as folder:
        truth, answers = Path(folder, "truth.json"), Path(folder, "answers.json")
        truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        answers.write_text(json.dumps(found))
        values: Mapping[str, float] = code.CGF1Evaluator(str(truth)).evaluate(str(answers))
    wanted = {"cgF1": "cgF1", "pmF1": "positive_micro_F1", "IL_MCC": "IL_MCC"}
    return {ours: values[f"cgF1_eval_segm_{theirs}"] for ours, theirs in wanted.items()}


def _segmentation(image: int, counts: str) -> dict[str, Any]:
    rle = {"size": [H, W], "counts": counts}
    box = masks.box_of(masks.validate(rle)) or (0, 0, 0, 0)
    xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    found = {
        "image_id": image,
        "category_id": 1,
        "segmentation": rle,
        "area": masks.area(masks.validate(rle)),
    }
    return found | {"bbox": xywh}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkout", type=Path, metavar="SAM3")
    checkout: Path = parser.parse_args().checkout
    head = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    cases = cases_of(120)
    chosen = {
        name: list(range(len(cases)))[part] if part else [k for k, case in enumerate(cases) if case["true"]]
        for name, part in SETS.items()
    }
    public = {name: public_scores(checkout, [cases[k] for k in places]) for name, places in chosen.items()}
    origin = f"facebookresearch/sam3:{CODE} CGF1Evaluator at {commit}, on cases of tools/record_instances.py"
    content = {"origin": origin, "size": [H, W], "cases": cases, "sets": chosen, "public": public}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(json.dumps(public, indent=1))


if __name__ == "__main__":
    main()
