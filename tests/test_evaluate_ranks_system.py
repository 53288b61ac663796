"""`python -m eval run` as people start it, with the model of the package: one process, several, stopped, broken.

Golden is the run of one process; every other way must write the same bytes.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.test_engine_system import environment, free_port
from uniresxx.checkpoints.resolve import SHIPPED
from uniresxx.data.catalog import load_benchmark
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.evaluation.run import evaluate
from uniresxx.imaging.masks import decode
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 900  # seconds for a command on a machine that is busy with other work
PICTURES = 24
FILES = ("predictions.jsonl", "dialogues.jsonl", "chats.jsonl")

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]


def command(
    out: Path, *more: str, ranks: int = 1, launcher: str = "torchrun", pictures: int = PICTURES
) -> list[str]:
    """`eval run` on drawn scenes, by a launcher where there are several ranks."""
    start = [sys.executable, "-m"]
    if launcher == "deepspeed":
        start = ["deepspeed", "--num_gpus", str(ranks), "--master_port", free_port(), "--module"]
    elif ranks > 1:
        start = ["torchrun", "--nproc_per_node", str(ranks), "--master_port", free_port(), "-m"]
    asked = ["--checkpoint", str(SHIPPED), "--benchmark", "scenes_easy/val", "--limit", str(pictures)]
    return [
        *start,
        "eval",
        "run",
        *asked,
        "--chats",
        "3",
        "--batch-images",
        "3",
        "--device",
        "cpu",
        "--out",
        str(out),
        *more,
    ]


def run(words: list[str], code: int | None = 0, **options: object) -> str:
    """Both outputs of a command that ends with this exit code."""
    done = subprocess.run(
        words, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=PATIENCE, **options,
    )  # fmt: skip
    assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def answers(out: Path) -> dict[str, bytes]:
    folder = out / "scenes_easy" / "val"
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def scores(out: Path) -> dict[str, object]:
    (entry,) = json.loads((out / "metrics.json").read_text())
    return {key: entry[key] for key in ("overall", "by_granularity", "n_expressions", "chats")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    run(command(out))
    assert len(answers(out)["predictions.jsonl"].splitlines()) == scores(out)["n_expressions"]
    return out


@pytest.mark.parametrize(("launcher", "ranks"), [("torchrun", 2), ("torchrun", 3), ("deepspeed", 2)])
def test_several_ranks_of_a_launcher_write_the_same_bytes(
    whole: Path, tmp_path: Path, launcher: str, ranks: int
) -> None:
    run(command(tmp_path, ranks=ranks, launcher=launcher))
    assert answers(tmp_path) == answers(whole) and scores(tmp_path) == scores(whole)
    assert not list(tmp_path.rglob("*part*"))


@pytest.mark.parametrize("seed", [0, 1])
def test_stopped_at_random_and_continued_with_other_numbers_of_ranks(
    whole: Path, tmp_path: Path, seed: int
) -> None:
    """Killed once some answers are written, three times; the fourth call ends the work."""
    rng, folder = random.Random(seed), tmp_path / "scenes_easy" / "val"
    for ranks in (rng.choice((2, 3)), 1, 2):
        before = written(folder)
        process = subprocess.Popen(
            command(tmp_path, ranks=ranks), cwd=ROOT, env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wanted, end = before + rng.randint(1, 2) * 20_000, time.monotonic() + PATIENCE
        while process.poll() is None and written(folder) < wanted and time.monotonic() < end:
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(command(tmp_path, ranks=rng.choice((1, 2, 3))))
    assert answers(tmp_path) == answers(whole) and scores(tmp_path) == scores(whole)


def written(folder: Path) -> int:
    """Bytes of answers so far, parts included; a part may go into the whole file while this looks."""
    total = 0
    for path in folder.glob("predictions*.jsonl"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_a_rank_that_dies_ends_all_with_a_line_and_loses_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scenes_easy" / "val"
    words = command(tmp_path, ranks=2)
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment(MARK=str(tmp_path)), start_new_session=True, stdout=stream,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        end = time.monotonic() + PATIENCE
        part = folder / "predictions.part-1.jsonl"
        while time.monotonic() < end and not (part.exists() and part.stat().st_size):
            time.sleep(0.02)
        os.kill(rank_1(str(tmp_path)), signal.SIGKILL)
        assert process.wait(timeout=PATIENCE) != 0
    assert written(folder) > 0
    said = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert all(line.endswith("the answers so far are kept; the same command continues") for line in said)
    run(words)
    assert answers(tmp_path) == answers(whole) and scores(tmp_path) == scores(whole)


def rank_1(mark: str) -> int:
    """The process of rank 1 among those that inherited the mark."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"RANK=1" in variables and f"MARK={mark}".encode() in variables:
            return int(folder.name)
    raise AssertionError("no process of rank 1")


def test_a_full_disk_is_one_line_and_the_same_command_continues(whole: Path, tmp_path: Path) -> None:
    """The disk is full for files of more than 30,000 bytes, as a limit of the process."""

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    said = run(command(tmp_path), code=1, preexec_fn=little_room)
    lines = [line for line in said.splitlines() if line and "expressions/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "run the same command" in lines[0], said
    kept = (tmp_path / "scenes_easy/val/predictions.jsonl").read_bytes()
    assert 0 < len(kept) <= 30_000
    run(command(tmp_path))
    assert answers(tmp_path) == answers(whole) and scores(tmp_path) == scores(whole)


# ---------------------------------------------------------------------------------------- in this process


def test_every_batch_size_gives_the_same_answers(tmp_path: Path) -> None:
    """Same text and flags, at most 1e-5 of the pixels, scores within 0.01."""
    model, records = load_segmenter(device="cpu"), load_benchmark("scenes_easy/val", None)[:PICTURES]
    found = {}
    for size in (1, 5, 24):
        path = evaluate(
            model, records, "scenes_easy/val", Decoding(), tmp_path / str(size), batch_images=size
        )
        lines = [json.loads(line) for line in path.open()]
        found[size] = lines, score_file(path, records, "scenes_easy/val")["overall"]
    lines, overall = found.pop(1)
    for others, their in found.values():
        different = pixels = 0
        for line, other in zip(lines, others, strict=True):
            assert all(line[key] == other[key] for key in ("expression_id", "text", "rejected"))
            for key in ("mask", "mask_if_forced"):
                if line.get(key) is not None:
                    mine, yours = decode(line[key]), decode(other[key])
                    different += int(np.count_nonzero(mine != yours))
                    pixels += mine.size
        assert different <= 1e-5 * pixels
        assert all(overall[key] == pytest.approx(their[key], abs=0.01) for key in overall)


def test_memory_stays_flat_over_500_pictures(tmp_path: Path) -> None:
    """Resident memory after 100 pictures and after 500 differs by less than 20 MB."""
    from uniresxx.data.scenes import scene_record

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    model = load_segmenter(device="cpu")
    records = [scene_record("scenes_easy", "train", k, 5) for k in range(500)]
    total = sum(len(record.expressions) for record in records)
    seen: list[tuple[int, int]] = []
    evaluate(
        model,
        records,
        "scenes_easy/train",
        Decoding(),
        tmp_path,
        progress=lambda done, _: seen.append((done, resident())),
    )
    early = max(memory for done, memory in seen if done <= total / 5)
    late = max(memory for done, memory in seen if done > total / 5)
    assert seen[-1][0] == total and late - early < 20e6, (early, late)
