"""Our tasks and our model in the harnesses themselves: `pytest -m interop` (docs/eval.md has the results).

lmms-eval is installed into a throw-away environment without its own torch: torch, transformers and what our model
needs come from the environment of the tests. VLMEvalKit is on no index: UNIRESXX_VLMEVALKIT names a clone, which runs
in an environment that UNIRESXX_VLMEVALKIT_PYTHON names. With UNIRESXX_INTEROP=DIR the environment stays in DIR.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.suites.tasks import BENCHMARKS, DATA

pytestmark = [pytest.mark.interop, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[1]
MINI_REAL = ROOT.parent / "shared" / "mini_real"
TASKS = ("refcoco_res_val", "grefcoco_res_val", "refcocom_res_val_object_part")
HARNESS = "lmms-eval==0.7.3"
NEEDED = (  # what it imports beside torch and transformers; filelock as old as it is written for
    "datasets", "evaluate", "filelock<3.20", "httpx", "jsonlines", "loguru", "openai", "openpyxl", "pytablewriter",
    "python-dotenv", "pytz", "sacrebleu", "tenacity", "tqdm-multiprocess",
)  # fmt: skip


def installed(place: Path) -> Path:
    """The Python of an environment with lmms-eval and our clone; skips where pip cannot get them."""
    python = place / "bin" / "python"
    if python.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    for words in (["--no-deps", HARNESS], NEEDED, ["--no-deps", "-e", str(ROOT)]):
        done = subprocess.run([python, "-m", "pip", "install", "-q", *words], capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(place)
            pytest.skip(f"pip cannot install {words}: {done.stderr.strip().splitlines()[-1:]}")
    ours = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (ours / "zz_ours.pth").write_text(sysconfig.get_path("purelib") + "\n")  # after its own packages
    return python


@pytest.fixture(scope="module")
def lmms_eval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("UNIRESXX_INTEROP")
    return installed((Path(kept) if kept else tmp_path_factory.mktemp("environments")) / "lmms-eval")


def scored_by_us(predictions: Path, task: str, out: Path) -> dict:
    words = ["score", str(predictions), "--benchmark", BENCHMARKS[task], "--data", str(MINI_REAL)]
    assert main([*words, "--out", str(out)]) == 0
    return json.loads((out / "metrics.json").read_text())[0]


def same_scores(found: Mapping[str, float], entry: Mapping) -> None:
    """The harness's scores are those of an entry of metrics.json; `mIoU_part` is the mIoU of parts."""
    assert len(found) >= 6
    for key, value in found.items():
        name, _, part = key.partition("_")
        ours = entry["by_granularity"][part][name] if part else entry["overall"][name]
        assert value == pytest.approx(ours, abs=1e-9), (entry["benchmark"], key)


def test_lmms_eval_scores_as_eval_score(lmms_eval: Path, tmp_path: Path) -> None:
    """The tiny model by its entry point over three tasks; then our program scores the harness's log of samples."""
    out = tmp_path / "out"
    words = [
        "--model",
        "uniresxx",
        "--model_args",
        "device=cpu",
        "--batch_size",
        "8",
        "--tasks",
        ",".join(TASKS),
    ]
    words += [
        "--include_path",
        ROOT / "eval" / "suites" / "lmms_tasks",
        "--output_path",
        out,
        "--log_samples",
    ]
    environment = os.environ | {DATA: str(MINI_REAL), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment["HF_HOME"] = str(tmp_path / "hub")
    done = subprocess.run(
        [lmms_eval, "-m", "lmms_eval", *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(out.rglob("*_results.json")).read_text())["results"]
    for task in TASKS:
        entry = scored_by_us(next(out.rglob(f"*_samples_{task}.jsonl")), task, tmp_path / task)
        found = {
            key.removesuffix(",none"): value
            for key, value in results[task].items()
            if isinstance(value, float) and "_stderr" not in key
        }
        same_scores(found, entry)


def test_vlmevalkit_scores_as_eval_score(tmp_path: Path) -> None:
    """The toolkit's own program over three tasks; then our program scores the predictions it left."""
    clone, python = (os.environ.get(f"UNIRESXX_VLMEVALKIT{end}") for end in ("", "_PYTHON"))
    if not clone or not python:
        pytest.skip(
            "UNIRESXX_VLMEVALKIT and UNIRESXX_VLMEVALKIT_PYTHON name no clone and no Python of VLMEvalKit"
        )
    words = ["--data", *TASKS, "--device", "cpu", "--work-dir", tmp_path / "out"]
    environment = os.environ | {
        DATA: str(MINI_REAL),
        "PYTHONPATH": str(ROOT),
        "LMUData": str(tmp_path / "lmu"),
    }
    done = subprocess.run(
        [python, "-m", "eval.suites.vlmevalkit", clone, *map(str, words)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for task in TASKS:
        path = next((tmp_path / "out").rglob(f"*_{task}.predictions.jsonl"))
        found = json.loads(next((tmp_path / "out").rglob(f"*_{task}.scores.json")).read_text())
        same_scores(found, scored_by_us(path, task, tmp_path / task))
